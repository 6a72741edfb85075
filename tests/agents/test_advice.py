"""Warnings of a run: each fires on a made-up case, and none on a run that went well."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.experiment import advice
from agents.experiment.runs import Best
from configs import compose
from distill.checks import UserError
from distill.data.load import load_task
from distill.models.engine import Engine
from distill.settings import (
    BudgetSettings,
    CheckpointTeacher,
    FinetuneTeacher,
    PredictionsTeacher,
    RunSettings,
    TaskSettings,
)
from distill.teachers.finetune import fit

THREE = np.repeat([0, 1, 2], 20)
CHANCE = advice.chance_loss(THREE)


# --- budgets for small data -------------------------------------------------------------------------------------------


def budget(*overrides: str) -> BudgetSettings:
    return RunSettings.from_config(compose(list(overrides))).budget


OWN = ("task=files", "teachers.pool=[{name: a, kind: predictions, path: a.csv}]", "student=truncate")
TRUNCATED = ("student.path=x", "student.layers=2")


def test_a_few_hundred_rows_get_enough_steps() -> None:
    settings = RunSettings.from_config(compose([*OWN, *TRUNCATED]))
    assert (settings.budget.run_steps(450), settings.budget.warm_start_steps(450)) == (200, 200)
    assert settings.student.lr == 2e-4


@pytest.mark.parametrize(
    ("overrides", "rows", "steps"),
    [
        ((), 2000, (372, 372)),  # the bundled demo
        (("task=afrisenti",), 18004, (563, 1126)),
        (("task=mrpc", "teachers=minilm", "student=minilm2"), 2934, (368, 368)),
        (("task=rte", "teachers=minilm", "student=minilm2"), 1992, (248, 248)),
        (("task=sst2", "teachers=minilm", "student=minilm2"), 53879, (6736, 6736)),
        (("experiment=paper", "task=rte"), 200, (24, 24)),
        ((*OWN, *TRUNCATED, "budget.epochs=4", "budget.warm_epochs=0"), 450, (56, 0)),
        ((*OWN, *TRUNCATED, "budget.steps=7", "budget.warm_steps=0"), 450, (7, 0)),
    ],
)
def test_other_budgets_are_as_they_were(overrides: tuple[str, ...], rows: int, steps: tuple[int, int]) -> None:
    made = budget(*overrides)
    assert (made.run_steps(rows), made.warm_start_steps(rows)) == steps


# --- early stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "patience", "ends"),
    [
        ([0.5, 0.6, 0.6, 0.5], 2, True),  # an equal score is no better one
        ([0.5, 0.6, 0.5], 2, False),
        ([0.6, 0.5, 0.5, 0.7], 3, False),
        ([0.6, 0.5, 0.5, 0.5], None, False),
        ([], 1, False),
    ],
)
def test_patience(scores: list[float], patience: int | None, ends: bool) -> None:
    process: Any = SimpleNamespace(
        task=SimpleNamespace(metric="accuracy"),
        budget=12,
        settings=SimpleNamespace(budget=BudgetSettings(patience=patience)),
    )
    best = Best(process)
    best.curve = [{"step": i, "accuracy": score} for i, score in enumerate(scores)]
    assert best.ends is ends


def test_patience_is_positive() -> None:
    with pytest.raises(UserError, match=r"budget\.patience=0 must be positive"):
        BudgetSettings(patience=0)


# --- warnings of a student --------------------------------------------------------------------------------------------


def curve(*losses: float) -> list[dict[str, Any]]:
    return [{"step": 10 * (i + 1), "loss": loss, "accuracy": 0.5} for i, loss in enumerate(losses)]


def test_a_student_that_still_improves() -> None:
    line = advice.still_improving(curve(1.09, 1.08, 1.07, 1.06, 1.054), 50, CHANCE)
    assert line is not None
    assert "last step, 50" in line
    assert "budget.steps=100" in line


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ((1.09, 1.08, 1.07, 1.06), 30),  # the best is not the last
        ((0.33, 0.31, 0.30, 0.31, 0.30), 50),  # the best by luck
        ((0.3005, 0.3004, 0.3003, 0.3002), 40),  # falling, but hardly
        ((0.3,), 10),
        ((), 0),
    ],
)
def test_a_student_that_has_finished(losses: tuple[float, ...], best: int) -> None:
    assert advice.still_improving(curve(*losses), best, CHANCE) is None


def test_a_loss_near_chance() -> None:
    assert pytest.approx(np.log(3)) == CHANCE
    line = advice.near_chance({"loss": 1.054, "accuracy": 0.4}, THREE, 5e-5, 40)
    assert line is not None
    assert "1.054 is near chance, 1.099" in line
    assert "student.lr (now 5e-05) or budget.steps (now 40)" in line
    assert advice.near_chance({"loss": 0.6, "accuracy": 0.8}, THREE, 5e-5, 40) is None
    rare = np.repeat([0, 1], [95, 5])  # a low loss says little where one class is rare
    assert advice.near_chance({"loss": 0.19, "accuracy": 0.95}, rare, 1e-4, 40) is not None


def scores(**by_role: float) -> dict[str, Any]:
    return {role: {"accuracy": value} for role, value in by_role.items()}


def test_a_teacher_far_better_than_the_student() -> None:
    teachers = [{"name": "a", **scores(dev=0.97, test=0.8)}, {"name": "ensemble", **scores(dev=0.9, test=0.85)}]
    line = advice.behind_teachers(scores(dev=0.5, test=0.45), teachers, ("dev", "test"), "accuracy")
    assert line is not None
    assert line.startswith(
        "the average of all teachers is far better than the student (dev accuracy 0.900 against 0.500, "
    )
    near = advice.behind_teachers(scores(dev=0.85, test=0.78), teachers, ("dev", "test"), "accuracy")
    assert near is None  # far on dev alone, which teachers may have seen
    silent = [{"name": "a", "dev": None, "test": None}]
    assert advice.behind_teachers(scores(dev=0.5, test=0.5), silent, ("dev", "test"), "accuracy") is None


# --- warnings of a policy ---------------------------------------------------------------------------------------------


def test_a_policy_that_equals_all_teachers() -> None:
    answered = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    last = np.array([[1, 1, 1], [1, 1, 0], [-1, -1, -1], [0, 0, 0]], np.float32)
    assert advice.share_of_all(last, answered) == 1.0  # the last two: never seen, and nothing to choose
    last[0] = [0.331, 0.334, 0.335]
    assert advice.share_of_all(last, answered) == 1.0
    last[0] = [1, 0, 1]
    assert advice.share_of_all(last, answered) == 0.5
    assert advice.share_of_all(last[:, :1], answered[:, :1]) is None  # a single teacher
    line = advice.chose_all(1.0)
    assert line is not None
    assert line.startswith("the learnt policy equals all teachers on 100 % of the instances: use ")
    assert "on 99.9 %" in (advice.chose_all(0.9999) or "")
    assert advice.chose_all(0.98) is None
    assert advice.chose_all(None) is None


# --- warnings of a teacher --------------------------------------------------------------------------------------------


POOL = [
    CheckpointTeacher("a", path="x"),
    PredictionsTeacher("llm", path="x.csv"),
    FinetuneTeacher("fresh"),
    FinetuneTeacher("tuned", path="x"),
]


def test_teachers_that_may_have_seen_dev() -> None:
    sizes = {"dev": 70, "test": 150}
    rows = [{"name": spec.name, **scores(dev=0.971, test=0.8)} for spec in POOL]
    found = advice.saw_dev(POOL, rows, sizes, ("test",))
    assert [line.split()[1] for line in found] == ["a", "llm", "tuned"]
    assert "dev (accuracy 0.971), which was cut from train, than on test (0.800)" in found[0]
    assert found[0].endswith("task.dev=FILE")
    rows = [{"name": spec.name, **scores(dev=0.85, test=0.8)} for spec in POOL]
    assert not advice.saw_dev(POOL, rows, sizes, ("test",))  # within the error of 70 instances
    assert not advice.saw_dev(POOL[:1], [{"name": "a", "dev": None, "test": None}], sizes, ("test",))


@pytest.mark.parametrize("cut", [(), ("reward", "dev")])
def test_only_a_dev_split_that_was_cut_from_train_is_suspected(cut: tuple[str, ...]) -> None:
    splits = {role: range(100) for role in ("train", "dev", "test")}
    process: Any = SimpleNamespace(
        task=SimpleNamespace(cut=cut, tests=("test",), metric="accuracy", splits=splits),
        settings=SimpleNamespace(teachers=SimpleNamespace(pool=POOL[:1])),
    )
    rows = [{"name": "a", **scores(dev=0.97, test=0.7)}, {"name": "ensemble", **scores(dev=0.97, test=0.7)}]
    assert len(advice.of_teachers(process, scores(dev=0.96, test=0.7), rows)) == bool(cut)


# --- a comparison -----------------------------------------------------------------------------------------------------


def test_warnings_of_a_comparison_name_agent_and_seed() -> None:
    cells = [
        {"agent": "control", "seed": 0},  # of an earlier version
        {"agent": "control", "seed": 1, "warnings": []},
        {"agent": "reinforce", "seed": 0, "warnings": []},
        {"agent": "reinforce", "seed": 1, "warnings": ["this", "that"]},
    ]
    where = "reinforce, seed 1 (1 of 2 seeds have warnings)"
    assert advice.of_cells(cells) == [f"{where}: this", f"{where}: that"]


# --- whole runs -------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> dict[str, Any]:
    from agents import reinforce
    from agents.experiment.launch import launch

    monkeypatch.setattr(sys, "argv", ["reinforce.py", *overrides, "threads=1", f"hydra.run.dir={folder}"])
    launch(reinforce.run)
    done: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return done


DOMAINS = ("film", "food", "hotel", "electronics")
QUICK = ", ".join(f"{{name: {d}, kind: sklearn, pool: {d}}}" for d in DOMAINS)


@pytest.mark.parametrize(
    "teachers",
    [
        pytest.param([f"teachers.pool=[{QUICK}]"], id="teachers that are fitted in a tenth of the time"),
        pytest.param([], id="as it is", marks=pytest.mark.slow),
    ],
)
def test_the_demo_has_no_warnings(
    teachers: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(monkeypatch, tmp_path / "run", *teachers, "agent.oracle=false")
    assert results["warnings"] == []
    assert results["selection"]["equals_all"] < 0.5
    assert "warning:" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """450 support tickets of three classes; a small classifier that was fine-tuned on all of them, and a file of answers.

    Returns:
        The overrides of a run that distils these two into the classifier's first layer.
    """
    folder, rng = tmp_path_factory.mktemp("tickets"), np.random.default_rng(0)
    words = {"billing": "invoice refund fee", "technical": "crash error login", "account": "email profile password"}
    said = [
        "please",
        "help",
        "me",
        "with",
        "the",
        "since",
        "yesterday",
        "on",
        "my",
        "phone",
        "again",
        "it",
        "and",
        "my",
    ]
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for role, count in (("train", 450), ("test", 150)):
        rows[role] = []
        for i in range(count):
            label = str(rng.choice(list(words)))
            text = [*rng.choice(said, 8), rng.choice(words[label].split())]
            told = label if rng.random() < 0.85 else str(rng.choice(list(words)))  # some labels are wrong
            rows[role].append((f"{role}{i}", " ".join(rng.permutation(text)), told))
        lines = ["id,text,label", *(",".join(row) for row in rows[role])]
        (folder / f"{role}.csv").write_text("\n".join(lines) + "\n")
    answers = [
        f"{name},{label if rng.random() < 0.8 else 'billing'},0.8" for r in rows.values() for name, _, label in r
    ]
    (folder / "llm.csv").write_text("\n".join(["id,label,confidence", *answers]) + "\n")
    task = load_task(
        TaskSettings("files", train=f"{folder}/train.csv", test=f"{folder}/test.csv", text=["text"], id="id")
    )
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    spec = FinetuneTeacher("small", config=size, max_length=16, lr=1e-3, epochs=15)
    everything = task.splits["train"].joined(task.splits["dev"]).joined(task.splits["reward"])
    engine = Engine.pick("cpu", "off", True)
    fit(spec, task, everything, None, folder / "small", engine)
    fit(replace(spec, epochs=1), task, everything, None, folder / "base", engine)
    pool = f"[{{name: small, kind: checkpoint, path: {folder}/small, max_length: 16}}, {{name: llm, kind: predictions, path: {folder}/llm.csv}}]"
    return [
        *(
            "task=files",
            f"task.train={folder}/train.csv",
            f"task.test={folder}/test.csv",
            "task.text=[text]",
            "task.id=id",
        ),
        *(
            "teachers=own",
            f"teachers.pool={pool}",
            "student=truncate",
            f"student.path={folder}/base",
            "student.layers=1",
        ),
        *("student.max_length=16", "agent.start=all_on", "agent.episodes=0"),
    ]


def test_a_few_hundred_tickets_train_a_student(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tickets: list[str]
) -> None:
    """By default; and the steps and the rate of before end in warnings."""
    good = run(monkeypatch, tmp_path / "good", *tickets)
    before = ("student.lr=5e-5", "budget.epochs=4", "budget.warm_epochs=4")
    bad = run(monkeypatch, tmp_path / "bad", *tickets, *before)
    assert good["control"]["test"]["accuracy"] > 0.85
    assert bad["control"]["test"]["accuracy"] < 0.5
    starts = ("the student's dev loss", "the average of all teachers is far better", "the learnt policy equals all")
    assert [[line.startswith(starts[i]) for line in bad["warnings"]].count(True) for i in range(3)] == [1, 1, 1]
    assert not [line for line in good["warnings"] if line.startswith(starts[:2])]


def test_a_run_that_went_nowhere_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy is all teachers, and the student stays at chance."""
    results = run(monkeypatch, tmp_path / "run", *tiny_overrides, "agent.start=all_on", "agent.episodes=0")
    out = capsys.readouterr().out
    assert results["selection"]["equals_all"] == 1.0
    for start in ("the student's dev loss", "the learnt policy equals all teachers on 100 %"):
        (line,) = [line for line in results["warnings"] if line.startswith(start)]
        assert f"warning: {line}\n" in out


def test_patience_ends_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_overrides: list[str]) -> None:
    early = ("budget.steps=40", "budget.evals=20", "budget.patience=2", "student.lr=1e-9")
    results = run(monkeypatch, tmp_path / "run", *tiny_overrides, *early, "agent.start=all_on", "agent.episodes=2")
    assert results["cost"]["student_steps"] == 2 * 6  # two episodes, each ended by the third evaluation
