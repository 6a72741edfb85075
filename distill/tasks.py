"""Tasks: columns, labels and metrics, and where the data comes from. Every split carries its role.

Sources: official GLUE TSV files in a folder, GLUE on the hub, the user's own files, and the bundled corpus.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import bundled
from .settings import ROLES, RoleError, TaskSettings, UserError, check, digest, expand, one_of

LONGEST_ID = 256  # characters: ids lie in an array as wide as the longest


@dataclass(frozen=True)
class Glue:
    """Where a GLUE task keeps its texts and labels, in the official TSV folders and on the hub."""

    folder: str
    text: tuple[str | int, ...]  # TSV column names, or positions where the file has no header
    label: str | int
    hub_text: tuple[str, ...]
    labels: tuple[str, ...]  # in the hub's order
    values: tuple[str, ...] | None = None  # what the TSV writes for them; none: the names themselves
    tests: tuple[tuple[str, str, str], ...] = (("test", "dev.tsv", "validation"),)
    broken_rows: bool = False  # the official file holds a few rows cut short: skipped, as every reader of it does


_BINARY = ("0", "1")
GLUE = {
    "sst2": Glue("SST-2", ("sentence",), "label", ("sentence",), ("negative", "positive"), _BINARY),
    "mrpc": Glue(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        _BINARY,
    ),
    "qqp": Glue(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        _BINARY,
        broken_rows=True,
    ),
    "mnli": Glue(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        tests=(
            ("test", "dev_matched.tsv", "validation_matched"),
            ("test_mm", "dev_mismatched.tsv", "validation_mismatched"),
        ),
    ),
    "qnli": Glue("QNLI", ("question", "sentence"), "label", ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Glue(
        "RTE", ("sentence1", "sentence2"), "label", ("sentence1", "sentence2"), ("entailment", "not_entailment")
    ),
    "cola": Glue("CoLA", (3,), 1, ("sentence",), ("unacceptable", "acceptable"), _BINARY),
}


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


def calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of confidence of equal width, weighted by their instances."""
    sure, right = probs.max(1), probs.argmax(1) == labels
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)  # a bin holds its upper edge
    gap = np.bincount(place, right - sure, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows of a random sample of `count` that keeps the classes' shares (largest remainders), at least one a class."""
    classes, sizes = np.unique(labels, return_counts=True)
    check(0 < count <= len(labels), f"a sample of {count} was asked for, from {len(labels)} instances; make it smaller")
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


def size_of(value: float, total: int, what: str) -> int:
    """A share below 1 of `total`, or a count from 1 on."""
    count = round(value * total) if value < 1 else int(value)
    check(0 < count < total, f"{what}={value} asks for {count} of {total} instances; leave some for training")
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


@dataclass(frozen=True)
class _Table:
    """Rows as read: ids, texts and label names."""

    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: list[str]


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
        check(
            count < len(train),
            f"task.{role}_size leaves no training data: {count} wanted of the {len(train)} instances left",
        )
        rows = stratified(train.labels, count, rng)
        splits[role] = train.take(rows, role)
        train = train.take(np.setdiff1d(np.arange(len(train)), rows))
    if settings.train_limit is not None and settings.train_limit < len(train):
        train = train.take(stratified(train.labels, settings.train_limit, rng))
    absent = [n for i, n in enumerate(names) if not (train.labels == i).any()]
    check(
        not absent,
        f"task {settings.name}: no training instance left with label {absent[0] if absent else ''!r}; add data or cut smaller splits",
    )
    splits["train"] = train
    ordered = {r: splits[r] for r in (*ROLES, *(t for t in tests if t not in ROLES))}
    return Task(settings.name, source, names, ordered, settings.metric, tests)


# --- GLUE -----------------------------------------------------------------------------------------------------------


def _glue(
    settings: TaskSettings, data_dir: str | None
) -> tuple[str, dict[str, _Table], tuple[str, ...], tuple[str, ...]]:
    spec = GLUE[settings.name]
    tests = tuple(t[0] for t in spec.tests)
    if settings.source == "files" or (settings.source == "auto" and data_dir):
        check(
            bool(data_dir),
            f"task={settings.name} with task.source=files needs data_dir=FOLDER (or TEACHER_SELECT_DATA) holding {spec.folder}/train.tsv",
        )
        folder = expand(str(data_dir)) / spec.folder
        tables = {"train": _glue_tsv(folder / "train.tsv", spec, "train")}
        for name, file, _ in spec.tests:
            tables[name] = _glue_tsv(folder / file, spec, Path(file).stem)
        return "files", tables, spec.labels, tests
    try:
        import datasets

        hub = {"train": "train", **{name: hub_split for name, _, hub_split in spec.tests}}
        tables = {}
        for name, hub_split in hub.items():
            data = datasets.load_dataset("nyu-mll/glue", settings.name, split=hub_split)
            texts = list(zip(*(data[c] for c in spec.hub_text), strict=True))
            tables[name] = _Table(
                [f"{hub_split}-{i}" for i in range(len(texts))], texts, [spec.labels[y] for y in data["label"]]
            )
        return "hub", tables, spec.labels, tests
    except Exception as error:  # the hub's client raises many kinds, all meaning: not to be had
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"task={settings.name}: GLUE could not be read from the hub ({type(error).__name__}: {reason}); "
            f"set data_dir or TEACHER_SELECT_DATA to a folder holding {spec.folder}/train.tsv"
        ) from None


