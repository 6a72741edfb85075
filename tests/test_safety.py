"""No file that is read is executed: pickles and code are planted wherever a file is looked for.

tests/agents/test_report.py tests in a browser that the report shows text as text.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_bad_input import build, checkpoint, place, teacher  # noqa: F401  the first two names are fixtures

from agents import compare
from agents.experiment import grid
from agents.experiment.grid import Cell
from agents.experiment.report import page
from configs import compose
from distill import cache
from distill.checks import UserError
from distill.models import loading
from distill.process import Distillation
from distill.settings import BagEncoderSettings, CompareSettings, RunSettings
from distill.teachers import store
from distill.teachers.encoders import BagEncoder
from envs.teacher_select import TeacherSelectVectorEnv

pytestmark = pytest.mark.faults


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return (open, (self.marker, "w"))


@pytest.fixture
def marker(tmp_path):
    """A file that must not be there after the test."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a planted payload was run"


@pytest.fixture
def payload(marker) -> bytes:
    return pickle.dumps(Evil(marker))


def as_npy(evil: Any) -> bytes:
    """A .npy file of objects."""
    out = io.BytesIO()
    np.save(out, np.array([evil], object), allow_pickle=True)
    return out.getvalue()


def test_the_payload_is_one(tmp_path):
    """If it were harmless, all tests below would pass in vain."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "one"))).close()
    np.load(io.BytesIO(as_npy(Evil(tmp_path / "two"))), allow_pickle=True)
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    assert len(str(error.value).splitlines()) == 1
    for word in words:
        assert word in str(error.value)


# --- checkpoints ------------------------------------------------------------------------------------------------------

PLANTED = (
    "pytorch_model.bin",
    "model.bin",
    "model.pt",
    "model.pkl",
    "model.ckpt",
    "optimizer.pt",
    "training_args.bin",
    "adapter_model.bin",
    "vocab.pkl",
    "tokenizer.pkl",
    "vocab.bin",
    "manifest.json",
)


@pytest.mark.parametrize("student", [False, True], ids=["teacher", "student"])
@pytest.mark.parametrize("replaced", [(), ("model.safetensors",), ("tokenizer.json",), ("config.json",)], ids=str)
def test_a_checkpoint_full_of_pickles(place, payload, marker, student, replaced):  # noqa: F811
    for name in (*PLANTED, *replaced):
        (place / "model" / name).write_bytes(payload)
    more = teacher()(place)
    if student:
        more = ["student=checkpoint", f"student.path={place / 'model'}", "student.max_length=16", "student.config=null"]
    if not replaced:
        build(place, *more)
        return
    with pytest.raises(UserError) as error:
        build(place, *more)
    one_line(error, "student" if student else "teacher t", str(place / "model"))


def test_pickled_weights_alone_are_not_looked_at(place, payload, marker):  # noqa: F811
    (place / "model" / "model.safetensors").unlink()
    (place / "model" / "pytorch_model.bin").write_bytes(payload)
    with pytest.raises(UserError) as error:
        build(place, *teacher()(place))
    one_line(error, "teacher t", "no .safetensors weights")


CODE = "open({marker!r}, 'w')\nfrom transformers import {base}\nclass Own({base}):\n    model_type = 'own'\n"


def with_code(folder: Path, marker: Path, name: str, **facts: Any) -> None:
    """Code beside the checkpoint, and a claim in `name` that it is needed."""
    (folder / "own.py").write_text(CODE.format(marker=str(marker), base="BertConfig"))
    known = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(known | facts))


MAP = {
    "AutoConfig": "own.Own",
    "AutoModelForSequenceClassification": "own.Own",
    "AutoModel": "own.Own",
    "AutoTokenizer": ["own.Own", "own.Own"],
}


@pytest.mark.parametrize("student", [False, True], ids=["teacher", "student"])
def test_a_checkpoint_with_code_of_its_own_is_refused(place, marker, monkeypatch, student):  # noqa: F811
    """It is not run, and nobody is asked: at a terminal the library would wait for a yes."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    with_code(place / "model", marker, "config.json", model_type="own", auto_map=MAP)
    more = teacher()(place)
    if student:
        more = ["student=checkpoint", f"student.path={place / 'model'}", "student.max_length=16", "student.config=null"]
    with pytest.raises(UserError) as error:
        build(place, *more)
    one_line(error, "student" if student else "teacher t", "code of its own, which is never run")


