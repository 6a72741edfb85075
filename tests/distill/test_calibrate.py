"""Calibration on the reward split, against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distill.checks import RoleError
from distill.data.splits import Split, Task
from distill.settings import BagEncoderSettings
from distill.teachers.calibrate import (
    SMOOTHING,
    CalibratedSignals,
    Confusion,
    Temperature,
    fit_calibration,
    fit_confusion,
    fit_temperature,
)
from distill.teachers.encoders import BagEncoder
from distill.teachers.live import LiveSignals
from distill.teachers.predictions import FileTeacher


def as_often_as_said(logits: np.ndarray, times: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Every row `times` times, with each class as its label just as often as softmax(logits) says."""
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = (probs * times).round().astype(int)
    assert np.allclose(counts, probs * times)
    return np.repeat(logits, counts.sum(1), 0), np.concatenate([np.repeat(np.arange(len(c)), c) for c in counts])


TRUE = np.log(np.array([[0.75, 0.25, 1e-9], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])[1:])


@pytest.mark.parametrize("factor", [2.0, 1.0, 0.5, 8.0])
def test_logits_that_are_too_large_by_a_factor_get_it_as_temperature(factor: float) -> None:
    logits, labels = as_often_as_said(TRUE)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=1e-4)


def test_one_hot_answers_get_their_accuracy() -> None:
    """Eight of ten right: log(1e-8) over T must give probabilities .8 and .2."""
    logits = np.tile(np.log([1.0, 1e-8]), (10, 1))
    found = fit_temperature(logits, np.array([0] * 8 + [1] * 2))
    assert found == pytest.approx(np.log(1e8) / np.log(4), rel=1e-4)


def test_extreme_teachers_get_a_bounded_temperature() -> None:
    always_right = np.eye(3) * 5
    assert 0.1 <= fit_temperature(always_right, np.arange(3)) < 0.2  # the loss is flat there
    assert fit_temperature(always_right, np.array([1, 2, 0])) == pytest.approx(100, rel=1e-3)


def test_a_confusion_matrix_by_hand() -> None:
    said, labels = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    fitted = fit_confusion(said, None, labels, 2)
    prior, s = np.array([4 / 8, 4 / 8]), SMOOTHING
    wanted = [
        [(3 + s * prior[0]) / (4 + s), (1 + s * prior[1]) / (4 + s)],
        [s * prior[0] / (2 + s), (2 + s * prior[1]) / (2 + s)],
    ]
    np.testing.assert_allclose(fitted.probs, [wanted])
    assert fitted.edges.size == 0


def test_a_label_that_is_never_said_gets_the_prior() -> None:
    fitted = fit_confusion(np.zeros(6, int), None, np.array([0, 0, 0, 1, 1, 1]), 3)
    np.testing.assert_allclose(fitted.probs[0, 2], [4 / 9, 4 / 9, 1 / 9])
    np.testing.assert_allclose(fitted.probs.sum(-1), 1)


def test_bins_of_the_confidence() -> None:
    """The sure third is always right, the others half of the time."""
    confidence = np.repeat([0.2, 0.5, 0.9], 40)
    said = np.tile([0, 1], 60)
    labels = np.where((confidence > 0.8) | (np.arange(120) % 4 < 2), said, 1 - said)
    fitted = fit_confusion(said, confidence, labels, 2)
    assert len(fitted.probs) == 3
    right = fitted.probs[:, [0, 1], [0, 1]]
    np.testing.assert_allclose(right[:2], 0.5, atol=0.03)
    assert (right[2] > 0.9).all()
    same = fit_confusion(said, np.full(120, 0.5), labels, 2)
    assert len(same.probs) <= 2  # equal confidences cannot be told apart


# --- applied ----------------------------------------------------------------------------------------------------------


IDS = np.array([f"i{n}" for n in range(40)])
LABELS = np.arange(40) % 2
SPLITS = {role: Split(role, IDS, [(f"some {i}",) for i in IDS], LABELS) for role in ("train", "reward")}
TASK = Task("t", "files", ("no", "yes"), SPLITS)
ENCODER = BagEncoder(BagEncoderSettings(4))


@pytest.fixture
def teachers(tmp_path: Path) -> list[Any]:
    """Probabilities (silent on the last ten) and labels, both right in four cases of five."""
    right = np.arange(40) % 5 > 0
    says = np.where(right, LABELS, 1 - LABELS)
    p = np.where(says == 1, 0.99, 0.01)
    pd.DataFrame({"id": IDS, "yes": p, "no": 1 - p})[:30].to_csv(tmp_path / "p.csv", index=False)
    pd.DataFrame({"id": IDS, "label": np.array(["no", "yes"])[says]})[5:].to_csv(tmp_path / "l.csv", index=False)
    return [FileTeacher("p", tmp_path / "p.csv", TASK), FileTeacher("l", tmp_path / "l.csv", TASK)]


def test_calibrated_signals(teachers: list[Any]) -> None:
    given = LiveSignals(SPLITS["reward"], teachers, ENCODER)
    fitted = fit_calibration(teachers, given, SPLITS["reward"])
    assert isinstance(fitted[0], Temperature)
    assert isinstance(fitted[1], Confusion)
    assert fitted[0].temperature == pytest.approx(np.log(99) / np.log(4), rel=1e-4)
    assert list(fitted[0].facts()) == ["temperature"]
    train = LiveSignals(SPLITS["train"], teachers, ENCODER)
    signals = CalibratedSignals(train, SPLITS["train"], teachers, fitted)
    rows = np.array([39, 7, 2, 5])
    logits = signals.logits(rows)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(signals.answered(rows), [[False, True], [True, True], [True, False], [True, True]])
    np.testing.assert_allclose(logits[:, 0], train.logits(rows)[:, 0] / fitted[0].temperature, rtol=1e-6)
    said = teachers[1].said(SPLITS["train"])[0][rows]
    for i in (0, 1, 3):
        np.testing.assert_allclose(np.exp(logits[i, 1]), fitted[1].probs[0, said[i]], rtol=1e-5)
    assert not logits[0, 0].any()
    assert not logits[2, 1].any()
    np.testing.assert_array_equal(signals.vectors(rows), train.vectors(rows))


def test_it_is_fitted_on_the_reward_split_alone(teachers: list[Any]) -> None:
    with pytest.raises(RoleError, match="role train"):
        fit_calibration(teachers, LiveSignals(SPLITS["train"], teachers, ENCODER), SPLITS["train"])
