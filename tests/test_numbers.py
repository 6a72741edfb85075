"""Numbers that are not finite: such a loss, gradient or reward ends the episode or the run with a message."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

import distill.process
from agents import reinforce, sb3
from agents.experiment import runs
from agents.experiment.grid import Cell, run_grid
from agents.rules import make_rule
from distill.checks import NotFinite, UserError
from distill.process import Distillation
from distill.settings import PARTS, RunSettings
from distill.student import Student
from envs.core import Core
from envs.rewards import FAILED

pytestmark = pytest.mark.faults

STEPS, B, K = 6, 8, 4  # of the tiny run
DIVERGING = ["student.lr=1e30", "budget.warm_steps=0"]  # the warm start itself is left alone
SEEN = f"observation.parts=[{', '.join(PARTS)}]"
EVERYONE = np.ones((B, K), np.int8)


def one_line(text: str, *words: str) -> None:
    assert text
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.fixture(scope="module")
def single(tiny_overrides) -> Callable[..., Any]:
    return lambda *more: gym.make("TeacherSelect-v0", overrides=[*tiny_overrides, *more]).unwrapped


@pytest.fixture(scope="module")
def vector(tiny_overrides) -> Callable[..., Any]:
    def build(*more: str, **kwargs: Any) -> Any:
        return gym.make_vec("TeacherSelect-v0", num_envs=B, overrides=[*tiny_overrides, *more], **kwargs).unwrapped

    return build


# --- an episode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize(
    "reward",
    ["credit.name=shared", "credit.name=influence", "credit.name=counterfactual", "reward=paper1", "reward=paper3"],
)
def test_a_diverging_learning_rate_ends_the_vector_episode(vector, optimizer, clip, reward):
    more = [f"student.optimizer={optimizer}", f"student.clip={clip}", reward]
    env = vector(*DIVERGING, SEEN, *more, autoreset_mode="disabled")
    states, _ = env.reset(seed=0)
    done, taken = False, 0
    while not done:
        assert env.observation_space.contains(states)
        states, rewards, terminated, truncated, info = env.step(EVERYONE)
        done, taken = bool(terminated.all()), taken + 1
        assert terminated.all() == terminated.any()
        assert not truncated.any()
        assert ("failure" in info) == done
    assert taken < STEPS
    assert env.observation_space.contains(states)
    assert rewards.tolist() == [FAILED * (STEPS - taken + 1 if "paper" in reward else 1)] * B
    assert info["failure"].shape == (B,)
    assert info["_failure"].all()
    one_line(info["failure"][0], f"step {taken}", "student.lr=1e+30", "lower student.lr")
    with pytest.raises(ResetNeeded):
        env.step(EVERYONE)


def test_a_diverging_learning_rate_ends_the_single_episode(single):
    env = single(*DIVERGING, SEEN)
    env.reset(seed=0)
    for taken in range(1, B * STEPS + 1):  # noqa: B007
        state, reward, terminated, truncated, info = env.step(np.ones(K, np.int8))
        if terminated:
            break
        assert "failure" not in info
    assert taken < B * STEPS
    assert not truncated
    assert (type(reward), reward) == (float, FAILED)
    assert (info["row_rewards"] == FAILED).all()
    assert isinstance(info["failure"], str)
    one_line(info["failure"], "student.lr=1e+30")
    assert env.observation_space.contains(state)
    with pytest.raises(ResetNeeded):
        env.step(np.ones(K, np.int8))
    state, info = env.reset()
    assert "failure" not in info
    assert env.observation_space.contains(state)


def weights(env: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in env.core.process.student.params])


@pytest.mark.parametrize("student", ["restart", "continue"])
def test_a_failed_student_is_never_continued(vector, student):
    env = vector(*DIVERGING)
    env.reset(seed=0, options={"student": student})
    start = weights(env)
    while True:
        _, rewards, terminated, _, info = env.step(EVERYONE)
        if terminated.all():
            break
    one_line(info["final_info"]["failure"][0], "student.lr")  # reset in the same step
    assert "failure" not in info
    assert (rewards == FAILED).all()
    assert env.observation_space.contains(info["final_obs"])
    assert torch.equal(weights(env), start)
    if student == "restart":
        assert env.validate(env.trajectory()) == 0.0, "a failed episode can be replayed too"
    assert env.observation_space.contains(env.step(EVERYONE)[0]) or env.core.failure


def test_a_state_carries_the_failure(vector):
    env, other = (vector(*DIVERGING, autoreset_mode="disabled") for _ in range(2))
    env.reset(seed=0)
    while not env.step(EVERYONE)[2].all():
        pass
    other.set_state(env.get_state())
    assert other.core.failure == env.core.failure is not None
    with pytest.raises(ResetNeeded):
        other.step(EVERYONE)
    np.testing.assert_array_equal(other.reset(options={"student": "continue"})[0], env.reset()[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 3, STEPS])
def test_a_loss_that_is_no_number(vector, monkeypatch, bad, at):
    env = vector(autoreset_mode="disabled")
    env.reset(seed=0)
    true_loss = distill.process.distillation_loss

    def spoiled(*args: Any) -> torch.Tensor:
        losses = true_loss(*args)
        return losses + bad if env.core.process.student.steps == at - 1 else losses

    monkeypatch.setattr(distill.process, "distillation_loss", spoiled)
    for taken in range(1, at + 1):
        _, rewards, terminated, _, info = env.step(EVERYONE)
        assert terminated.all() == (taken == at)
    one_line(info["failure"][0], f"step {at}")
    assert (rewards == FAILED).all()


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_no_number(vector, clip):
    """The loss is finite; one entry of one parameter's gradient is not."""
    env = vector(f"student.clip={clip}", autoreset_mode="disabled")
    env.reset(seed=0)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[-1] = math.inf
        return gradient

    env.step(EVERYONE)
    handle = env.core.process.student.params[0].register_hook(spoil)
    _, rewards, terminated, _, info = env.step(EVERYONE)
    handle.remove()
    assert terminated.all()
    assert (rewards == FAILED).all()
    one_line(info["failure"][0], "gradient", "step 2")


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_reward_that_is_no_number(vector, monkeypatch, bad):
    env = vector(autoreset_mode="disabled")
    env.reset(seed=0)
    monkeypatch.setattr(env.core.reward, "measure", lambda *_: bad)
    assert not env.step(EVERYONE)[2].any(), "not measured yet: reward.every=2"
    _, rewards, terminated, _, info = env.step(EVERYONE)
    assert terminated.all()
    assert (rewards == FAILED).all()
    assert set(info) == {"instance", "_instance", "failure", "_failure"}
    one_line(info["failure"][0], "the reward", "step 2")


