"""Teachers of each kind: fine-tuned once and kept, a checkpoint as it is, and a file of probabilities."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from distill.checks import RoleError, UserError
from distill.data.load import load_task
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.models.loading import load_classifier
from distill.settings import (
    TEACHER_KINDS,
    CheckpointTeacher,
    CorpusSettings,
    FinetuneTeacher,
    PredictionsTeacher,
    TaskSettings,
    TeacherSettings,
    TeachersSettings,
    teacher,
)
from distill.teachers import finetune
from distill.teachers.finetune import FoldedTeacher, fit, folds_of, vocabulary_texts
from distill.teachers.sources import SOURCES, load_pool, load_teacher

CPU = Engine(torch.device("cpu"))
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}


def fresh(**more: Any) -> FinetuneTeacher:
    return FinetuneTeacher(**{"name": "t", "config": CONFIG, "max_length": 32, "epochs": 1, "lr": 1e-2} | more)


def entries(home: Path) -> list[Path]:
    return sorted(p.parent for p in home.glob("teachers/*/manifest.json"))


# --- fine-tuned here --------------------------------------------------------------------------------------------------


def test_fine_tuned_once(small_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], finetune.fit
    monkeypatch.setattr(finetune, "fit", lambda *a: calls.append(a[0].name) or real(*a))
    one, two = (load_teacher(fresh(), small_task, tmp_path, CPU) for _ in range(2))
    assert calls == ["t"]
    assert one.fingerprint == two.fingerprint
    dev = small_task.splits["dev"]
    np.testing.assert_array_equal(one.compute(dev), two.compute(dev))
    for change in ({"seed": 1}, {"lr": 2e-2}, {"epochs": 2}, {"pool": "film"}, {"share": 0.5}, {"name": "u"}):
        load_teacher(fresh(**change), small_task, tmp_path, CPU)
    load_teacher(fresh(), small_task, tmp_path, Engine(CPU.device, torch.bfloat16))
    assert len(calls) == 8
    assert len(entries(tmp_path)) == 8


def test_fitting_is_reproducible_and_leaves_the_generator_alone(small_task: Task, tmp_path: Path) -> None:
    outputs = []
    for place in ("a", "b"):
        torch.manual_seed(len(outputs))
        before = torch.get_rng_state()
        teacher = load_teacher(fresh(), small_task, tmp_path / place, CPU)
        outputs.append(teacher.compute(small_task.splits["test"]))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(*outputs)


def test_a_teacher_learns_its_pool(small_task: Task, tmp_path: Path) -> None:
    still = CONFIG | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = load_teacher(fresh(pool="food", epochs=40, batch_size=8, config=still), small_task, tmp_path, CPU)
    pool = small_task.pools["food"]
    scores = small_task.scores(teacher.compute(pool), pool.labels)
    assert scores["accuracy"] > 0.95
    assert scores["loss"] < 0.3


@pytest.mark.parametrize(("share", "instances", "steps"), [(1.0, 64, 12), (0.5, 32, 6), (0.01, 2, 3)])
def test_share(small_task: Task, tmp_path: Path, share: float, instances: int, steps: int) -> None:
    load_teacher(fresh(share=share, epochs=3, batch_size=16), small_task, tmp_path, CPU)
    manifest = json.loads((entries(tmp_path)[0] / "manifest.json").read_text())
    assert manifest["instances"] >= (1 if share == 0.01 else instances)
    assert manifest["instances"] <= instances
    assert manifest["steps"] == steps


@pytest.mark.parametrize("role", ["reward", "dev", "test"])
def test_fit_refuses_other_roles(small_task: Task, tmp_path: Path, role: str) -> None:
    with pytest.raises(RoleError, match=f"role {role} given where only train or pool"):
        fit(fresh(), small_task, small_task.splits[role], None, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_the_vocabulary_is_of_training_texts_alone(small_task: Task) -> None:
    texts = vocabulary_texts(small_task)
    assert len(texts) == 64 + 4 * 32
    assert set(texts) == {t for s in (small_task.splits["train"], *small_task.pools.values()) for t in s.texts}


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_and_layers(zoo: dict[str, Path], small_task: Task, tmp_path: Path, freeze: bool) -> None:
    spec = FinetuneTeacher(name="b", path=str(zoo["bert"]), layers=2, epochs=1, lr=1e-2, freeze_embeddings=freeze)
    load_teacher(spec, small_task, tmp_path, CPU)
    model = transformers.BertForSequenceClassification.from_pretrained(entries(tmp_path)[0])
    base = transformers.BertModel.from_pretrained(zoo["bert"])
    assert model.config.num_hidden_layers == 2
    assert model.config.id2label == {0: "negative", 1: "positive"}
    same = torch.equal(model.bert.embeddings.word_embeddings.weight, base.embeddings.word_embeddings.weight)
    assert same == freeze
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, base.encoder.layer[0].output.dense.weight)


def test_an_unknown_pool(small_task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher t: task bundled has no pool 'cars'; it has film, food, hotel"):
        load_teacher(fresh(pool="cars"), small_task, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "teacher name='a/b' cannot name a folder"),
        ({"share": 0}, r"teacher t: share=0\.0 must lie in \(0, 1\]"),
        ({"lr": 0}, "teacher t: lr=0.0 must be positive"),
        ({"kind": "checkpoint"}, "teacher t: kind=checkpoint needs path"),
        ({"kind": "predictions"}, "teacher t: kind=predictions needs path"),
        ({"kind": "finetuned"}, "teacher t: kind=finetuned is not known; .*did you mean finetune?"),
        ({"fitted": True}, "fitted=true needs path"),
        ({"probs": "x.csv", "path": "y"}, "give path or probs, not both"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        teacher({"name": "t", **settings})
    with pytest.raises(UserError, match=r"teachers\.pool is empty"):
        TeachersSettings()
    with pytest.raises(UserError, match=r"names must differ, got t, t"):
        TeachersSettings(pool=[fresh(), fresh()])


def test_a_user_can_add_a_kind_of_teacher(small_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataclass among the settings and a builder in the registry, under one name; nothing else has to change."""

    @dataclass
    class CertainTeacher(TeacherSettings):
        kind: ClassVar[str] = "certain"
        label: int = 0

    class Certain:
        def __init__(self, spec: CertainTeacher, task: Task) -> None:
            self.name, self.width, self.fingerprint = spec.name, task.num_classes, f"certain-{spec.label}"
            self.row = 9 * np.eye(task.num_classes, dtype=np.float32)[spec.label]

        def compute(self, split: Split) -> np.ndarray:
            return np.tile(self.row, (len(split), 1))

        def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
            return self.compute(split.take(rows))

        def release(self) -> None:
            pass

    monkeypatch.setitem(TEACHER_KINDS, "certain", CertainTeacher)
    monkeypatch.setitem(SOURCES, "certain", lambda spec, task, home, engine, folds: Certain(spec, task))
    pool = TeachersSettings(pool=[teacher({"name": "c", "kind": "certain", "label": 1})])
    (source,) = load_pool(pool, small_task, tmp_path, CPU)
    assert source.compute(small_task.splits["dev"]).argmax(1).tolist() == [1] * 24
    with pytest.raises(
        UserError, match=r"^teacher c: kind=certain has no setting 'lr' \(it belongs to kind=finetune\)"
    ):
        teacher({"name": "c", "kind": "certain", "lr": 1.0})
    with pytest.raises(
        UserError, match=r"^teacher t: kind= is not known; choose from finetune, checkpoint, predictions"
    ):
        load_teacher(TeacherSettings(name="t"), small_task, tmp_path, CPU)


