"""`distill.predict` and `distill.export`: the answers of `transformers.pipeline` for a table, and ONNX files that give them too."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from distill import export, predict
from distill.models.build import build_student
from distill.models.engine import Engine
from distill.settings import TruncateStudent
from distill.student import Student

TEXTS = ["the plot was dull", "an excellent film, and moving too! " * 9, "", "the room ☃ was clean", "food " * 700, "a"]
LABELS = ("bad", "label", "very good")
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")


@pytest.fixture(scope="module")
def desk(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of three classes in `student/`, and tables of texts."""
    folder = tmp_path_factory.mktemp("desk")
    settings = TruncateStudent(path=str(zoo["bert"]), layers=2, max_length=24, dropout=0.0)
    model, tokenizer = build_student(settings, LABELS, [(text,) for text in TEXTS], 0)
    Student(model, tokenizer, settings, Engine(torch.device("cpu"), fast=False)).save(folder / "student")
    frame = pd.DataFrame({"id": [f"t{i}" for i in range(len(TEXTS))], "text": TEXTS, "other": TEXTS[::-1]})
    frame["gold"] = [LABELS[i % 3] for i in range(len(frame))]
    frame.to_parquet(folder / "texts.parquet")
    frame[frame.text != ""].to_csv(folder / "texts.csv", index=False)
    return folder


def run(folder: Path, file: str, *words: str) -> int:
    return predict.main([str(folder / "student"), str(folder / file), *words])


def probabilities(folder: Path, inputs: list[Any], **more: Any) -> np.ndarray:
    """Those of `transformers.pipeline`, in the order of the classes."""
    classify = transformers.pipeline("text-classification", str(folder / "student"), top_k=None, device="cpu")
    answers = classify(inputs, **more)
    return np.array([[next(a["score"] for a in row if a["label"] == name) for name in LABELS] for row in answers])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("size", ["1", "64"])
