"""Errors by class and the reliability curve."""

from __future__ import annotations

import numpy as np
import pytest

from distill.data.metrics import by_class, calibration_error, reliability


def made_up(count: int = 300, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(count, classes))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rng.integers(classes, size=count)


def test_classes_against_counts_by_hand() -> None:
    probs, labels = made_up()
    predicted = probs.argmax(1)
    found = by_class(probs, labels, ("accuracy", "b", "macro avg"))  # names that the library's report uses itself
    confusion = np.array(found["confusion"])
    assert confusion.sum() == len(labels)
    for c, row in enumerate(found["classes"]):
        assert row["label"] == found["labels"][c]
        assert confusion[c].sum() == row["count"] == (labels == c).sum()
        assert row["precision"] == pytest.approx((labels[predicted == c] == c).mean())
        assert row["recall"] == pytest.approx((predicted[labels == c] == c).mean())
        assert row["f1"] == pytest.approx(2 / (1 / row["precision"] + 1 / row["recall"]))
    assert found["macro"]["recall"] == pytest.approx(np.mean([r["recall"] for r in found["classes"]]))


def test_a_class_that_never_occurs_has_zeros() -> None:
    probs, labels = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1]]), np.array([0, 0])
    found = by_class(probs, labels, ("a", "b", "c"))
    assert found["classes"][2] == {"label": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}
    assert found["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_reliability_curve_gives_the_calibration_error() -> None:
    probs, labels = made_up()
    curve = reliability(probs, labels)
    assert sum(bin["count"] for bin in curve) == len(labels)
    assert all(bin["low"] < bin["confidence"] <= bin["high"] for bin in curve)
    gaps = [bin["count"] * abs(bin["confidence"] - bin["accuracy"]) for bin in curve]
    assert sum(gaps) / len(labels) == pytest.approx(calibration_error(probs, labels))