def _glue_tsv(path: Path, spec: Glue, prefix: str) -> _Table:
    """Official TSV: split on tabs, quotes mean nothing. Ids count the lines of the file."""
    lines = _text_of(path).split("\n")
    columns: list[int] = []
    start = 0
    if isinstance(spec.label, str):
        header = lines[0].rstrip("\r").split("\t")
        for name in (*spec.text, spec.label):
            check(name in header, f"{path}: no column {name!r}; it has {', '.join(header)}")
            columns.append(header.index(str(name)))
        start = 1
    else:
        columns = [*(int(t) for t in spec.text), spec.label]
    values = spec.values or spec.labels
    names = dict(zip(values, spec.labels, strict=True))
    ids, texts, labels = [], [], []
    for number, line in enumerate(lines[start:]):
        cells = line.rstrip("\r").split("\t")
        if not line.strip() or (spec.broken_rows and len(cells) <= max(columns)):
            continue
        where = f"{path}: line {number + start + 1}"
        check(
            len(cells) > max(columns), f"{where} has {len(cells)} tab-separated columns, {max(columns) + 1} are needed"
        )
        value = cells[columns[-1]]
        check(value in names, f"{where}: label {value!r} is not one of {', '.join(values)}")
        ids.append(f"{prefix}-{number}")
        texts.append(tuple(cells[c] for c in columns[:-1]))
        labels.append(names[value])
    check(len(ids) > 1, f"{path}: no data rows")
    return _Table(ids, texts, labels)