def test_code_beside_a_known_architecture_is_left_alone(place, marker):  # noqa: F811
    with_code(place / "model", marker, "config.json", auto_map=MAP)
    with_code(place / "model", marker, "tokenizer_config.json", tokenizer_class="Own", auto_map=MAP)
    assert type(loading.load_classifier(place / "model", None, 0, "x")).__module__.startswith("transformers.")
    build(place, *teacher()(place))


@pytest.mark.parametrize("path", ["package:torch/../numpy", "package:torch//etc"])
def test_a_package_is_not_left(path):
    with pytest.raises(UserError) as error:
        loading.resolve(path, "teacher t")
    one_line(error, "teacher t", path, "leaves its package")


# --- caches -----------------------------------------------------------------------------------------------------------


def resealed(entry: Path) -> None:
    """Give the entry a manifest that fits its files, as someone with write access to the cache could."""
    manifest = cache.read_sealed(entry / cache.MANIFEST)
    manifest["files"] = {name: cache.file_sha256(entry / name) for name in manifest["files"]}
    manifest["sizes"] = {name: (entry / name).stat().st_size for name in manifest.get("sizes", {})}
    (entry / cache.MANIFEST).write_text(json.dumps(cache.sealed(manifest)))


POOL = (
    "teachers.pool=[{name: film, kind: finetune, pool: film, epochs: 1, max_length: 32, "
    "config: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8}}]"
)


@pytest.fixture(scope="module")
def filled(tiny_config, tmp_path_factory) -> Path:
    """A home with a teacher, signals and a warm start in it."""
    home = tmp_path_factory.mktemp("filled") / "home"
    Distillation(RunSettings.from_config(tiny_config(POOL, f"home={home}")))
    return home


@pytest.fixture
def kept(filled, tiny_config, tmp_path, monkeypatch) -> tuple[RunSettings, Path]:
    """A copy of it, and the settings that find what is there, as in another process."""
    shutil.copytree(filled, tmp_path / "home")
    monkeypatch.setattr("distill.process._PREPARED", OrderedDict())
    return RunSettings.from_config(tiny_config(POOL, f"home={tmp_path / 'home'}")), tmp_path / "home"


PLACES = {
    "signals/*/film-*": ("values.f32", "sums.npy", "manifest.json"),
    "signals/*/bag-*": ("sums.npy",),
    "warm/*": ("student.safetensors", "manifest.json"),
    "teachers/*": ("model.safetensors", "config.json", "tokenizer.json", "manifest.json"),
}


@pytest.mark.parametrize("fits", [False, True], ids=["checksums as they were", "checksums made to fit"])
@pytest.mark.parametrize(("entry", "name"), [(e, n) for e, names in PLACES.items() for n in names])
@pytest.mark.parametrize("kind", ["pickle", "npy"])
def test_pickles_in_the_cache(kept, payload, marker, entry, name, fits, kind):
    settings, home = kept
    (folder,) = (p for p in home.glob(entry) if p.is_dir())
    content = payload if kind == "pickle" else as_npy(Evil(marker))
    if name == "values.f32":  # its size is checked first
        size = (folder / name).stat().st_size
        content = content.ljust(size, b"\0")[:size]
    (folder / name).write_bytes(content)
    if fits and name != "manifest.json":
        resealed(folder)
    if entry == "teachers/*":  # asked only where their signals are not there
        shutil.rmtree(home / "signals")
    with pytest.raises(UserError) as error:
        _read(settings)
    one_line(error)


