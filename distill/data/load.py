"""Loading a task by name: `load_task`, and the registry of tasks behind it.

A task of your own is a function from settings to a `Task`, added to the registry before the run starts:

    from distill.data.load import TASKS, assign_roles

    def my_task(settings, data_dir):
        raw = RawTask("mine", {"train": Table(ids, texts, labels), "test": Table(...)}, ("no", "yes"))
        return assign_roles(settings, raw)

    TASKS["mine"] = my_task  # task.name=mine
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distill.checks import UserError, one_of
from distill.data import bundled
from distill.data.glue import GLUE, read_glue
from distill.data.splits import RawTask, Split, Table, Task, stratified
from distill.data.tables import read_files
from distill.settings import ROLES, TaskSettings

Loader = Callable[[TaskSettings, str | None], Task]


def load_task(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The task that the settings name, with its splits by role.

    Args:
        settings: the name of the task, its files and the sizes of its splits.
        data_dir: folder of the official GLUE files.

    Raises:
        UserError: for an unknown name, or anything wrong with files, columns, labels or sizes.
    """
    one_of(settings.name, tuple(TASKS), "task.name")
    return TASKS[settings.name](settings, data_dir)


def load_bundled(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The bundled task. Its four domains are the pools; the specialist of an instance is the one of its domain."""
    roles, pools = bundled.corpus(settings.corpus)

    def split(role: str, prefix: str, made: bundled.Reviews) -> Split:
        ids = np.array([f"{prefix}-{i}" for i in range(len(made.texts))])
        return Split(role, ids, [(text,) for text in made.texts], made.labels)

    return Task(
        name="bundled",
        source="bundled",
        label_names=bundled.LABELS,
        splits={role: split(role, role, made) for role, made in roles.items()},
        metric=settings.metric,
        pools={name: split("pool", name, made) for name, made in pools.items()},
        specialist=roles["train"].domains,
    )


def load_files(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The task in the user's own files."""
    return assign_roles(settings, read_files(settings))


def load_glue(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """A GLUE task, from the official files in `data_dir` or from the hub."""
    return assign_roles(settings, read_glue(settings, data_dir))


TASKS: dict[str, Loader] = {"bundled": load_bundled, "files": load_files, **dict.fromkeys(GLUE, load_glue)}


def size_of(value: float, total: int, what: str) -> int:
    """The size of a split: a share of `total` if `value` is below 1, else a number of instances.

    Raises:
        UserError: unless it leaves at least one of `total` instances, and takes at least one.
    """
    count = round(value * total) if value < 1 else int(value)
    if not 0 < count < total:
        raise UserError(f"{what}={value} asks for {count} of {total} instances; leave some for training")
    return count


def assign_roles(settings: TaskSettings, raw: RawTask) -> Task:
    """Cut the reward split, and the dev split if there is none, from the training data.

    Both cuts are stratified and follow `task.split_seed`. Then train is cut down to `task.train_limit`.

    Raises:
        UserError: when a split asks for too much, or leaves a class without a training instance.
    """
    index = {name: i for i, name in enumerate(raw.label_names)}

    def split(role: str, table: Table) -> Split:
        return Split(role, np.array(table.ids), table.texts, np.array([index[v] for v in table.labels], np.int64))

    train = split("train", raw.tables["train"])
    splits: dict[str, Split] = {name: split("test", raw.tables[name]) for name in raw.tests}
    # 1. The sizes of both cuts refer to the whole of the training data.
    cuts = {"reward": size_of(settings.reward_size, len(train), "task.reward_size")}
    if "dev" in raw.tables:
        splits["dev"] = split("dev", raw.tables["dev"])
    else:
        cuts["dev"] = size_of(settings.dev_size, len(train), "task.dev_size")
    # 2. Cut them; what is left is train.
    rng = np.random.default_rng(settings.split_seed)
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
    # 3. A student cannot learn a class that it never sees.
    absent = [name for i, name in enumerate(raw.label_names) if not (train.labels == i).any()]
    if absent:
        raise UserError(
            f"task {settings.name}: no training instance left with label {absent[0]!r}; add data or cut smaller splits"
        )
    splits["train"] = train
    ordered = {role: splits[role] for role in dict.fromkeys((*ROLES, *raw.tests))}
    return Task(settings.name, raw.source, raw.label_names, ordered, settings.metric, raw.tests)
