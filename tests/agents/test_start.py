"""Selectors that start from the labels of the reward split, the rules beside them, and the controls on labels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from stable_baselines3.common.vec_env import VecMonitor

from agents import sb3
from agents.experiment import runs
from agents.reinforce import Selector, SelectorPolicy, divergence, initial_selector
from agents.rules import RULES, make_rule
from distill.checks import RoleError, UserError
from distill.selection import Fit, as_weights, fit_selector
from distill.settings import PredictionsTeacher, ReinforceSettings, RunSettings, SB3Settings, TeachersSettings
from envs.core import Core
from envs.labels import label_problem
from envs.sb3 import SharedVecEnv
from envs.wrappers import DiscreteSubsetsVector

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def core(tiny_config: Make) -> Core:
    return Core(tiny_config())


def made_up(core: Core, helps: bool = True) -> Fit:
    """A fit with random weights."""
    rng = np.random.default_rng(0)
    width, k = core.observe.space.shape[0], core.process.num_teachers
    return Fit(rng.normal(size=(width, k)), rng.normal(size=k), 1.0 if helps else 0.0, 0.1, 0.01)


# --- the problem ------------------------------------------------------------------------------------------------------


def test_the_problem_has_the_environments_states_and_the_teachers_probabilities(core: Core) -> None:
    problem = label_problem(core)
    split = core.process.task.splits["reward"]
    assert problem.states.shape == (len(split), core.observe.space.shape[0])
    logits = core.process.prepared.signals("reward").logits(np.arange(len(split)))
    probs = torch.from_numpy(logits).softmax(-1).numpy()
    np.testing.assert_allclose(problem.gold, probs[np.arange(len(split)), :, split.labels], rtol=1e-5)
    place = core.observe.layout["teacher_probs"]
    np.testing.assert_allclose(problem.states[:, place], probs.reshape(len(split), -1), rtol=1e-5)
    assert (problem.right == (probs.argmax(2) == split.labels[:, None])).all()


def test_no_state_shows_a_label(core: Core) -> None:
    """A selector that had seen the losses on clean labels would trust those on noisy or missing ones."""
    problem = label_problem(core)
    assert (problem.states[:, core.observe.layout["teacher_loss"]] == 0).all()
    fit = fit_selector(problem)
    assert (fit.weights[core.observe.layout["teacher_loss"]] == 0).all()


@pytest.mark.parametrize("role", ["train", "test"])
def test_other_splits_are_refused(core: Core, role: str) -> None:
    with pytest.raises(RoleError):
        label_problem(core, role)


# --- the start --------------------------------------------------------------------------------------------------------


def test_reinforce_starts_at_the_fit(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "fit_selector", lambda problem: made_up(core))
    selector, fit = initial_selector(core, ReinforceSettings())
    assert fit is not None
    states = np.random.default_rng(1).random((50, core.observe.space.shape[0]), np.float32)
    assert (selector.greedy(states) == (fit.probabilities(states) >= 0.5)).all()


@pytest.mark.parametrize(
    "settings", [ReinforceSettings(start="all_on"), ReinforceSettings()], ids=["all_on", "no gain"]
)
def test_else_it_starts_at_all_teachers(core: Core, monkeypatch, capsys, settings: ReinforceSettings) -> None:
    monkeypatch.setattr(runs, "fit_selector", lambda problem: made_up(core, helps=False))
    selector, fit = initial_selector(core, settings)
    assert fit is None
    states = np.random.default_rng(1).random((50, core.observe.space.shape[0]), np.float32)
    assert (selector.greedy(states) == 1).all()
    assert ("no gain over them" in capsys.readouterr().err) == (settings.start == "likelihood")


@pytest.mark.parametrize("name", ["ppo", "a2c", "dqn"])
def test_algorithms_start_where_reinforce_does(tiny_config: Make, core: Core, name: str) -> None:
    env: Any = gym.make_vec("TeacherSelect-v0", num_envs=8, config=tiny_config())
    decode: Any = np.asarray
    if name == "dqn":
        env = DiscreteSubsetsVector(env)
        decode = env.actions
    model = sb3.make(SB3Settings(name=name), "linear", VecMonitor(SharedVecEnv(env)), 0)
    fit = made_up(core)
    assert sb3.start_at(model, fit)
    states = np.random.default_rng(1).random((50, core.observe.space.shape[0]), np.float32)
    chosen = sb3.FixedPolicy(model, decode, "subsets").act(states)
    assert (chosen == (fit.probabilities(states) >= 0.5)).all()


def test_hidden_layers_and_weights_of_teachers_cannot_start_there(tiny_config: Make, core: Core) -> None:
    env: Any = gym.make_vec("TeacherSelect-v0", num_envs=8, config=tiny_config())
    model = sb3.make(SB3Settings(name="ppo"), "mlp", VecMonitor(SharedVecEnv(env)), 0)
    assert not sb3.start_at(model, made_up(core))


def test_the_divergence_is_that_of_bernoulli_units() -> None:
    p, q = torch.tensor([[0.2, 0.9]]), torch.tensor([[0.5, 0.6]])
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert divergence(torch.logit(p), torch.logit(q)) == pytest.approx(float(wanted), abs=1e-6)
    assert divergence(torch.logit(p), torch.logit(p)) == pytest.approx(0, abs=1e-7)


def test_a_fixed_policy_gives_probabilities_as_weights_or_its_likeliest_subset(core: Core) -> None:
    selector = Selector(core.observe.space.shape[0], core.process.num_teachers, bias=-1.0)
    with torch.no_grad():
        selector.units.bias[2] = -0.5
    states = core.begin(0)
    batch = core.process.batch
    assert batch is not None
    weights = SelectorPolicy(selector, "weights")(states, batch)
    p = expit(np.array([-1.0, -1.0, -0.5, -1.0]))
    np.testing.assert_allclose(weights, np.tile(p / p[2], (len(states), 1)), rtol=1e-6)
    assert SelectorPolicy(selector, "taught")(states, batch).tolist() == [[0, 0, 1, 0]] * len(states)
    assert not SelectorPolicy(selector, "subsets")(states, batch).any()


def test_weights_leave_out_teachers_that_do_not_answer() -> None:
    answered = np.array([[True, False, True], [False, False, False]])
    weights = as_weights(np.array([[0.2, 0.9, 0.4], [0.5, 0.5, 0.5]]), answered)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [[0.5, 0, 1], [0, 0, 0]], rtol=1e-6)


# --- rules and controls -----------------------------------------------------------------------------------------------


def test_fitted_rules_choose_what_their_fit_says(core: Core) -> None:
    states = core.begin(0)
    batch = core.process.batch
    assert batch is not None
    rules = {
        name: make_rule(name, core, 0) for name in ("likelihood", "likelihood_weights", "router", "most_confident")
    }
    confident = rules["most_confident"](states, batch)
    assert (confident.argmax(1) == batch.probs.max(2).argmax(1)).all()
    assert (confident.sum(1) == 1).all()
    right = rules["router"].fit.probabilities(states)
    assert (rules["router"](states, batch).argmax(1) == right.argmax(1)).all()
    for name, form in (("likelihood", "taught"), ("likelihood_weights", "weights")):
        rules[name].fit = replace(made_up(core), form=form)
    p = made_up(core).probabilities(states)
    assert np.allclose(rules["likelihood_weights"](states, batch), p / p.max(1, keepdims=True), atol=1e-6)
    assert (rules["likelihood"](states, batch)[(p >= 0.5).any(1)] == (p >= 0.5)[(p >= 0.5).any(1)]).all()
    for name in ("likelihood", "likelihood_weights"):
        rules[name].fit = made_up(core, helps=False)
        assert (rules[name](states, batch) == 1).all()


def test_every_rule_says_whose_labels_it_uses() -> None:
    allowed = {"none", "train", "reward", "dev", "train, reward", "reward, dev", "right teacher"}
    assert {rule.labels for rule in RULES.values()} <= allowed
    assert RULES["control"].labels == "none"
    assert RULES["router"].labels == RULES["likelihood"].labels == "reward"


@pytest.mark.parametrize("name", sorted(n for n, r in RULES.items() if "train" in r.labels))
def test_rules_that_read_labels_refuse_unlabelled_data(tiny_config: Make, name: str) -> None:
    core = Core(tiny_config("task.labels=60"))
    with pytest.raises(UserError, match=r"labels of train.*unlabelled") as caught:
        make_rule(name, core, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reward", ["paper1", "paper2", "paper3"])
def test_rewards_that_read_labels_refuse_unlabelled_data(tiny_config: Make, reward: str) -> None:
    with pytest.raises(UserError, match="unlabelled instances; use reward=validation_gain"):
        Core(tiny_config("task.labels=60", f"reward={reward}"))


def test_the_control_on_labels_sees_no_label_of_train(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels on train give the same student; it starts from the initial weights and takes every step."""
    core = Core(tiny_config())
    process = core.process
    first = runs.follow(core, make_rule("reward_labels", core, 0), 0, "labels")
    assert first.best_step == process.student.steps == process.warm_budget + process.budget
    monkeypatch.setattr(process, "labels", 1 - process.labels)
    again = runs.follow(core, make_rule("reward_labels", core, 0), 0, "labels")
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.weights, process.warm, strict=True))


