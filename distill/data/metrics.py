"""Metrics of predicted probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # of confidence


def calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of `probs` `[N,C]` on `labels` `[N]`, in [0, 1].

    The instances are put into `bins` bins of equal width by their confidence (the largest probability). The error is
    the mean distance between confidence and accuracy over the bins, weighted by their numbers of instances.
    """
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    bin_of = _bin_of(confidence, bins)
    gap = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def reliability(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """The reliability curve of `probs` `[N,C]` on `labels` `[N]`: how often the model is right, by its confidence.

    The bins are those of `calibration_error`. Bins without an instance are left out.

    Returns:
        For each bin its edges `low` and `high`, the number of instances `count`, their mean `confidence` and `accuracy`.
    """
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    bin_of = _bin_of(confidence, bins)
    return [
        {
            "low": place / bins,
            "high": (place + 1) / bins,
            "count": int((bin_of == place).sum()),
            "confidence": float(confidence[bin_of == place].mean()),
            "accuracy": float(correct[bin_of == place].mean()),
        }
        for place in np.unique(bin_of).tolist()
    ]


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each confidence `[N]`; the upper edge belongs to the bin."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def by_class(probs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What a classifier does with each class, from `probs` `[N,C]` on `labels` `[N]`.

    Returns:
        `labels`: the names of the classes; `confusion` `[C][C]`: numbers of instances, one row for each gold class and one
        column for each predicted class; `classes`: precision, recall, F1 and number of instances of each class;
        `macro`: their plain means; `reliability`: see the function of that name.
    """
    from sklearn.metrics import classification_report, confusion_matrix

    every, predicted = np.arange(len(names)), probs.argmax(1)
    # The report's keys are numbers: a class may be called "accuracy", which is a key of the report itself.
    numbers = [str(i) for i in every]
    found = classification_report(
        labels, predicted, labels=every, target_names=numbers, output_dict=True, zero_division=0.0
    )

    def row(key: str) -> dict[str, float]:
        return {"precision": found[key]["precision"], "recall": found[key]["recall"], "f1": found[key]["f1-score"]}

    return {
        "labels": list(names),
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
        "classes": [
            {"label": name, **row(key), "count": int(found[key]["support"])}
            for name, key in zip(names, numbers, strict=True)
        ],
        "macro": row("macro avg"),
        "reliability": reliability(probs, labels),
    }
