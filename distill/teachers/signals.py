"""What a source of signals is, and the one interface to stored and live signals."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distill.checks import check
from distill.data.splits import Split


class Source(Protocol):
    """Something that says a vector of `width` numbers about an instance: a teacher (its logits) or an encoder."""

    name: str
    fingerprint: str
    width: int

    def compute(self, split: Split) -> np.ndarray:
        """Float32 `[N, width]`, in the split's order."""
        ...

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Float32 `[B, width]` of a few instances of a split: what was prepared for the split is kept for the next call."""
        ...

    def release(self) -> None:
        """Forget what was loaded and prepared; it may be asked again."""
        ...


class TeacherSignals(Protocol):
    """What is known of instances, by row of one split. K teachers, C classes, D numbers of the encoder."""

    names: tuple[str, ...]
    width: int
    selective: bool  # whether asking for chosen pairs alone is cheaper than asking for all

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits, float32 `[B,K,C]`; with `chosen` (bool `[B,K]`) those of other pairs may be zeros."""
        ...

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length, float32 `[B,D]`."""
        ...


def checked(values: np.ndarray, count: int, source: Source) -> np.ndarray:
    """`values` as contiguous float32 `[count, width]`; `UserError` for another shape or a number that is not finite."""
    values = np.ascontiguousarray(values, np.float32)
    if values.shape != (count, source.width):
        raise UserError(f"{source.name}: gave shape {values.shape}, expected {(count, source.width)}")
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise UserError(
            f"{source.name}: {int(bad.sum())} of {count} instances have NaN or infinite outputs; this teacher or encoder is broken"
        )
    return values
