"""Files of answers: silent teachers, labels in place of probabilities, and what signals say about them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distill.checks import UserError
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.settings import BagEncoderSettings, PredictionsTeacher, TeachersSettings
from distill.teachers.encoders import BagEncoder
from distill.teachers.live import LiveSignals
from distill.teachers.predictions import FileTeacher
from distill.teachers.sources import load_pool
from distill.teachers.store import StoredSignals

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
NAMES = ("bad", "good", "mixed")
IDS = np.array([f"i{n}" for n in range(6)])
SPLIT = Split("train", IDS, [(f"text number {i}",) for i in IDS], np.array([0, 1, 2, 0, 1, 2]))
TASK = Task("t", "files", NAMES, {"train": SPLIT})


def write(path: Path, frame: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def probabilities() -> pd.DataFrame:
    """Answers for i0 to i3; the one for i2 is empty."""
    frame = pd.DataFrame({"id": IDS[:4], "good": [0.5, 0.25, None, 0.1], "bad": [0.25, 0.5, None, 0.2]})
    return frame.assign(mixed=1 - frame["good"] - frame["bad"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_rows_and_empty_cells_are_silence(tmp_path: Path, suffix: str) -> None:
    teacher = FileTeacher("llm", write(tmp_path / f"p{suffix}", probabilities()), TASK)
    assert teacher.answered(SPLIT).tolist() == [True, True, False, True, False, False]
    logits = teacher.compute(SPLIT)
    np.testing.assert_allclose(np.exp(logits[0]), [0.25, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(np.exp(logits[3]), [0.2, 0.1, 0.7], rtol=1e-6)
    assert not logits[[2, 4, 5]].any()
    np.testing.assert_array_equal(teacher.at(SPLIT, np.array([3, 2])), logits[[3, 2]])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sure", [True, False])
def test_labels(tmp_path: Path, suffix: str, sure: bool) -> None:
    frame = pd.DataFrame({"id": IDS[:4], "label": ["good", "mixed", None, "bad"], "confidence": [0.7, 1.0, None, 0.2]})
    if not sure:
        frame = frame.drop(columns="confidence")
    teacher = FileTeacher("api", write(tmp_path / f"p{suffix}", frame), TASK)
    assert (teacher.says_labels, teacher.one_hot) == (True, not sure)
    assert teacher.answered(SPLIT).tolist() == [True, True, False, True, False, False]
    labels, confidence = teacher.said(SPLIT)
    assert labels.tolist() == [1, 2, -1, 0, -1, -1]
    spread, certain = [[0.15, 0.7, 0.15], [0, 0, 1], [0.2, 0.4, 0.4]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    wanted = np.array(spread if sure else certain)
    np.testing.assert_allclose(np.exp(teacher.compute(SPLIT)[[0, 1, 3]]), wanted, atol=2e-8)
    if sure:
        assert confidence is not None
        np.testing.assert_allclose(confidence[[0, 1, 3]], [0.7, 1.0, 0.2])
    else:
        assert confidence is None


def test_whole_numbers_as_labels(tmp_path: Path) -> None:
    task = Task("t", "files", ("1", "2"), {"train": SPLIT})
    frame = pd.DataFrame({"id": IDS[:3], "label": [2, None, 1]})  # pandas makes floats of them
    for suffix in (".jsonl", ".parquet"):
        teacher = FileTeacher("api", write(tmp_path / f"p{suffix}", frame), task)
        assert teacher.said(SPLIT)[0].tolist() == [1, -1, 0, -1, -1, -1]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"id": ["i0"], "label": ["fine"]}, "id 'i0' has label 'fine'; it must be one of bad, good, mixed"),
        ({"id": ["i0"], "label": ["bad"], "confidence": [1.5]}, r"id 'i0' has a confidence outside \[0, 1\]"),
        ({"id": ["i0"], "label": ["bad"], "confidence": ["sure"]}, "a confidence is not a number"),
        ({"id": ["i0"], "label": ["bad"], "confidence": [None]}, "id 'i0' has an empty cell in column 'confidence'"),
        ({"id": ["i0"], "label": [None], "confidence": [0.5]}, "id 'i0' has an empty cell in column 'label'"),
        ({"id": ["i0"], "verdict": ["bad"]}, "has 1 class columns, the task has 3 .*or give the columns id,label"),
        ({"id": ["i0"], "bad": [0.5], "good": [None], "mixed": [0.5]}, "id 'i0' has an empty cell in column 'good'"),
    ],
)
def test_mistakes(tmp_path: Path, frame: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        FileTeacher("api", write(tmp_path / "p.csv", pd.DataFrame(frame)), TASK)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_ids_is_refused(tmp_path: Path) -> None:
    teacher = FileTeacher("api", write(tmp_path / "p.csv", pd.DataFrame({"id": ["x"], "label": ["bad"]})), TASK)
    for make in (
        lambda: StoredSignals(SPLIT, [teacher], BagEncoder(BagEncoderSettings(4)), tmp_path / "home"),
        lambda: LiveSignals(SPLIT, [teacher], BagEncoder(BagEncoderSettings(4))),
    ):
        with pytest.raises(UserError, match="no answer for any of the 6 train instances, such as id 'i0'"):
            make()


@pytest.mark.parametrize("live", [True, False])
def test_signals_say_who_answered(tmp_path: Path, live: bool) -> None:
    silent = FileTeacher("llm", write(tmp_path / "p.csv", probabilities()), TASK)
    whole = FileTeacher("api", write(tmp_path / "q.csv", pd.DataFrame({"id": IDS, "label": ["bad"] * 6})), TASK)
    encoder = BagEncoder(BagEncoderSettings(4))

    def signals(*teachers: Any) -> Any:
        if live:
            return LiveSignals(SPLIT, list(teachers), encoder)
        return StoredSignals(SPLIT, list(teachers), encoder, tmp_path / "home")

    both, rows = signals(silent, whole), np.array([5, 0, 2])
    assert not both.complete
    assert both.answered(rows).tolist() == [[False, True], [True, True], [False, True]]
    logits = both.logits(rows)
    assert not logits[[0, 2], 0].any()
    np.testing.assert_array_equal(logits[:, 1], whole.compute(SPLIT)[rows])
    alone = signals(whole)
    assert alone.complete
    assert alone.answered(rows).tolist() == [[True]] * 3


@pytest.mark.parametrize(("calibrate", "warned"), [("none", True), ("auto", False)])
def test_answers_without_doubt_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, calibrate: str, warned: bool
) -> None:
    write(tmp_path / "label.csv", pd.DataFrame({"id": IDS, "label": ["bad"] * 6}))
    write(tmp_path / "hot.csv", pd.DataFrame({"id": IDS, "good": 1.0, "bad": 0.0, "mixed": 0.0}))
    write(tmp_path / "soft.csv", probabilities())
    pool: list[Any] = [PredictionsTeacher(name=n, path=str(tmp_path / f"{n}.csv")) for n in ("label", "hot", "soft")]
    with caplog.at_level(logging.WARNING):
        load_pool(TeachersSettings(pool=pool, calibrate=calibrate), TASK, tmp_path, Engine.pick("cpu", "off", True))
    wanted = ["teacher label gives labels", "teacher hot gives probabilities of 0 and 1"] if warned else []
    assert [m.split(";")[0] for m in caplog.messages] == wanted
