"""Signals: stored and live ones are the same, are computed once, and never come from another split or source."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pytest
import torch
import transformers
from hypothesis import strategies as st

from distill.checks import UserError
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.settings import (
    ENCODER_KINDS,
    BagEncoderSettings,
    EncoderSettings,
    FinetuneTeacher,
    RunSettings,
    TransformerEncoderSettings,
)
from distill.teachers import store
from distill.teachers.encoders import ENCODERS, BagEncoder, TransformerEncoder, make_encoder, unit
from distill.teachers.live import LiveSignals
from distill.teachers.sources import load_teacher
from distill.teachers.store import StoredArray, StoredSignals, stored

CPU = Engine(torch.device("cpu"))
ROOT = Path(__file__).resolve().parents[2]


class Said:
    """A source with simple outputs that depend on the text; it counts its calls."""

    def __init__(self, name: str = "said", width: int = 2, spoil: float = 0.0, fingerprint: str = "f") -> None:
        self.name, self.width, self.spoil, self.fingerprint, self.calls = name, width, spoil, fingerprint, 0

    def compute(self, split: Split) -> np.ndarray:
        self.calls += 1
        out = np.array([[len(t[0]) + 10 * len(self.name) + j for j in range(self.width)] for t in split.texts])
        return np.asarray(out + np.where(np.arange(len(split))[:, None] == 1, self.spoil, 0), np.float32)

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        return self.compute(split)[rows]

    def release(self) -> None:
        pass


ROWS = np.array([5, 0, 5, 11])


def test_stored_signals_equal_live_signals(small_task: Task, home: Path, zoo: dict[str, Path]) -> None:
    """With real models in other batches: equal up to rounding, which padding changes."""
    split = small_task.splits["train"]
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    specs = [
        FinetuneTeacher(name="live-a", config=config, max_length=32, epochs=1),
        FinetuneTeacher(name="live-b", path=str(zoo["xlnet"]), max_length=32, epochs=1),
    ]
    teachers = [load_teacher(s, small_task, home, CPU) for s in specs]
    encoder = make_encoder(TransformerEncoderSettings(path=str(zoo["bert"])), CPU)
    on_disk, live = StoredSignals(split, teachers, encoder, home), LiveSignals(split, teachers, encoder)
    assert on_disk.names == live.names == ("live-a", "live-b")
    assert on_disk.width == live.width == 16
    for way in (on_disk, live):
        assert way.logits(ROWS).shape == (4, 2, 2)
        assert way.logits(ROWS).dtype == way.vectors(ROWS).dtype == np.float32
    np.testing.assert_allclose(on_disk.logits(ROWS), live.logits(ROWS), atol=1e-5)
    np.testing.assert_allclose(on_disk.vectors(ROWS), live.vectors(ROWS), atol=1e-5)
    assert np.ptp(on_disk.logits(np.arange(64)), axis=0).min() > 1e-3, (
        "no teacher gives the same logits for all instances"
    )


def test_the_second_time_nothing_is_computed(small_task: Task, tmp_path: Path) -> None:
    split, first, second = (
        small_task.splits["train"],
        [Said("a"), Said("b"), Said("e", 5)],
        [Said("a"), Said("b"), Said("e", 5)],
    )
    one, two = (StoredSignals(split, s[:2], s[2], tmp_path) for s in (first, second))
    assert [s.calls for s in first] == [1, 1, 1]
    assert [s.calls for s in second] == [0, 0, 0]
    np.testing.assert_array_equal(one.logits(ROWS), two.logits(ROWS))
    np.testing.assert_array_equal(one.logits(ROWS)[:, 1], Said("b").compute(split)[ROWS])
    np.testing.assert_array_equal(two.vectors(ROWS), Said("e", 5).compute(split)[ROWS])
    with pytest.raises(TypeError, match="item assignment"):
        stored(first[0], split, tmp_path)[0] = 1  # type: ignore[index]


def test_one_more_teacher_costs_one_pass(small_task: Task, tmp_path: Path) -> None:
    split, sources = small_task.splits["train"], [Said("a"), Said("e"), Said("new")]
    StoredSignals(split, sources[:1], sources[1], tmp_path)
    both = StoredSignals(split, [sources[2], sources[0]], sources[1], tmp_path)
    assert [s.calls for s in sources] == [1, 1, 1]
    np.testing.assert_array_equal(both.logits(ROWS)[:, 0], sources[2].compute(split)[ROWS])


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(small_task: Task, tmp_path: Path, spoil: float) -> None:
    split = small_task.splits["dev"]
    with pytest.raises(UserError, match=r"said: 1 of 24 instances have NaN or infinite outputs"):
        stored(Said(spoil=spoil), split, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("manifest.json"))
    fixed = Said()
    stored(fixed, split, tmp_path)
    assert fixed.calls == 1


def test_a_source_of_the_wrong_width_is_refused(small_task: Task, tmp_path: Path) -> None:
    source = Said()
    source.compute = lambda split: np.zeros((len(split), 3), np.float32)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"said: gave shape \(24, 3\), expected \(24, 2\)"):
        stored(source, small_task.splits["dev"], tmp_path)


def test_keyed_by_split_and_source(small_task: Task, tmp_path: Path) -> None:
    split = small_task.splits["dev"]
    texts = [*split.texts[:-1], ("another text",)]
    changed = Split("dev", split.ids, texts, split.labels)
    relabelled = Split("dev", split.ids, split.texts, 1 - split.labels)
    shuffled = split.take(np.arange(24)[::-1])
    source = Said()
    calls = []
    for part in (split, changed, relabelled, shuffled, split):
        np.testing.assert_array_equal(stored(source, part, tmp_path)[np.arange(24)], Said().compute(part))
        calls.append(source.calls)
    assert calls == [1, 2, 2, 3, 3]
    retrained = Said(fingerprint="g")
    stored(retrained, split, tmp_path)
    assert retrained.calls == 1


def test_an_entry_of_another_split_is_an_error(small_task: Task, tmp_path: Path) -> None:
    dev, test = small_task.splits["dev"], small_task.splits["test"]
    stored(Said(), dev, tmp_path)
    (tmp_path / "signals" / dev.fingerprint).rename(tmp_path / "signals" / test.fingerprint)
    with pytest.raises(UserError, match=rf"split is '{dev.fingerprint}' there but '{test.fingerprint}' here"):
        stored(Said(), test, tmp_path)


# --- at scale ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Raised in place of the end of the process."""


