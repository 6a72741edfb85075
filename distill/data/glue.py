"""GLUE: from official TSV files in a folder, or from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.checks import UserError, check, expand
from distill.data.splits import _Table
from distill.data.tables import _text_of
from distill.settings import TaskSettings


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


def _glue(
    settings: TaskSettings, data_dir: str | None
) -> tuple[str, dict[str, _Table], tuple[str, ...], tuple[str, ...]]:
    spec = GLUE[settings.name]
    tests = tuple(t[0] for t in spec.tests)
    if settings.source == "files" or (settings.source == "auto" and data_dir):
        if not data_dir:
            raise UserError(
                f"task={settings.name} with task.source=files needs data_dir=FOLDER (or TEACHER_SELECT_DATA) holding {spec.folder}/train.tsv"
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
            if name not in header:
                raise UserError(f"{path}: no column {name!r}; it has {', '.join(header)}")
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
        if len(cells) <= max(columns):
            raise UserError(f"{where} has {len(cells)} tab-separated columns, {max(columns) + 1} are needed")
        value = cells[columns[-1]]
        if value not in names:
            raise UserError(f"{where}: label {value!r} is not one of {', '.join(values)}")
        ids.append(f"{prefix}-{number}")
        texts.append(tuple(cells[c] for c in columns[:-1]))
        labels.append(names[value])
    if len(ids) <= 1:
        raise UserError(f"{path}: no data rows")
    return _Table(ids, texts, labels)
