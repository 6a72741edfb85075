"""Splits and tasks: instances with their ids, texts, labels and role."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from distill.checks import RoleError, check
from distill.data.metrics import calibration_error
from distill.settings import digest


@dataclass(frozen=True)
class _Table:
    """Rows as read: ids, texts and label names."""

    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: list[str]


@dataclass(frozen=True)
class Split:
    """Instances of one role. `ids` are stable: they name the instance in its source, never a place in a shuffle."""

    role: str
    ids: np.ndarray  # [N] str
    texts: list[tuple[str, ...]]  # one or two texts an instance
    labels: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.ids)

    def require(self, *roles: str) -> Split:
        """This split, if its role is one of `roles`; `RoleError` otherwise."""
        if self.role not in roles:
            raise RoleError(f"data of role {self.role} given where only {' or '.join(roles)} is allowed")
        return self

    def take(self, rows: np.ndarray, role: str | None = None) -> Split:
        """The instances at `rows`, under a new role if one is given."""
        return Split(role or self.role, self.ids[rows], [self.texts[i] for i in rows], self.labels[rows])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and texts (not labels): what teachers say depends on nothing else."""
        return self._hash(())

    @cached_property
    def labelled_fingerprint(self) -> str:
        """Hash of ids, texts and labels: what training depends on."""
        return self._hash(self.labels.tolist())

    def _hash(self, extra: Sequence[int]) -> str:
        h = hashlib.sha256()
        for name, text in zip(self.ids, self.texts, strict=True):
            h.update("\x1f".join((str(name), *text)).encode("utf-8", "surrogatepass") + b"\x1e")
        h.update(repr(list(extra)).encode())
        return h.hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """A classification task with its splits by role.

    `tests` names the test splits (MNLI has two). `pools` are extra training data for teachers only. `specialist` is,
    where known, the index into `pools` of the right teacher for each training instance: for oracles and regret alone,
    never for a state or a reward.
    """

    name: str
    source: str
    label_names: tuple[str, ...]
    splits: dict[str, Split]
    metric: str = "accuracy"
    tests: tuple[str, ...] = ("test",)
    pools: dict[str, Split] = field(default_factory=dict)
    specialist: np.ndarray | None = None  # [N_train] int64

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.label_names)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over every split and the label names; `sha256` of results.json."""
        return digest(self.label_names, {r: s.labelled_fingerprint for r, s in self.splits.items()})

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Metrics of `logits` [N,C] on `labels` [N].

        accuracy; loss: mean cross-entropy, nats; brier: mean squared distance of the probabilities to the label, in
        [0, 2]; ece: expected calibration error over 15 bins of equal width, in [0, 1] (Guo et al., arXiv 1706.04599);
        f1 and matthews for two classes.
        """
        logits = np.asarray(logits, np.float64)
        top = logits.max(1, keepdims=True)
        log_z = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        guess = logits.argmax(1)
        out = {
            "accuracy": float((guess == labels).mean()),
            "loss": float((log_z - logits[np.arange(len(labels)), labels]).mean()),
        }
        probs = np.exp(logits - log_z[:, None])
        out["brier"] = float(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1).mean())
        out["ece"] = calibration_error(probs, labels)
        if self.num_classes == 2:
            from sklearn.metrics import f1_score, matthews_corrcoef

            out["f1"] = float(f1_score(labels, guess, zero_division=0.0))
            out["matthews"] = float(matthews_corrcoef(labels, guess))
        return out


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows of a random sample of `count` that keeps the classes' shares (largest remainders), at least one a class."""
    classes, sizes = np.unique(labels, return_counts=True)
    if not 0 < count <= len(labels):
        raise UserError(f"a sample of {count} was asked for, from {len(labels)} instances; make it smaller")
    exact = sizes * count / len(labels)
    take = (
        np.minimum(np.maximum(np.floor(exact).astype(int), 1), sizes)
        if count >= len(classes)
        else np.floor(exact).astype(int)
    )
    order = np.argsort(take - exact)  # most short of its share first
    while take.sum() < count:
        for c in order:
            if take.sum() < count and take[c] < sizes[c]:
                take[c] += 1
    while take.sum() > count:  # too many classes were given their one: take from those furthest above their share
        take[np.argmax(np.where(take > 1, take - exact, -np.inf))] -= 1
    return np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)])
    )
