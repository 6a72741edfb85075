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

from distill.checks import UserError, expand, one_of
from distill.data import bundled
from distill.data.afrisenti import afrisenti_folders, read_afrisenti
from distill.data.glue import GLUE, read_glue
from distill.data.splits import RawTask, Split, Table, Task, known_rows, stratified
from distill.data.tables import read_files
from distill.settings import ROLES, TaskSettings

Loader = Callable[[TaskSettings, str | None], Task]


def load_task(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The task that the settings name, with its splits by role.

    Args:
        settings: the name of the task, its files and the sizes of its splits.
        data_dir: folder of the official GLUE or AfriSenti files.

    Raises:
        UserError: for an unknown name, or anything wrong with files, columns, labels or sizes.
    """
    one_of(settings.name, tuple(TASKS), "task.name")
    for key, name in (("unlabelled", "files"), ("owner", "files"), ("languages", "afrisenti")):
        if getattr(settings, key) and settings.name in BUILT_IN - {name}:
            raise UserError(f"task.{key} goes with task={name}, not with task={settings.name}; leave it out")
    return TASKS[settings.name](settings, data_dir)


def load_bundled(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The bundled task. Its four domains are the pools; the owner of an instance is the specialist of its domain.

    `task.labels` cuts its reward and dev splits and hides all labels of train.
    """
    roles, pools = bundled.corpus(settings.corpus)

    def split(role: str, prefix: str, made: bundled.Reviews) -> Split:
        ids = np.array([f"{prefix}-{i}" for i in range(len(made.texts))])
        return Split(role, ids, [(text,) for text in made.texts], made.labels)

    splits = {role: split(role, role, made) for role, made in roles.items()}
    if settings.labels is not None:
        rng = np.random.default_rng(settings.split_seed)
        for role, count in halves(settings.labels, len(bundled.LABELS)).items():
            if count > len(splits[role]):
                raise UserError(
                    f"task.labels={settings.labels} asks for {count} {role} instances of "
                    f"task.corpus.{role}={len(splits[role])}; use fewer"
                )
            splits[role] = splits[role].take(stratified(splits[role].labels, count, rng))
        splits["train"] = splits["train"].unlabelled()
    return Task(
        name="bundled",
        source="bundled",
        label_names=bundled.LABELS,
        splits=splits,
        metric=settings.metric,
        pools={name: split("pool", name, made) for name, made in pools.items()},
        owners=np.array([d.name for d in bundled.DOMAINS])[roles["train"].domains],
    )


def load_files(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """The task in the user's own files."""
    return assign_roles(settings, read_files(settings))


def load_afrisenti(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """AfriSenti in some of its languages: one pool a language for its specialist, and a transfer set of all of them."""
    return assign_roles(settings, read_afrisenti(settings, data_dir))


def load_glue(settings: TaskSettings, data_dir: str | None = None) -> Task:
    """A GLUE task, from the official files in `data_dir` or from the hub."""
    return assign_roles(settings, read_glue(settings, data_dir))


TASKS: dict[str, Loader] = {
    "bundled": load_bundled,
    "files": load_files,
    "afrisenti": load_afrisenti,
    **dict.fromkeys(GLUE, load_glue),
}
_OURS = dict(TASKS)
BUILT_IN = frozenset(_OURS)


def files_of(settings: TaskSettings, data_dir: str | None) -> list[str] | None:
    """The files and folders that a task may be read from; None for a task of the user's own, which may read anything.

    A task that is kept in memory is read anew when they change.
    """
    if TASKS.get(settings.name) is not _OURS.get(settings.name):
        return None
    paths = [path for path in (settings.train, settings.dev, settings.test, settings.unlabelled) if path]
    if data_dir and settings.source != "hub":
        if settings.name == "afrisenti":
            paths += [str(place) for place in afrisenti_folders(data_dir)]
        elif settings.name in GLUE:
            paths.append(str(expand(data_dir) / GLUE[settings.name].folder))
    return paths


def size_of(value: float, total: int, what: str) -> int:
    """The size of a split: a share of `total` if `value` is below 1, else a number of instances.

    Raises:
        UserError: unless it leaves at least one of `total` instances, and takes at least one.
    """
    count = round(value * total) if value < 1 else int(value)
    if not 0 < count < total:
        raise UserError(f"{what}={value} asks for {count} of {total} instances; leave some for training")
    return count


def halves(labels: int, classes: int, dev: bool = True) -> dict[str, int]:
    """How many of the `task.labels` known labels each of reward and dev gets; all for reward where there is a `dev` split.

    Raises:
        UserError: for fewer labels than every class needs.
    """
    fewest = classes * (2 if dev else 1)
    if labels < fewest:
        raise UserError(
            f"task.labels={labels} is too few for {classes} classes in reward and dev; use at least {fewest}"
        )
    return {"reward": labels - labels // 2, "dev": labels // 2} if dev else {"reward": labels}


def assign_roles(settings: TaskSettings, raw: RawTask) -> Task:
    """Cut the reward split, and the dev split if there is none, from the training data.

    Both cuts are stratified and follow `task.split_seed`. With `task.labels` they hold all labels that are known, and
    train is unlabelled. Unlabelled instances join train, which is then cut down to `task.train_limit`.

    Raises:
        UserError: when a split asks for too much, or leaves a class without a training instance.
    """
    index = {name: i for i, name in enumerate(raw.label_names)}

    def split(role: str, table: Table, known: np.ndarray | None = None) -> Split:
        labels = np.full(len(table), -1, np.int64)
        for i in range(len(table)) if known is None else known:
            labels[i] = index[str(table.labels[i])]
        return Split(role, np.array(table.ids), list(table.texts), labels)

    train = split("train", raw.tables["train"], known_rows(raw.tables["train"], settings))
    splits: dict[str, Split] = {name: split("test", raw.tables[name]) for name in raw.tests}
    if "dev" in raw.tables:
        splits["dev"] = split("dev", raw.tables["dev"])
    # 1. Reward and dev.
    rng = np.random.default_rng(settings.split_seed)
    if settings.labels is None:
        train = _cut_shares(settings, train, splits, rng)
    else:
        train = _cut_known(settings, raw, train, splits, rng)
    # 2. What is left is train, with the unlabelled instances.
    if "unlabelled" in raw.tables:
        train = train.joined(split("train", raw.tables["unlabelled"], np.empty(0, np.int64)))
    if settings.train_limit is not None and settings.train_limit < len(train):
        train = train.take(stratified(train.labels, settings.train_limit, rng))
    # 3. A student cannot learn a class that it never sees. What it sees of unlabelled instances, teachers decide.
    absent = [name for i, name in enumerate(raw.label_names) if not (train.labels == i).any()]
    if absent and train.labelled.all():
        raise UserError(
            f"task {settings.name}: no training instance left with label {absent[0]!r}; add data or cut smaller splits"
        )
    splits["train"] = train
    ordered = {role: splits[role] for role in dict.fromkeys((*ROLES, *raw.tests))}
    pools = {name: split("pool", table) for name, table in raw.pools.items()}
    owners = _owners(raw, train)
    cut = tuple(role for role in ("reward", "dev") if role not in raw.tables)
    return Task(settings.name, raw.source, raw.label_names, ordered, settings.metric, raw.tests, pools, owners, cut)


def _cut_shares(settings: TaskSettings, train: Split, splits: dict[str, Split], rng: np.random.Generator) -> Split:
    """Cut `task.reward_size` and, without a dev split, `task.dev_size` into `splits`. Returns what is left of train.

    Both are drawn from the labelled instances, and both sizes refer to all of those.
    """
    total = int(train.labelled.sum())
    cuts = {"reward": size_of(settings.reward_size, total, "task.reward_size")}
    if "dev" not in splits:
        cuts["dev"] = size_of(settings.dev_size, total, "task.dev_size")
    for role, count in cuts.items():
        labelled = np.flatnonzero(train.labelled)
        if count >= len(labelled):
            raise UserError(
                f"task.{role}_size leaves no training data: {count} wanted of the {len(labelled)} instances left"
            )
        rows = labelled[stratified(train.labels[labelled], count, rng)]
        splits[role] = train.take(rows, role)
        train = train.take(np.setdiff1d(np.arange(len(train)), rows))
    return train


def _cut_known(
    settings: TaskSettings, raw: RawTask, train: Split, splits: dict[str, Split], rng: np.random.Generator
) -> Split:
    """Put all known labels into the reward and, if there is none, the dev split. Returns the unlabelled rest of train."""
    sizes = halves(int(settings.labels or 0), len(raw.label_names), "dev" not in splits)
    known = np.flatnonzero(train.labelled)
    rest = train.take(np.flatnonzero(~train.labelled))
    if len(rest) == 0 and "unlabelled" not in raw.tables:
        raise UserError(f"task.labels={settings.labels} leaves no training data; use fewer than {len(train)}")
    reward = known[stratified(train.labels[known], sizes["reward"], rng)]
    parts = {"reward": reward, "dev": np.setdiff1d(known, reward)}
    for role in sizes:
        splits[role] = train.take(parts[role], role)
        absent = [name for i, name in enumerate(raw.label_names) if not (splits[role].labels == i).any()]
        if absent:
            raise UserError(
                f"task.labels={settings.labels} is too few: label {absent[0]!r} does not occur in the {role} split"
            )
    return rest


def _owners(raw: RawTask, train: Split) -> np.ndarray | None:
    """Name of the teacher that is right for each training instance, str `[N]`, if the tables say it."""
    tables = [raw.tables[name] for name in ("train", "unlabelled") if name in raw.tables]
    if all(table.owners is None for table in tables):
        return None
    by_id = {i: o for table in tables for i, o in zip(table.ids, table.owners or [""] * len(table), strict=True)}
    return np.array([by_id[i] for i in train.ids.tolist()])