def many(count: int) -> Split:
    return Split(
        "train", np.array([str(i) for i in range(count)]), [(f"{i}",) for i in range(count)], np.zeros(count, int)
    )


class Counted(Said):
    """Outputs the number that the text is; fails after `lives` passes."""

    def __init__(self, lives: int | None = None) -> None:
        super().__init__()
        self.lives, self.seen = lives, []

    def compute(self, split: Split) -> np.ndarray:
        if self.lives is not None and len(self.seen) == self.lives:
            raise Killed
        self.seen.append(len(split))
        return np.array([[float(t[0]), -float(t[0])] for t in split.texts], np.float32)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD", 100)


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_build_continues_from_its_shards(tmp_path: Path) -> None:
    split = many(950)
    with pytest.raises(Killed):
        stored(Counted(lives=4), split, tmp_path)
    shards = next(tmp_path.rglob("*.shards"))
    kept = sorted(shards.glob("*.f32"))
    assert len(kept) == 4
    kept[1].write_bytes(kept[1].read_bytes()[:-3] + b"abc")  # damaged since: made again
    kept[2].write_bytes(b"no array")
    again = Counted()
    values = stored(again, split, tmp_path)
    assert again.seen == [100] * 7 + [50], "two of ten shards were there and undamaged"
    np.testing.assert_array_equal(values[np.arange(950)][:, 0], np.arange(950))
    assert not shards.exists()
    whole = stored(Counted(), many(90), tmp_path)
    np.testing.assert_array_equal(whole[np.array([89, 0])][:, 1], [-89, 0])


@pytest.mark.usefixtures("small_shards")
def test_a_broken_source_leaves_no_entry(tmp_path: Path) -> None:
    class Broken(Counted):
        def compute(self, split: Split) -> np.ndarray:
            return super().compute(split) * (np.nan if len(self.seen) == 3 else 1)

    with pytest.raises(UserError, match="NaN or infinite"):
        stored(Broken(), many(950), tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob(".*building"))


