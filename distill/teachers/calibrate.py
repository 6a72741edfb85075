"""Calibration of teachers on the labels of the reward split (`teachers.calibrate`).

Probabilities get one temperature a teacher (Guo et al., arXiv 1706.04599). A teacher that says labels only gets the
probabilities of its confusion matrix: how often each class is right where it says a label, by how sure it says to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from distill.data.splits import Split
from distill.teachers.predictions import FileTeacher
from distill.teachers.signals import Source, TeacherSignals

FORMAT = 1  # raised whenever calibrated answers change
LEAST, MOST = 0.1, 100.0  # temperatures that are considered
BINS = 3  # of the confidence: thirds of the reward instances
SMOOTHING = 3.0  # instances that the class prior counts for in each cell of a confusion matrix


class Calibration(Protocol):
    """What turns the logits of one teacher on one split into calibrated ones."""

    def __call__(self, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Calibrated logits float32 `[B,C]` for logits `[B,C]` of `rows` `[B]`; zeros of a silent teacher stay zeros."""
        ...


@dataclass(frozen=True)
class Temperature:
    """Logits divided by one temperature."""

    temperature: float

    def on(self, teacher: Source, split: Split) -> Calibration:
        """The calibration of a split: the same for all."""
        return lambda logits, rows: logits / np.float32(self.temperature)

    def facts(self) -> dict[str, Any]:
        """For results: `temperature`."""
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class Confusion:
    """`P(y | says l, confidence bin)`.

    Attributes:
        probs: float64 `[bins,C,C]`: bin, said label, class.
        edges: upper edges of all bins but the last, `[bins-1]`.
    """

    probs: np.ndarray
    edges: np.ndarray

    def on(self, teacher: Source, split: Split) -> Calibration:
        """The calibration of a split, whose labels are read from the teacher's file."""
        assert isinstance(teacher, FileTeacher)
        labels, confidence = teacher.said(split)
        bins = _bin_of(confidence, self.edges, len(labels))
        table = np.log(self.probs).astype(np.float32)

        def apply(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
            answers: np.ndarray = table[bins[rows], labels[rows]]
            return np.where(labels[rows, None] >= 0, answers, np.float32(0))

        return apply

    def facts(self) -> dict[str, Any]:
        """For results: `confusion` `[bins][C][C]` and `confidence_edges`."""
        return {"confusion": self.probs.round(4).tolist(), "confidence_edges": self.edges.tolist()}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which `logits / T` `[N,C]` have the smallest cross-entropy on `labels` `[N]`."""
    wide = np.asarray(logits, np.float64)

    def loss(log_t: float) -> float:
        return float(-log_softmax(wide / np.exp(log_t), 1)[np.arange(len(labels)), labels].mean())

    # The loss is convex in 1/T, so it has one minimum in log T as well.
    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def fit_confusion(said: np.ndarray, confidence: np.ndarray | None, labels: np.ndarray, classes: int) -> Confusion:
    """The confusion matrix of said labels `[N]` on `labels` `[N]`, by thirds of `confidence` `[N]`.

    Each cell is smoothed towards the class prior, which itself counts one instance of each class more than there are.
    """
    prior = (np.bincount(labels, minlength=classes) + 1) / (len(labels) + classes)
    edges = np.empty(0) if confidence is None else np.unique(np.quantile(confidence, np.arange(1, BINS) / BINS))
    counts = np.zeros((len(edges) + 1, classes, classes))
    np.add.at(counts, (_bin_of(confidence, edges, len(said)), said, labels), 1)
    probs = (counts + SMOOTHING * prior) / (counts.sum(-1, keepdims=True) + SMOOTHING)
    return Confusion(probs, edges)


def _bin_of(confidence: np.ndarray | None, edges: np.ndarray, count: int) -> np.ndarray:
    """The bin of each confidence, int64 `[N]`; an edge belongs to the bin below it."""
    return np.zeros(count, np.int64) if confidence is None else np.searchsorted(edges, confidence)


def fit_calibration(
    teachers: Sequence[Source], signals: TeacherSignals, reward: Split
) -> list[Temperature | Confusion]:
    """One calibration for each teacher, on the reward instances that it answers.

    Args:
        teachers: the pool.
        signals: their answers on the reward split, as given.
        reward: the reward split.
    """
    reward.require("reward")
    rows = np.arange(len(reward))
    logits, answered = signals.logits(rows), signals.answered(rows)
    out: list[Temperature | Confusion] = []
    for k, teacher in enumerate(teachers):
        here = np.flatnonzero(answered[:, k])
        labels = reward.labels[here]
        if isinstance(teacher, FileTeacher) and teacher.says_labels:
            said, confidence = teacher.said(reward)
            sure = None if confidence is None else confidence[here]
            out.append(fit_confusion(said[here], sure, labels, teacher.width))
        else:
            out.append(Temperature(fit_temperature(logits[here, k], labels)))
    return out


class CalibratedSignals:
    """`TeacherSignals` whose logits are calibrated. Stored logits stay as the teachers gave them.

    Args:
        signals: answers on the split, as given.
        split: the split.
        teachers: the pool, in the same order.
        fitted: one calibration for each teacher.
    """

    def __init__(
        self,
        signals: TeacherSignals,
        split: Split,
        teachers: Sequence[Source],
        fitted: Sequence[Temperature | Confusion],
    ) -> None:
        self.names, self.width, self.selective, self.complete = (
            signals.names,
            signals.width,
            signals.selective,
            signals.complete,
        )
        self._signals = signals
        self._apply = [one.on(teacher, split) for one, teacher in zip(fitted, teachers, strict=True)]

    def answered(self, rows: np.ndarray) -> np.ndarray:
        """Which teachers have an answer for `rows` (int64 `[B]`): bool `[B,K]`."""
        return self._signals.answered(rows)

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Calibrated teacher logits of `rows` (int64 `[B]`): float32 `[B,K,C]`."""
        given = self._signals.logits(rows, chosen)
        return np.stack([apply(given[:, k], rows) for k, apply in enumerate(self._apply)], 1)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length: float32 `[B,D]`."""
        return self._signals.vectors(rows)
