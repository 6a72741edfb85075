"""Files as tables: the same rules for CSV, TSV, JSONL and Parquet, and no row is lost without a word."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distill import settings as settings_module
from distill.checks import UserError
from distill.data.formats import read_table
from distill.data.load import load_task
from distill.data.splits import Split, Task
from distill.settings import TaskSettings
from distill.teachers.predictions import FileTeacher

pytestmark = pytest.mark.faults

HEADER = ["key", "review", "verdict"]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """A function that returns the notes printed so far, one a line."""
    monkeypatch.setattr(settings_module, "_NOTICES", set())
    return lambda: capsys.readouterr().err.splitlines()


def rows(count: int, role: str = "train") -> list[list[str]]:
    return [[f"{role}{i}", f"{role} text {i}", ("good", "bad")[i % 2]] for i in range(count)]


def lines(table: list[list[str]], separator: str = ",") -> list[str]:
    return [separator.join(row) for row in [HEADER, *table]]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(folder: Path, train: Path, **more: Any) -> Task:
    """The task of a training file, with a test file of other texts."""
    test = put(folder / "other.csv", "\n".join(lines(rows(6, "test"))))
    own = {"name": "files", "train": str(train), "test": str(test), "text": ["review"], "label": "verdict"}
    return load_task(TaskSettings(**{"id": "key", "reward_size": 0.3, "dev_size": 0.3} | own | more))


def texts_of(task: Task) -> dict[str, str]:
    """Texts by id, in all splits but test."""
    return {
        str(i): t[0]
        for role in ("train", "reward", "dev")
        for i, t in zip(task.splits[role].ids, task.splits[role].texts, strict=True)
    }


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message, message


# --- the type of a cell -----------------------------------------------------------------------------------------------

COUNT = 20
CELLS: dict[str, tuple[Callable[[int], Any], str]] = {
    "binary data": (lambda i: f"text {i}".encode(), "binary data"),
    "a list": (lambda i: ["the", f"film {i}"], "a list or an object"),
    "an object": (lambda i: {"text": f"film {i}"}, "a list or an object"),
    "a number": (lambda i: i, "a number"),
    "a truth value": (lambda i: i % 3 == 0, "a truth value"),
    "a time": (lambda i: pd.Timestamp(2024, 1, i + 1), "a Timestamp"),
}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(("cell", "words"), CELLS.values(), ids=CELLS)
def test_a_text_must_be_text_in_every_format(tmp_path: Path, suffix: str, cell: Any, words: str) -> None:
    table = [dict(zip(HEADER, row, strict=True)) | {"review": cell(i)} for i, row in enumerate(rows(COUNT))]
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        try:
            put(path, "\n".join(map(json.dumps, table)))
        except TypeError:
            pytest.skip("JSON cannot hold it")
    refused(lambda: load(tmp_path, path), str(path), "row 1 ", words, "column 'review'", "give a text")


@pytest.mark.parametrize("column", ["key", "verdict"])
@pytest.mark.parametrize("name", ["binary data", "a list", "an object"])
def test_ids_and_labels_are_text_or_numbers(tmp_path: Path, column: str, name: str) -> None:
    cell, words = CELLS[name]
    table = [dict(zip(HEADER, row, strict=True)) | {column: cell(i)} for i, row in enumerate(rows(COUNT))]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    refused(lambda: load(tmp_path, tmp_path / "t.parquet"), "row 1 ", words, column, "a text or a number")


def test_binary_ids_of_answers_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [b"a", b"b"], "label": ["no", "yes"]}), tmp_path / "p.parquet")
    split = Split("train", np.array(["a", "b"]), [("x",), ("y",)], np.array([0, 1]))
    task = Task("t", "files", ("no", "yes"), {"train": split})
    refused(lambda: FileTeacher("llm", tmp_path / "p.parquet", task), "binary data", "column 'id'")


def test_columns_of_categories_and_a_named_index_are_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(COUNT), columns=HEADER).astype({"verdict": "category"}).assign(owner=None)
    frame["owner"] = frame["owner"].astype("category")
    frame.set_index("key").to_parquet(tmp_path / "t.parquet")
    task = load(tmp_path, tmp_path / "t.parquet", owner="owner")
    assert texts_of(task) == {key: text for key, text, _ in rows(COUNT)}
    assert task.label_names == ("bad", "good")


# --- a name twice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_column_name_occurs_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    names, table = ["review", "verdict", "review"], [[f"a{i}", ("good", "bad")[i % 2], f"b{i}"] for i in range(6)]
    if suffix == ".parquet":
        pq.write_table(pa.table([list(c) for c in zip(*table, strict=True)], names=names), path)
    elif suffix == ".jsonl":
        put(path, "\n".join(f'{{"review": "{a}", "verdict": "{v}", "review": "{b}"}}' for a, v, b in table))
    else:
        put(path, "\n".join(("," if suffix == ".csv" else "\t").join(row) for row in [names, *table]))
    refused(lambda: load(tmp_path, path, id=None), str(path), "'review' occurs 2 times")


def test_a_column_name_occurs_once_in_glue(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    put(tmp_path / "RTE" / "train.tsv", "index\tsentence1\tsentence2\tlabel\tlabel\n0\ta\tb\tentailment\tx\n")
    refused(lambda: load_task(TaskSettings(name="rte"), str(tmp_path)), "train.tsv", "'label' occurs 2 times")


# --- quotes -----------------------------------------------------------------------------------------------------------


def spoilt(count: int, changes: dict[int, str], separator: str = ",") -> str:
    """A file without quotes but for some texts, by row."""
    table = rows(count)
    for row, text in changes.items():
        table[row][1] = text
    return "\n".join(lines(table, separator)) + "\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({30: '"the film', 45: 'so called "art'}, ["line 32", "ends in line 47 in the middle of a text", "15 rows"]),
        ({30: '"the film', 45: 'a "masterpiece"'}, ["line 32", "line 47", "15 rows"]),
        ({30: '"the film', 45: 'a screen of 12"'}, ["line 32", "line 47", "look like rows", "15 would be lost"]),
        ({30: '"the film', 31: 'a screen of 12"'}, ["line 32", "line 33", "look like rows"]),
        ({30: '"the film'}, ["line 32", "never closed"]),
        ({89: '"the film'}, ["line 91", "never closed"]),
        ({30: '"the" film,"another'}, ["line 32", "never closed"]),
    ],
)
def test_a_quote_that_joins_rows_is_refused(tmp_path: Path, changes: dict[int, str], words: list[str]) -> None:
    path = put(tmp_path / "t.csv", spoilt(90, changes))
    refused(lambda: read_table(path), "t.csv", "double each quote", *words)


def test_a_joined_row_without_labels_is_noted(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    """No value repeats, so that the number of cells is the only sign."""
    table = [[f"k{i}", f"text {i}"] for i in range(20)]
    table[4][1], table[9][1] = '"open', 'closed"'
    path = put(tmp_path / "t.csv", "\n".join(map(",".join, [["key", "review"], *table])))
    assert len(read_table(path)) == 15
    (note,) = notes()
    for word in ("t.csv", "1 quoted cells (first: line 6)", "5 lines", "look like rows"):
        assert word in note


def test_quotes_in_the_middle_of_a_text_are_text(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    path = put(tmp_path / "t.csv", spoilt(90, {3: 'a 12" screen', 5: 'he said "no"', 7: '"well ""done"", he said"'}))
    frame = read_table(path)
    assert len(frame) == 90
    assert [frame["review"][i] for i in (3, 5, 7)] == ['a 12" screen', 'he said "no"', 'well "done", he said']
    assert notes() == []
    put(path, spoilt(90, {3: '"A" film'}))
    assert read_table(path)["review"][3] == "A film"
    (note,) = notes()
    assert "1 rows (first: line 5) have text after a closing quote" in note


WORDS = st.sampled_from(["good", "bad", ",", "\n", '"', '""', " ", "\r\n", "a, b", "\t"]) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=4
)
TEXTS = st.lists(WORDS, min_size=1, max_size=5).map("".join).filter(lambda t: t.strip() != "")


@hypothesis_settings(max_examples=60)
@given(st.lists(TEXTS, min_size=4, max_size=9), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_a_writer_quoted_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, texts: list[str], quoting: Any
) -> None:
    """Texts of several lines, with commas and with quotes."""
    table = [[f"k{i}", text, ("good", "bad")[i % 2]] for i, text in enumerate(texts)]
    out = io.StringIO()
    separator = "," if suffix == ".csv" else "\t"
    csv.writer(out, delimiter=separator, lineterminator="\n", quoting=quoting).writerows([HEADER, *table])
    path = put(tmp_path_factory.mktemp("quoted") / f"t{suffix}", out.getvalue())
    assert read_table(path).to_numpy().tolist() == table


def test_half_quoted_tsv(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    """The texts are in quotes, other cells are not."""
    table = [[key, f'"{text}"', label] for key, text, label in rows(20)]
    path = put(tmp_path / "t.tsv", "\n".join(lines(table, "\t")))
    assert texts_of(load(tmp_path, path)) == {key: text for key, text, _ in rows(20)}
    table[7][1] = '"he said "no" and left"'
    put(path, "\n".join(lines(table, "\t")))
    assert texts_of(load(tmp_path, path)) == {key: text for key, text, _ in table}
    (note,) = notes()
    assert "20 of 20 cells of column 'review' are in quotes, which are kept" in note


@pytest.mark.parametrize(
    "changes",
    [{3: '"Great film"'}, {3: '"open', 9: 'close"'}, {3: '"open', 4: '"close"'}, {3: '""', 5: '"she" said'}],
    ids=str,
)
def test_quotes_of_other_tsv_files_are_text(
    tmp_path: Path, changes: dict[int, str], notes: Callable[[], list[str]]
) -> None:
    path = put(tmp_path / "t.tsv", spoilt(20, changes, "\t"))
    expected = [row[1] for row in rows(20)]
    for row, text in changes.items():
        expected[row] = text
    assert read_table(path)["review"].tolist() == expected
    assert notes() == []


# --- carriage returns -------------------------------------------------------------------------------------------------

GLUE = {
    "qqp": ("QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{i}\t1\t2\t{a}\t{b}\t{y}", ("0", "1")),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", "{i}\t{a}\t{b}\t{y}", ("entailment", "not_entailment")),
}


def glue(folder: Path, name: str, end: str = "\n") -> TaskSettings:
    """The files of a task, in which the text of row 3 holds a carriage return."""
    place, header, row, labels = GLUE[name]
    (folder / place).mkdir()
    for file in ("train", "dev"):
        table = [
            row.format(i=i, a=f"{file} a{i}\rmore" if i == 3 else f"{file} a{i}", b=f"b{i}", y=labels[i % 2])
            for i in range(20)
        ]
        put(folder / place / f"{file}.tsv", end.join([header, *table]) + end)
    return TaskSettings(name=name, reward_size=0.3, dev_size=0.3)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("name", GLUE)
def test_a_carriage_return_in_a_line_of_glue(
    tmp_path: Path, name: str, end: str, notes: Callable[[], list[str]]
) -> None:
    task = load_task(glue(tmp_path, name, end), str(tmp_path))
    assert sum(len(task.splits[r]) for r in ("train", "reward", "dev")) == len(task.splits["test"]) == 20
    assert task.splits["test"].texts[3] == ("dev a3\rmore", "b3")
    assert notes() == []


def test_files_with_carriage_returns_alone(tmp_path: Path) -> None:
    """Line ends of old spreadsheets."""
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        path = put(tmp_path / f"t{suffix}", "\r".join(lines(rows(20), separator)))
        assert read_table(path).to_numpy().tolist() == rows(20)


def test_a_carriage_return_in_a_cell(tmp_path: Path) -> None:
    assert read_table(put(tmp_path / "t.tsv", spoilt(9, {3: "a\rb"}, "\t")))["review"][3] == "a\rb"
    assert read_table(put(tmp_path / "t.csv", spoilt(9, {3: '"a\rb"'})))["review"][3] == "a\rb"
    refused(
        lambda: read_table(put(tmp_path / "t.csv", spoilt(9, {3: "a\rb"}))),
        "line 5",
        "carriage return",
        "quote the cell",
    )


def test_rows_of_qqp_that_are_left_out_are_counted(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    settings = glue(tmp_path, "qqp")
    with (tmp_path / "QQP" / "train.tsv").open("a") as file:
        file.write("20\t1\t2\tcut short\n21\t1\n")
    load_task(settings, str(tmp_path))
    (note,) = notes()
    assert "QQP/train.tsv: 2 rows with too few cells (first: line 22) are left out" in note


# --- texts in two files -----------------------------------------------------------------------------------------------


def test_one_file_as_train_and_test(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    path = put(tmp_path / "t.csv", "\n".join(lines(rows(30))))
    load(tmp_path, path, test=str(path), id=None)
    (note,) = notes()
    for word in ("30 of 30 texts", f"task.test={path}", f"task.train={path}", "too good"):
        assert word in note


def test_texts_that_occur_in_two_files_are_counted(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    train, shared = rows(30), [[f"x{i}", f" train  text {i}", "good"] for i in range(4)]
    put(tmp_path / "t.csv", "\n".join(lines(train)))
    put(tmp_path / "dev.csv", "\n".join(lines([*rows(8, "dev"), *shared[:1]])))
    put(tmp_path / "more.csv", "\n".join(["key,review", *(f"m{i},test text {i}" for i in range(5))]))
    load(tmp_path, tmp_path / "t.csv", dev=str(tmp_path / "dev.csv"), unlabelled=str(tmp_path / "more.csv"))
    first, second = notes()
    assert "1 of 9 texts of task.dev=" in first
    assert "5 of 6 texts of task.test=" in second
    assert "task.unlabelled=" in second


def test_pairs_share_a_text_only_if_both_do(tmp_path: Path, notes: Callable[[], list[str]]) -> None:
    put(tmp_path / "t.csv", "\n".join(["a,b,label", *(f"q{i},s{i},{i % 2}" for i in range(20))]))
    put(tmp_path / "e.csv", "\n".join(["a,b,label", "q1,s2,0", "q2,s2,1", "q3,other,1"]))
    load_task(TaskSettings(name="files", train=str(tmp_path / "t.csv"), test=str(tmp_path / "e.csv"), text=["a", "b"]))
    (note,) = notes()
    assert "1 of 3 texts" in note


# --- JSON -------------------------------------------------------------------------------------------------------------


def objects() -> list[dict[str, str]]:
    return [dict(zip(HEADER, row, strict=True)) for row in rows(20)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"], ids=["unix", "windows", "blank lines"])
def test_json_lines_with_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    path = put(tmp_path / "t.jsonl", b"\xef\xbb\xbf" + end.join(map(json.dumps, objects())).encode())
    assert texts_of(load(tmp_path, path)) == {key: text for key, text, _ in rows(20)}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", json.dumps(objects()), ["JSON array", "one object a line", "jq -c"]),
        ("t.jsonl", "\ufeff" + json.dumps(objects(), indent=2), ["JSON array", "jq -c"]),
        ("t.jsonl", json.dumps(objects()[0], indent=2), ["line 1", "one object a line"]),
        ("t.jsonl", '{"key": "a"}\n3\n', ["line 2", "one object a line"]),
        ("t.jsonl", '{"key": "a"}\n{"key": "b"', ["line 2", "not readable as jsonl"]),
        ("t.json", json.dumps(objects()), ["t.json", "unknown kind", ".jsonl", "one object a line"]),
    ],
)
def test_json_that_is_not_json_lines(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    refused(lambda: read_table(put(tmp_path / name, content)), *words)


def test_numbers_of_json_are_one_type(tmp_path: Path) -> None:
    """1 and 1.0 are one label. Whole numbers beside a missing value stay whole."""
    mixed = [{"a": 1, "b": 1, "c": 10**400}, {"a": 1.0, "b": None, "c": 0.5}]
    frame = read_table(put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, mixed))))
    assert [str(v) for v in frame["a"]] == ["1.0", "1.0"]
    assert frame["b"].tolist() == [1, None]
    assert frame["c"].tolist() == [10**400, 0.5]


# --- other files under the name of a table ----------------------------------------------------------------------------


def workbook() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"key,review,verdict\n"), ["packed with gzip", "unpack it first"]),
        (workbook(), ["Excel workbook", "save the sheet as CSV"]),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", ["Excel workbook", "save the sheet as CSV"]),
        ("key,review,verdict\n".encode("utf-16"), ["not UTF-8 but UTF-16", "iconv -f utf-16"]),
        (b"<!doctype html>\n<html>", ["web page", "download"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS", "git lfs pull"]),
    ],
    ids=["gzip", "xlsx", "xls", "UTF-16", "HTML", "LFS"],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_other_files_are_named(tmp_path: Path, suffix: str, content: bytes, words: list[str]) -> None:
    path = put(tmp_path / f"t{suffix}", content)
    refused(lambda: load(tmp_path, path), str(path), *words)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.xlsx", "t.zip"])
def test_other_suffixes_are_named(tmp_path: Path, name: str) -> None:
    refused(lambda: read_table(tmp_path / name), name, "unknown kind of file", "unpack" if "x" not in name else "save")


def test_a_parquet_file_named_csv(tmp_path: Path) -> None:
    pd.DataFrame(rows(20), columns=HEADER).to_parquet(tmp_path / "t.parquet")
    path = put(tmp_path / "t.csv", (tmp_path / "t.parquet").read_bytes())
    refused(lambda: read_table(path), "a Parquet file", "name it .parquet")


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        ("\n".join(lines(rows(9), ";")), {}, ["separated by semicolons", "commas"]),
        ("\n".join(lines(rows(9), "\t")), {}, ["separated by tabs", ".tsv"]),
        ("\n".join(lines(rows(9))), {"label": "Verdict "}, ["no column 'Verdict '", "did you mean 'verdict'"]),
    ],
)
def test_a_missing_column_has_a_likely_cause(
    tmp_path: Path, content: str, more: dict[str, Any], words: list[str]
) -> None:
    refused(lambda: load(tmp_path, put(tmp_path / "t.csv", content), **more), *words)


# --- answers ----------------------------------------------------------------------------------------------------------

SPLIT = Split("train", np.array([f"i{n}" for n in range(6)]), [(f"t{n}",) for n in range(6)], np.arange(6) % 2)
TASK = Task("t", "files", ("bad", "good"), {"train": SPLIT})
ANSWERS: dict[str, tuple[pd.DataFrame, list[str]]] = {
    "percent": (
        pd.DataFrame({"id": SPLIT.ids, "bad": [90.0, 80, 70, 60, 50, 99.9], "good": [10.0, 20, 30, 40, 50, 0.1]}),
        ["percent", "divide by 100", "'i0'"],
    ),
    "a confidence in percent": (
        pd.DataFrame({"id": SPLIT.ids, "label": ["bad", "good"] * 3, "confidence": [90, 80, 70, 60, 50, 100]}),
        ["percent", "divide by 100", "'i0'"],
    ),
    "a percent sign": (
        pd.DataFrame({"id": SPLIT.ids, "bad": ["90%"] * 6, "good": ["10%"] * 6}),
        ["'i0'", "'90%'", "not a number"],
    ),
    "a decimal comma": (
        pd.DataFrame({"id": SPLIT.ids, "bad": [0.5] * 5 + ["0,5"], "good": [0.5] * 6}),
        ["'i5'", "'0,5'", "not a number"],
    ),
    "another column": (
        pd.DataFrame({"id": SPLIT.ids, "index": range(6), "bad": [0.5] * 6, "good": [0.5] * 6}),
        ["3 class columns", "'index' is no label", "remove"],
    ),
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(("frame", "words"), ANSWERS.values(), ids=ANSWERS)
def test_answers_in_other_forms(tmp_path: Path, suffix: str, frame: pd.DataFrame, words: list[str]) -> None:
    path = tmp_path / f"p{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    refused(lambda: FileTeacher("llm", path, TASK), "teacher llm", str(path), *words)


@pytest.mark.parametrize("labels", [True, False])
def test_an_index_column_of_answers_is_named(tmp_path: Path, labels: bool) -> None:
    columns = {"label": ["bad", "good"] * 3} if labels else {"bad": [0.5] * 6, "good": [0.5] * 6}
    pd.DataFrame({"id": SPLIT.ids, **columns}).to_csv(tmp_path / "p.csv")
    refused(lambda: FileTeacher("llm", tmp_path / "p.csv", TASK), "first column has no name", "to_csv(index=False)")


def test_an_index_column_of_a_task_is_not_read(tmp_path: Path) -> None:
    pd.DataFrame(rows(20), columns=HEADER).to_csv(tmp_path / "t.csv")
    assert texts_of(load(tmp_path, tmp_path / "t.csv")) == {key: text for key, text, _ in rows(20)}
    assert not re.search("Unnamed", str(load(tmp_path, tmp_path / "t.csv").label_names))