@hypothesis.given(place=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_a_flipped_byte_is_met_before_it_is_used(kept_array: Path, place: int, mask: int) -> None:
    path = kept_array / "values.f32"
    good = path.read_bytes()
    place %= len(good)
    spoilt = good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :]
    try:
        path.write_bytes(spoilt)
        with pytest.raises(UserError, match="is damaged in rows"):
            StoredArray(kept_array, 300, 2)[np.array([place // 8])]
    finally:
        path.write_bytes(good)


@pytest.fixture(scope="module")
def kept_array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kept")
    return stored(Counted(), many(300), home).folder


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    folder = stored(Counted(), many(300), tmp_path).folder
    path = folder / "values.f32"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        UserError, match=r"values\.f32 has 2392 bytes, its manifest says 2400; delete .* to build it again"
    ):
        stored(Counted(), many(300), tmp_path)


def test_only_blocks_that_are_read_are_checked(tmp_path: Path) -> None:
    folder = stored(Counted(), many(300), tmp_path).folder
    data = bytearray((folder / "values.f32").read_bytes())
    data[-1] ^= 1
    (folder / "values.f32").write_bytes(bytes(data))
    array = StoredArray(folder, 300, 2)
    np.testing.assert_array_equal(array[np.array([255, 3])][:, 0], [255, 3])
    with pytest.raises(UserError, match=r"values\.f32 is damaged in rows 256 to 299; delete .* to build it again"):
        array[np.array([256])]


def test_memory_stays_flat_at_fifty_thousand(tmp_path: Path) -> None:
    """The small form of benchmarks/scale.py."""
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/scale.py"), "--sizes", "5000", "50000", "--batches", "3000", "--home", str(tmp_path / "h"),
         "--out", str(tmp_path / "o.json")],
        check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "50000" in made.stdout
    large = json.loads((tmp_path / "o.json").read_text())["sizes"][-1]
    assert large["instances"] == 50_000
    assert large["open_s"] < 1
    assert large["rss_growth_mb"] < 200


# --- encoders ---------------------------------------------------------------------------------------------------------


def made(*texts: tuple[str, ...]) -> Split:
    return Split("train", np.array([str(i) for i in range(len(texts))]), list(texts), np.zeros(len(texts), np.int64))


def test_bag_encoder() -> None:
    split = made(
        ("the soup was soggy",),
        ("Soggy SOUP!",),
        ("soup soggy soggy",),
        ("the was a",),
        ("", "soup soggy"),
        ("battery",),
    )
    a = BagEncoder(BagEncoderSettings(16)).compute(split)
    assert a.shape == (6, 16)
    assert a.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), [1, 1, 1, 0, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(a, BagEncoder(BagEncoderSettings(16)).compute(split))
    np.testing.assert_allclose(a[0], a[1], atol=1e-7)  # short words, case and punctuation aside
    assert not np.allclose(a[0], a[2])  # counts matter
    assert abs(a[0] @ a[4]) < 0.9  # the second text has vectors of its own
    one_by_one = np.concatenate(
        [BagEncoder(BagEncoderSettings(16)).compute(split.take(np.array([i]))) for i in range(6)]
    )
    np.testing.assert_array_equal(a, one_by_one)
    assert BagEncoder(BagEncoderSettings(16)).fingerprint != BagEncoder(BagEncoderSettings(17)).fingerprint


def test_bag_vectors_keep_distances() -> None:
    """Words are nearly orthogonal in many dimensions: the cosine of two bags is that of their counts."""
    a = BagEncoder(BagEncoderSettings(20_000)).compute(
        made(("alpha beta",), ("alpha gamma",), ("delta alpha alpha alpha",))
    )
    np.testing.assert_allclose([a[0] @ a[1], a[0] @ a[2]], [0.5, 3 / np.sqrt(2 * 10)], atol=0.03)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_transformer_encoder(zoo: dict[str, Path], pairs: Any, name: str, pooling: str) -> None:
    split = pairs()
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo[name])
    lengths = [len(tokenizer(*t)["input_ids"]) for t in split.texts]
    limit = int(np.median(lengths))
    assert min(lengths) < limit < max(lengths), "some are padded, some are cut"
    encoder = TransformerEncoder(TransformerEncoderSettings(str(zoo[name]), pooling, max_length=limit), CPU)
    got = encoder.compute(split)
    assert encoder.width == got.shape[1] == 16
    model = transformers.AutoModel.from_pretrained(zoo[name]).eval()
    for i, texts in enumerate(split.texts):  # one at a time: no padding at all
        types = name != "roberta"
        inputs = tokenizer(*texts, truncation=True, max_length=limit, return_tensors="pt", return_token_type_ids=types)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        vector = states.mean(0) if pooling == "mean" else states[0]
        np.testing.assert_allclose(got[i], (vector / vector.norm()).numpy(), atol=2e-5)


def test_encoder_fingerprints(zoo: dict[str, Path]) -> None:
    kinds = [("bert", "mean", 24), ("bert", "cls", 24), ("bert", "mean", 25), ("roberta", "mean", 24)]
    made = [TransformerEncoder(TransformerEncoderSettings(str(zoo[n]), p, max_length=m), CPU) for n, p, m in kinds]
    made.append(TransformerEncoder(made[0].settings, Engine(CPU.device, torch.bfloat16)))
    assert len({e.fingerprint for e in made}) == 5


def test_encoder_mistakes(zoo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.kind=transformer needs encoder\.path"):
        TransformerEncoderSettings()
    with pytest.raises(UserError, match=r"encoder: no folder \./nowhere"):
        make_encoder(TransformerEncoderSettings("./nowhere"), CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"encoder: .*config\.json is not a transformers configuration"):
        make_encoder(TransformerEncoderSettings(str(tmp_path)), CPU)


def test_a_model_that_is_not_an_encoder(zoo: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(zoo["bert"], folder)
    (folder / "config.json").write_text('{"model_type": "perceiver"}')
    with pytest.raises(UserError, match=r"^encoder: .* is not an encoder: its configuration has no hidden_size$"):
        make_encoder(TransformerEncoderSettings(str(folder)), CPU)


def test_a_user_can_add_a_kind_of_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class LengthSettings(EncoderSettings):
        kind: ClassVar[str] = "length"
        scale: float = 1.0

    class Length(Said):
        def __init__(self, settings: LengthSettings, engine: Engine) -> None:
            super().__init__("length", int(settings.scale))

    monkeypatch.setitem(ENCODER_KINDS, "length", LengthSettings)
    monkeypatch.setitem(ENCODERS, "length", Length)
    settings = RunSettings.from_config({"encoder": {"kind": "length", "scale": 3.0}}).encoder
    assert make_encoder(settings, CPU).width == 3
    with pytest.raises(UserError, match=r"^encoder\.kind= is not known; choose from bag, transformer"):
        make_encoder(EncoderSettings(), CPU)


def test_unit() -> None:
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
