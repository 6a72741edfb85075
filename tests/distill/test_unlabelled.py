"""Unlabelled training data: where it comes from, that hidden labels change nothing, and what learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from distill import process
from distill.checks import UserError
from distill.data import bundled
from distill.data.load import load_task
from distill.data.splits import Task
from distill.losses import distillation_loss, mix, soft_labels, teacher_weights
from distill.process import Distillation, Prepared
from distill.settings import CorpusSettings, LossSettings, RunSettings, TaskSettings

SMALL = CorpusSettings(train=64, reward=24, dev=24, test=24, pool=32)
NAMES = ("bad", "good", "mixed")


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_and_gradient_of_unlabelled_rows_in_closed_form(alpha: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.double, requires_grad=True)
    soft = soft_labels(torch.randn(6, 2, 3, generator=generator, dtype=torch.double), temperature)
    labels = torch.tensor([-1, 2, -1, 0, -1, 1])
    actions = torch.tensor([[1, 1], [1, 1], [0, 1], [0, 0], [0, 0], [1, 0]], dtype=torch.double)
    loss = distillation_loss(logits, labels, actions, soft, LossSettings(alpha, temperature))
    q, p = mix(teacher_weights(actions), soft), F.softmax(logits / temperature, -1)
    kl = (torch.xlogy(q, q) - q * p.log()).sum(-1)
    ce = torch.stack([-F.log_softmax(z, -1)[max(int(y), 0)] for z, y in zip(logits, labels, strict=True)])
    t2 = temperature**2
    both = alpha * ce + (1 - alpha) * t2 * kl
    wanted = torch.stack([t2 * kl[0], both[1], t2 * kl[2], ce[3], torch.zeros(()).double(), both[5]])
    torch.testing.assert_close(loss, wanted)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    hard = F.softmax(logits, -1) - F.one_hot(labels.clamp_min(0), 3)
    easy = temperature * (p - q)
    mixed = alpha * hard + (1 - alpha) * easy
    torch.testing.assert_close(
        slope, torch.stack([easy[0], mixed[1], easy[2], hard[3], torch.zeros(3).double(), mixed[5]])
    )


# --- task.labels ------------------------------------------------------------------------------------------------------


def flipped(made: bundled.Reviews) -> bundled.Reviews:
    return replace(made, labels=1 - made.labels)


def test_labels_of_the_bundled_task() -> None:
    full = load_task(TaskSettings(corpus=SMALL))
    task = load_task(TaskSettings(corpus=SMALL, labels=21))
    assert [len(task.splits[r]) for r in ("train", "reward", "dev", "test")] == [64, 11, 10, 24]
    assert (task.splits["train"].labels == -1).all()
    assert not task.splits["train"].labelled.any()
    for role in ("reward", "dev"):
        by_id = dict(zip(full.splits[role].ids, full.splits[role].labels, strict=True))
        assert [by_id[i] for i in task.splits[role].ids] == task.splits[role].labels.tolist()
        share = full.splits[role].labels.mean()
        assert abs(task.splits[role].labels.mean() - share) < 0.1
    assert task.owners is not None
    assert (task.owners == full.owners).all()
    assert [len(p) for p in task.pools.values()] == [32] * 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, r"task\.labels=3 is too few for 2 classes in reward and dev; use at least 4"),
        (60, r"task\.labels=60 asks for 30 reward instances of task\.corpus\.reward=24"),
        (0, r"task\.labels=0 must be positive, or null"),
    ],
)
def test_impossible_numbers_of_labels(labels: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(TaskSettings(corpus=SMALL, labels=labels))


def frame(count: int, start: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "key": [f"k{start + i}" for i in range(count)],
            "review": [f"text number {start + i} says {NAMES[i % 3]}" for i in range(count)],
            "verdict": [NAMES[i % 3] for i in range(count)],
            "who": [("ann", "bob", "")[i % 3] for i in range(count)],
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., TaskSettings]:
    """`files(**settings)`: 60 training rows, 12 of dev, 12 of test and 9 without labels."""
    paths = {}
    for i, (role, count) in enumerate({"train": 60, "dev": 12, "test": 12, "unlabelled": 9}.items()):
        table = frame(count, 100 * i)
        if role == "unlabelled":
            table = table.drop(columns="verdict")
        table.to_csv(tmp_path / f"{role}.csv", index=False)
        paths[role] = str(tmp_path / f"{role}.csv")

    def make(**more: Any) -> TaskSettings:
        own = {"train": paths["train"], "test": paths["test"], "text": ["review"], "label": "verdict", "id": "key"}
        for role in ("dev", "unlabelled"):
            if more.get(role) is True:
                more[role] = paths[role]
        return TaskSettings(**{"name": "files", "reward_size": 12, "dev_size": 12, **own, **more})

    return make


def test_an_unlabelled_file_joins_train(files: Callable[..., TaskSettings]) -> None:
    alone, task = load_task(files()), load_task(files(unlabelled=True))
    train = task.splits["train"]
    assert train.ids[-9:].tolist() == [f"k{300 + i}" for i in range(9)]
    assert train.labels[-9:].tolist() == [-1] * 9
    assert train.labels[:-9].tolist() == alone.splits["train"].labels.tolist()
    for role in ("reward", "dev", "test"):
        assert task.splits[role].labelled_fingerprint == alone.splits[role].labelled_fingerprint
    assert task.fingerprint != alone.fingerprint
    numbered = load_task(files(unlabelled=True, id=None)).splits["train"].ids
    assert numbered[-9:].tolist() == [f"unlabelled-{i}" for i in range(9)]
    small = load_task(files(unlabelled=True, train_limit=15)).splits["train"]
    assert (len(small), int((~small.labelled).sum())) == (15, 3)


@pytest.mark.parametrize("own_dev", [True, False])
def test_labels_of_files(files: Callable[..., TaskSettings], own_dev: bool) -> None:
    more = {"dev": True} if own_dev else {}
    task = load_task(files(labels=30, **more))
    sizes = [len(task.splits[r]) for r in ("train", "reward", "dev", "test")]
    assert sizes == ([30, 30, 12, 12] if own_dev else [30, 15, 15, 12])
    assert not task.splits["train"].labelled.any()
    assert task.label_names == NAMES
    other = load_task(files(labels=30, split_seed=1, **more))
    assert set(other.splits["train"].ids) != set(task.splits["train"].ids)
    with_more = load_task(files(labels=30, unlabelled=True, **more))
    assert len(with_more.splits["train"]) == 39
    assert with_more.splits["reward"].ids.tolist() == task.splits["reward"].ids.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 61}, r"task\.labels=61 is more than the 60 labelled training instances"),
        ({"labels": 60}, r"task\.labels=60 leaves no training data"),
        ({"labels": 1}, r"one class only in 1 labelled rows"),
        ({"labels": 5}, r"task\.labels=5 is too few"),
        ({"owner": "whom"}, r"train\.csv: no column 'whom'"),
        ({"unlabelled": "gone.csv"}, r"gone\.csv: No such file"),
        ({"name": "mrpc", "unlabelled": True}, r"task\.unlabelled goes with task=files, not with task=mrpc"),
        ({"name": "rte", "owner": "who"}, r"task\.owner goes with task=files, not with task=rte"),
        ({"languages": ["hau", "ibo"]}, r"task\.languages goes with task=afrisenti, not with task=files"),
    ],
)
def test_mistakes(files: Callable[..., TaskSettings], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_task(files(**settings))
    assert "\n" not in str(caught.value)


def test_the_same_id_in_the_unlabelled_file(files: Callable[..., TaskSettings], tmp_path: Path) -> None:
    frame(9).to_csv(tmp_path / "unlabelled.csv", index=False)
    with pytest.raises(UserError, match=r"unlabelled\.csv: id 'k0' occurs twice \(also in .*train\.csv\)"):
        load_task(files(unlabelled=True))


def test_owners(files: Callable[..., TaskSettings]) -> None:
    task = load_task(files(owner="who", unlabelled=True))
    assert task.owners is not None
    whole = pd.concat([frame(60), frame(9, 300)])
    by_id = dict(zip(whole["key"], whole["who"], strict=True))
    assert task.owners.tolist() == [by_id[i] for i in task.splits["train"].ids]
    assert task.specialist is None
    assert load_task(files()).owners is None
    assert load_task(files(owner="who")).fingerprint != load_task(files()).fingerprint


# --- hidden labels change nothing -------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_config: Callable[..., dict[str, Any]], prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run(*overrides)`: weights of the student after a short run, and its process; nothing of an earlier one is used."""

    def made(*overrides: str) -> tuple[list[torch.Tensor], Distillation]:
        monkeypatch.setattr(process, "_PREPARED", type(process._PREPARED)())
        d = Distillation(RunSettings.from_config(tiny_config(*overrides)))
        d.begin(3)
        for chosen in np.random.default_rng(0).integers(0, 2, (6, 8, d.num_teachers)).astype(np.float32):
            d.step(chosen)
        return d.student.weights(), d

    return made


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_hidden_labels_of_the_bundled_task_change_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, known = run("task.labels=40"), run()
    corpus = bundled.corpus

    def other(settings: CorpusSettings) -> Any:
        roles, pools = corpus(settings)
        return {**roles, "train": flipped(roles["train"])}, pools

    monkeypatch.setattr(bundled, "corpus", other)
    after = run("task.labels=40")
    assert before[1].prepared.fingerprint == after[1].prepared.fingerprint
    assert same(before[0], after[0])
    assert not same(before[0], known[0])
    assert not same(run()[0], known[0]), "where labels are known, they count"


