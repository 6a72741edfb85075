"""What a process keeps in memory follows the content of files, not their names: everything that changes is read again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from distill import cache, process
from distill.checks import UserError
from distill.data.load import TASKS, assign_roles
from distill.data.splits import RawTask, Table, Task
from distill.models.loading import load_classifier
from distill.process import Prepared
from distill.settings import RunSettings, TaskSettings

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PREPARED", type(process._PREPARED)())


def write_train(folder: Path, seed: int) -> None:
    """train.csv, of the same size to the byte for every seed."""
    labels = np.random.default_rng(seed).permutation(np.arange(60) % 2)
    rows = [f"r{i},{'fine' if y else 'dull'} film {i},{'good' if y else 'fair'}" for i, y in enumerate(labels)]
    (folder / "train.csv").write_text("\n".join(["id,text,label", *rows]) + "\n")


def write_said(folder: Path, sure: float) -> None:
    rows = [f"r{i},{sure},{1 - sure:.1f}" for i in range(60)]
    (folder / "said.csv").write_text("\n".join(["id,fair,good", *rows]) + "\n")


@pytest.fixture
def prepare(tiny_config: Any, zoo: dict[str, Path], tmp_path: Path) -> Callable[..., Prepared]:
    """`prepare()`: the pool of a file and a checkpoint on the user's own files, from memory where nothing has changed."""
    write_train(tmp_path, 0)
    write_said(tmp_path, 0.9)
    (tmp_path / "test.csv").write_text(
        "id,text,label\n" + "".join(f"t{i},a film,{'fair' if i % 2 else 'good'}\n" for i in range(6))
    )
    model: Any = load_classifier(zoo["bert"], ["fair", "good"], 3, "x", 1)
    model.save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(zoo["bert"]).save_pretrained(tmp_path / "model")

    def made(*more: str, load: bool = True, model: str = str(tmp_path / "model")) -> Prepared:
        pool = f"{{name: llm, kind: predictions, path: {tmp_path}/said.csv}}, {{name: m, kind: checkpoint, path: '{model}', max_length: 32}}"
        files = [f"task.{role}={tmp_path}/{role}.csv" for role in ("train", "test")]
        sizes = ["task.text=[text]", "task.id=id", "task.reward_size=10", "task.dev_size=10", f"home={tmp_path}/home"]
        overrides = ["task=files", *files, *sizes, f"teachers.pool=[{pool}]", *more]
        prepared = Prepared.of(RunSettings.from_config(tiny_config(*overrides)))
        return prepared.load() if load else prepared

    return made


def retrain(folder: Path, seed: int = 1) -> None:
    """Other weights of the same size in the same file."""
    path = next(folder.glob("*.safetensors"))
    torch.manual_seed(seed)
    save_file({n: w + 0.5 * torch.randn_like(w) for n, w in load_file(path).items()}, path, {"format": "pt"})


def with_old_time(path: Path, change: Callable[[], Any]) -> None:
    """Change a file and set its times back, as `rsync --times` and `cp -p` do."""
    before, size = path.stat(), path.stat().st_size
    change()
    assert path.stat().st_size == size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def logits(prepared: Prepared) -> np.ndarray:
    return prepared.signals("train").logits(np.arange(len(prepared.task.splits["train"])))


def test_nothing_is_read_again_where_nothing_has_changed(prepare: Any, tmp_path: Path) -> None:
    first = prepare()
    assert prepare() is first
    for path in tmp_path.glob("*.csv"):
        path.touch()  # the same content
    shutil.copy2(tmp_path / "said.csv", tmp_path / "copy.csv")
    os.replace(tmp_path / "copy.csv", tmp_path / "said.csv")
    assert prepare() is first


def test_training_data_of_equal_size_and_time(prepare: Any, tmp_path: Path) -> None:
    first = prepare()
    with_old_time(tmp_path / "train.csv", lambda: write_train(tmp_path, 1))
    second = prepare()
    assert second.task.fingerprint != first.task.fingerprint
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["train.csv", "test.csv", "said.csv"])
def test_a_file_that_was_deleted_is_missed(prepare: Any, tmp_path: Path, name: str) -> None:
    prepare()
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: No such file"):
        prepare()


def test_predictions_that_were_replaced(prepare: Any, tmp_path: Path) -> None:
    first = logits(prepare())
    with_old_time(tmp_path / "said.csv", lambda: write_said(tmp_path, 0.7))
    second = logits(prepare())
    np.testing.assert_allclose(np.exp(second[0, 0]), [0.7, 0.3], atol=1e-6)
    np.testing.assert_allclose(np.exp(first[0, 0]), [0.9, 0.1], atol=1e-6)


