"""Splits and tasks: instances with their ids, texts, labels and role."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from distill.checks import RoleError, UserError
from distill.data.metrics import calibration_error
from distill.settings import TaskSettings, digest


@dataclass(frozen=True)
class Table:
    """The rows of one file.

    Attributes:
        ids: unique names of the rows.
        texts: one or two texts a row.
        labels: the name of each row's label; None: the row is unlabelled.
        owners: the name of the teacher that is right for each row, empty where that is not known; None: for no row.
    """

    ids: list[str]
    texts: Sequence[tuple[str, ...]]
    labels: Sequence[str | None]
    owners: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class RawTask:
    """A task as its files hold it, before `distill.data.load.assign_roles` cuts the reward and dev splits.

    Attributes:
        source: where the data was read from, for example `files` or `hub`.
        tables: the data by split. `train` and the tests must be there; `dev` is cut from train if it is not; the rows
            of `unlabelled` join train after the cuts.
        label_names: names of the C classes, in the order of the task's logits.
        tests: names of the test splits.
        pools: more labelled data, for teachers only.
    """

    source: str
    tables: dict[str, Table]
    label_names: tuple[str, ...]
    tests: tuple[str, ...] = ("test",)
    pools: dict[str, Table] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Instances of one role.

    Attributes:
        role: `train`, `reward`, `dev`, `test` or `pool`. Functions that must not see a role raise `RoleError`.
        ids: stable names of the instances in their source, never positions in a shuffle; str `[N]`.
        texts: one or two texts for each instance.
        labels: gold classes, int64 `[N]`. -1: the instance is unlabelled, which only train may hold.
    """

    role: str
    ids: np.ndarray
    texts: list[tuple[str, ...]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> np.ndarray:
        """Whether the gold label of each instance is known, bool `[N]`."""
        known: np.ndarray = self.labels >= 0
        return known

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

    def unlabelled(self) -> Split:
        """The same instances without their labels."""
        return replace(self, labels=np.full(len(self), -1, np.int64))

    def joined(self, other: Split) -> Split:
        """These instances, and after them those of another split."""
        ids, labels = np.concatenate([self.ids, other.ids]), np.concatenate([self.labels, other.labels])
        return Split(self.role, ids, [*self.texts, *other.texts], labels)

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
    """A classification task with its splits by role. All splits but train are labelled.

    Attributes:
        name: name of the task, as in `task.name`.
        source: where the data came from: `bundled`, `files` or `hub`.
        label_names: names of the C classes, in the order of all logits.
        splits: the data by role; MNLI has a second test split, `test_mm`.
        metric: the metric that model selection on dev maximises.
        tests: names of the test splits.
        pools: more training data, for teachers only.
        owners: name of the teacher, or of the pool it learnt from, that is right for each training instance, str
            `[N_train]`; an empty name where that is not known; None: for no instance. Only oracles and measures of
            regret may read it, never a state or a reward.
        cut: roles of the splits that were cut from the training data.
    """

    name: str
    source: str
    label_names: tuple[str, ...]
    splits: dict[str, Split]
    metric: str = "accuracy"
    tests: tuple[str, ...] = ("test",)
    pools: dict[str, Split] = field(default_factory=dict)
    owners: np.ndarray | None = None
    cut: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.label_names)

    @property
    def specialist(self) -> np.ndarray | None:
        """Index into `pools` of the owner of each training instance, int64 `[N_train]`; None where owners are no pools."""
        if self.owners is None or not set(self.owners.tolist()) <= set(self.pools):
            return None
        place = {name: i for i, name in enumerate(self.pools)}
        return np.array([place[name] for name in self.owners.tolist()], np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every split, the label names and the owners; `sha256` in results.json."""
        # Owners that are pools follow from the instances.
        owners = [] if self.owners is None or self.specialist is not None else [self.owners.tolist()]
        return digest(self.label_names, {r: s.labelled_fingerprint for r, s in self.splits.items()}, *owners)

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


def known_rows(train: Table, settings: TaskSettings) -> np.ndarray:
    """The rows of the training data whose labels may be read, sorted, int64.

    All labelled rows; with `task.labels` a uniform sample of them, drawn by `task.split_seed` without a look at any
    label. A label that is hidden can therefore change nothing.

    Raises:
        UserError: for more labels than there are.
    """
    rows = np.flatnonzero([label is not None for label in train.labels])
    if settings.labels is None:
        return rows
    if settings.labels > len(rows):
        raise UserError(
            f"task.labels={settings.labels} is more than the {len(rows)} labelled training instances; use fewer"
        )
    return np.sort(np.random.default_rng(settings.split_seed).permutation(rows)[: settings.labels])


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