def pool_of(folder: Path, ids: list[str]) -> str:
    """Two teachers in files, one of them silent on a third of the instances."""
    rng = np.random.default_rng(0)
    specs = []
    for name in ("one", "two"):
        table = pd.DataFrame(rng.dirichlet(np.ones(3), len(ids)), columns=list(NAMES)).assign(id=ids)
        (table if name == "one" else table[table.index % 3 > 0]).to_csv(folder / f"{name}.csv", index=False)
        specs.append(f"{{name: {name}, kind: predictions, path: {folder / name}.csv}}")
    return f"teachers.pool=[{', '.join(specs)}]"


def overrides_of(settings: TaskSettings) -> list[str]:
    """A task of files as overrides of the tiny run."""
    keys = ("train", "dev", "test", "unlabelled", "id", "label", "labels", "owner", "reward_size", "dev_size")
    given = [f"task.{k}={getattr(settings, k)}" for k in keys if getattr(settings, k) is not None]
    return ["task=files", f"task.text=[{','.join(settings.text)}]", *given]


def test_hidden_labels_of_files_change_nothing(files: Callable[..., TaskSettings], run: Any, tmp_path: Path) -> None:
    settings = files(labels=24, unlabelled=True)
    task = load_task(settings)
    pool = pool_of(tmp_path, [str(i) for s in task.splits.values() for i in s.ids])
    before = run(*overrides_of(settings), pool)
    known = set(task.splits["reward"].ids) | set(task.splits["dev"].ids)
    table = frame(60)
    hidden = ~table["key"].isin(known)
    table.loc[hidden, "verdict"] = [("good", "never seen", "bad")[i % 3] for i in range(int(hidden.sum()))]
    table.to_csv(tmp_path / "train.csv", index=False)
    after = run(*overrides_of(settings), pool)
    assert after[1].task.label_names == before[1].task.label_names == NAMES
    assert before[1].prepared.fingerprint == after[1].prepared.fingerprint
    assert same(before[0], after[0])


