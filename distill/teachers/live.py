"""Signals computed on demand: a teacher runs only for the instances that ask for it."""

from __future__ import annotations

import numpy as np

from distill.data.splits import Split
from distill.teachers.signals import Source, checked


class LiveSignals:
    """Signals computed on demand: a forward of a teacher for the instances that ask for it, and for no other."""

    selective = True

    def __init__(self, split: Split, teachers: list[Source], encoder: Source) -> None:
        self.names, self.width = tuple(t.name for t in teachers), encoder.width
        self.split, self.teachers, self.encoder = split, teachers, encoder

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits, float32 `[B,K,C]`; with `chosen` (bool `[B,K]`) zeros elsewhere, where no teacher is run.

        Raises `UserError` for a number that is not finite, as the store does.
        """
        out = np.zeros((len(rows), len(self.teachers), self.teachers[0].width), np.float32)
        for k, teacher in enumerate(self.teachers):
            asking = np.arange(len(rows)) if chosen is None else np.flatnonzero(chosen[:, k])
            if len(asking):
                out[asking, k] = checked(teacher.at(self.split, rows[asking]), len(asking), teacher)
        return out

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length, float32 `[B,D]`."""
        return checked(self.encoder.at(self.split, rows), len(rows), self.encoder)