def test_the_answers_are_those_of_the_pipeline(desk: Path, tmp_path: Path, suffix: str, size: str, capsys: Any) -> None:
    """In the order of the file, for empty texts and texts of 700 words too."""
    out = tmp_path / f"p.{suffix}"
    assert run(desk, "texts.parquet", "--text", "text", "--id", "id", "--out", str(out), "--batch-size", size) == 0
    assert f"{len(TEXTS)} predictions written to {out}" in capsys.readouterr().out
    frame = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    # A class that is called as another column is has a column of its own.
    assert list(frame) == ["id", "label", "probability", "bad", "class label", "very good"]
    expected = probabilities(desk, TEXTS)
    np.testing.assert_allclose(frame[["bad", "class label", "very good"]].to_numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(frame["probability"], expected.max(1), atol=2e-6)
    assert list(frame["label"]) == [LABELS[i] for i in expected.argmax(1)]
    assert list(frame["id"]) == [f"t{i}" for i in range(len(TEXTS))]


def test_pairs_of_texts(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    assert run(desk, "texts.parquet", "--text", "text", "--text", "other", "--out", str(out)) == 0
    inputs = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    expected = probabilities(desk, inputs, truncation=True)
    got = pd.read_parquet(out)[["bad", "class label", "very good"]].to_numpy()
    # Of two texts that are both too long, the pipeline gives the odd token to the other one. It takes a text with an empty
    # second one for a single text.
    rows = [i for i, (a, b) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True)) if b and min(len(a), len(b)) < 100]
    assert len(rows) == 3
    np.testing.assert_allclose(got[rows], expected[rows], atol=2e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["texts.csv", "--text", "txt", "--out", "p.csv"], "no column 'txt'; it has id, text, other, gold; did you mean 'text'?"),
        (["texts.csv", "--text", "text", "--out", "p.xlsx"], "--out=p.xlsx: unknown kind of file; use .csv or .parquet"),
        (["texts.csv", "--text", "text", "--out", "no/p.csv"], "--out=no/p.csv: there is no folder no; make it first"),
        (["no.csv", "--text", "text", "--out", "p.csv"], "no.csv: No such file or directory"),
        (["texts.csv", *["--text", "text"] * 3, "--out", "p.csv"], "--text is given 3 times; a student reads one text or a pair"),
        (["texts.csv", "--text", "text", "--out", "p.csv", "--batch-size", "0"], "--batch-size=0 must be positive"),
        (["texts.csv", "--text", "text", "--out", "p.csv", "--max-length", "900"], "max_length=900 is more than its 512 positions"),
        (["texts.csv", "--text", "text", "--out", "p.csv", "--max-length", "2"], "--max-length=2 must be above 2"),
        (["texts.csv", "--text", "text", "--out", "p.csv", "--device", "tpu"], "--device=tpu is not known; choose from auto, cpu, cuda, cuda:N"),
        (["hole.jsonl", "--text", "text", "--out", "p.csv"], "row 2 has an empty cell in column 'text'; fill or drop it"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(desk: Path, words: list[str], message: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(desk)
    (desk / "hole.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    before = sorted(desk.iterdir())
    assert predict.main(["student", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert sorted(desk.iterdir()) == before


def test_a_folder_that_is_no_classifier(desk: Path, zoo: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    for student in (str(zoo["bert"]), str(tmp_path)):
        assert predict.main([student, str(desk / "texts.csv"), "--text", "text", "--out", str(tmp_path / "p.csv")]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: student: ")
    assert not (tmp_path / "p.csv").exists()


# --- export -----------------------------------------------------------------------------------------------------------


def onnx(desk: Path, *words: str) -> int:
    return export.main([str(desk / "student"), "--onnx", *words])


@needs_onnx
def test_a_file_that_answers_differently_is_not_written(desk: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(export, "write_onnx", lambda path, *_: path.write_bytes(b"a file"))
    monkeypatch.setattr(export, "session", lambda *_: lambda batch: torch.zeros(len(batch["input_ids"]), 3))
    assert onnx(desk, "--texts", str(desk / "texts.csv"), "--text", "text") == 2
    assert "the ONNX file's outputs differ from the student's by" in capsys.readouterr().err
    assert not (desk / "student" / "onnx").exists()


@needs_onnx
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config.yaml of a run beside it, so its dev data is not known; add --texts FILE --text COLUMN"),
        (["--texts", "texts.csv"], "--texts=texts.csv: add --text COLUMN"),
        (["--texts", "texts.csv", "--text", "text", "--label", "id"], "texts.csv: the student has no label 't0'; it has bad, label, very good"),
        (["--threads", "0"], "--threads=0 must be positive"),
    ],
)  # fmt: skip
def test_mistakes_of_an_export_end_in_one_line(
    desk: Path, words: list[str], message: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(desk)
    assert onnx(desk, *words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (desk / "student" / "onnx").exists()


def test_missing_packages_are_named(desk: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert onnx(desk) == 2
    assert capsys.readouterr().err == (
        "error: --onnx needs onnxscript; install the extra: pip install 'teacher-select[onnx]'\n"
    )


@needs_onnx
def test_the_onnx_file_gives_the_answers_of_the_pipeline(desk: Path, monkeypatch: Any, capsys: Any) -> None:
    """For texts one at a time and together, with the token types and the padding of the student."""
    monkeypatch.chdir(desk)
    card = desk / "student" / "README.md"
    card.write_text("# a student\n\n## Size and latency\n\nof an earlier export\n\n## Data\n\nsome\n")
    words = ["--texts", "texts.csv", "--text", "text", "--label", "gold", "--int8", "--teacher", "student"]
    assert onnx(desk, *words) == 0
    shown = capsys.readouterr().out
    assert "5 texts of texts.csv" in shown
    written = json.loads((desk / "student" / "onnx" / "export.json").read_text())
    assert [row["model"] for row in written["models"]] == ["teacher student", "student", "ONNX", "int8"]
    student, _ = predict.load_student(str(desk / "student"), "cpu", [(t,) for t in TEXTS], fast=False)
    tokens = student.tokenize([(text,) for text in TEXTS])
    forward = export.session(desk / "student" / "onnx" / "model.onnx", 1)
    expected = probabilities(desk, TEXTS)
    for rows in ([0, 1, 2, 3, 4, 5], [2], [4], [0, 1]):
        got = torch.softmax(forward(tokens.batch(np.array(rows))), -1).numpy()
        np.testing.assert_allclose(got, expected[rows], atol=1e-5)
    text = card.read_text()
    assert text.count("## Size and latency") == 1
    assert "of an earlier export" not in text
    assert "\n## Data\n\nsome\n" in text
