"""Files as tables: CSV, TSV, JSONL and Parquet, all read by the same rules.

- Cells stay as they were written. Nothing is converted, and a cell that is neither text nor a number is refused.
- A column name occurs once.
- No row is lost without a word: a quote that joins several rows is refused, with the lines it joins.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.checks import UserError
from distill.settings import notice

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

_PACKED = "unpack it first"
_SHEET = "save the sheet as CSV (UTF-8)"
# What to do with files of other kinds, by their suffix.
_OTHER_SUFFIXES = {
    ".json": "write one object a line and name the file .jsonl",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), _SHEET),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst"), _PACKED),
}
# First bytes of files that often carry the name of a text file, what they are, and what to do.
_SIGNATURES = (
    (b"\x1f\x8b", "packed with gzip", _PACKED),
    (b"PK\x03\x04", "an Excel workbook or another zip archive", f"{_SHEET}, or {_PACKED}"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", _SHEET),
    (b"BZh91AY&SY", "packed with bzip2", _PACKED),
    (b"\xfd7zXZ", "packed with xz", _PACKED),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _PACKED),
    (b"PAR1\x15", "a Parquet file", "name it .parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with git lfs pull"),
    (b"<!DOCTYPE html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"\xff\xfe", "not UTF-8 but UTF-16", "convert it, for example with iconv -f utf-16 -t utf-8"),
    (b"\xfe\xff", "not UTF-8 but UTF-16", "convert it, for example with iconv -f utf-16 -t utf-8"),
)
_QUOTE_RULE = "remove a stray quote, and double each quote inside a quoted text"


@dataclass(frozen=True)
class Row:
    """The cells of one row of a text file, and its first and last line (from 1)."""

    first: int
    last: int
    cells: list[str]


# --- text -------------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without a byte order mark and without line ends.

    Lines end with a line feed, or a carriage return before one. A carriage return elsewhere is part of its line, unless
    the file has no line feed at all.

    Raises:
        UserError: if the file cannot be read, is not text in UTF-8, or contains a NUL character.
    """
    text = _text(path)
    where = text.find("\0")
    if where >= 0:
        raise UserError(f"{path}: line {text.count(chr(10), 0, where) + 1} holds a NUL; take it out")
    return [line.rstrip("\r\n") for line in _physical_lines(text)] or [""]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    for start, what, way_out in _SIGNATURES:
        if content[: len(start)].lower() == start.lower():
            raise UserError(f"{path}: it is {what}; {way_out}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8"
        ) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: {error.strerror or error}; give the path of a readable file")


def _physical_lines(text: str) -> list[str]:
    """The lines of a text, with their ends."""
    return list(io.StringIO(text, newline="\n" if "\n" in text else "\r"))


# --- tables -----------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> Any:
    """A CSV, TSV, JSONL or Parquet file as a pandas frame. A missing cell is None or NaN.

    Raises:
        UserError: for an unknown suffix, an unreadable file, a column name that occurs twice, a row with too many cells,
            or a quote that joins rows.
    """
    suffix = path.suffix.lower()
    kind = FORMATS.get(suffix)
    if kind is None:
        hint = f"; {_OTHER_SUFFIXES[suffix]}" if suffix in _OTHER_SUFFIXES else ""
        raise UserError(f"{path}: unknown kind of file; use .csv, .tsv, .jsonl or .parquet{hint}")
    if kind == "parquet":
        return _parquet(path)
    text = _text(path)
    if kind == "jsonl":
        return _json_lines(path, text)
    rows = _csv_rows(path, text) if kind == "csv" else _tsv_rows(path, text)
    if not rows:
        raise UserError(f"{path}: not readable as {kind}: it is empty")
    return _frame(path, rows)


def _parquet(path: Path) -> Any:
    import pandas as pd
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names if path.is_file() else []
        _check_header(path, names)
        frame = pd.read_parquet(path)
        # pandas keeps a column as the frame's index; in the file it is a column like the others.
        return frame.reset_index() if any(frame.index.names) else frame.reset_index(drop=True)
    except UserError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception as error:  # the errors of pyarrow and pandas are of many classes
        raise UserError(f"{path}: not readable as parquet ({' '.join(str(error).split())[:120]})") from None


def _json_lines(path: Path, text: str) -> Any:
    import pandas as pd

    if text.lstrip()[:1] == "[":
        raise UserError(
            f"{path}: it is a JSON array; write one object a line, for example with jq -c '.[]' {path.name} > NEW.jsonl"
        )
    records = []
    for number, line in enumerate(_physical_lines(text), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number}: not readable as jsonl ({error}); write one object a line"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{path}: line {number}: not readable as jsonl; write one object a line, as {{...}}")
        records.append(record)
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: _as_one_type([record.get(name) for record in records]) for name in names}
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of `pairs`; ValueError for a name that occurs twice."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} occurs {count} times in an object")
    return dict(pairs)


def _as_one_type(values: list[Any]) -> list[Any]:
    """A column of numbers as floats, if one of them is a float: 1 and 1.0 are the same label."""
    if {type(v) for v in values} - {type(None)} != {int, float}:
        return values
    try:
        return [None if v is None else float(v) for v in values]
    except OverflowError:  # an id, perhaps
        return values


