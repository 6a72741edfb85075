"""The user's own files: CSV, TSV, JSONL or Parquet, with one or two text columns."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from distill.checks import UserError, check, expand
from distill.data.splits import _Table
from distill.settings import TaskSettings

LONGEST_ID = 256  # characters: ids lie in an array as wide as the longest


def _text_of(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
        where = text.find("\0")
        if where >= 0:
            raise UserError(f"{path}: line {text.count(chr(10), 0, where) + 1} holds a NUL; take it out")
        return text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a readable file") from None


def _files(settings: TaskSettings) -> tuple[str, dict[str, _Table], tuple[str, ...], tuple[str, ...]]:
    if not settings.train or not settings.test:
        raise UserError("task=files needs task.train=FILE and task.test=FILE (CSV, TSV, JSONL or Parquet)")
    if len(settings.text) not in (1, 2):
        raise UserError(f"task.text={settings.text} must name one or two text columns, for example task.text=[review]")
    paths = {"train": settings.train, "dev": settings.dev, "test": settings.test}
    tables = {role: _user_table(expand(p), settings, role) for role, p in paths.items() if p}
    names = tuple(sorted(set(tables["train"].labels), key=_natural))
    if len(names) <= 1:
        raise UserError(
            f"{settings.train}: column {settings.label!r} holds one class only ({names[0]!r}); a classifier needs two"
        )
    for role, table in tables.items():
        unknown = sorted(set(table.labels) - set(names), key=_natural)
        if unknown:
            raise UserError(
                f"{paths[role]}: label {unknown[0]!r} never occurs in {settings.train} ({', '.join(names)})"
            )
    seen: dict[str, str] = {}
    for role, table in tables.items():
        for i in table.ids:
            if i in seen:
                raise UserError(f"{paths[role]}: id {i!r} occurs twice (also in {seen.get(i)}); ids must be unique")
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
    if path.suffix.lower() not in kinds:
        raise UserError(f"{path}: unknown kind of file; use .csv, .tsv, .jsonl or .parquet")
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
    if not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header; quote texts that hold the separator")
    return frame


def _cells(column: Any, path: Path) -> list[str]:
    """A column as strings; `UserError` for a cell that is none, or holds what no text does."""
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


def _user_table(path: Path, settings: TaskSettings, role: str) -> _Table:
    frame = read_table(path)
    wanted = [*settings.text, settings.label, *([settings.id] if settings.id else [])]
    for name in wanted:
        if name not in frame.columns:
            raise UserError(f"{path}: no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    if len(frame) <= 1:
        raise UserError(f"{path}: {len(frame)} data rows; at least two are needed")
    missing = frame[wanted].isna().any(axis=1)
    if missing.any():
        raise UserError(
            f"{path}: row {int(missing.argmax()) + 1} has an empty cell in {', '.join(wanted)}; fill or drop it"
        )
    labels = _cells(frame[settings.label], path)
    if "" in labels:
        raise UserError(
            f"{path}: row {labels.index('') + 1} has no label in column {settings.label!r}; fill or drop it"
        )
    columns = {name: _cells(frame[name], path) for name in wanted}
    texts = list(zip(*(columns[c] for c in settings.text), strict=True))
    ids = _cells(frame[settings.id], path) if settings.id else [f"{role}-{i}" for i in range(len(frame))]
    long = max(range(len(ids)), key=lambda i: len(ids[i]))
    if len(ids[long]) > LONGEST_ID:
        raise UserError(
            f"{path}: row {long + 1} has an id of {len(ids[long])} characters in column {settings.id!r}; at most {LONGEST_ID}"
        )
    if "" in ids:
        raise UserError(f"{path}: row {ids.index('') + 1} has no id in column {settings.id!r}; fill or drop it")
    return _Table(ids, texts, labels)
