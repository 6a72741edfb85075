"""Metrics of predicted probabilities."""

from __future__ import annotations

import numpy as np


def calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of `probs` `[N,C]` on `labels` `[N]`, in [0, 1].

    The instances are put into `bins` bins of equal width by their confidence (the largest probability). The error is
    the mean distance between confidence and accuracy over the bins, weighted by their numbers of instances.
    """
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # the upper edge belongs to the bin
    gap = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))