def test_no_device_is_waited_for_between_measurements(vector, monkeypatch):
    """Off the CPU a step must not read what it has computed; the next call that waits for the device anyway does."""
    env = vector("reward.every=3", autoreset_mode="disabled")
    env.reset(seed=0)
    student, looks = env.core.process.student, []
    true_check = Student.check_finite

    class Elsewhere:
        type = "elsewhere"

    true_step = Student.step

    def step(self: Student, *args: Any) -> Any:
        here, self.device = self.device, Elsewhere()  # only while the step decides whether to look
        try:
            return true_step(self, *args)
        finally:
            self.device = here

    def check(self: Student, *values: float) -> None:
        looks.append(self.steps)
        true_check(self, *values)

    monkeypatch.setattr(Student, "step", step)
    monkeypatch.setattr(Student, "check_finite", check)
    student.params[0].register_hook(lambda g: g * math.nan if student.steps == 0 else g)
    failed = [env.step(EVERYONE)[4].get("failure") for _ in range(3)]
    assert looks == [3]
    assert failed[:2] == [None, None]
    one_line(failed[2][0], "step 3")


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_warm_start_that_diverges_is_not_kept(tiny_config, home):
    before = set((home / "warm").glob("*/")) if (home / "warm").is_dir() else set()
    with pytest.raises(UserError, match=r"student\.lr=1e\+30; lower student\.lr") as caught:
        Distillation(RunSettings.from_config(tiny_config("student.lr=1e30")))
    one_line(str(caught.value))
    assert {p for p in (home / "warm").glob("*/") if not p.name.startswith(".")} == before
    assert not list((home / "warm").glob(".*.building"))


def test_weights_that_are_not_finite_after_the_last_step_are_not_kept(tiny_config, monkeypatch):
    """Every loss and gradient was finite; the weights that the optimiser made of them are not."""
    true_apply = Student.apply_gradients

    def apply(self: Student) -> torch.Tensor | None:
        clip = true_apply(self)
        if self.steps == self.budget:
            self.params[0].data.view(-1)[0] = math.inf
        return clip

    monkeypatch.setattr(Student, "apply_gradients", apply)
    with pytest.raises(NotFinite, match=r"after step 3 "):
        Distillation(RunSettings.from_config(tiny_config("budget.warm_steps=3", "seed=77")))


