"""Saved students read texts of any length: `transformers.pipeline` cuts them where the student was trained to, without arguments."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from distill.models.build import build_student
from distill.models.cut import MARK
from distill.models.engine import Engine
from distill.models.loading import load_tokenizer
from distill.settings import CheckpointStudent, FreshStudent, StudentSettings, TruncateStudent
from distill.student import Student

TEXTS = [("the plot was dull",), ("an excellent and moving film",)] * 4
LONG = "the room was clean, and the battery excellent! " * 240  # 2,400 words and signs
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["the", "plot", "don't", "café", "東京", "$5.00", "wow!!!", "zqzq", "😀", "naïve", "Straße", "U.S.A.", "x_y"]
WORDS += ["a" * 101, "b" * 100, ""]


def made(settings: StudentSettings) -> Student:
    engine = Engine(torch.device("cpu"), fast=False)
    return Student(*build_student(settings, ("no", "yes"), TEXTS, 0), settings, engine)


def settings_of(kind: str, zoo: dict[str, Path]) -> StudentSettings:
    common: dict[str, Any] = {"max_length": 24, "dropout": 0.0}
    if kind == "fresh":
        return FreshStudent(config=WIDTHS | {"initializer_range": 0.5}, **common)
    if kind == "truncated bert":
        return TruncateStudent(path=str(zoo["bert"]), layers=2, **common)
    return CheckpointStudent(path=str(zoo[kind]), **common)


@pytest.mark.parametrize("kind", ["fresh", "truncated bert", "roberta", "albert"])
def test_a_pipeline_reads_2400_tokens_without_arguments(kind: str, zoo: dict[str, Path], tmp_path: Path) -> None:
    student = made(settings_of(kind, zoo))
    assert len(student.tokenizer(LONG)["input_ids"]) > 2400
    student.save(tmp_path)
    classify = transformers.pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")
    assert classify.tokenizer.model_max_length == 24
    answer = {a["label"]: a["score"] for a in classify([LONG])[0]}
    assert sum(answer.values()) == pytest.approx(1, abs=1e-5)
    if kind in ("fresh", "truncated bert"):  # to the token what the student reads in training
        expected = torch.softmax(student.predict(student.tokenize([(LONG,)])), -1)[0]
        assert [answer["no"], answer["yes"]] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["fresh", "truncated bert"])
def test_the_cut_is_that_of_truncation(kind: str, zoo: dict[str, Path], tmp_path: Path) -> None:
    """Words that are unknown, too long, or end at the cut; signs, and characters that are words of their own."""
    student = made(settings_of(kind, zoo))
    student.save(tmp_path)
    saved, draw = transformers.AutoTokenizer.from_pretrained(tmp_path), random.Random(0)
    for _ in range(150):
        text = " ".join(draw.choice(WORDS) + draw.choice(["", "s", "!", ", "]) for _ in range(draw.randrange(30)))
        assert dict(saved(text)) == dict(student.tokenizer(text, truncation=True, max_length=24)), text
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["truncation"]["max_length"] == 24


@pytest.mark.parametrize("kind", ["fresh", "truncated bert", "roberta"])
def test_a_student_that_is_loaded_again_reads_as_far_as_it_is_told(
    kind: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    student = made(settings_of(kind, zoo))
    student.save(tmp_path / "cut")
    student.save(tmp_path / "plain", cut=False)  # as earlier versions saved it
    whole = student.tokenizer(LONG)["input_ids"]
    for name in ("cut", "plain"):
        again = load_tokenizer(tmp_path / name, "student")
        assert again(LONG)["input_ids"] == whole
        assert again("")["input_ids"] == student.tokenizer("")["input_ids"]
    if kind == "truncated bert":  # and is saved again
        settings = CheckpointStudent(path=str(tmp_path / "cut"), max_length=30, dropout=0.0)
        made(settings).save(tmp_path / "again")
        saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
        assert saved(LONG)["input_ids"] == student.tokenizer(LONG, truncation=True, max_length=30)["input_ids"]
        steps = (tmp_path / "again" / "tokenizer.json").read_text()
        assert steps.count(MARK) == 1


def test_a_tokenizer_that_would_change_is_saved_as_it_is(zoo: dict[str, Path], tmp_path: Path) -> None:
    """XLNet's padding follows from its class, which the step would replace; it has no end of positions either."""
    student = made(settings_of("xlnet", zoo))
    student.save(tmp_path / "cut")
    student.save(tmp_path / "plain", cut=False)
    assert (tmp_path / "cut" / "tokenizer.json").read_bytes() == (tmp_path / "plain" / "tokenizer.json").read_bytes()
    core = transformers.AutoTokenizer.from_pretrained(tmp_path / "cut").backend_tokenizer
    assert isinstance(core.pre_tokenizer, pre_tokenizers.Sequence | pre_tokenizers.Metaspace)
