"""The interfaces of everything that gives signals: sources of one vector for each instance, and the signals of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from distill.checks import UserError
from distill.data.splits import Split


class Source(Protocol):
    """Something that gives `width` numbers for each instance: a teacher (its logits) or an encoder (its vector).

    A teacher that may be silent also has a method `answered(split)`, see `answers`.

    Attributes:
        name: name of the source, unique in a pool.
        fingerprint: hash of everything that its outputs depend on, besides the instances.
        width: length of an output.
    """

    name: str
    fingerprint: str
    width: int

    def compute(self, split: Split) -> np.ndarray:
        """Outputs for a whole split: float32 `[N, width]`, in the order of the split."""
        ...

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Outputs for a few rows (int64 `[B]`) of a split: float32 `[B, width]`. Tokens of the split are kept for later calls."""
        ...

    def release(self) -> None:
        """Free models and tokens. They are loaded again when they are needed."""
        ...


class TeacherSignals(Protocol):
    """Outputs of K teachers (C classes) and of the encoder (D numbers), by row of one split.

    Attributes:
        names: names of the teachers.
        width: D.
        selective: whether the logits of a few pairs cost less than those of all.
        complete: whether every teacher answers every row.
    """

    names: tuple[str, ...]
    width: int
    selective: bool
    complete: bool

    def answered(self, rows: np.ndarray) -> np.ndarray:
        """Which teachers have an answer for `rows` (int64 `[B]`): bool `[B,K]`. This runs no model."""
        ...

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits of `rows` (int64 `[B]`): float32 `[B,K,C]`. Those of a silent teacher are zeros.

        Args:
            rows: rows of the split.
            chosen: bool `[B,K]`, the pairs that are needed; the logits of others may be zeros. None: all pairs.
        """
        ...

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length: float32 `[B,D]`."""
        ...


class Silent(Protocol):
    """A source that has no answer for some instances."""

    def answered(self, split: Split) -> np.ndarray:
        """Whether it has an answer for each instance of a whole split, bool `[N]`."""
        ...


class Answers:
    """Which of K teachers have an answer for each row of one split.

    Attributes:
        complete: whether every teacher answers every row.
    """

    def __init__(self, split: Split, teachers: Sequence[Source]) -> None:
        given = [
            cast(Silent, t).answered(split) if hasattr(t, "answered") else np.ones(len(split), bool) for t in teachers
        ]
        self.count, self.complete = len(given), all(bool(g.all()) for g in given)
        self._given = None if self.complete else np.stack(given, 1)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Bool `[B,K]` of `rows` (int64 `[B]`)."""
        return np.ones((len(rows), self.count), bool) if self._given is None else self._given[rows]


def checked(values: np.ndarray, count: int, source: Source) -> np.ndarray:
    """`values` as contiguous float32 `[count, width]`.

    Raises:
        UserError: if they have another shape, or a number is not finite.
    """
    values = np.ascontiguousarray(values, np.float32)
    if values.shape != (count, source.width):
        raise UserError(f"{source.name}: gave shape {values.shape}, expected {(count, source.width)}")
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise UserError(
            f"{source.name}: {int(bad.sum())} of {count} instances have NaN or infinite outputs; "
            "this teacher or encoder is broken"
        )
    return values