def test_mistakes_are_found_before_a_teacher_is_fine_tuned(small_task: Task, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for late, message in (
        (fresh(name="late", path="./nowhere"), r"teacher late: no folder \./nowhere"),
        (CheckpointTeacher(name="late", path="./nowhere"), r"teacher late: no folder \./nowhere"),
        (
            PredictionsTeacher(name="late", path=str(tmp_path / "gone.csv")),
            r"teacher late: .*gone\.csv|gone\.csv: No such",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_pool(TeachersSettings(pool=[fresh(name="first"), late]), small_task, home, CPU)
    assert not home.exists()


# --- cross-fitted -----------------------------------------------------------------------------------------------------


def test_no_training_instance_gets_logits_of_a_copy_that_saw_it(
    small_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], finetune.fit
    monkeypatch.setattr(finetune, "fit", lambda *a: seen.append(set(a[2].ids.tolist())) or real(*a))
    train, dev = small_task.splits["train"], small_task.splits["dev"]
    folded = load_teacher(fresh(), small_task, tmp_path, CPU, folds=4)
    assert isinstance(folded, FoldedTeacher)
    assert [len(ids) for ids in seen] == [64, 48, 48, 48, 48], (
        "the teacher on all of train, and four copies on three quarters each"
    )
    fold = folds_of(train, 4)
    for i, ids in enumerate(seen[1:]):
        rows = np.flatnonzero(fold == i)
        assert not ids & set(train.ids[rows].tolist())
        np.testing.assert_allclose(folded.compute(train)[rows], folded.copies[i].compute(train.take(rows)), atol=1e-5)
    np.testing.assert_array_equal(folded.compute(dev), folded.whole.compute(dev))
    rows = np.array([9, 3, 9, 40])
    np.testing.assert_allclose(folded.compute(train.take(rows)), folded.compute(train)[rows], atol=1e-5)
    assert folded.fingerprint != folded.whole.fingerprint
    again = load_teacher(fresh(), small_task, tmp_path, CPU, folds=4)
    assert again.fingerprint == folded.fingerprint
    assert len(seen) == 5, "fine-tuned once"


def test_folds_are_stratified_and_the_same_for_all(small_task: Task) -> None:
    train = small_task.splits["train"]
    fold = folds_of(train, 3)
    np.testing.assert_array_equal(fold, folds_of(train, 3))
    counts = np.array([np.bincount(fold[train.labels == c], minlength=3) for c in (0, 1)])
    assert np.ptp(counts, axis=1).max() <= 1


def test_cross_fitting_removes_the_confidence_on_memorised_labels(tmp_path: Path) -> None:
    """The labels are random: the teacher that saw them has memorised them, its copies cannot know them."""
    noisy = load_task(TaskSettings(corpus=CorpusSettings(train=64, reward=24, dev=24, test=24, pool=32)))
    train = noisy.splits["train"]
    rng = np.random.default_rng(0)
    train = Split("train", train.ids, train.texts, rng.permutation(train.labels))
    task = dataclasses.replace(noisy, splits={**noisy.splits, "train": train})
    folded = load_teacher(fresh(epochs=30), task, tmp_path, CPU, folds=4)
    assert isinstance(folded, FoldedTeacher)
    known, unknown = (
        task.scores(values, train.labels) for values in (folded.whole.compute(train), folded.compute(train))
    )
    assert known["accuracy"] > 0.9
    assert unknown["accuracy"] < 0.7
    assert unknown["loss"] > known["loss"] + 0.3


def test_only_teachers_that_learn_train_are_cross_fitted(
    small_task: Task, tmp_path: Path, zoo: dict[str, Path]
) -> None:
    by_pool = TeachersSettings(pool=[fresh(name="a", pool="film"), fresh(name="b")], folds=2)
    one, two = load_pool(by_pool, small_task, tmp_path, CPU)
    assert not isinstance(one, FoldedTeacher)
    assert isinstance(two, FoldedTeacher)
    nobody = TeachersSettings(pool=[fresh(pool="film")], folds=2)
    with pytest.raises(UserError, match=r"teachers.folds=2: no teacher of the pool is fine-tuned on train here.*use 0"):
        load_pool(nobody, small_task, tmp_path, CPU)


def test_impossible_folds(small_task: Task, tmp_path: Path) -> None:
    for folds in (1, -1, 21):
        with pytest.raises(UserError, match=rf"teachers.folds={folds} must lie in \[2, 20\], or be 0 for none"):
            TeachersSettings(pool=[fresh()], folds=folds)
    rows = np.r_[
        np.flatnonzero(small_task.splits["train"].labels == 0),
        np.flatnonzero(small_task.splits["train"].labels == 1)[:2],
    ]
    rare = dataclasses.replace(small_task, splits={**small_task.splits, "train": small_task.splits["train"].take(rows)})
    with pytest.raises(
        UserError, match=r"teachers.folds=3: the rarest class has 2 training instances; use fewer folds"
    ):
        load_teacher(fresh(), rare, tmp_path, CPU, folds=3)
    assert not entries(tmp_path), "the error comes before anything is trained"


# --- a checkpoint as it is ------------------------------------------------------------------------------------------------


@pytest.fixture
def fitted(zoo: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """`fitted("positive", "negative")`: a BERT classifier on disk with these outputs."""

    def make(*labels: str) -> Path:
        folder = tmp_path / "-".join(labels)
        load_classifier(zoo["bert"], labels, 3, "x", 1).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(zoo["bert"]).save_pretrained(folder)
        return folder

    return make


def direct(folder: Path, texts: list[tuple[str, ...]]) -> np.ndarray:
    """Logits of the checkpoint as transformers gives them, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*t, return_tensors="pt")).logits for t in texts]).numpy()


@pytest.mark.parametrize(
    ("names", "given", "order"),
    [
        (("negative", "positive"), None, [0, 1]),
        (("Positive", "NEGATIVE"), None, [1, 0]),
        (("LABEL_0", "LABEL_1"), ["positive", "negative"], [1, 0]),
        (("LABEL_0", "LABEL_1"), None, [0, 1]),
    ],
)
def test_a_checkpoints_logits_are_in_the_tasks_order(
    fitted: Callable[..., Path], small_task: Task, tmp_path: Path, names: Any, given: Any, order: list[int]
) -> None:
    folder = fitted(*names)
    spec = CheckpointTeacher(name="f", path=str(folder), labels=given)
    dev = small_task.splits["dev"]
    got = load_teacher(spec, small_task, tmp_path / "home", CPU).compute(dev)
    np.testing.assert_allclose(got, direct(folder, dev.texts)[:, order], atol=1e-5)
    assert abs(got[:, 0] - got[:, 1]).min() > 0
    assert not (tmp_path / "home").exists(), "nothing is trained and nothing is stored"


def test_fingerprints_of_checkpoints(fitted: Callable[..., Path], small_task: Task, tmp_path: Path) -> None:
    def of(folder: Path, amp: torch.dtype | None = None, **more: Any) -> str:
        return load_teacher(
            CheckpointTeacher(name="f", path=str(folder), **more),
            small_task,
            tmp_path,
            Engine(CPU.device, amp),
        ).fingerprint

    a, b = fitted("negative", "positive"), fitted("positive", "negative")
    assert of(a) == of(a)
    changed = of(a, max_length=20), of(a, labels=["positive", "negative"]), of(a, torch.bfloat16)
    assert len({of(a), of(b), *changed}) == 5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b", "c"), r"teacher f: has 3 classes, the task has 2"),
        (("good", "bad"), r"teacher f: no output named 'negative'"),
    ],
)
def test_a_teacher_of_another_task_is_an_error_before_any_training(
    fitted: Callable[..., Path], small_task: Task, tmp_path: Path, names: Any, message: str
) -> None:
    settings = TeachersSettings(pool=[CheckpointTeacher(name="f", path=str(fitted(*names))), fresh()])
    with pytest.raises(UserError, match=message):
        load_pool(settings, small_task, tmp_path / "home", CPU)
    assert not (tmp_path / "home").exists()


def test_a_checkpoint_without_a_head_is_an_error(zoo: dict[str, Path], small_task: Task, tmp_path: Path) -> None:
    teacher = load_teacher(CheckpointTeacher(name="f", path=str(zoo["bert"])), small_task, tmp_path, CPU)
    with pytest.raises(UserError, match=r"teacher f: .*not a fine-tuned classifier \(kind=finetune fine-tunes it\)"):
        teacher.compute(small_task.splits["dev"])


def test_a_checkpoint_with_a_broken_config(zoo: dict[str, Path], small_task: Task, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"teacher f: .*config\.json"):
        load_teacher(CheckpointTeacher(name="f", path=str(tmp_path)), small_task, tmp_path, CPU)


# --- a file of probabilities ------------------------------------------------------------------------------------------


def table(task: Task) -> pd.DataFrame:
    """Probabilities for every instance of dev, in another order of rows and columns."""
    ids = task.splits["dev"].ids[::-1]
    p = np.linspace(0.05, 0.95, len(ids))
    return pd.DataFrame({"positive": p, "id": [str(i) for i in ids], "negative": 1 - p})


def written(path: Path, frame: pd.DataFrame) -> str:
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def from_file(path: str, task: Task) -> Any:
    return load_teacher(PredictionsTeacher(name="llm", path=path), task, Path("unused"), CPU)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_probabilities_from_a_file(small_task: Task, tmp_path: Path, suffix: str) -> None:
    dev = small_task.splits["dev"]
    teacher = from_file(written(tmp_path / f"p{suffix}", table(small_task)), small_task)
    p = np.linspace(0.95, 0.05, 24)
    got = teacher.compute(dev)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.exp(got), np.stack([1 - p, p], 1), atol=1e-6)
    some = np.array([7, 3, 3])
    np.testing.assert_array_equal(teacher.compute(dev.take(some)), got[some])
    with pytest.raises(UserError, match=r"no answer for any of the 64 train instances, such as id 'train-0'"):
        teacher.answered(small_task.splits["train"])


def test_certain_probabilities_stay_finite(small_task: Task, tmp_path: Path) -> None:
    frame = table(small_task).assign(positive=[1.0, 0.0] * 12, negative=[0.0, 1.0] * 12)
    got = from_file(written(tmp_path / "p.csv", frame), small_task).compute(small_task.splits["dev"])
    assert np.isfinite(got).all()
    np.testing.assert_allclose(np.exp(got).sum(1), 1, atol=1e-6)


def cell(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    frame = frame.astype(object)
    for name, value in values.items():
        frame.loc[2, name] = value
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: cell(f, positive="nan", negative="nan"), r"id 'dev-21' has probabilities NaN or infinite"),
        (lambda f: cell(f, positive="inf"), r"id 'dev-21' has probabilities NaN or infinite"),
        (lambda f: cell(f, positive=-0.2, negative=1.2), r"id 'dev-21' has probabilities negative"),
        (lambda f: cell(f, positive=0.5, negative=0.6), r"id 'dev-21' has probabilities not summing to 1"),
        (lambda f: cell(f, positive="high"), r"a probability is not a number"),
        (
            lambda f: cell(f, positive=""),
            r"id 'dev-21' has an empty cell in column 'positive'; fill all cells of a row",
        ),
        (lambda f: cell(f, id="dev-0"), r"an id occurs twice"),
        (lambda f: f.rename(columns={"id": "key"}), r"no column 'id'; it has positive, key, negative"),
        (lambda f: f.assign(neutral=0.0), r"has 3 class columns, the task has 2 \(negative, positive\)"),
        (lambda f: f.rename(columns={"positive": "good"}), r"no column for label 'positive'; it has good, negative"),
    ],
)
def test_mistakes_in_a_file(small_task: Task, tmp_path: Path, change: Any, message: str) -> None:
    path = written(tmp_path / "p.csv", change(table(small_task)))
    with pytest.raises(UserError, match=message) as caught:
        from_file(path, small_task)
    assert str(caught.value).startswith(f"teacher llm: {path}: ")


def test_a_missing_row_or_file(small_task: Task, tmp_path: Path) -> None:
    dev = small_task.splits["dev"]
    whole = from_file(written(tmp_path / "whole.csv", table(small_task)), small_task)
    teacher = from_file(written(tmp_path / "p.csv", table(small_task)[3:]), small_task)
    assert teacher.answered(dev).tolist() == [True] * 21 + [False] * 3
    np.testing.assert_array_equal(teacher.compute(dev)[:21], whole.compute(dev)[:21])
    assert not teacher.compute(dev)[21:].any()
    with pytest.raises(UserError, match=r"gone\.csv: No such file"):
        from_file(str(tmp_path / "gone.csv"), small_task)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ((), 0, "ensemble"),
        (("--help",), 0, "python -m distill.teachers task=mrpc"),
        (("teachers.pool=[]",), 2, "error: teachers.pool is empty"),
        (("task.nothing=1",), 2, "error: task.nothing is not a known setting"),
        (("--multirun",), 2, "error: --multirun is not known"),
    ],
    ids=["table", "help", "mistake", "unknown", "flag"],
)
def test_command_line(tiny_overrides: list[str], tmp_path: Path, more: tuple[str, ...], code: int, said: str) -> None:
    command = [sys.executable, "-m", "distill.teachers", *tiny_overrides, "threads=1", *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert said in (done.stderr if code else done.stdout)
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.count("\n") == 1
    if not more:
        table, _, check = done.stdout.strip().partition("\n\n")
        assert check.startswith("before any student is trained")
        header, *rows = [line.split() for line in table.splitlines()]
        assert header == [
            "teacher",
            *" ".join(f"{r} {m}" for r in ("train", "dev", "test") for m in ("acc", "loss")).split(),
        ]
        assert [row[0] for row in rows] == ["film", "food", "hotel", "electronics", "ensemble"]
        assert all(len(row) == 7 and 0 <= float(row[1]) <= 1 for row in rows)
    assert not list(tmp_path.iterdir()), "nothing is written outside the cache"


def test_the_command_line_imports_no_agents() -> None:
    code = "import sys, distill.teachers.__main__ as m; m.main(['seed=x']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not {"agents", "envs", "gymnasium", "stable_baselines3"} & {n.split(".")[0] for n in done.stdout.split()}
