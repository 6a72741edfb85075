"""evaluate(policy, id, seeds): what it returns, and that it agrees with the steps of the environment and with a comparison."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.evaluate import Scores, evaluate
from agents.experiment import runs
from agents.rules import BestSingle
from distill.checks import UserError

ID = "TeacherSelect/Tiny-v0"
SHORT: dict[str, Any] = {"overrides": ["budget.steps=6", "reward.every=2", "budget.evals=2"]}


def first_two(states: np.ndarray) -> np.ndarray:
    return np.tile([1, 1, 0, 0], (len(states), 1))


@pytest.fixture(scope="module")
def scores(home) -> Scores:
    return evaluate(first_two, ID, seeds=2, **SHORT)


def test_a_function_of_states(scores) -> None:
    """The gain is the return of an episode; the accuracy is that of a comparison, on the same batches."""
    assert [s.seed for s in scores.seeds] == [0, 1]
    assert (scores.id, scores.metric) == (ID, "accuracy")
    env = gym.make_vec(ID, num_envs=16, **SHORT).unwrapped
    for score in scores.seeds:
        env.core.begin(score.seed)
        total = sum(env.core.step(first_two(np.zeros(16)).astype(np.float32))[1].mean() for _ in range(6))
        assert score.gain == pytest.approx(total)
        assert score.chosen == (1, 1, 0, 0)
    assert scores.gain == pytest.approx(np.mean([s.gain for s in scores.seeds]))
    np.testing.assert_allclose(scores.points, [100 * (s.accuracy - s.control) for s in scores.seeds])
    assert str(scores).startswith(f"{ID}: {scores.points.mean():+.1f} points over all teachers\nseed 0: gain")


def test_a_rule_by_name(scores) -> None:
    """With the students of agents/compare.py."""
    ours = evaluate("best_single", ID, seeds=[1], **SHORT).seeds[0]
    core = gym.make_vec(ID, num_envs=16, **SHORT).unwrapped.core
    expected = runs.follow(core, BestSingle(core, 1), 1, "best_single")
    assert (ours.accuracy, ours.dev) == (expected.tests["test"]["accuracy"], expected.dev["accuracy"])
    assert ours.control == scores.seeds[1].control
    assert sum(ours.chosen) == pytest.approx(1)


def test_a_model_and_another_form_of_action(home) -> None:
    class Model:
        def predict(self, states: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
            assert deterministic
            return np.full(len(states), 3), None

    score = evaluate(Model(), ID, seeds=[0], actions="discrete", **SHORT).seeds[0]
    assert score.chosen == (1, 1, 0, 0)


def test_mistakes_are_one_line(home) -> None:
    with pytest.raises(UserError, match=r"^TeacherSelect/Labels-v0 has no student to score"):
        evaluate(first_two, "TeacherSelect/Labels-v0", experiment="tiny")
    with pytest.raises(UserError, match=r"^seeds=\[\] names no seed"):
        evaluate(first_two, ID, seeds=[])
    with pytest.raises(UserError, match=r"^policy=3 cannot act"):
        evaluate(3, ID, **SHORT)
    with pytest.raises(UserError, match=r"^rule=best_singel is not known; .* did you mean best_single"):
        evaluate("best_singel", ID, **SHORT)
    with pytest.raises(gym.error.NameNotFound):
        evaluate(first_two, "TeacherSelect/Nothing-v0")
    with pytest.raises(ValueError, match="action has shape"):
        evaluate(lambda states: np.ones(len(states)), ID, **SHORT)