def _frame(path: Path, rows: list[Row]) -> Any:
    """The frame of the rows of a text file, the header first. Cells that a short row lacks are None."""
    import pandas as pd

    header = [name or f"Unnamed: {i}" for i, name in enumerate(rows[0].cells)]  # as pandas names them
    _check_header(path, header)
    for row in rows[1:]:
        if len(row.cells) > len(header):
            raise UserError(
                f"{path}: line {row.first} has more cells than the header ({len(row.cells)} instead of {len(header)}); "
                "quote texts that hold the separator"
            )
    table = [[*row.cells, *[None] * (len(header) - len(row.cells))] for row in rows[1:]]
    return pd.DataFrame(table, columns=header, dtype=object)


def _check_header(path: Path, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: column {name!r} occurs {count} times; rename or remove the others")


# --- CSV --------------------------------------------------------------------------------------------------------------


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of any length, within the block."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_rows(path: Path, text: str) -> list[Row]:
    """The rows of a CSV file, blank lines left out.

    Raises:
        UserError: for a quote that joins rows, naming its lines.
    """
    lines = _physical_lines(text)
    rows: list[Row] = []
    loose: list[int] = []
    with _long_cells():
        reader = csv.reader(lines, strict=True)
        while reader.line_num < len(lines):
            first = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                cells = _loose_cells(path, lines[first - 1 : reader.line_num], first, str(error))
                loose.append(first)
            if lines[first - 1].strip():
                rows.append(Row(first, reader.line_num, cells))
    if loose:
        notice(
            f"{path}: {len(loose)} rows (first: line {loose[0]}) have text after a closing quote; "
            f"the quotes around the text before it are lost; {_QUOTE_RULE}"
        )
    _check_joined(path, rows, lines, ",")
    return rows


def _loose_cells(path: Path, lines: list[str], first: int, error: str) -> list[str]:
    """The cells of a row that breaks the rules of quoting within one line.

    Raises:
        UserError: if the row has several lines, or a quote that is not closed.
    """
    last = first + len(lines) - 1
    if "new-line" in error:
        raise UserError(f"{path}: line {last} has a carriage return within a cell; quote the cell or take it out")
    if len(lines) == 1:
        cells = next(csv.reader([lines[0].rstrip("\r\n") + "\n"]))
        if not cells[-1].endswith("\n"):
            return cells
    if "end of data" in error or len(lines) == 1:
        raise UserError(f"{path}: line {first}: a quote opens a cell and is never closed; {_QUOTE_RULE}")
    raise UserError(
        f"{path}: line {first}: a quote opens a cell that ends in line {last} in the middle of a text, so that "
        f"{last - first} rows would be lost; {_QUOTE_RULE}"
    )


def _check_joined(path: Path, rows: list[Row], lines: list[str], separator: str) -> None:
    """Refuse a cell over several lines that look like rows of their own.

    A line looks like a row if it has as many cells as the header and repeats a value of a column with few different
    values, such as the label. Without such a column the number of cells alone is no proof, and a note is printed.

    Raises:
        UserError: naming the lines.
    """
    joined = [row for row in rows[1:] if row.last > row.first]
    if not joined or len(rows[0].cells) < 2:
        return
    repeated = _repeated_values(rows)
    doubtful: list[Row] = []
    for row in joined:
        # The first and the last line also hold other cells of the row, so that one of them alone proves nothing.
        inner = lines[row.first : row.last - 1] or [lines[row.first - 1], lines[row.last - 1]]
        split = [line.rstrip("\r\n").split(separator) for line in inner if line.strip()]
        if split and all(len(cells) == len(rows[0].cells) for cells in split):
            if all(any(cell in values for cell, values in zip(c, repeated, strict=True)) for c in split):
                raise UserError(
                    f"{path}: line {row.first}: a quote opens a cell that ends in line {row.last}, but the lines "
                    f"between look like rows, and {row.last - row.first} would be lost; {_QUOTE_RULE}"
                )
            if not any(repeated):
                doubtful.append(row)
    if doubtful:
        lost = sum(row.last - row.first for row in doubtful)
        notice(
            f"{path}: {len(doubtful)} quoted cells (first: line {doubtful[0].first}) hold {lost} lines that look like "
            f"rows; if these are rows, {_QUOTE_RULE}"
        )


def _repeated_values(rows: list[Row]) -> list[set[str]]:
    """For each column the values that occur more than once, if at most half of its values differ; else nothing."""
    single = [row.cells for row in rows[1:] if row.first == row.last and len(row.cells) == len(rows[0].cells)]
    found = []
    for column in zip(*single, strict=True):
        counts = Counter(column)
        few = 2 * len(counts) <= len(column)
        found.append({value for value, count in counts.items() if count > 1 and value} if few else set())
    return found or [set() for _ in rows[0].cells]


# --- TSV --------------------------------------------------------------------------------------------------------------

# One cell with what ends it: either quoted, with quotes inside doubled, or without any quote.
_TSV_CELL = re.compile(r'(?:"((?:[^"]+|"")*+)"|([^"\t\n]*+))(\t|\r?\n)')


def _tsv_rows(path: Path, text: str) -> list[Row]:
    """The rows of a TSV file, blank lines left out. Quotes belong to the text, unless the whole file is quoted properly.

    Raises:
        UserError: for a quote that joins rows, naming its lines.
    """
    lines = [line.rstrip("\r\n") for line in _physical_lines(text)]
    plain = [Row(i, i, line.split("\t")) for i, line in enumerate(lines, 1) if line.strip(" ")]
    if '"' not in text or not plain:
        return plain
    whole = text if "\n" in text else text.replace("\r", "\n")
    quoted = _quoted_tsv(whole if whole.endswith("\n") else whole + "\n", plain)
    if quoted is None:
        _note_kept_quotes(path, plain)
        return plain
    _check_joined(path, quoted, lines, "\t")
    return quoted


def _quoted_tsv(text: str, plain: list[Row]) -> list[Row] | None:
    """The rows of a TSV file that was written with quotes; None: its quotes belong to its texts.

    Every quote must open or close a cell or be doubled. That alone may be chance, for example where one review is in
    quotes. So a whole column must be quoted, or each quoted cell must need its quotes: it holds a quote or a separator.
    """
    read = _quoted_rows(text)
    if read is None:
        return None
    rows, marks, inner = read
    width = len(rows[0].cells)
    if any(len(row.cells) != width for row in rows):
        return None
    across = any("\t" in cell or "\n" in cell for cell in inner)
    if across and all(len(row.cells) == width for row in plain):
        return None  # it is a table without quoting too, where a text that begins with a quote must not swallow rows
    whole = len(rows) > 2 and any(all(column) for column in zip(*marks[1:], strict=True))
    needed = all('""' in cell or "\t" in cell or "\n" in cell for cell in inner)
    return rows if whole or needed else None


def _quoted_rows(text: str) -> tuple[list[Row], list[list[bool]], list[str]] | None:
    """The rows of a quoted TSV file, whether each cell is quoted, and what stands in the quotes; None: another format."""
    rows: list[Row] = []
    marks: list[list[bool]] = []
    inner: list[str] = []
    cells: list[str] = []
    mark: list[bool] = []
    place, first, line = 0, 1, 1
    while place < len(text):
        match = _TSV_CELL.match(text, place)
        if match is None:
            return None
        place, line = match.end(), line + match[0].count("\n")
        mark.append(match[1] is not None)
        if match[1] is not None:
            inner.append(match[1])
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        if match[3] != "\t":
            cells[-1] = cells[-1] if mark[-1] else cells[-1].rstrip("\r")
            if mark != [False] or cells[0].strip(" "):
                rows.append(Row(first, line - 1, cells))
                marks.append(mark)
            first, cells, mark = line, [], []
    return rows, marks, inner


def _note_kept_quotes(path: Path, rows: list[Row]) -> None:
    """Print a note where most cells of a column are in quotes that are kept."""
    for place, name in enumerate(rows[0].cells):
        cells = [row.cells[place] for row in rows[1:] if len(row.cells) > place]
        count = sum(len(c) > 1 and c[0] == c[-1] == '"' for c in cells)
        if 2 * count > len(cells):
            notice(
                f"{path}: {count} of {len(cells)} cells of column {name!r} are in quotes, which are kept: "
                "other cells of this TSV file have quotes that do not follow the rules"
            )


# --- cells ------------------------------------------------------------------------------------------------------------

_NUMBERS = (bool, int, float, np.bool_, np.number)


def cells_of(column: Any, path: Path, numbers: bool = True) -> list[str]:
    """A column as strings.

    Args:
        column: a column of a frame, without missing cells.
        path: the file, for messages.
        numbers: whether a cell may be a number or a truth value, as a label or an id may, and not only text.

    Raises:
        UserError: for a cell of another type, or with characters that are not text.
    """
    values = column.tolist()
    for row, value in enumerate(values, 1):
        if not isinstance(value, str) and not (numbers and isinstance(value, _NUMBERS)):
            wanted = "a text or a number" if numbers else "a text"
            raise UserError(f"{path}: row {row} has {_type_of(value)} in column {column.name!r}; give {wanted}")
    texts = [str(v) for v in values]
    whole = "".join(texts)
    for what, pattern in {"a NUL": "\0", "half a surrogate pair": "[\ud800-\udfff]"}.items():
        if re.search(pattern, whole):
            row = next(i for i, v in enumerate(texts, 1) if re.search(pattern, v))
            raise UserError(f"{path}: row {row} has {what} in column {column.name!r}; take it out")
    return texts


def _type_of(value: Any) -> str:
    """What a cell is, in words."""
    if isinstance(value, bytes | bytearray):
        return "binary data"
    if isinstance(value, list | dict | tuple | set | np.ndarray):
        return "a list or an object"
    if isinstance(value, bool | np.bool_):
        return "a truth value"
    if isinstance(value, _NUMBERS):
        return "a number"
    return "nothing" if value is None else f"a {type(value).__name__}"