# --- through the process ----------------------------------------------------------------------------------------------


def test_mixed_rows_with_a_silent_teacher(files: Callable[..., TaskSettings], run: Any, tmp_path: Path) -> None:
    settings = files(unlabelled=True)
    task = load_task(settings)
    pool = pool_of(tmp_path, [str(i) for s in task.splits.values() for i in s.ids])
    d: Distillation = run(*overrides_of(settings), pool)[1]
    assert not d.signals.complete
    rows = np.array([0, 1, 2, 40, 41, 42, 43, 44])  # the last rows of train have no label
    batch = d.load(rows)
    assert batch.labelled.tolist() == (d.labels[rows] >= 0).tolist()
    assert batch.labelled.tolist() == [r < 36 for r in rows]
    assert not batch.teacher_losses[~batch.labelled].any()
    assert (batch.teacher_losses[batch.labelled] > 0).all()
    places = {str(i): n for n, i in enumerate(str(i) for s in task.splits.values() for i in s.ids)}
    speaks = [places[str(i)] % 3 > 0 for i in d.train_split.ids[rows]]
    assert batch.answered.tolist() == [[True, bool(s)] for s in speaks]
    assert batch.audible(np.ones((8, 2))).tolist() == [[1.0, float(s)] for s in speaks]
    # 1. A step with a silent teacher on is a step with it off.
    everyone, audible = np.ones((8, 2), np.float32), batch.audible(np.ones((8, 2)))
    ends = []
    for chosen in (everyone, audible):
        d.begin(3)
        d.batch = d.load(rows)
        result = d.step(chosen)
        ends.append(d.student.weights())
    assert same(*ends)
    # 2. A row that only silent teachers were chosen for learns from its label alone, or not at all.
    d.begin(3)
    d.batch = d.load(rows)
    only_silent = np.tile(np.array([0, 1], np.float32), (8, 1))
    result = d.step(only_silent)
    hard = F.cross_entropy(result.logits, torch.from_numpy(d.labels[rows]), reduction="none", ignore_index=-1)
    quiet = torch.tensor([not s for s in speaks])
    assert quiet.any()
    torch.testing.assert_close(result.losses[quiet], hard[quiet])


