"""The ragged buffer against the tokenizers' own padding, and the stream of batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from distill.data.splits import Task
from distill.data.tokens import Stream, TokenizedSplit, run_over
from distill.models.engine import Engine
from distill.models.loading import load_classifier, load_encoder, takes_token_types
from distill.settings import CheckpointTeacher, StudentSettings, TransformerEncoderSettings
from distill.student import Student
from distill.teachers.encoders import TransformerEncoder, unit
from distill.teachers.sources import load_teacher

TYPED = {"bert": True, "roberta": False, "xlnet": True, "albert": True}  # which models were trained with token types


@pytest.mark.parametrize("single", [True, False], ids=["texts", "pairs"])
@pytest.mark.parametrize("limit", [12, 128])
@pytest.mark.parametrize("name", TYPED)
def test_a_batch_equals_the_tokenizers_own_padding(
    zoo: dict[str, Path], pairs: Any, name: str, limit: int, single: bool
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo[name])
    texts = [t[:1] if single else t for t in pairs().texts]
    split = TokenizedSplit.build(texts, tokenizer, limit, types=TYPED[name])
    assert split.padding.left == (name == "xlnet")
    for rows in ([0], [4, 1, 7], list(range(12, -1, -1))):
        columns = [[texts[i][c] for i in rows] for c in range(len(texts[0]))]
        how = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        own = dict(tokenizer(*columns, **how, return_token_type_ids=TYPED[name]))
        if name == "xlnet":  # it was trained with a separate type for padding, which its tokenizer no longer sets
            own["token_type_ids"][own["attention_mask"] == 0] = 3
        got = split.batch(np.array(rows))
        assert set(got) == set(own) == {"input_ids", "attention_mask"} | ({"token_type_ids"} if TYPED[name] else set())
        for key, value in got.items():
            assert value.dtype == torch.int64
            assert torch.equal(value, own[key]), key
        if TYPED[name] and not single:
            assert {0, 1} <= set(got["token_type_ids"].unique().tolist())
    assert max(split.lengths) <= limit
    assert len(set(split.lengths)) > 1 or limit == 12


@pytest.mark.parametrize("name", TYPED)
def test_which_models_use_token_types(zoo: dict[str, Path], pairs: Any, name: str) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(zoo[name])
    assert takes_token_types(model) == takes_token_types(load_encoder(zoo[name], "x")) == TYPED[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo[name])
    student = Student(model, tokenizer, StudentSettings(max_length=32), Engine(torch.device("cpu")))
    batch = student.tokenize(pairs().texts).batch(np.arange(13))
    assert ("token_type_ids" in batch) == TYPED[name]
    with torch.no_grad():
        logits = student.forward(batch)
        if TYPED[name]:  # and they change the logits
            assert not torch.allclose(logits, student.forward({k: v for k, v in batch.items() if "type" not in k}))


def test_pairs_have_two_token_types(zoo: dict[str, Path], pairs: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo["bert"])
    batch = TokenizedSplit.build(pairs().texts, tokenizer, 128).batch(np.arange(2))
    after_sep = (batch["input_ids"] == tokenizer.sep_token_id).cumsum(1)
    second = (after_sep == 1) & (batch["input_ids"] != tokenizer.sep_token_id)
    assert second.any(1).all()
    assert (batch["token_type_ids"][second] == 1).all()
    assert (batch["token_type_ids"][after_sep == 0] == 0).all()


LENGTHS = np.random.default_rng(0).integers(3, 40, 1000)


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize(("count", "size"), [(10, 4), (12, 4), (3, 8), (1, 4), (7, 7), (1000, 3)])
def test_every_instance_once_an_epoch(count: int, size: int, group: bool) -> None:
    """lcm(N, B) rows are whole epochs, in which every instance comes equally often. No batch is short."""
    stream = Stream(LENGTHS[:count], size, 1, group)
    rows = int(np.lcm(count, size))
    batches = [stream.next() for _ in range(rows // size)]
    assert all(b.shape == (size,) and b.dtype == np.int64 for b in batches)
    assert Counter(np.concatenate(batches).tolist()) == dict.fromkeys(range(count), rows // count)


def test_ungrouped_epochs_are_permutations_that_differ() -> None:
    stream = Stream(LENGTHS[:10], 4, 1, group=False)
    drawn = np.concatenate([stream.next() for _ in range(10)]).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in drawn)
    assert len({tuple(epoch) for epoch in drawn}) == 4


@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.integers(0, 30), st.integers(0, 2**31))
def test_a_restored_stream_gives_the_same_batches(count: int, size: int, group: bool, before: int, seed: int) -> None:
    stream, other = Stream(LENGTHS[:count], size, seed, group), Stream(LENGTHS[:count], size, seed + 1, group)
    for _ in range(before):
        stream.next()
    state = stream.state_dict()
    assert set(state) == {"rng", "carry", "queue"}
    assert state["queue"].shape[1] == size
    assert state["carry"].dtype == state["queue"].dtype == np.int64
    ahead = [stream.next() for _ in range(12)]
    other.load_state_dict(state)
    assert all(np.array_equal(a, other.next()) for a in ahead)
    stream.load_state_dict(state)  # the state is a copy, which later batches have not changed
    assert all(np.array_equal(a, stream.next()) for a in ahead)


def test_seeds_and_grouping() -> None:
    def first(seed: int, group: bool = True) -> np.ndarray:
        stream = Stream(LENGTHS, 10, seed, group)
        return np.stack([stream.next() for _ in range(50)])

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))
    spread = [np.ptp(LENGTHS[first(1, group)], axis=1).mean() for group in (True, False)]
    assert spread[0] < spread[1] / 5
    means = LENGTHS[first(1)].mean(1)
    assert (np.diff(means) < 0).any(), "batches come in random order of length"
    assert (np.diff(means) > 0).any(), "batches come in random order of length"


def test_run_over_keeps_the_order(zoo: dict[str, Path], pairs: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo["xlnet"])
    split = TokenizedSplit.build(pairs().texts, tokenizer, 64)
    sums = np.array([split.ids[a:b].sum().item() for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)])
    seen: list[int] = []

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(batch["input_ids"].shape[1])
        assert not torch.is_grad_enabled()
        total = (batch["input_ids"] * batch["attention_mask"]).sum(1).float()
        return torch.stack([total, -total], 1)

    for size in (1, 4, 100):
        seen.clear()
        out = run_over(split, forward, size)
        assert seen == sorted(seen, reverse=True)
        np.testing.assert_array_equal(out.numpy(), np.stack([sums, -sums], 1))


# --- token types ------------------------------------------------------------------------------------------------------


def own_logits(folder: Path, model: Any, texts: list[tuple[str, ...]]) -> torch.Tensor:
    """What `model(**tokenizer(...))` gives, one instance at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(*t, truncation=True, max_length=64, return_tensors="pt")).logits for t in texts]
        )