@pytest.mark.parametrize("small", [True, False], ids=["by content", "by time"])
def test_a_teacher_that_was_retrained(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    if not small:
        monkeypatch.setattr(cache, "SMALL", 0)
    first = logits(prepare())
    with_old_time(tmp_path / "model" / "model.safetensors", lambda: retrain(tmp_path / "model"))
    second = logits(prepare())
    assert np.abs(second[:, 1] - first[:, 1]).max() > 0.01
    np.testing.assert_array_equal(second[:, 0], first[:, 0])


def test_a_teacher_in_a_package(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "__init__.py").touch()
    shutil.copytree(tmp_path / "model", tmp_path / "my_models" / "m")
    monkeypatch.syspath_prepend(tmp_path)
    first = logits(prepare(model="package:my_models/m"))
    retrain(tmp_path / "my_models" / "m")
    assert np.abs(logits(prepare(model="package:my_models/m")) - first).max() > 0.01
    sys.modules.pop("my_models", None)


def test_an_encoder_that_was_retrained(prepare: Any, zoo: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(zoo["bert"], tmp_path / "encoder")
    encoder = (
        "encoder.kind=transformer",
        "encoder.dim=null",
        f"++encoder.path={tmp_path}/encoder",
        "++encoder.max_length=16",
    )
    first = prepare(*encoder).signals("train").vectors(np.arange(5))
    retrain(tmp_path / "encoder")
    second = prepare(*encoder).signals("train").vectors(np.arange(5))
    assert np.abs(second - first).max() > 0.01


def test_a_checkpoint_that_changes_between_reading_and_loading(
    prepare: Any, zoo: dict[str, Path], tmp_path: Path
) -> None:
    """Its signals would be stored under the name of the old content."""
    prepared = prepare()
    retrain(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"teacher m: .*model has changed since it was read; make the environment again"
    ):
        prepared.signals("dev")
    assert prepare().signals("dev").names == ("llm", "m")
    shutil.copytree(zoo["bert"], tmp_path / "encoder")
    encoder = (
        "encoder.kind=transformer",
        "encoder.dim=null",
        f"++encoder.path={tmp_path}/encoder",
        "++encoder.max_length=16",
    )
    before = prepare(*encoder, load=False)
    shutil.copytree(tmp_path / "encoder", tmp_path / "again")
    shutil.rmtree(tmp_path / "encoder")
    os.replace(tmp_path / "again", tmp_path / "encoder")  # other files with the same content
    before.load()
    retrain(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"encoder: .*encoder has changed since it was read"):
        before.signals("dev")


def test_official_files(tiny_config: Any, tmp_path: Path) -> None:
    """Those of the task count, and no others in `data_dir`."""
    (tmp_path / "RTE").mkdir()
    rows = [f"{i}\ta film {i}\tno film\t{'entailment' if i % 2 else 'not_entailment'}" for i in range(60)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "RTE" / name).write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")
    settings = RunSettings.from_config(
        tiny_config("task=rte", f"data_dir={tmp_path}", "teachers=fresh", f"home={tmp_path}/home")
    )
    first = Prepared.of(settings)
    (tmp_path / "notes.txt").write_text("x")
    assert Prepared.of(settings) is first
    path = tmp_path / "RTE" / "train.tsv"
    with_old_time(path, lambda: path.write_text(path.read_text().replace("a film", "a soup")))
    assert Prepared.of(settings).task.splits["train"].texts[0][0].startswith("a soup")


# --- a task of the user's own -----------------------------------------------------------------------------------------


@pytest.fixture
def registered() -> Iterator[Callable[[Callable[[], str]], None]]:
    """`registered(word)`: the task `mine`, whose texts hold the word that the function gives when the task is loaded."""
    before = dict(TASKS)

    def register(word: Callable[[], str]) -> None:
        def mine(settings: TaskSettings, data_dir: str | None) -> Task:
            def table(role: str, count: int) -> Table:
                ids = [f"{role}{i}" for i in range(count)]
                return Table(ids, [(f"{word()} {i}",) for i in range(count)], [str(i % 2) for i in range(count)])

            return assign_roles(settings, RawTask("mine", {"train": table("a", 60), "test": table("b", 8)}, ("0", "1")))

        TASKS["mine"] = mine

    yield register
    TASKS.clear()
    TASKS.update(before)


def test_files_that_only_the_users_own_task_knows(tiny_config: Any, tmp_path: Path, registered: Any) -> None:
    hidden = tmp_path / "hidden.txt"
    hidden.write_text("film")
    registered(hidden.read_text)
    settings = RunSettings.from_config(tiny_config("task.name=mine", "teachers=fresh"))
    first = Prepared.of(settings)
    assert Prepared.of(settings) is first
    hidden.write_text("soup")
    assert Prepared.of(settings).task.splits["train"].texts[0][0].startswith("soup")


def test_a_task_that_was_registered_again(tiny_config: Any, registered: Any) -> None:
    settings = RunSettings.from_config(tiny_config("task.name=mine", "teachers=fresh"))
    for word in ("film", "soup"):
        registered(lambda word=word: word)
        assert Prepared.of(settings).task.splits["train"].texts[0][0].startswith(word)
