"""Classification metrics of logits against labels."""

from __future__ import annotations

import numpy as np


def calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of confidence of equal width, weighted by their instances."""
    sure, right = probs.max(1), probs.argmax(1) == labels
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)  # a bin holds its upper edge
    gap = np.bincount(place, right - sure, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))
