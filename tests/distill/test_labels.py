"""Teachers' outputs and the task's labels: matched by name, and by labelled data where names are missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.checks import UserError
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.models.labels import as_list, better_order
from distill.models.loading import load_classifier, output_order
from distill.settings import CheckpointTeacher, FinetuneTeacher, PredictionsTeacher, TeachersSettings
from distill.teachers.checkpoint import ModelTeacher
from distill.teachers.finetune import fine_tuned
from distill.teachers.sources import load_pool, load_teacher

pytestmark = pytest.mark.faults
CPU = Engine(torch.device("cpu"), None)
WIDTHS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.2,
}
SIGNS = ("--", "-", "o", "+", "++")


def outputs(*names: str, **more: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names)), **more))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (SIGNS, SIGNS, [0, 1, 2, 3, 4]),
        (SIGNS, ("++", "+", "O", "-", "--"), [4, 3, 2, 1, 0]),
        (("A", "a", "b"), ("a", "B", "A"), [2, 0, 1]),
        (("a-b", "a_b"), ("a_b", "a-b"), [1, 0]),
        (("a-b", "a_b"), ("a_b", "A B"), [1, 0]),  # one of them is equal, which leaves the other
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("label_2", "label_0", "label_1"), [1, 2, 0]),
        (("0", "1", "2"), ("LABEL_2", "LABEL_0", "LABEL_1"), [1, 2, 0]),
        (("bad", "good"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("1", "2", "3"), ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (("caf\u00e9", "bar"), ("Bar", "Cafe\u0301"), [1, 0]),
    ],
)
def test_labels_are_matched_exactly_first(labels: Sequence[str], names: Sequence[str], expected: list[int]) -> None:
    assert output_order(outputs(*names), labels, None, "teacher t") == expected


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (("A", "a"), ("a", "b"), r"no output named 'A' \('A' and 'a' would share one\); its outputs are a, b; set"),
        (("a-b", "a_b"), ("a b", "A B"), r"no output named 'a-b' \('a-b' and 'a_b' would share one\)"),
        (("a-b", "a_b"), ("a b", "c"), r"no output named 'a-b' \('a-b' and 'a_b' would share one\)"),
        (("good", "bad"), ("bad", "Bad"), r"no output named 'good'"),
        (("bad", "Bad"), ("bad", "bad"), r"no output named 'Bad'"),
        (("--", "-", "x"), ("- -", "_", "x"), r"no output named '--' \('--' and '-' would share one\)"),
        (("LABEL_1", "LABEL_2"), ("LABEL_0", "LABEL_1"), r"no output named 'LABEL_2'"),
    ],
)
def test_two_labels_never_share_an_output(labels: Sequence[str], names: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^teacher t: {message}"):
        output_order(outputs(*names), labels, None, "teacher t")
    if not names[0].startswith("LABEL"):
        with pytest.raises(UserError, match=f"^teacher t: {message}"):  # the same for names that the user gives
            output_order(outputs("x", "y", "z") if len(names) == 3 else outputs("x", "y"), labels, names, "teacher t")


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_head_for_something_else_is_refused(problem: str) -> None:
    with pytest.raises(UserError, match=rf"teacher t: .*no logits of one label an instance \(problem_type={problem}\)"):
        output_order(outputs("bad", "good", problem_type=problem), ("bad", "good"), ["bad", "good"], "teacher t")
    single = outputs("bad", "good", problem_type="single_label_classification")
    assert output_order(single, ("bad", "good"), None, "teacher t") == [0, 1]


def test_a_config_that_contradicts_itself_is_refused() -> None:
    model = outputs("bad", "good", label2id={"good": 0, "bad": 1})
    with pytest.raises(UserError, match=r"names output 0 'bad' in id2label, and output 1 in label2id; .*labels="):
        output_order(model, ("bad", "good"), None, "teacher t")
    assert output_order(model, ("bad", "good"), ["good", "bad"], "teacher t") == [1, 0]
    stale = outputs("bad", "good", label2id={"LABEL_0": 0, "LABEL_1": 1})
    assert output_order(stale, ("bad", "good"), None, "teacher t") == [0, 1]


def test_a_list_of_labels_can_be_copied_into_yaml() -> None:
    import yaml

    names = ["good", "--", "no", "3", "it's", "a b", "null", "x"]
    assert yaml.safe_load(as_list(names)) == names
    assert as_list(["bad", "good"]) == "[bad, good]"


# --- checkpoints ------------------------------------------------------------------------------------------------------

WORDS = {"ash": "kaput", "birch": "so la la", "cedar": "grand"}  # a word that gives away the label


def split(role: str, count: int, labelled: bool = True) -> Split:
    labels = np.random.default_rng(len(role)).permutation(np.arange(count) % 3)
    texts = [(f"the {list(WORDS)[y]} number {i % 7}",) for i, y in enumerate(labels)]
    made = Split(role, np.array([f"{role}-{i}" for i in range(count)]), texts, labels)
    return made if labelled else made.unlabelled()


def trees(train: int = 90, reward: int = 60, labelled: bool = True) -> Task:
    splits = {"train": split("train", train, labelled), "reward": split("reward", reward)}
    return Task("trees", "files", tuple(WORDS.values()), splits | {role: split(role, 9) for role in ("dev", "test")})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned teacher that is right about every tree; its outputs are in the order of the labels."""
    home = tmp_path_factory.mktemp("trees")
    spec = FinetuneTeacher(name="t", config=WIDTHS, max_length=8, lr=1e-2, epochs=20, batch_size=15)
    task = trees()
    teacher = fine_tuned(spec, task, task.splits["train"], home, CPU)
    assert (teacher.compute(task.splits["reward"]).argmax(1) == task.splits["reward"].labels).all()
    return next(p for p in (home / "teachers").iterdir() if p.is_dir())