def test_all_teachers_then_the_labels(tiny_config: Make) -> None:
    core = Core(tiny_config())
    control = runs.follow(core, make_rule("control", core, 0), 0, "control")
    both = runs.follow(core, make_rule("control_plus_labels", core, 0), 0, "both")
    assert both.tests.keys() == {"test"}
    assert not all(torch.equal(a, b) for a, b in zip(control.weights, both.weights, strict=True))


def test_controls_cannot_act(core: Core) -> None:
    core.begin(0)
    assert core.process.batch is not None
    with pytest.raises(UserError, match="trains its student in its own way"):
        make_rule("reward_labels", core, 0)(np.empty(0), core.process.batch)


# --- end to end -------------------------------------------------------------------------------------------------------


def test_unlabelled_texts_a_silent_and_a_label_only_teacher(tmp_path: Path) -> None:
    """Through the command line: a file of texts alone, a teacher that skips rows, and one that says labels with confidence."""
    rng = np.random.default_rng(0)
    words = {"good": ["fine", "great", "lovely"], "bad": ["awful", "dull", "poor"]}

    def texts(count: int) -> tuple[list[str], list[str]]:
        labels = [("good", "bad")[i % 2] for i in range(count)]
        return [f"the {rng.choice(['film', 'room'])} was {rng.choice(words[y])} indeed" for y in labels], labels

    truth: dict[str, str] = {}
    for name, count in (("train", 80), ("test", 40), ("more", 60)):
        said, labels = texts(count)
        prefix = "unlabelled" if name == "more" else name
        truth |= {f"{prefix}-{i}": y for i, y in enumerate(labels)}
        frame = pd.DataFrame({"text": said, "label": labels})
        (frame.drop(columns="label") if name == "more" else frame).to_csv(tmp_path / f"{name}.csv", index=False)
    wrong = {"good": "bad", "bad": "good"}
    probs = [
        {"id": i, "good": 0.9 if y == "good" else 0.1, "bad": 0.1 if y == "good" else 0.9}
        for n, (i, y) in enumerate(truth.items())
        if n % 3
    ]
    pd.DataFrame(probs).to_csv(tmp_path / "silent.csv", index=False)
    labels = [
        {"id": i, "label": y if n % 5 else wrong[y], "confidence": 0.8 if n % 5 else 0.6}
        for n, (i, y) in enumerate(truth.items())
    ]
    pd.DataFrame(labels).to_csv(tmp_path / "labels.csv", index=False)
    pool = ", ".join(f"{{name: {n}, kind: predictions, path: {tmp_path / n}.csv}}" for n in ("silent", "labels"))
    command = [
        sys.executable, "agents/reinforce.py", "task=files", f"task.train={tmp_path / 'train.csv'}",
        f"task.test={tmp_path / 'test.csv'}", f"task.unlabelled={tmp_path / 'more.csv'}", "task.text=[text]",
        "teachers=own", f"teachers.pool=[{pool}]", "teachers.calibrate=auto", "budget.steps=6", "budget.batch_size=8",
        "budget.warm_steps=4", "threads=1", f"home={tmp_path / 'home'}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["train"] == 60 + 80 - results["data"]["reward"] - results["data"]["dev"]
    assert "start: " in done.stderr
    assert results["cost"]["whole_job"] > 0
    silent = results["teachers"][0]["answered"]
    assert 0.5 < silent["dev"] < 0.85
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_runs_from_a_fitted_start_and_back(tiny_config: Make) -> None:
    """The default has no joint episode; with all teachers it has four, as in the paper's setting here."""
    settings = RunSettings.from_config(tiny_config("agent.start=likelihood"))
    assert settings.agent.joint_episodes == 0
    assert RunSettings.from_config(tiny_config()).agent.joint_episodes == 4
    assert RunSettings.from_config(tiny_config("agent=ppo", "agent.start=likelihood")).agent.joint_episodes == 1
    assert RunSettings.from_config(tiny_config("agent.episodes=2")).agent.joint_episodes == 2


@pytest.mark.parametrize(
    ("own", "calibrate", "used"),
    [
        ("none", "none", "none"),
        ("none", "auto", "reward"),
        ("train", "auto", "reward, train"),
        ("reward, dev", "auto", "reward, dev"),
        ("", "auto", ""),
    ],
)
def test_calibration_uses_the_labels_of_the_reward_split(own: str, calibrate: str, used: str) -> None:
    assert runs.labels_used(own, TeachersSettings(pool=[PredictionsTeacher(path="x.csv")], calibrate=calibrate)) == used
