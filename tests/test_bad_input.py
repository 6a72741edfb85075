"""A catalogue of bad input: each case ends in one line that names the thing, the value and the way out, and leaves nothing behind.

Most cases run in this process, through what the scripts and the environments are built on; a few go through the scripts.
What looks bad and is fine (one teacher, a text of a megabyte, labels in another order) is held to work.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from test_cli import REINFORCE, SMALL, assert_one_line, command, edited, files_task, small_teachers, tree

import envs  # noqa: F401  registers TeacherSelect-v0
from agents.experiment.launch import launch
from configs import compose
from distill.checks import UserError
from distill.models.build import fresh_classifier, word_tokenizer
from envs.teacher_select import Core

pytestmark = pytest.mark.faults

LABELS = ("bad", "fine", "great")
Case = tuple[Callable[[Path], list[str] | None], list[str]]  # what is done to the files, and what the line must say


# --- what the cases are made of ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A classifier of the task's three labels with random weights, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = word_tokenizer([("the film was awful and boring, friends",)], 32)
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "initializer_range": 0.5,
    }
    model = fresh_classifier({**sizes, "max_position_embeddings": 32}, tokenizer, LABELS, 0, "x")
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def place(checkpoint, tmp_path, monkeypatch) -> Path:
    """The user's folder, where everything happens: train.csv, test.csv and a fitted teacher in `model/`."""
    monkeypatch.chdir(tmp_path)
    files_task(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "model")
    return tmp_path


def overrides(place: Path, *more: str) -> list[str]:
    """The user's own files as a task, two teachers to be fine-tuned on them, caches in the same folder."""
    paths = [f"task.{role}={place / f'{role}.csv'}" for role in ("train", "test")]
    own = ["task=files", *paths, "task.text=[review]", "task.label=verdict", "task.id=key"]
    task = [] if any(o.startswith("task=") for o in more) else own
    return [*task, "teachers=fresh", small_teachers(1), *SMALL, "budget.warm_steps=1", f"home={place / 'home'}", *more]


def build(place: Path, *more: str) -> Core:
    return Core(compose(overrides(place, *more)))


def nothing(*more: str) -> Callable[[Path], list[str]]:
    """The files as they are; other settings."""
    return lambda place: list(more)