@pytest.fixture
def teacher_of(good: Path, tmp_path: Path) -> Callable[..., CheckpointTeacher]:
    """`teacher_of([1, 0, 2], id2label=...)`: the good teacher with its outputs in another order and another config."""

    def make(order: Sequence[int] = (0, 1, 2), given: list[str] | None = None, **config: Any) -> CheckpointTeacher:
        folder = tmp_path / "model"
        shutil.copytree(good, folder, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            tensors[name] = tensors[name][list(order)].contiguous()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        known = json.loads((folder / "config.json").read_text()) | config
        kept = {k: v for k, v in known.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return CheckpointTeacher(name="t", path=str(folder), labels=given, max_length=8)

    return make


def accuracy(spec: CheckpointTeacher, task: Task, home: Path) -> float:
    (teacher,) = load_pool(TeachersSettings(pool=[spec]), task, home, CPU)
    return float((teacher.compute(task.splits["dev"]).argmax(1) == task.splits["dev"].labels).mean())


PLACEHOLDERS = {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}, "label2id": None}


@pytest.mark.parametrize(
    "names", [{"id2label": None}, {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}}], ids=["none", "placeholders"]
)
def test_label2id_alone_names_the_outputs(teacher_of: Any, tmp_path: Path, names: dict[str, Any]) -> None:
    spec = teacher_of([2, 0, 1], label2id={"grand": 0, "kaput": 1, "so la la": 2}, **names)
    assert accuracy(spec, trees(), tmp_path / "home") == 1
    assert not (tmp_path / "home").exists()


def test_label2id_of_numbers_in_words(teacher_of: Any, tmp_path: Path) -> None:
    spec = teacher_of([2, 0, 1], label2id={"Grand": "0", "Kaput": "1", "so-la-la": "2"}, id2label=None)
    assert accuracy(spec, trees(), tmp_path / "home") == 1


def test_a_student_from_a_multi_label_checkpoint_has_one_label(teacher_of: Any, tmp_path: Path) -> None:
    folder = Path(teacher_of(problem_type="multi_label_classification").path)
    with pytest.raises(UserError, match="problem_type=multi_label_classification"):
        load_teacher(CheckpointTeacher(name="t", path=str(folder)), trees(), tmp_path, CPU)
    student: Any = load_classifier(folder, ["no", "maybe", "yes"], 0, "student")
    student.save_pretrained(tmp_path / "student")
    assert "problem_type" not in json.loads((tmp_path / "student" / "config.json").read_text())


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 2, 1]])
def test_an_order_that_the_data_refutes_is_refused(teacher_of: Any, tmp_path: Path, order: list[int]) -> None:
    task, home = trees(), tmp_path / "home"
    with pytest.raises(UserError) as caught:
        accuracy(teacher_of(order, **PLACEHOLDERS), task, home)
    names = [task.label_names[i] for i in order]
    share = "33%" if order[0] == 0 else "0%"
    assert f"right for {share} of 150 labelled instances, in another order for 100%" in str(caught.value)
    assert str(caught.value).endswith(f"; give the teacher labels: {as_list(names)}")
    assert not home.exists(), "nothing is written"
    assert accuracy(teacher_of(order, names, **PLACEHOLDERS), task, home) == 1


