"""Splits and tasks: instances with their ids, texts, labels and role."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from distill.checks import RoleError, UserError
from distill.data.metrics import calibration_error
from distill.settings import digest


@dataclass(frozen=True)
class Table:
    """The rows of one file: ids, texts and the names of their labels."""

    ids: list[str]
    texts: list[tuple[str, ...]]  # one or two texts a row
    labels: list[str]


@dataclass(frozen=True)
class RawTask:
    """A task as its files hold it, before `distill.data.load.assign_roles` cuts the reward and dev splits.

    Attributes:
        source: where the data was read from, for example `files` or `hub`.
        tables: the data by split. `train` and the tests must be there; `dev` is cut from train if it is not.
        label_names: names of the C classes, in the order of the task's logits.
        tests: names of the test splits.
    """

    source: str
    tables: dict[str, Table]
    label_names: tuple[str, ...]
    tests: tuple[str, ...] = ("test",)


@dataclass(frozen=True)
class Split:
    """Instances of one role.

    Attributes:
        role: `train`, `reward`, `dev`, `test` or `pool`. Functions that must not see a role raise `RoleError`.
        ids: stable names of the instances in their source, never positions in a shuffle; str `[N]`.
        texts: one or two texts for each instance.
        labels: gold classes, int64 `[N]`.
    """

    role: str
    ids: np.ndarray
    texts: list[tuple[str, ...]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def require(self, *roles: str) -> Split:
        """This split, if its role is one of `roles`.

        Raises:
            RoleError: if it has another role.
        """
        if self.role not in roles:
            raise RoleError(f"data of role {self.role} given where only {' or '.join(roles)} is allowed")
        return self

    def take(self, rows: np.ndarray, role: str | None = None) -> Split:
        """The instances at `rows` (int64 `[B]`), with a new role if one is given."""
        return Split(role or self.role, self.ids[rows], [self.texts[i] for i in rows], self.labels[rows])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and texts. The outputs of teachers and encoders depend on these only, not on the labels."""
        return self._hash(())

    @cached_property
    def labelled_fingerprint(self) -> str:
        """Hash of ids, texts and labels, which training depends on."""
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

    Attributes:
        name: name of the task, as in `task.name`.
        source: where the data came from: `bundled`, `files` or `hub`.
        label_names: names of the C classes, in the order of all logits.
        splits: the data by role; MNLI has a second test split, `test_mm`.
        metric: the metric that model selection on dev maximises.
        tests: names of the test splits.
        pools: more training data, for teachers only.
        specialist: index into `pools` of the best teacher for each training instance, int64 `[N_train]`, where it is
            known. Only oracles and measures of regret may read it, never a state or a reward.
    """

    name: str
    source: str
    label_names: tuple[str, ...]
    splits: dict[str, Split]
    metric: str = "accuracy"
    tests: tuple[str, ...] = ("test",)
    pools: dict[str, Split] = field(default_factory=dict)
    specialist: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.label_names)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every split and the label names; `sha256` in results.json."""
        return digest(self.label_names, {r: s.labelled_fingerprint for r, s in self.splits.items()})

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Metrics of `logits` `[N,C]` on `labels` `[N]`.

        Returns:
            `accuracy`; `loss`: mean cross-entropy, nats; `brier`: mean squared distance of the probabilities to the
            label, in [0, 2]; `ece`: expected calibration error over 15 bins of equal width, in [0, 1] (Guo et al.,
            arXiv 1706.04599); `f1` and `matthews` for two classes.
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
    """A stratified random sample: `count` row numbers, sorted, int64.

    The classes keep their shares (method of largest remainders). Each has at least one row if `count` allows it.

    Args:
        labels: classes, int64 `[N]`.
        count: size of the sample.
        rng: generator of the sample.

    Raises:
        UserError: unless `count` lies in [1, N].
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if not 0 < count <= len(labels):
        raise UserError(f"a sample of {count} was asked for, from {len(labels)} instances; make it smaller")
    exact = sizes * count / len(labels)
    take = (
        np.minimum(np.maximum(np.floor(exact).astype(int), 1), sizes)
        if count >= len(classes)
        else np.floor(exact).astype(int)
    )
    order = np.argsort(take - exact)  # the class furthest below its share comes first
    while take.sum() < count:
        for c in order:
            if take.sum() < count and take[c] < sizes[c]:
                take[c] += 1
    while take.sum() > count:  # the guaranteed row of each class made too many: remove from those furthest above
        take[np.argmax(np.where(take > 1, take - exact, -np.inf))] -= 1
    return np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)])
    )
