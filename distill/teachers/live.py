"""Signals computed on demand: a teacher runs only for the instances that need it."""

from __future__ import annotations

import numpy as np

from distill.data.splits import Split
from distill.teachers.signals import Answers, Source, checked


class LiveSignals:
    """`TeacherSignals` computed on demand. Nothing is stored; a teacher runs for the chosen instances only."""

    selective = True

    def __init__(self, split: Split, teachers: list[Source], encoder: Source) -> None:
        self.names, self.width = tuple(t.name for t in teachers), encoder.width
        self.split, self.teachers, self.encoder = split, teachers, encoder
        self._answers = Answers(split, teachers)
        self.complete = self._answers.complete

    def answered(self, rows: np.ndarray) -> np.ndarray:
        """Which teachers have an answer for `rows` (int64 `[B]`): bool `[B,K]`."""
        return self._answers.at(rows)

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits of `rows` (int64 `[B]`): float32 `[B,K,C]`.

        Args:
            rows: rows of the split.
            chosen: bool `[B,K]`, the pairs that are computed; others get zeros. None: all pairs.

        Raises:
            UserError: for an output that is not finite, as `StoredSignals` does.
        """
        out = np.zeros((len(rows), len(self.teachers), self.teachers[0].width), np.float32)
        for k, teacher in enumerate(self.teachers):
            needed = np.arange(len(rows)) if chosen is None else np.flatnonzero(chosen[:, k])
            if len(needed):
                out[needed, k] = checked(teacher.at(self.split, rows[needed]), len(needed), teacher)
        return out

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length: float32 `[B,D]`."""
        return checked(self.encoder.at(self.split, rows), len(rows), self.encoder)
