"""The user's own files: CSV, TSV, JSONL or Parquet, with one or two text columns."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from distill.checks import UserError, expand
from distill.data.splits import RawTask, Table, known_rows
from distill.settings import TaskSettings

LONGEST_ID = 256  # characters; numpy stores every id of a split as wide as the longest one
FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def read_text(path: Path) -> str:
    """A UTF-8 text file, without a byte order mark.

    Raises:
        UserError: if it cannot be read, is not UTF-8 or contains a NUL character.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, error) from None
    where = text.find("\0")
    if where >= 0:
        raise UserError(f"{path}: line {text.count(chr(10), 0, where) + 1} holds a NUL; take it out")
    return text


def _unreadable(path: Path, error: UnicodeDecodeError | OSError) -> UserError:
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8")
    return UserError(f"{path}: {error.strerror or error}; give the path of a readable file")


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


def _numbers_first(value: str) -> tuple[int, float, str]:
    """Sort key of labels: numbers by their value, then names."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def read_table(path: Path) -> Any:
    """A CSV, TSV, JSONL or Parquet file as a pandas frame. Cells stay as they were written; nothing is converted.

    Raises:
        UserError: for an unknown suffix, an unreadable file or rows with too many cells.
    """
    import pandas as pd

    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: unknown kind of file; use .csv, .tsv, .jsonl or .parquet")
    try:
        frame = _read_frame(path, kind)
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, error) from None
    except Exception as error:  # each of pandas' readers has its own error classes
        raise UserError(f"{path}: not readable as {kind} ({' '.join(str(error).split())[:120]})") from None
    # pandas uses the surplus cells of longer rows as row names, which would shift every column.
    if kind in ("csv", "tsv") and not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header; quote texts that hold the separator")
    return frame


def _read_frame(path: Path, kind: str) -> Any:
    import pandas as pd

    if kind == "parquet":
        return pd.read_parquet(path)
    if kind == "jsonl":
        return pd.read_json(path, lines=True, dtype=False, encoding="utf-8")
    how: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", **how)


def _cells(column: Any, path: Path) -> list[str]:
    """A column as strings.

    Raises:
        UserError: for a cell that is a list or an object, or contains characters that are not text.
    """
    nested = [i for i, v in enumerate(column) if isinstance(v, list | dict)]
    if nested:
        raise UserError(
            f"{path}: row {nested[0] + 1} has a list or an object in column {column.name!r}; give a text or a number"
        )
    values = [str(v) for v in column]
    whole = "".join(values)
    for what, pattern in {"a NUL": "\0", "half a surrogate pair": "[\ud800-\udfff]"}.items():
        if re.search(pattern, whole):
            row = next(i for i, v in enumerate(values, 1) if re.search(pattern, v))
            raise UserError(f"{path}: row {row} has {what} in column {column.name!r}; take it out")
    return values


def _user_table(path: Path, settings: TaskSettings, role: str) -> Table:
    frame = read_table(path)
    labelled = role != "unlabelled"
    wanted = [*settings.text, *([settings.label] if labelled else []), *([settings.id] if settings.id else [])]
    needed = [*wanted, *([settings.owner] if settings.owner and role == "train" else [])]
    for name in needed:
        if name not in frame.columns:
            raise UserError(f"{path}: no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    if len(frame) <= 1:
        raise UserError(f"{path}: {len(frame)} data rows; at least two are needed")
    missing = frame[wanted].isna().any(axis=1)
    if missing.any():
        raise UserError(
            f"{path}: row {int(missing.argmax()) + 1} has an empty cell in {', '.join(wanted)}; fill or drop it"
        )
    columns = {name: _cells(frame[name], path) for name in wanted}
    labels = columns[settings.label] if labelled else None
    if labels is not None and "" in labels:
        raise UserError(
            f"{path}: row {labels.index('') + 1} has no label in column {settings.label!r}; fill or drop it"
        )
    texts = list(zip(*(columns[c] for c in settings.text), strict=True))
    ids = columns[settings.id] if settings.id else [f"{role}-{i}" for i in range(len(frame))]
    _check_ids(ids, path, settings.id)
    owners = None
    if settings.owner and (role == "train" or settings.owner in frame.columns):
        owners = _cells(frame[settings.owner].fillna(""), path)  # an empty cell: nobody knows who is right
    return Table(ids, texts, labels or [None] * len(ids), owners)


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
