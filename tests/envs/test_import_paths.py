"""Rewards, credit estimators and observation parts of the user's own, by import path; unknown ones are refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from env_helpers import STEPS, B, assert_same, subsets

from distill.checks import UserError

CODE = '''
import numpy as np

from envs.credit import Credit
from envs.observations import Part
from envs.rewards import Reward, ValidationGain


class Confident(Reward):
    """The mean probability that the student gave to its own choice."""

    def measure(self, batch, actions, result):
        return float(result.logits.softmax(-1).amax(-1).mean())


class Doubled(ValidationGain):
    """Twice the gain: still a gain of V."""

    def after(self, batch, actions, result):
        gain, info = super().after(batch, actions, result)
        return 2 * gain, info


class Counted(Credit):
    """Rows with more teachers are paid more, and more with every step: it has a state of its own."""

    def __init__(self, settings, reward):
        super().__init__(settings, reward)
        self.count = 0

    def begin(self, seed):
        self.count = 0

    def after(self, batch, actions, result, reward):
        self.count += 1
        credit = self.count * np.asarray(actions, np.float64).sum(1)
        return reward + credit, {"row_credit": credit}

    def state_dict(self):
        return {"count": self.count}

    def state_template(self):
        return {"count": lambda value: type(value) is int}

    def load_state_dict(self, state):
        self.count = state["count"]


class Ones(Part):
    """One number, always 1."""

    def width(self, process):
        return 1

    def values(self, view):
        return np.ones((len(view.batch.rows), 1))


class Nothing:
    """Neither a reward nor a credit estimator nor a part."""


function = len
'''


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `of_my_own` that can be imported; one that cannot."""
    (tmp_path / "of_my_own.py").write_text(CODE)
    (tmp_path / "broken_module.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("of_my_own", "broken_module"):
        sys.modules.pop(name, None)


def rewards_of(env: Any, seed: int = 2) -> tuple[np.ndarray, list[dict[str, Any]]]:
    env.reset(seed=seed)
    out = [env.step(actions) for actions in subsets(seed)]
    return np.array([o[1] for o in out]), [o[4] for o in out]


def test_a_reward_of_ones_own(make_vec: Callable[..., Any]) -> None:
    env = make_vec("reward.name=of_my_own:Confident", "reward.every=2", autoreset_mode="disabled")
    rewards, infos = rewards_of(env)
    assert env.unwrapped.core.settings.credit.name == "shared"
    assert (rewards[0] == 0).all(), "not measured yet"
    assert ((rewards[1:] >= 0.5) & (rewards[1:] <= 1)).all()
    assert ["measured" in info for info in infos] == [False, True] * (STEPS // 2)
    np.testing.assert_array_equal(rewards[1], rewards[2])


def test_a_gain_of_ones_own_goes_with_credit_by_row(make_vec: Callable[..., Any]) -> None:
    more = ["credit.name=counterfactual", "reward.every=1"]
    doubled, infos = rewards_of(make_vec("reward.name=of_my_own:Doubled", *more, autoreset_mode="disabled"))
    plain, expected = rewards_of(make_vec(*more, autoreset_mode="disabled"))
    np.testing.assert_allclose(doubled.mean(1), 2 * plain.mean(1), atol=1e-12)
    for info, wanted in zip(infos, expected, strict=True):
        np.testing.assert_array_equal(info["teacher_advantage"], wanted["teacher_advantage"])


def test_a_credit_estimator_of_ones_own(make_vec: Callable[..., Any]) -> None:
    name = "credit.name=of_my_own:Counted"
    rewards, infos = rewards_of(make_vec(name, autoreset_mode="disabled"))
    shared, _ = rewards_of(make_vec(autoreset_mode="disabled"))
    expected = subsets(2).sum(2) * np.arange(1, STEPS + 1)[:, None]
    np.testing.assert_allclose(rewards - shared, expected, atol=1e-12)
    np.testing.assert_array_equal([info["row_credit"] for info in infos], expected)


def test_its_state_is_saved_forked_and_replayed(make_vec: Callable[..., Any]) -> None:
    name = "credit.name=of_my_own:Counted"
    env, other = (make_vec(name, autoreset_mode="disabled").unwrapped for _ in range(2))
    env.reset(seed=0)
    for actions in subsets(0, 3):
        env.step(actions)
    other.set_state(env.get_state())
    fork = env.fork()
    for actions in subsets(1, STEPS - 3):
        wanted = env.step(actions)
        assert_same(other.step(actions), wanted)
        assert_same(fork.step(actions), wanted)
    assert env.core.credit.count == STEPS
    assert env.validate(env.trajectory()) == 0.0
    assert env.core.credit.count == STEPS
    assert other.core.fingerprint == env.core.fingerprint != make_vec().unwrapped.core.fingerprint


def test_an_observation_part_of_ones_own(make_vec: Callable[..., Any]) -> None:
    env = make_vec("observation.parts=[progress, 'of_my_own:Ones']").unwrapped
    states, _ = env.reset(seed=0)
    assert list(env.layout) == ["progress", "of_my_own:Ones"]
    np.testing.assert_array_equal(states[:, env.layout["of_my_own:Ones"]], np.ones((B, 1)))


KEYS = ["reward.name", "credit.name", "observation.parts"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("of_my_own:Missing", ["cannot be imported", "Missing", "give my_package.module:MyClass"]),
        ("no_such_module:Thing", ["cannot be imported", "No module named", "give my_package.module:MyClass"]),
        ("broken_module:Thing", ["cannot be imported", "a_module_that_is_not_there"]),
        ("of_my_own:", ["cannot be imported"]),
        (":Thing", ["cannot be imported"]),
        ("of_my_own:Nothing", ["is not a subclass of envs."]),
        ("of_my_own:function", ["is not a subclass of envs."]),
    ],
)
def test_import_paths_that_lead_nowhere(make: Callable[..., Any], key: str, name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make(f"{key}=['{name}']" if key.endswith("parts") else f"{key}='{name}'")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{key}={name} ")
    for word in words:
        assert word in message


def test_one_kind_is_no_other(make: Callable[..., Any]) -> None:
    with pytest.raises(
        UserError, match=r"^credit\.name=of_my_own:Confident is not a subclass of envs\.credit\.Credit$"
    ):
        make("credit.name=of_my_own:Confident")
    with pytest.raises(UserError, match=r"^reward\.name=of_my_own:Counted is not a subclass of envs\.rewards\.Reward$"):
        make("reward.name=of_my_own:Counted")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("reward.name=paper4", "reward.name=paper4 is not known; choose from validation_gain, paper1, paper2, paper3"),
        ("reward.name=validation_gian", "did you mean validation_gain?"),
        ("credit.name=influense", "credit.name=influense is not known; choose from shared, influence, counterfactual"),
        ("credit.name=influense", "did you mean influence?"),
    ],
)
def test_unknown_names(make: Callable[..., Any], override: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        make(override)
    assert "\n" not in str(error.value)
    assert line in str(error.value)


@pytest.mark.parametrize("credit", ["influence", "counterfactual"])
def test_credit_by_row_needs_a_gain(make: Callable[..., Any], credit: str) -> None:
    with pytest.raises(
        UserError, match=rf"^credit\.name={credit} goes with reward=validation_gain, [^\n]*Confident[^\n]*$"
    ):
        make("reward.name=of_my_own:Confident", f"credit.name={credit}")
