"""The user's own files: CSV, TSV, JSONL or Parquet, with one or two text columns."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from distill.checks import UserError, expand
from distill.data.formats import cells_of, read_table
from distill.data.splits import RawTask, Table, known_rows
from distill.settings import TaskSettings, notice

LONGEST_ID = 256  # characters; numpy stores every id of a split as wide as the longest one


def read_files(settings: TaskSettings) -> RawTask:
    """The task in the user's files. Its labels are those of the labelled rows of the training file, sorted.

    Raises:
        UserError: for missing settings, unreadable files, unknown labels or ids that occur twice.
    """
    if not settings.train or not settings.test:
        raise UserError("task=files needs task.train=FILE and task.test=FILE (CSV, TSV, JSONL or Parquet)")
    if len(settings.text) not in (1, 2):
        raise UserError(f"task.text={settings.text} must name one or two text columns, for example task.text=[review]")
    paths = {"train": settings.train, "dev": settings.dev, "test": settings.test, "unlabelled": settings.unlabelled}
    tables = {role: _user_table(expand(p), settings, role) for role, p in paths.items() if p}
    names = _label_names(tables["train"], settings)
    for role in ("dev", "test"):
        unknown = (
            sorted({str(v) for v in tables[role].labels} - set(names), key=_numbers_first) if role in tables else []
        )
        if unknown:
            few = f"; task.labels={settings.labels} is too few" if settings.labels else ""
            raise UserError(
                f"{paths[role]}: label {unknown[0]!r} never occurs in {settings.train} ({', '.join(names)}){few}"
            )
    _check_unique([(str(paths[role]), table) for role, table in tables.items()])
    _note_shared_texts({role: str(path) for role, path in paths.items()}, tables)
    return RawTask("files", tables, names)


def _label_names(train: Table, settings: TaskSettings) -> tuple[str, ...]:
    """The classes of the labelled rows. Labels that `task.labels` hides are not looked at."""
    known = {str(train.labels[i]) for i in known_rows(train, settings)}
    names = tuple(sorted(known, key=_numbers_first))
    if len(names) <= 1:
        few = f" in {settings.labels} labelled rows" if settings.labels else ""
        raise UserError(
            f"{settings.train}: column {settings.label!r} holds one class only{few} ({names[0]!r}); "
            "a classifier needs two"
        )
    return names


def _check_unique(tables: list[tuple[str, Table]]) -> None:
    """Raise `UserError` for an id that occurs twice, in one file or in two."""
    seen: dict[str, str] = {}
    for path, table in tables:
        for i in table.ids:
            if i in seen:
                raise UserError(f"{path}: id {i!r} occurs twice (also in {seen[i]}); ids must be unique")
            seen[i] = path


def _note_shared_texts(paths: dict[str, str], tables: dict[str, Table]) -> None:
    """Print a note for texts of dev or test that also occur in a file that the student learns from, or in dev."""
    texts = {role: [" ".join("\n".join(t).split()) for t in table.texts] for role, table in tables.items()}
    for role, others in {"dev": ("train", "unlabelled"), "test": ("train", "unlabelled", "dev")}.items():
        for other in others:
            if role not in tables or other not in tables:
                continue
            seen = set(texts[other]) - {""}
            count = sum(text in seen for text in texts[role])
            if count:
                notice(
                    f"{count} of {len(texts[role])} texts of task.{role}={paths[role]} also occur in "
                    f"task.{other}={paths[other]}; scores on {role} will be too good"
                )


def _numbers_first(value: str) -> tuple[int, float, str]:
    """Sort key of labels: numbers by their value, then names."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def _user_table(path: Path, settings: TaskSettings, role: str) -> Table:
    frame = read_table(path)
    if len(frame) <= 1:
        raise UserError(f"{path}: {len(frame)} data rows; at least two are needed")
    own = [settings.label] if role != "unlabelled" else []
    wanted = [*settings.text, *own, *([settings.id] if settings.id else [])]
    for name in [*wanted, *([settings.owner] if settings.owner and role == "train" else [])]:
        if name not in frame.columns:
            raise UserError(no_column(path, name, [str(c) for c in frame.columns]))
    columns = {name: full_column(frame[name], path, numbers=name not in settings.text) for name in wanted}
    labels = columns[settings.label] if own else None
    if labels is not None and "" in labels:
        raise UserError(
            f"{path}: row {labels.index('') + 1} has no label in column {settings.label!r}; fill or drop it"
        )
    texts = list(zip(*(columns[c] for c in settings.text), strict=True))
    ids = columns[settings.id] if settings.id else [f"{role}-{i}" for i in range(len(frame))]
    _check_ids(ids, path, settings.id)
    owners = _owners(frame, path, settings.owner)
    return Table(ids, texts, labels or [None] * len(ids), owners)


def full_column(column: Any, path: Path, numbers: bool) -> list[str]:
    """A column as strings; `UserError` for a missing cell, or one of another type."""
    missing = column.isna()
    if missing.any():
        row = int(missing.argmax()) + 1
        raise UserError(f"{path}: row {row} has an empty cell in column {column.name!r}; fill or drop it")
    return cells_of(column, path, numbers)


def _owners(frame: Any, path: Path, name: str | None) -> list[str] | None:
    """The owners of the rows, empty where nobody is known to be right; None without the column."""
    if not name or name not in frame.columns:
        return None
    column = frame[name].astype(object)
    return cells_of(column.where(column.notna(), ""), path)


def no_column(path: Path, name: str, columns: list[str]) -> str:
    """The message for a missing column, with the likely cause."""
    message = f"{path}: no column {name!r}; it has {', '.join(columns)}"
    folded = {c.strip().casefold(): c for c in columns}
    near = difflib.get_close_matches(name.strip().casefold(), list(folded), 1)
    if near:
        return f"{message}; did you mean {folded[near[0]]!r}?"
    for separator, what in {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}.items():
        if len(columns) == 1 and separator in columns[0]:
            return f"{message}; its cells are separated by {what}: use commas in .csv and tabs in .tsv"
    return message


def _check_ids(ids: list[str], path: Path, column: str | None) -> None:
    """Raise `UserError` for an id that is empty or too long."""
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if len(ids[longest]) > LONGEST_ID:
        raise UserError(
            f"{path}: row {longest + 1} has an id of {len(ids[longest])} characters in column {column!r}; "
            f"at most {LONGEST_ID}"
        )
    if "" in ids:
        raise UserError(f"{path}: row {ids.index('') + 1} has no id in column {column!r}; fill or drop it")