def test_scores_count_labelled_and_answered_instances(
    files: Callable[..., TaskSettings], run: Any, tmp_path: Path
) -> None:
    settings = files(unlabelled=True)
    task = load_task(settings)
    pool = pool_of(tmp_path, [str(i) for s in task.splits.values() for i in s.ids])
    prepared = run(*overrides_of(settings), pool)[1].prepared
    rows = prepared.teacher_scores()
    train = prepared.task.splits["train"]
    two = prepared.teachers[1]
    here = train.labelled & two.answered(train)
    logits = two.compute(train)[here]
    assert rows[1]["train"]["accuracy"] == pytest.approx((logits.argmax(1) == train.labels[here]).mean())
    assert rows[1]["answered"]["train"] == pytest.approx(two.answered(train).mean())
    assert rows[0]["answered"]["train"] == 1
    assert 0 <= rows[2]["train"]["accuracy"] <= 1
    hidden = run(*overrides_of(files(labels=24)), pool)[1].prepared.teacher_scores()
    assert [row["train"] for row in hidden] == [None] * 3
    assert all(row["dev"]["accuracy"] >= 0 for row in hidden)


def test_calibration_reaches_every_role_and_the_fingerprint(
    files: Callable[..., TaskSettings], run: Any, tmp_path: Path
) -> None:
    settings = files(labels=24)
    task = load_task(settings)
    pool = pool_of(tmp_path, [str(i) for s in task.splits.values() for i in s.ids])
    plain = run(*overrides_of(settings), pool)
    warm = run(*overrides_of(settings), pool, "teachers.calibrate=auto")
    assert not same(plain[0], warm[0])
    assert plain[1].prepared.fingerprint != warm[1].prepared.fingerprint
    scores = warm[1].prepared.teacher_scores()
    assert all(row["temperature"] > 0 for row in scores[:2])
    assert "temperature" not in plain[1].prepared.teacher_scores()[0]
    for role in ("train", "dev", "reward", "test"):
        rows = np.arange(4)
        given, got = plain[1].prepared.signals(role).logits(rows), warm[1].prepared.signals(role).logits(rows)
        np.testing.assert_allclose(got[:, 0] * scores[0]["temperature"], given[:, 0], rtol=1e-5)


FINETUNE = "teachers.pool=[{name: a, kind: finetune}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((FINETUNE, "task.labels=40"), "teacher a: kind=finetune without pool learns the labels of train"),
        (("teachers.pool=[{name: a, kind: sklearn}]", "task.labels=40"), "teacher a: kind=sklearn without pool"),
        ((FINETUNE, "task.labels=40", "teachers.folds=2"), "teachers.folds=2 needs labels for all of train; use 0"),
    ],
)
def test_teachers_that_need_the_labels_of_train(run: Any, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(*overrides)


def test_a_teacher_learns_the_labelled_part_of_train(small_task: Task, tmp_path: Path) -> None:
    from distill.settings import FinetuneTeacher
    from distill.teachers.finetune import training_data

    train = small_task.splits["train"]
    labels = np.where(np.arange(64) < 30, train.labels, -1)
    mixed = replace(small_task, splits={**small_task.splits, "train": replace(train, labels=labels)})
    data = training_data(FinetuneTeacher(), mixed, 0).data
    assert data.ids.tolist() == train.ids[:30].tolist()
    assert training_data(FinetuneTeacher(), small_task, 0).data is train