@pytest.fixture
def copied(zoo: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """`copied("bert", ["input_ids"], "4.40.0")`: a classifier whose tokenizer's file names these inputs, and its version."""

    def make(name: str, names: list[str] | None = None, version: str | None = None) -> Path:
        folder = tmp_path / name
        model: Any = load_classifier(zoo[name], ["no", "yes"], 0, "x")
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(zoo[name]).save_pretrained(folder)
        for file, key, value in (
            ("tokenizer_config", "model_input_names", names),
            ("config", "transformers_version", version),
        ):
            if value is not None:
                path = folder / f"{file}.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        return folder

    return make


def two_classes(split: Any) -> Any:
    return Task("x", "files", ("no", "yes"), {"train": split})


def teacher_logits(folder: Path, split: Any) -> torch.Tensor:
    spec = CheckpointTeacher(name="t", path=str(folder), max_length=64)
    return torch.from_numpy(
        load_teacher(spec, two_classes(split), folder, Engine(torch.device("cpu"), fast=False)).compute(split)
    )


WITHOUT = ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("bert", None),
        ("bert", WITHOUT),
        ("albert", None),
        ("albert", [*WITHOUT, "token_type_ids"]),
        ("roberta", None),
        ("xlnet", None),
    ],
)
@pytest.mark.faults
def test_a_teachers_inputs_are_those_of_its_own_tokenizer(
    copied: Any, pairs: Any, name: str, names: list[str] | None
) -> None:
    """`model(**tokenizer(...))` is right: the checkpoint was trained, and is used elsewhere, with these inputs."""
    folder, split = copied(name, names), pairs()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(
        teacher_logits(folder, split), own_logits(folder, model, split.texts), atol=1e-5, rtol=1e-4
    )


@pytest.mark.faults
def test_a_teacher_of_transformers_4_has_the_token_types_of_its_time(copied: Any, pairs: Any) -> None:
    """Its tokenizer made them; version 5 does not."""
    split = pairs()
    new, old = teacher_logits(copied("albert"), split), teacher_logits(copied("albert", version="4.40.0"), split)
    assert (new - old).abs().max() > 1e-4
    named = teacher_logits(copied("albert", [*WITHOUT, "token_type_ids"]), split)
    torch.testing.assert_close(old, named)


@pytest.mark.parametrize("name", ["bert", "albert", "xlnet"])
@pytest.mark.parametrize("names", [None, WITHOUT])
@pytest.mark.faults
def test_a_saved_student_is_used_as_it_was_trained(
    copied: Any, pairs: Any, tmp_path: Path, name: str, names: list[str] | None
) -> None:
    """By `transformers` alone, and as a teacher. Where the tokenizer's file names no inputs, they are those of pretraining."""
    folder, split = copied(name, names), pairs()
    model: Any = load_classifier(folder, ["no", "yes"], 1, "x")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    student = Student(model, tokenizer, StudentSettings(max_length=64), Engine(torch.device("cpu"), fast=False))
    logits = student.predict(student.tokenize(split.texts))
    assert ("token_type_ids" in student.tokenize(split.texts).batch(np.arange(2))) == (names is None)
    student.save(tmp_path / "saved")
    torch.testing.assert_close(own_logits(tmp_path / "saved", model, split.texts), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(teacher_logits(tmp_path / "saved", split), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.faults
def test_an_encoders_inputs_are_those_that_its_tokenizer_names(copied: Any, pairs: Any) -> None:
    folder, split = copied("bert", WITHOUT), pairs()
    settings = TransformerEncoderSettings(path=str(folder), pooling="cls", max_length=64)
    got = TransformerEncoder(settings, Engine(torch.device("cpu"))).compute(split)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), load_encoder(folder, "x")
    with torch.no_grad():
        own = [model(**tokenizer(*t, return_tensors="pt")).last_hidden_state[0, 0].numpy() for t in split.texts]
    np.testing.assert_allclose(got, unit(np.stack(own)), atol=1e-5)
