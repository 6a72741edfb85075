"""From task settings to a task with its splits by role."""

from __future__ import annotations

import numpy as np

from distill.checks import check, one_of
from distill.data import bundled
from distill.data.glue import GLUE, _glue
from distill.data.splits import Split, Task, _Table, stratified
from distill.data.tables import _files
from distill.settings import ROLES, TaskSettings


def size_of(value: float, total: int, what: str) -> int:
    """A share below 1 of `total`, or a count from 1 on."""
    count = round(value * total) if value < 1 else int(value)
    if not 0 < count < total:
        raise UserError(f"{what}={value} asks for {count} of {total} instances; leave some for training")
    return count


def load_task(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The task with its role splits. Raises `UserError` for anything wrong with names, files, columns or labels."""
    one_of(settings.name, ("bundled", "files", *GLUE), "task.name")
    if settings.name == "bundled":
        return _bundled(settings)
    labels: tuple[str, ...]
    if settings.name == "files":
        source, official, labels, tests = _files(settings)
    else:
        source, official, labels, tests = _glue(settings, data_dir)
    return _assign_roles(settings, source, official, labels, tests)


def _bundled(settings: TaskSettings) -> Task:
    roles, pools = bundled.corpus(settings.corpus)

    def split(role: str, prefix: str, made: bundled.Reviews) -> Split:
        return Split(
            role, np.array([f"{prefix}-{i}" for i in range(len(made.texts))]), [(t,) for t in made.texts], made.labels
        )

    return Task(
        name="bundled",
        source="bundled",
        label_names=bundled.LABELS,
        splits={role: split(role, role, made) for role, made in roles.items()},
        metric=settings.metric,
        pools={name: split("pool", name, made) for name, made in pools.items()},
        specialist=roles["train"].domains,
    )


def _assign_roles(
    settings: TaskSettings, source: str, tables: dict[str, _Table], names: tuple[str, ...], tests: tuple[str, ...]
) -> Task:
    index = {name: i for i, name in enumerate(names)}

    def split(role: str, table: _Table) -> Split:
        return Split(role, np.array(table.ids), table.texts, np.array([index[v] for v in table.labels], np.int64))

    train = split("train", tables["train"])
    splits: dict[str, Split] = {t: split("test", tables[t]) for t in tests}
    rng = np.random.default_rng(settings.split_seed)
    cuts = {"reward": size_of(settings.reward_size, len(train), "task.reward_size")}
    if "dev" in tables:
        splits["dev"] = split("dev", tables["dev"])
    else:
        cuts["dev"] = size_of(settings.dev_size, len(train), "task.dev_size")
    for role, count in cuts.items():
        if count >= len(train):
            raise UserError(
                f"task.{role}_size leaves no training data: {count} wanted of the {len(train)} instances left"
            )
        rows = stratified(train.labels, count, rng)
        splits[role] = train.take(rows, role)
        train = train.take(np.setdiff1d(np.arange(len(train)), rows))
    if settings.train_limit is not None and settings.train_limit < len(train):
        train = train.take(stratified(train.labels, settings.train_limit, rng))
    absent = [n for i, n in enumerate(names) if not (train.labels == i).any()]
    if absent:
        raise UserError(
            f"task {settings.name}: no training instance left with label {absent[0]!r}; add data or cut smaller splits"
        )
    splits["train"] = train
    ordered = {r: splits[r] for r in (*ROLES, *(t for t in tests if t not in ROLES))}
    return Task(settings.name, source, names, ordered, settings.metric, tests)