def _read(settings: RunSettings) -> None:
    process = Distillation(settings)
    process.begin(0)
    process.signals.logits(np.arange(len(process.labels)))


def test_a_pickle_among_the_shards_of_a_build(tmp_path, payload, marker, small_source):
    source, split = small_source
    folder = tmp_path / "shards"
    folder.mkdir()
    for content in (payload, as_npy(Evil(marker))):
        (folder / "0-123.npy").write_bytes(content)
        np.testing.assert_array_equal(store._shard(source, split, folder, 0), source.compute(split))


@pytest.fixture
def small_source() -> Any:
    from distill.data.splits import Split

    split = Split("train", np.array(["a", "b"]), [("a lovely film",), ("a dull story",)], np.array([0, 1]))
    return BagEncoder(BagEncoderSettings(dim=4)), split


@pytest.mark.parametrize("name", ["result.json", "choices.npz"])
def test_pickles_in_a_cell(tmp_path, payload, marker, name):
    cell = Cell("control", 0, RunSettings(), str(tmp_path / "cell"), "")
    folder = tmp_path / "cell"
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    (folder / name).write_bytes(payload)
    if name == "result.json":
        with pytest.raises(UserError) as error:
            grid.finished(cell)
        one_line(error, str(folder))
        return
    for content in (payload, as_npy(Evil(marker)), as_npz(last=as_npy(Evil(marker)))):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            page.write(tmp_path / "report", {}, [], {("control", 0): folder}, None)  # type: ignore[arg-type]
        one_line(error, str(folder), "choices.npz")


def as_npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


# --- the user's files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".pkl", ".pickle", ".npy", ".json", ".csv.gz"]
)
@pytest.mark.parametrize("what", ["data", "probabilities"])
def test_pickles_given_as_tables(place, payload, marker, suffix, what):  # noqa: F811
    path = place / f"given{suffix}"
    contents = [payload, as_npy(Evil(marker))]
    if suffix in (".pkl", ".pickle"):
        out = io.BytesIO()
        pd.DataFrame({"id": [Evil(marker)]}).to_pickle(out)
        contents.append(out.getvalue())
    for content in contents:
        path.write_bytes(content)
        more = (
            [f"task.train={path}"]
            if what == "data"
            else [f"teachers.pool=[{{name: llm, kind: predictions, path: {path}}}]"]
        )
        with pytest.raises(UserError) as error:
            build(place, *more)
        one_line(error, str(path))


def test_a_state_of_objects(tiny_config, marker):
    env = TeacherSelectVectorEnv(config=tiny_config())
    env.reset(seed=0)
    state = env.get_state()
    env.set_state(state)
    for name in ("process/rows", "log/actions", "facts"):
        with pytest.raises(UserError) as error:
            env.set_state({**state, name: np.array([Evil(marker)], object)})
        one_line(error, "damaged")


# --- names ------------------------------------------------------------------------------------------------------------


def test_cells_stay_in_their_folder(tiny_overrides, tmp_path):
    """An entry that names another place is refused before anything runs."""
    settings = CompareSettings(agents=["single", "reinforce agent.lr=0.1"], seeds=2, cells=str(tmp_path / "cells"))
    run = RunSettings.from_config(compose(tiny_overrides))
    cells = compare.plan(settings, run, tiny_overrides)
    assert len(cells) == 2 * 6  # control, four single teachers, reinforce
    assert {Path(c.folder).parent for c in cells} == {tmp_path / "cells"}
    for entry in ("single:../../x", "../x", "/x", "reinforce agent.name=../x", "control task.name=../x"):
        with pytest.raises(UserError) as error:
            compare.plan(dataclasses.replace(settings, agents=[entry]), run, tiny_overrides)
        one_line(error, entry.split()[-1].rpartition("=")[2].removeprefix("single:"))
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in tmp_path.parent.iterdir() if p.name == "x"] == []