def test_an_order_that_fits_is_remembered(teacher_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, home = teacher_of(**PLACEHOLDERS), tmp_path / "home"
    assert accuracy(spec, trees(), home) == 1
    monkeypatch.setattr(ModelTeacher, "compute", lambda *_: pytest.fail("computed again"))
    load_pool(TeachersSettings(pool=[spec]), trees(), home, CPU)
    with pytest.raises(pytest.fail.Exception):  # other labelled data
        load_pool(TeachersSettings(pool=[spec]), trees(reward=63), home, CPU)


def test_labelled_rows_of_train_help_where_the_reward_split_is_small(teacher_of: Any, tmp_path: Path) -> None:
    spec = teacher_of([1, 2, 0], **PLACEHOLDERS)
    with pytest.raises(UserError, match=r"give the teacher labels: \['so la la', grand, kaput\]"):
        accuracy(spec, trees(reward=12), tmp_path / "home")
    # With fewer labels than it takes to say anything, the order stays as given.
    assert accuracy(spec, trees(reward=12, labelled=False), tmp_path / "home") == 0


def test_a_teacher_that_knows_nothing_is_not_refused(teacher_of: Any, tmp_path: Path) -> None:
    """Its accuracy is that of chance in every order."""
    task = trees(train=300)
    shuffled = {
        role: replace(s, labels=np.random.default_rng(7).permutation(s.labels)) for role, s in task.splits.items()
    }
    accuracy(teacher_of(**PLACEHOLDERS), replace(task, splits=shuffled), tmp_path / "home")


# --- the test of an order ---------------------------------------------------------------------------------------------


def test_better_order() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(10, size=256)
    right = np.where(rng.random(256) < 0.8, gold, rng.integers(10, size=256))
    assert better_order(right, gold, 10) is None
    swap = np.array([1, 0, *range(2, 10)])
    np.testing.assert_array_equal(better_order(swap[right], gold, 10), swap)
    rare = (rng.random(200) < 0.1).astype(int)
    assert better_order(np.ones(200, int), rare, 2) is None, "one answer to everything says nothing of an order"
    np.testing.assert_array_equal(better_order(1 - rare, rare, 2), [1, 0])
    assert better_order(1 - rare[:49], rare[:49], 2) is None


def test_chance_alone_is_hardly_ever_refused() -> None:
    rng = np.random.default_rng(1)
    refused = [
        better_order(rng.integers(c, size=60), rng.integers(c, size=60), c) is not None
        for c in (2, 3, 20)
        for _ in range(200)
    ]
    assert np.mean(refused) < 0.01


# --- predictions ------------------------------------------------------------------------------------------------------


def said(tmp_path: Path, labels: tuple[str, ...], header: str, *rows: str) -> np.ndarray:
    """The logits of a file's teacher on instances a, b, ..."""
    path = tmp_path / "said.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    splits = {
        "train": Split("train", np.array(list("abcde")[: len(rows)]), [("x",)] * len(rows), np.zeros(len(rows), int))
    }
    spec = PredictionsTeacher(name="t", path=str(path))
    return load_teacher(spec, Task("x", "files", labels, splits), tmp_path, CPU).compute(splits["train"])


@pytest.mark.parametrize(
    ("labels", "header", "expected"),
    [
        (("A", "a", "b"), "id,a,B,A", [2, 0, 1]),
        (SIGNS[:3], "id,-,--,O", [1, 0, 2]),
        (("LABEL_0", "LABEL_1", "x"), "id,LABEL_1,LABEL_0,X", [1, 0, 2]),
        (("very bad", "bad", "good"), "id,Bad,Very_Bad,GOOD", [1, 0, 2]),
    ],
)
def test_columns_follow_the_same_matching(tmp_path: Path, labels: Any, header: str, expected: list[int]) -> None:
    got = np.exp(said(tmp_path, labels, header, "a,0.5,0.3,0.2"))[0]
    np.testing.assert_allclose(got, np.array([0.5, 0.3, 0.2])[expected], atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "header", "message"),
    [
        (("A", "a"), "id,a,b", r"no column for label 'A' \('A' and 'a' would share one\); it has a, b"),
        (("a-b", "a_b"), "id,a b,A B", r"no column for label 'a-b'"),
        (("bad", "good"), "id,LABEL_0,LABEL_1", r"no column for label 'bad'; .*name the columns as the labels"),
    ],
)
def test_columns_that_leave_a_doubt_are_refused(tmp_path: Path, labels: Any, header: str, message: str) -> None:
    with pytest.raises(UserError, match=f"teacher t: .*{message}"):
        said(tmp_path, labels, header, "a,0.5,0.5")


def test_cells_follow_the_same_matching(tmp_path: Path) -> None:
    got = said(tmp_path, ("A", "a", "very bad"), "id,label", "a,a", "b,A", "c,Very-Bad")
    assert got.argmax(1).tolist() == [1, 0, 2]
    got = said(tmp_path, SIGNS, "id,label", "a,-", "b,--", "c,O", "d,++", "e,+")
    assert got.argmax(1).tolist() == [1, 0, 2, 4, 3]
    with pytest.raises(UserError, match=r"id 'b' has label 'a b'; it must be one of a-b, a_b"):
        said(tmp_path, ("a-b", "a_b"), "id,label", "a,a_b", "b,a b")