def _text_of(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
        where = text.find("\0")
        check(where < 0, f"{path}: line {text.count(chr(10), 0, where) + 1} holds a NUL; take it out")
        return text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a readable file") from None


# --- the user's own files -------------------------------------------------------------------------------------------


def _files(settings: TaskSettings) -> tuple[str, dict[str, _Table], tuple[str, ...], tuple[str, ...]]:
    check(
        bool(settings.train and settings.test),
        "task=files needs task.train=FILE and task.test=FILE (CSV, TSV, JSONL or Parquet)",
    )
    check(
        len(settings.text) in (1, 2),
        f"task.text={settings.text} must name one or two text columns, for example task.text=[review]",
    )
    paths = {"train": settings.train, "dev": settings.dev, "test": settings.test}
    tables = {role: _user_table(expand(p), settings, role) for role, p in paths.items() if p}
    names = tuple(sorted(set(tables["train"].labels), key=_natural))
    check(
        len(names) > 1,
        f"{settings.train}: column {settings.label!r} holds one class only ({names[0]!r}); a classifier needs two",
    )
    for role, table in tables.items():
        unknown = sorted(set(table.labels) - set(names), key=_natural)
        check(
            not unknown,
            f"{paths[role]}: label {unknown[0] if unknown else ''!r} never occurs in {settings.train} ({', '.join(names)})",
        )
    seen: dict[str, str] = {}
    for role, table in tables.items():
        for i in table.ids:
            check(i not in seen, f"{paths[role]}: id {i!r} occurs twice (also in {seen.get(i)}); ids must be unique")
            seen[i] = str(paths[role])
    return "files", tables, names, ("test",)


def _natural(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def read_table(path: Path) -> Any:
    """A CSV, TSV, JSONL or Parquet file as a pandas frame, every cell as it was written."""
    import pandas as pd

    kinds = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
    check(path.suffix.lower() in kinds, f"{path}: unknown kind of file; use .csv, .tsv, .jsonl or .parquet")
    kind = kinds[path.suffix.lower()]
    try:
        if kind == "parquet":
            return pd.read_parquet(path)
        if kind == "jsonl":
            return pd.read_json(path, lines=True, dtype=False, encoding="utf-8")
        how: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", **how)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a readable file") from None
    except Exception as error:  # each of pandas' readers has error classes of its own
        raise UserError(f"{path}: not readable as {kind} ({' '.join(str(error).split())[:120]})") from None
    # pandas takes the surplus cells of longer rows as row names, which would shift every column.
    check(
        isinstance(frame.index, pd.RangeIndex),
        f"{path}: rows have more cells than the header; quote texts that hold the separator",
    )
    return frame


def _cells(column: Any, path: Path) -> list[str]:
    """A column as strings; `UserError` for a cell that is none, or holds what no text does."""
    nested = [i for i, v in enumerate(column) if isinstance(v, list | dict)]
    check(
        not nested,
        f"{path}: row {nested[0] + 1 if nested else 0} has a list or an object in column {column.name!r}; give a text or a number",
    )
    values = [str(v) for v in column]
    whole = "".join(values)
    for what, pattern in {"a NUL": "\0", "half a surrogate pair": "[\ud800-\udfff]"}.items():
        if re.search(pattern, whole):
            row = next(i for i, v in enumerate(values, 1) if re.search(pattern, v))
            raise UserError(f"{path}: row {row} has {what} in column {column.name!r}; take it out")
    return values


def _user_table(path: Path, settings: TaskSettings, role: str) -> _Table:
    frame = read_table(path)
    wanted = [*settings.text, settings.label, *([settings.id] if settings.id else [])]
    for name in wanted:
        check(name in frame.columns, f"{path}: no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    check(len(frame) > 1, f"{path}: {len(frame)} data rows; at least two are needed")
    missing = frame[wanted].isna().any(axis=1)
    check(
        not missing.any(),
        f"{path}: row {int(missing.argmax()) + 1} has an empty cell in {', '.join(wanted)}; fill or drop it",
    )
    labels = _cells(frame[settings.label], path)
    check(
        "" not in labels,
        f"{path}: row {labels.index('') + 1 if '' in labels else 0} has no label in column {settings.label!r}; fill or drop it",
    )
    columns = {name: _cells(frame[name], path) for name in wanted}
    texts = list(zip(*(columns[c] for c in settings.text), strict=True))
    ids = _cells(frame[settings.id], path) if settings.id else [f"{role}-{i}" for i in range(len(frame))]
    long = max(range(len(ids)), key=lambda i: len(ids[i]))
    check(
        len(ids[long]) <= LONGEST_ID,
        f"{path}: row {long + 1} has an id of {len(ids[long])} characters in column {settings.id!r}; at most {LONGEST_ID}",
    )
    check(
        "" not in ids,
        f"{path}: row {ids.index('') + 1 if '' in ids else 0} has no id in column {settings.id!r}; fill or drop it",
    )
    return _Table(ids, texts, labels)
