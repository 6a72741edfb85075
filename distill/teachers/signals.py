"""The interfaces of everything that gives signals: sources of one vector for each instance, and the signals of a split."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distill.checks import UserError
from distill.data.splits import Split


class Source(Protocol):
    """Something that gives `width` numbers for each instance: a teacher (its logits) or an encoder (its vector).

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
    """

    names: tuple[str, ...]
    width: int
    selective: bool

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits of `rows` (int64 `[B]`): float32 `[B,K,C]`.

        Args:
            rows: rows of the split.
            chosen: bool `[B,K]`, the pairs that are needed; the logits of others may be zeros. None: all pairs.
        """
        ...

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length: float32 `[B,D]`."""
        ...


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
