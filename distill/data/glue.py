"""GLUE: from the official TSV files in a folder, or from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import hub
from distill.checks import UserError, expand, one_of
from distill.data.formats import read_lines
from distill.data.splits import RawTask, Table
from distill.settings import TaskSettings, notice


@dataclass(frozen=True)
class Glue:
    """Where a GLUE task keeps its texts and labels.

    Attributes:
        folder: folder of the official TSV files.
        text: TSV columns of the texts: names, or positions in a file without a header.
        label: TSV column of the label: a name, or a position.
        hub_text: columns of the texts on the hub.
        labels: names of the classes, in the order of the hub.
        values: how the TSV writes the classes; None: by their names.
        tests: for each test split its name, its TSV file and its split on the hub.
        broken_rows: the official file has a few truncated rows, which every reader of it skips.
    """

    folder: str
    text: tuple[str | int, ...]
    label: str | int
    hub_text: tuple[str, ...]
    labels: tuple[str, ...]
    values: tuple[str, ...] | None = None
    tests: tuple[tuple[str, str, str], ...] = (("test", "dev.tsv", "validation"),)
    broken_rows: bool = False


HUB = "nyu-mll/glue"
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


def read_glue(settings: TaskSettings, data_dir: str | None) -> RawTask:
    """A GLUE task, from files or from the hub as `task.source` says. The public dev set is the test split.

    Raises:
        UserError: for a missing or malformed file, or when the hub cannot be reached.
    """
    spec = GLUE[settings.name]
    if settings.source == "files" or (settings.source == "auto" and data_dir):
        if not data_dir:
            raise UserError(
                f"task={settings.name} with task.source=files needs data_dir=FOLDER (or TEACHER_SELECT_DATA) "
                f"holding {spec.folder}/train.tsv"
            )
        folder = expand(str(data_dir)) / spec.folder
        tables = {"train": read_glue_tsv(folder / "train.tsv", spec, "train")}
        for name, file, _ in spec.tests:
            tables[name] = read_glue_tsv(folder / file, spec, Path(file).stem)
        source = "files"
    else:
        tables, source = _from_hub(settings.name, spec), "hub"
    return RawTask(source, tables, spec.labels, tuple(name for name, _, _ in spec.tests))


def _from_hub(name: str, spec: Glue) -> dict[str, Table]:
    splits = {"train": "train"} | {test: hub_split for test, _, hub_split in spec.tests}
    way_out = f"set data_dir or TEACHER_SELECT_DATA to a folder holding {spec.folder}/train.tsv"
    loaded = hub.load_splits(HUB, [(name, hub_split) for hub_split in splits.values()], f"task={name}", way_out)
    return {split: _table(data, splits[split], spec, name) for split, data in zip(splits, loaded, strict=True)}


def _table(data: Any, hub_split: str, spec: Glue, name: str) -> Table:
    """The rows of a split of the hub. An id is the split's name there and a row number."""
    *texts, labels = hub.columns(data, (*spec.hub_text, "label"), f"task={name}")
    for label in set(labels):
        one_of(label, range(len(spec.labels)), f"task={name}: {hub_split} on the hub: label")
    ids = [f"{hub_split}-{i}" for i in range(len(labels))]
    return Table(ids, list(zip(*texts, strict=True)), [spec.labels[y] for y in labels])


def read_glue_tsv(path: Path, spec: Glue, prefix: str) -> Table:
    """One official TSV file. Cells are split at tabs; quotes and single carriage returns are text. An id is `prefix` and a line number.

    Raises:
        UserError: for an unreadable file, a missing column, a truncated row or an unknown label, naming the line.
    """
    lines = read_lines(path)
    columns, start = _columns(lines[0], spec, path)
    values = spec.values or spec.labels
    names = dict(zip(values, spec.labels, strict=True))
    ids, texts, labels = [], [], []
    broken: list[int] = []
    for number, line in enumerate(lines[start:]):
        cells = line.split("\t")
        truncated = len(cells) <= max(columns)
        if not line.strip():
            continue
        if truncated and spec.broken_rows:
            broken.append(number + start + 1)
            continue
        where = f"{path}: line {number + start + 1}"
        if truncated:
            raise UserError(f"{where} has {len(cells)} tab-separated columns, {max(columns) + 1} are needed")
        value = cells[columns[-1]]
        if value not in names:
            raise UserError(f"{where}: label {value!r} is not one of {', '.join(values)}")
        ids.append(f"{prefix}-{number}")
        texts.append(tuple(cells[c] for c in columns[:-1]))
        labels.append(names[value])
    if len(ids) <= 1:
        raise UserError(f"{path}: no data rows")
    if broken:
        notice(f"{path}: {len(broken)} rows with too few cells (first: line {broken[0]}) are left out")
    return Table(ids, texts, labels)


def _columns(first_line: str, spec: Glue, path: Path) -> tuple[list[int], int]:
    """Positions of the texts and, last, the label; and the number of header lines."""
    if isinstance(spec.label, int):
        return [*(int(t) for t in spec.text), spec.label], 0
    header = first_line.split("\t")
    for name in (*spec.text, spec.label):
        if name not in header:
            raise UserError(f"{path}: no column {name!r}; it has {', '.join(header)}")
        if header.count(str(name)) > 1:
            raise UserError(f"{path}: column {name!r} occurs {header.count(str(name))} times; remove the others")
    return [header.index(str(name)) for name in (*spec.text, spec.label)], 1