def test_a_teacher_that_diverges_is_named_and_not_kept(tiny_overrides, tiny_config, tmp_path):
    pool = next(o for o in tiny_overrides if o.startswith("teachers.pool"))
    broken = pool.replace("lr: 1.0e-2", "lr: 1.0e+30", 1)
    with pytest.raises(
        UserError, match=r"^teacher film: fine-tuning gave .* not finite .* with lr=1e\+30; lower its lr$"
    ):
        Distillation(RunSettings.from_config(tiny_config(broken, f"home={tmp_path}")))
    assert not [p for p in (tmp_path / "teachers").iterdir() if p.is_dir()]
    assert not (tmp_path / "signals").exists()


def test_a_fixed_rule_that_diverges(tiny_config):
    core = Core(tiny_config(*DIVERGING))
    rule = make_rule("control", core, 0)
    with pytest.raises(NotFinite, match=r"student\.lr=1e\+30"):
        runs.follow(core, rule, 0, "control")


def test_an_evaluation_that_is_no_number(tiny_config):
    process = Distillation(RunSettings.from_config(tiny_config()))
    process.begin(0)
    with torch.no_grad():
        process.student.params[-1].fill_(math.nan)
    with pytest.raises(NotFinite):
        process.evaluate("dev")


RUNS = {
    "reinforce": (reinforce.learn, [], r"student\.lr=1e\+30"),
    "reinforce shared": (reinforce.learn, ["credit.name=shared"], r"student\.lr=1e\+30"),
    "ppo": (sb3.learn, ["agent=ppo"], r"student\.lr=1e\+30"),
    "td3": (sb3.learn, ["agent=td3"], r"student\.lr=1e\+30"),
}


@pytest.mark.parametrize(("learn", "more", "message"), RUNS.values(), ids=RUNS)
def test_a_run_whose_student_diverges(tiny_config, tmp_path, learn, more, message):
    with pytest.raises(UserError, match=message) as caught:
        learn(RunSettings.from_config(tiny_config(*DIVERGING, *more)), tmp_path)
    one_line(str(caught.value))
    assert not (tmp_path / "policy.safetensors").exists()


@pytest.mark.parametrize(("agent", "more"), [("ppo", "n_steps=2"), ("a2c", "n_steps=2"), ("sac", "learning_starts=8")])
def test_a_run_whose_policy_diverges(tiny_config, tmp_path, agent, more):
    with pytest.raises(UserError, match=r"the policy's weights .* agent\.lr=1e\+29; lower agent\.lr") as caught:
        sb3.learn(
            RunSettings.from_config(tiny_config(f"agent={agent}", "agent.lr=1e29", f"++agent.params.{more}")), tmp_path
        )
    one_line(str(caught.value))
    assert not (tmp_path / "policy.safetensors").exists()


def test_a_selector_that_diverges(tiny_config, tmp_path, monkeypatch):
    """Adam bounds its steps at any learning rate, so an advantage that is not finite takes the place of a rate too high."""
    true = reinforce.surrogate
    monkeypatch.setattr(reinforce, "surrogate", lambda *args: true(*args) * math.nan)
    with pytest.raises(
        UserError, match=r"the selector's weights are not finite after step 2 with agent\.lr=0\.05; lower"
    ) as caught:
        reinforce.learn(RunSettings.from_config(tiny_config("agent.warmup=2")), tmp_path)
    one_line(str(caught.value))
    assert not (tmp_path / "policy.safetensors").exists()


@pytest.mark.parametrize("entry", ["control", "reinforce"])
def test_a_cell_that_diverges_is_reported_in_one_line(tiny_config, tmp_path: Path, entry):
    cell = Cell(entry, 0, RunSettings.from_config(tiny_config(*DIVERGING)), str(tmp_path / "cell"), "")
    results, errors = run_grid([cell], 1)
    assert results == []
    assert set(errors) == {cell.label}
    one_line(errors[cell.label], "student.lr=1e+30")
    assert not (tmp_path / "cell" / "result.json").exists()
    assert not (tmp_path / "cell" / "error.txt").exists(), "a mistake in the settings, so no traceback"