def file(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda place: (
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def given(name: str, content: str) -> Callable[[Path], list[str]]:
    """Another file to train on."""

    def write(place: Path) -> list[str]:
        (place / name).write_text(content)
        return [f"task.train={place / name}"]

    return write


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda place: edited(place, name, old, new)


def bytes_in(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        content = (place / name).read_bytes()
        assert old in content
        (place / name).write_bytes(content.replace(old, new, 1))

    return change


def table(
    role: str, name: str, change: Callable[[list[dict[str, Any]]], Any] = lambda rows: None
) -> Callable[[Path], list[str]]:
    """The split as TSV or JSONL, after `change` of its rows."""

    def write(place: Path) -> list[str]:
        with open(place / f"{role}.csv", newline="") as source:
            rows = list(csv.DictReader(source))
        rows = change(rows) or rows
        if name.endswith(".tsv"):
            text = "\n".join(["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)])
        else:
            text = "\n".join(json.dumps(row) for row in rows)
        (place / name).write_text(text + "\n")
        return [f"task.{role}={place / name}"]

    return write


def probs(
    change: Callable[[list[dict[str, Any]]], Any] = lambda rows: None, name: str = "llm.jsonl", ids: int = 90
) -> Callable[[Path], list[str]]:
    """One teacher given as a file of probabilities, after `change` of its rows."""

    def write(place: Path) -> list[str]:
        rows = [{"id": f"train{i}", "bad": 0.5, "fine": 0.25, "great": 0.25} for i in range(ids)]
        rows = change(rows) or rows
        (place / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        return [f"teachers.pool=[{{name: llm, kind: predictions, path: {place / name}}}]"]

    return write


def teacher(change: Callable[[Path], Any] = lambda folder: None, **more: Any) -> Callable[[Path], list[str]]:
    """One fitted teacher in `model/`, after `change` of its folder."""

    def write(place: Path) -> list[str]:
        change(place / "model")
        spec = {"name": "t", "kind": "checkpoint", "path": str(place / "model"), "max_length": 16} | more
        inner = ", ".join(f"{k}: {json.dumps(v)}" for k, v in spec.items() if v is not None)
        return [f"teachers.pool=[{{{inner}}}]"]

    return write


def config(**changes: Any) -> Callable[[Path], None]:
    """Change the checkpoint's config.json."""

    def change(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | changes))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change the checkpoint's weights."""

    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return write


def pickled(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def first(rows: list[dict[str, Any]], **cells: Any) -> None:
    rows[0] |= cells


def pool(count: int) -> str:
    return "teachers.pool=[" + ", ".join(f"{{name: t{i}, kind: finetune}}" for i in range(count)) + "]"


# --- the catalogue, one line a case -----------------------------------------------------------------------------------

# fmt: off
DATA: dict[str, Case] = {
    "an empty file": (file("train.csv", ""), ["train.csv", "not readable as csv"]),
    "a header and no rows": (file("test.csv", "key,review,verdict\n"), ["test.csv", "0 data rows"]),
    "one row": (file("train.csv", "key,review,verdict\na,b,bad\n"), ["train.csv", "1 data rows", "at least two"]),
    "one class": (file("train.csv", "key,review,verdict\na,b,bad\nc,d,bad\n"), ["train.csv", "one class only ('bad')"]),
    "a class too few": (file("train.csv", "key,review,verdict\na,b,bad\nc,d,fine\n"), ["test.csv", "'great' never occurs", "bad, fine"]),
    "a class with one row": (edit("train.csv", ",great", ",odd"), ["label", "add data or cut smaller splits"]),
    "a class of its own for every row": (table("train", "t.jsonl", lambda rows: [r | {"verdict": r["key"]} for r in rows]), ["test.csv", "label 'bad' never occurs"]),
    "an id twice": (edit("train.csv", "train3,", "train4,"), ["train.csv", "'train4' occurs twice", "unique"]),
    "an id in two files": (edit("test.csv", "test0,", "train0,"), ["test.csv", "'train0'", "train.csv"]),
    "no id": (edit("train.csv", "train3,", ","), ["train.csv", "row 4", "no id", "key"]),
    "no label": (edit("train.csv", ",bad", ","), ["train.csv", "row 1", "no label", "verdict"]),
    "a label of test alone": (edit("test.csv", ",bad", ",horrid"), ["test.csv", "'horrid' never occurs", "train.csv"]),
    "a label in other letters": (edit("test.csv", ",bad", ",Bad"), ["test.csv", "'Bad'"]),
    "mixed encodings": (bytes_in("train.csv", b"film", b"f\xeflm"), ["train.csv", "not UTF-8 at byte", "iconv"]),
    "UTF-16": (file("train.csv", "key,review,verdict\na,b,bad\n".encode("utf-16")), ["train.csv", "not UTF-8"]),
    "a NUL in a text": (bytes_in("train.csv", b"film", b"fi\0m"), ["train.csv", "row 1", "NUL", "review"]),
    "a NUL in a label": (bytes_in("train.csv", b",bad", b",b\0d"), ["train.csv", "row 1", "NUL", "verdict"]),
    "a NUL in an id of JSON": (table("train", "t.jsonl", lambda rows: first(rows, key="a\0")), ["t.jsonl", "NUL", "key"]),
    "NULs and nothing else": (file("train.csv", b"\0" * 4096), ["train.csv"]),
    "half a surrogate pair": (table("train", "t.jsonl", lambda rows: first(rows, review="a \ude00 b")), ["t.jsonl", "surrogate"]),
    "an id of a megabyte": (edit("train.csv", "train3,", "x" * 2**20 + ","), ["train.csv", "row 4", "id", "256"]),
    "too few cells": (edit("train.csv", '"the film was', 'x\ny,"the film was'), ["train.csv", "row 1"]),
    "too many cells": (edit("train.csv", ",bad", ",bad,really"), ["train.csv"]),
    "too many cells everywhere": (lambda p: (p / "train.csv").write_text((p / "train.csv").read_text().replace('"', "")) and None, ["train.csv", "more cells than the header"]),
    "a quote that never ends": (edit("train.csv", 'friends"', "friends"), ["train.csv"]),
    "a TSV with too few cells": (table("train", "t.tsv", lambda rows: rows[3].pop("verdict") and None), ["t.tsv", "row 4"]),
    "a TSV with too many cells": (table("train", "t.tsv", lambda rows: rows[5].update(more="x")), ["t.tsv"]),
    "JSON cut short": (given("t.jsonl", '{"key": "a", "review": "b", "verdict": "ba'), ["t.jsonl", "not readable as jsonl"]),
    "JSON of other things": (given("t.jsonl", "1\n2\n"), ["t.jsonl"]),
    "a null in JSON": (table("train", "t.jsonl", lambda rows: first(rows, review=None)), ["t.jsonl", "row 1", "empty cell"]),
    "a list where a text belongs": (table("train", "t.jsonl", lambda rows: first(rows, review=["a", "b"])), ["t.jsonl", "row 1", "review"]),
    "a Parquet file that is none": (given("t.parquet", "PAR1 not really"), ["t.parquet", "not readable as parquet"]),
    "a header with one name twice": (edit("train.csv", "key,review,verdict", "key,review,review"), ["train.csv", "'review' occurs 2 times"]),
    "a folder for a file": (nothing("task.train=."), ["unknown kind of file", ".csv"]),
    "an unknown kind of file": (lambda p: [f"task.train={shutil.copy(p / 'train.csv', p / 'train.xls')}"], ["train.xls", ".csv"]),
    "no such file": (nothing("task.test=gone.csv"), ["gone.csv", "No such file"]),
    "no such text column": (nothing("task.text=[reviews]"), ["train.csv", "no column 'reviews'", "review"]),
    "three text columns": (nothing("task.text=[a,b,c]"), ["task.text", "one or two"]),
    "no such label column": (nothing("task.label=label"), ["train.csv", "no column 'label'"]),
    "no such id column": (nothing("task.id=id"), ["train.csv", "no column 'id'"]),
    "GLUE without its folder": (nothing("task=rte", "data_dir=nowhere"), ["nowhere/RTE/train.tsv", "No such file"]),
    "GLUE with a label of another task": (lambda p: glue(p, "0\ta\tb\tmaybe"), ["RTE/train.tsv", "line 2", "'maybe'", "entailment"]),
    "GLUE with too few cells": (lambda p: glue(p, "0\ta"), ["RTE/train.tsv", "line 2", "4 are needed"]),
    "GLUE without a header": (lambda p: glue(p, "", ""), ["RTE/train.tsv", "no column"]),
}
# fmt: on


def glue(place: Path, row: str, header: str = "index\tsentence1\tsentence2\tlabel") -> list[str]:
    (place / "RTE").mkdir()
    (place / "RTE" / "train.tsv").write_text(f"{header}\n{row}\n")
    return ["task=rte", f"data_dir={place}"]


# fmt: off
PROBABILITIES: dict[str, Case] = {
    "NaN": (probs(lambda rows: first(rows, bad="NaN")), ["teacher llm", "'train0'", "NaN or infinite"]),
    "infinite": (probs(lambda rows: first(rows, bad="inf")), ["teacher llm", "'train0'", "NaN or infinite"]),
    "null": (probs(lambda rows: first(rows, bad=None)), ["teacher llm", "'train0'", "empty cell in column 'bad'"]),
    "negative": (probs(lambda rows: first(rows, bad=-0.5, fine=1.25)), ["teacher llm", "'train0'", "negative"]),
    "not summing to one": (probs(lambda rows: first(rows, bad=0.9)), ["teacher llm", "'train0'", "not summing to 1"]),
    "words": (probs(lambda rows: first(rows, bad="high")), ["teacher llm", "not a number"]),
    "lists": (probs(lambda rows: first(rows, bad=[1, 2])), ["teacher llm", "not a number"]),
    "other ids": (probs(lambda rows: [r | {"id": f"my-{r['id']}"} for r in rows]), ["teacher llm", "no answer for any", "ids are those of the task"]),
    "an id twice": (probs(lambda rows: first(rows, id="train1")), ["teacher llm", "an id occurs twice"]),
    "no id column": (probs(lambda rows: [{k: v for k, v in r.items() if k != "id"} for r in rows]), ["teacher llm", "no column 'id'", "bad"]),
    "a class too few": (probs(lambda rows: [{k: v for k, v in r.items() if k != "bad"} for r in rows]), ["teacher llm", "2 class columns", "has 3"]),
    "a class too many": (probs(lambda rows: [r | {"odd": 0.0} for r in rows]), ["teacher llm", "4 class columns", "has 3"]),
    "a class of another name": (probs(lambda rows: [{"awful" if k == "bad" else k: v for k, v in r.items()} for r in rows]), ["teacher llm", "no column for label 'bad'", "awful"]),
    "an empty file": (lambda p: probs(name="llm.jsonl", ids=0)(p), ["teacher llm", "llm.jsonl"]),
    "no such file": (nothing("teachers.pool=[{name: llm, kind: predictions, path: gone.csv}]"), ["gone.csv", "No such file"]),
    "a pickle": (nothing("teachers.pool=[{name: llm, kind: predictions, path: probs.pkl}]"), ["probs.pkl", ".csv"]),
}

TEACHERS_GIVEN: dict[str, Case] = {
    "more classes than the task": (teacher(config(id2label={str(i): f"c{i}" for i in range(5)}, label2id={f"c{i}": i for i in range(5)})), ["teacher t", "5 classes", "has 3"]),
    "labels of another task": (teacher(config(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})), ["teacher t", "no output named 'bad'", "labels=["]),
    "labels given for fewer outputs": (teacher(labels=["bad", "fine"]), ["teacher t", "2 names for 3 outputs"]),
    "labels given twice": (teacher(labels=["bad", "bad", "fine"]), ["teacher t", "no output named 'great'"]),
    "no tokenizer": (teacher(without("tokenizer.json", "tokenizer_config.json")), ["teacher t", "no tokenizer", "save one beside"]),
    "a tokenizer that is none": (teacher(lambda f: (f / "tokenizer.json").write_text("{}")), ["teacher t", "no usable tokenizer"]),
    "a tokenizer of another model": (teacher(lambda f: word_tokenizer([("the film was " + " ".join(f"w{i} w{i}" for i in range(90)),)], 32).save_pretrained(f)), ["tokenizer", "do not belong together"]),
    "pickled weights alone": (teacher(pickled), ["teacher t", "no .safetensors weights", "save_pretrained"]),
    "weights cut short": (teacher(lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:900])), ["teacher t", "could not be loaded"]),
    "weights of other shapes": (teacher(config(hidden_size=16)), ["teacher t", "could not be loaded"]),
    "NaN weights": (teacher(weights(lambda w: w["classifier.weight"].fill_(torch.nan))), ["teacher t", "NaN or infinite", "classifier.weight"]),
    "NaN logits": (teacher(weights(lambda w: [w[f"classifier.{n}"].fill_(3e38) for n in ("weight", "bias")])), ["t:", "NaN or infinite outputs", "broken"]),
    "no head": (teacher(weights(lambda w: [w.pop(n) for n in ("classifier.weight", "classifier.bias")])), ["teacher t", "not a fine-tuned classifier", "kind=finetune"]),
    "no config": (teacher(without("config.json")), ["teacher t", "no config.json", "save_pretrained"]),
    "a config that is none": (teacher(lambda f: (f / "config.json").write_text("[")), ["teacher t", "not a transformers configuration"]),
    "a config of no known model": (teacher(lambda f: (f / "config.json").write_text('{"model_type": "x"}')), ["teacher t", "not a transformers configuration"]),
    "a file for a folder": (teacher(path="train.csv"), ["teacher t", "train.csv"]),
    "no such folder": (teacher(path="./gone"), ["teacher t", "no folder ./gone"]),
    "no such package": (teacher(path="package:no_such/model"), ["teacher t", "no_such", "pip install"]),
    "more tokens than positions": (teacher(max_length=64), ["teacher t", "max_length=64", "32 positions"]),
    "more layers than there are": (teacher(kind="finetune", layers=3), ["teacher t", "layers=3", "only 1"]),
    "path and probs": (teacher(kind=None, probs="llm.csv"), ["teacher t", "path or probs"]),
    "a checkpoint without a path": (teacher(path=None), ["teacher t", "kind=checkpoint needs path"]),
    "fitted without a path": (teacher(kind=None, path=None, fitted=True), ["teacher t", "fitted=true needs path"]),
    "a setting of another kind": (teacher(epochs=3), ["teacher t", "kind=checkpoint", "'epochs'", "kind=finetune"]),
    "an unknown kind": (teacher(kind="oracle"), ["teacher t", "oracle", "checkpoint"]),
    "predictions without a path": (teacher(kind="predictions", path=None, max_length=None), ["teacher t", "kind=predictions needs path"]),
    "an unknown pool": (nothing("teachers.pool=[{name: t, kind: finetune, pool: film}]"), ["teacher t", "no pool 'film'"]),
    "33 teachers": (nothing(pool(33)), ["teachers.pool has 33", "at most 32"]),
    "no teacher": (nothing("teachers.pool=[]"), ["teachers.pool is empty"]),
    "two of one name": (nothing("teachers.pool=[{name: t, kind: finetune}, {name: t, kind: finetune}]"), ["teachers.pool", "must differ"]),
    "a name that climbs": (nothing("teachers.pool=[{name: ../t, kind: finetune}]"), ["teacher name='../t'", "cannot name a folder"]),
    "a name with a root": (nothing("teachers.pool=[{name: /t, kind: finetune}]"), ["teacher name='/t'", "cannot name a folder"]),
    "share 0": (nothing("teachers.pool=[{name: t, kind: finetune, share: 0}]"), ["teacher t", "share=0.0", "(0, 1]"]),
    "a rate that is no number": (nothing("teachers.pool=[{name: t, kind: finetune, lr: nan}]"), ["teacher t", "lr=nan"]),
    "a negative seed": (nothing("teachers.pool=[{name: t, kind: finetune, seed: -1}]"), ["teacher t", "seed=-1"]),
    "an unknown key": (nothing("teachers.pool=[{name: t, kind: finetune, ephocs: 3}]"), ["teacher t", "ephocs", "did you mean epochs"]),
    "an unknown key of a model": (nothing("teachers.pool=[{name: t, kind: finetune, config: {hiden_size: 3}}]"), ["teacher t", "hiden_size", "did you mean hidden_size"]),
    "heads that do not divide": (nothing("teachers.pool=[{name: t, kind: finetune, config: {hidden_size: 10, num_attention_heads: 3}}]"), ["teacher t", "makes no BERT model"]),
    "a width below zero": (nothing("teachers.pool=[{name: t, kind: finetune, config: {hidden_size: -8}}]"), ["teacher t", "makes no BERT model"]),
    "a width in words": (nothing("teachers.pool=[{name: t, kind: finetune, config: {hidden_size: wide}}]"), ["teacher t", "makes no BERT model"]),
    "an unknown activation": (nothing("teachers.pool=[{name: t, kind: finetune, config: {hidden_act: glue}}]"), ["teacher t", "makes no BERT model"]),
    "more folds than instances": (nothing("teachers.folds=20", "task.train_limit=40"), ["teachers.folds=20", "fewer folds"]),
    "folds and nothing to fold": (lambda p: [*teacher()(p), "teachers.folds=2"], ["teachers.folds=2", "use 0"]),
}

CONFIGS: dict[str, Case] = {
    "an unknown group": (nothing("tasks=rte"), ["tasks", "not a known setting"]),
    "an unknown key": (nothing("loss.beta=1"), ["loss.beta", "not a known setting"]),
    "an added key": (nothing("+budget.step=1"), ["budget", "step", "did you mean steps"]),
    "a group for a value": (nothing("loss=3"), ["loss"]),
    "a value for a group": (nothing("student.lr={a: 1}"), ["student.lr"]),
    "a word for a number": (nothing("budget.batch_size=many"), ["budget.batch_size", "many"]),
    "half a step": (nothing("budget.steps=2.5"), ["budget.steps", "2.5"]),
    "a list for a number": (nothing("seed=[1,2]"), ["seed"]),
    "alpha 2": (nothing("loss.alpha=2"), ["loss.alpha=2", "[0, 1]"]),
    "alpha NaN": (nothing("loss.alpha=nan"), ["loss.alpha=nan"]),
    "temperature 0": (nothing("loss.temperature=0"), ["loss.temperature=0", "positive"]),
    "temperature infinite": (nothing("loss.temperature=inf"), ["loss.temperature=inf", "finite"]),
    "no batch": (nothing("budget.batch_size=0"), ["budget.batch_size=0", "positive"]),
    "a batch larger than the data": (nothing("budget.batch_size=1000"), ["budget.batch_size=1000", "training instances"]),
    "no steps": (nothing("budget.steps=0"), ["budget.steps=0", "positive"]),
    "endless epochs": (nothing("budget.epochs=inf"), ["budget.epochs=inf", "finite"]),
    "a reward split of everything": (nothing("task.reward_size=90"), ["task.reward_size=90", "of 90"]),
    "a dev split of what is left": (nothing("task.reward_size=40", "task.dev_size=50"), ["dev_size", "50"]),
    "no reward split": (nothing("task.reward_size=0"), ["task.reward_size=0", "positive"]),
    "a training set of none": (nothing("task.train_limit=0"), ["task.train_limit=0", "positive"]),
    "a training set of fewer than the classes": (nothing("task.train_limit=2"), ["label", "add data"]),
    "a negative split seed": (nothing("task.split_seed=-1"), ["task.split_seed=-1"]),
    "a negative seed": (nothing("seed=-1"), ["seed=-1", "negative"]),
    "an enormous seed": (nothing(f"seed={2**70}"), ["seed=", "2147483647"]),
    "no threads": (nothing("threads=0"), ["threads=0", "positive"]),
    "an unknown device": (nothing("device=gpu"), ["device=gpu", "cuda"]),
    "a device that is not there": (nothing("device=cuda:7"), ["device=cuda:7"]),
    "a learning rate of 0": (nothing("student.lr=0"), ["student.lr=0", "positive"]),
    "an infinite learning rate": (nothing("student.lr=inf"), ["student.lr=inf"]),
    "a negative decay": (nothing("student.weight_decay=-1"), ["student.weight_decay=-1"]),
    "an unknown optimiser": (nothing("student.optimizer=adam"), ["student.optimizer=adam", "did you mean adamw"]),
    "a student of no width": (nothing("++student.config={hidden_size: 0}"), ["student", "makes no BERT model"]),
    "a student longer than its positions": (nothing("student.max_length=64", "+student.config.max_position_embeddings=16"), ["student", "max_length=64", "16 positions"]),
    "a student that is not there": (nothing("student=checkpoint", "student.config=null", "student.path=./gone"), ["student", "./gone"]),
    "a student of NaN": (lambda p: (weights(lambda w: w["classifier.weight"].fill_(torch.nan))(p / "model") or ["student=checkpoint", "student.config=null", f"student.path={p / 'model'}", "student.max_length=16"]), ["student", "NaN or infinite", "classifier.weight"]),
    "a student of too many layers": (nothing("student=truncate", "student.config=null", "student.path=model", "student.layers=9", "student.max_length=16"), ["student", "layers=9", "only 1"]),
    "an encoder of no width": (nothing("encoder.dim=0"), ["encoder.dim=0", "positive"]),
    "an encoder of no tokens": (nothing("encoder.kind=transformer", "encoder.dim=null", "encoder.path=model", "encoder.max_length=0"), ["encoder.max_length=0"]),
    "an encoder longer than its positions": (nothing("encoder.kind=transformer", "encoder.dim=null", "encoder.path=model"), ["encoder", "max_length=128", "32 positions"]),
    "an unknown part of the state": (nothing("observation.parts=[teacher]"), ["observation.parts=teacher", "teacher_probs"]),
    "no state": (nothing("observation.parts=[]"), ["observation.parts is empty"]),
    "a reward measured never": (nothing("reward.every=0"), ["reward.every=0", "positive"]),
    "a credit of another reward": (nothing("reward=paper1", "credit.name=influence"), ["credit.name=influence", "validation_gain", "credit.name=shared"]),
    "an unknown reward": (nothing("reward.name=papr1"), ["reward.name=papr1", "did you mean paper1"]),
    "an unknown credit": (nothing("credit.name=infuence"), ["credit.name=infuence", "did you mean influence"]),
    "a reward setting of version 0.1": (nothing("reward.horizon=3"), ["reward.horizon", "not a known setting"]),
    "an agent setting of version 0.1": (nothing("agent.pull=1"), ["agent.pull", "not a known setting"]),
    "a student of an unknown kind": (nothing("student.kind=frsh"), ["student.kind=frsh", "did you mean fresh"]),
    "a student with a setting of another kind": (nothing("student.layers=3"), ["student: kind=fresh has no setting 'layers'", "kind=truncate", "student.layers=null"]),
    "an encoder with a setting of another kind": (nothing("encoder.pooling=cls"), ["encoder: kind=bag has no setting 'pooling'", "kind=transformer", "encoder.pooling=null"]),
    "a task that climbs": (nothing("task.name=../x"), ["task.name='../x'", "cannot name a folder"]),
    "a student that climbs": (nothing("student.name=../x"), ["student.name='../x'", "cannot name a folder"]),
    "a pool that climbs": (nothing("teachers.name=/x"), ["teachers.name='/x'", "cannot name a folder"]),
    "a home that is a file": (nothing("home=train.csv"), ["train.csv", "TEACHER_SELECT_HOME"]),
}
# fmt: on

ALL = {
    f"{part}: {name}": case
    for part, cases in (
        ("data", DATA),
        ("probabilities", PROBABILITIES),
        ("teacher", TEACHERS_GIVEN),
        ("config", CONFIGS),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize(("spoil", "words"), ALL.values(), ids=ALL)
def test_bad_input(place, spoil, words):
    more = spoil(place) or []
    before = tree(place)
    with pytest.raises(UserError) as caught:
        build(place, *more)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    assert len(text) <= 1000
    for word in words:
        assert word in text, text
    assert tree(place) == before


# --- what looks bad and is fine ---------------------------------------------------------------------------------------


def steps(core: Core) -> np.ndarray:
    """Rewards of a whole episode with all teachers, `[T,B]`."""
    core.begin(0)
    rewards, done = [], False
    while not done:
        _, reward, done, info = core.step(np.ones((core.batch_size, core.process.num_teachers), np.int8))
        assert "failure" not in info
        rewards.append(reward)
    return np.array(rewards)


# fmt: off
FINE: dict[str, Callable[[Path], list[str] | None]] = {
    "a text of a megabyte": lambda p: edited(p, "train.csv", "film", "film " * 2**18) or probs()(p),
    "an empty text": edit("train.csv", '"the film was', '"",bad\nx,"the film was'),
    "a text of blanks": edit("train.csv", '"the film was', '" \t ",bad\nx,"the film was'),
    "a text of signs nobody knows": edit("train.csv", "film", "\u202e\U0001f9ea\ufffd"),
    "labels that look like nothing": lambda p: ([edited(p, f"{r}.csv", "bad", "NaN") or (p / f"{r}.csv").write_text((p / f"{r}.csv").read_text().replace(",bad", ",NaN")) for r in ("train", "test")] and None),
    "one teacher": teacher(),
    "32 teachers": lambda p: ["teachers.pool=[" + ", ".join(f"{{name: t{i}, kind: checkpoint, path: {p / 'model'}, max_length: 16}}" for i in range(32)) + "]"],
    "a file of probabilities alone": probs(),
    "certain probabilities": probs(lambda rows: [r | {"bad": 1.0, "fine": 0.0, "great": 0.0} for r in rows]),
    "a batch of everything": nothing("task.reward_size=10", "task.dev_size=10", "budget.batch_size=70"),
    "more steps between measurements than there are": nothing("reward.every=1000"),
    "a reward split of three": nothing("task.reward_size=3"),
}
# fmt: on


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_fine_input(place, change):
    rewards = steps(build(place, *(change(place) or [])))
    assert rewards.shape[0] == 6
    assert np.isfinite(rewards).all()


def test_permuted_labels_are_matched_by_name(place):
    """The same model with its outputs in another order says the same."""
    plain = build(place, *teacher()(place)).process.signals.logits(np.arange(20))
    order = [2, 0, 1]
    names = [LABELS[i] for i in order]
    permute = weights(
        lambda w: [w.__setitem__(k, w[k][order].contiguous()) for k in ("classifier.weight", "classifier.bias")]
    )
    permute(place / "model")
    config(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})(place / "model")
    again = build(place, *teacher()(place)).process.signals.logits(np.arange(20))
    np.testing.assert_allclose(again, plain, atol=1e-6)
    assert np.abs(plain - plain[..., order]).max() > 0.01


# --- the environment --------------------------------------------------------------------------------------------------

ACTIONS = {
    "a teacher too many": np.ones(5),
    "a teacher too few": np.ones(3),
    "a batch for one": np.ones((1, 4)),
    "a number": 1,
    "nothing": [],
    "None": None,
    "a NaN": [np.nan, 0, 0, 0],
    "an infinity": [np.inf, 0, 0, 0],
    "a half": [0.5, 0, 0, 0],
    "a two": [2, 0, 0, 0],
    "words": ["on", "off", "on", "off"],
    "objects": np.array([{}, {}, {}, {}]),
}


@pytest.fixture(scope="module")
def single(tiny_overrides) -> Any:
    return gym.make("TeacherSelect-v0", overrides=tiny_overrides).unwrapped


@pytest.fixture(scope="module")
def vector(tiny_overrides) -> Any:
    return gym.make_vec("TeacherSelect-v0", num_envs=8, overrides=tiny_overrides).unwrapped


def assert_untouched(env: Any, before: dict[str, np.ndarray]) -> None:
    after = env.get_state()
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key)


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_wrong_action_changes_nothing(single, vector, action):
    for env, given in ((single, action), (vector, [action] * 8)):
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(ValueError, match=r"^action ") as caught:
            env.step(given)
        assert len(str(caught.value).splitlines()) == 1
        assert_untouched(env, before)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec], ids=["single", "vector"])
def test_before_reset_and_after_close(tiny_overrides, make):
    env = make("TeacherSelect-v0", overrides=tiny_overrides, **({"num_envs": 8} if make is gym.make_vec else {}))
    action = np.ones(env.action_space.shape, np.int8)
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
    env.close()
    env.close()  # twice is fine
    for call in (lambda: env.unwrapped.step(action), lambda: env.unwrapped.reset(seed=0)):
        with pytest.raises(ClosedEnvironmentError, match="closed: make a new one"):
            call()


@pytest.mark.parametrize("seed", [-1, "x", 1.5], ids=str)
def test_a_wrong_seed(single, vector, seed):
    for env in (single, vector):
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(gym.error.Error):
            env.reset(seed=seed)
        assert_untouched(env, before)


# --- through the scripts ----------------------------------------------------------------------------------------------

COMPARE, SB3 = ["agents/compare.py"], ["agents/sb3.py"]
SCRIPTS: dict[str, tuple[list[str], Callable[[Path], list[str] | None], list[str]]] = {
    "reinforce": (REINFORCE, DATA["a NUL in a text"][0], ["train.csv", "NUL"]),
    "sb3": (SB3, nothing("policy=deep"), ["policy=deep", "linear, mlp"]),
    "compare": (COMPARE, nothing("agents=[control,reinfroce]"), ["reinfroce", "did you mean reinforce"]),
}


@pytest.mark.parametrize(("script", "spoil", "words"), SCRIPTS.values(), ids=SCRIPTS)
def test_bad_input_through_the_scripts(place, script, spoil, words):
    more = spoil(place) or []
    before = tree(place)
    done = command(script, *overrides(place, *more), folder=place / "out" / "run")
    assert_one_line(done, words)
    assert tree(place) == before
    assert not (place / "out").exists()


@pytest.mark.filterwarnings("error")  # they would be further lines on stderr
@pytest.mark.parametrize("key", ["task.name", "agent.name"])
@pytest.mark.parametrize("name", ["../../climbed", "/climbed", ".."])
def test_a_name_that_climbs_is_refused_before_any_folder_is_made(monkeypatch, capsys, tmp_path, key, name):
    """The run's folder is named after the task and the agent, and Hydra makes it before a script sees anything."""
    monkeypatch.setattr(sys, "argv", ["reinforce.py", f"{key}={name}"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        launch(lambda config: pytest.fail("the script was reached"))
    assert stop.value.code == 2
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == (
        f"error: {key}={name!r} cannot name a folder: use up to 64 letters, digits, '.', '_' or '-'\n"
    )
