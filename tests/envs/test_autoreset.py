"""NEXT_STEP autoreset, and Gymnasium's vector wrappers over every mode that they accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import STATES, B, K, assert_same, subsets
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

from distill.checks import UserError

STEPS = 6  # of an episode


@pytest.fixture(scope="module")
def make_vec(home) -> Callable[..., Any]:
    """The vector environment of TeacherSelect/Tiny-v0, with short episodes."""
    short = ["budget.steps=6", "budget.batch_size=8", "reward.every=2", "reward.size=40"]
    return lambda *more, **kwargs: gym.make_vec(
        "TeacherSelect/Tiny-v0", num_envs=B, overrides=[*short, *more], **kwargs
    )


def test_the_dead_step_resets_and_changes_nothing_else(make_vec) -> None:
    """Two episodes are those of SAME_STEP, with one step between them that ignores its actions."""
    same, late = make_vec(*STATES), make_vec(*STATES, autoreset_mode="next_step")
    assert_same(late.reset(seed=1)[0], same.reset(seed=1)[0])
    for episode in range(2):
        for t, action in enumerate(subsets(episode)):
            states, rewards, ended, truncated, info = late.step(action)
            expected = same.step(action)
            np.testing.assert_array_equal(rewards, expected[1])
            assert ended.all() == (t == STEPS - 1)
            assert not truncated.any()
            last = expected[4]["final_obs"] if ended.all() else expected[0]
            np.testing.assert_array_equal(states, last)
            assert "final_obs" not in info
        after = late.unwrapped.core.process.student.steps
        states, rewards, ended, _, info = late.step(np.full((B, K), 7))  # not even looked at
        assert after == STEPS
        assert late.unwrapped.core.process.student.steps == 0
        np.testing.assert_array_equal(states, expected[0])
        np.testing.assert_array_equal(info["instance"], expected[4]["instance"])
        assert not rewards.any()
        assert not ended.any()


def test_a_reset_before_the_dead_step_takes_its_place(make_vec) -> None:
    env, other = make_vec(autoreset_mode="next_step"), make_vec(autoreset_mode="next_step")
    for e in (env, other):
        e.reset(seed=0)
        for action in subsets(0):
            e.step(action)
    first = env.reset(seed=3, options={"reset_mask": np.ones(B, bool)})
    assert_same(other.reset(seed=3), first)
    assert env.step(subsets(0)[0])[1].any() == other.step(subsets(0)[0])[1].any()
    assert env.unwrapped.core.process.student.steps == 1
    with pytest.raises(UserError, match=r"^reset option reset_mask resets 1 of 8 rows"):
        env.reset(options={"reset_mask": np.arange(B) == 0})


def test_a_state_between_two_episodes(make_vec) -> None:
    env, other = (make_vec(*STATES, autoreset_mode="next_step").unwrapped for _ in range(2))
    env.reset(seed=0)
    for action in subsets(0):
        env.step(action)
    other.set_state(env.get_state())
    fork = env.fork()
    expected = [env.step(action) for action in subsets(4)[:2]]
    assert_same([other.step(action) for action in subsets(4)[:2]], expected)
    assert_same([fork.step(action) for action in subsets(4)[:2]], expected)


# --- wrappers ---------------------------------------------------------------------------------------------------------

Wrap = Callable[[Any], Any]
SAME, NEXT, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED
ALL, LATE = (SAME, NEXT, DISABLED), (NEXT, DISABLED)
# A wrapper, and the modes it supports. Gymnasium's own rule keeps wrappers of observations from SAME_STEP: they would have
# to change `final_obs` too. Wrappers of images and of
# dictionaries make no sense here, and those of array libraries need packages of their own.
WRAPPERS: dict[str, tuple[Wrap, tuple[AutoresetMode, ...]]] = {
    "RecordEpisodeStatistics": (wrappers.RecordEpisodeStatistics, ALL),
    "DictInfoToList": (wrappers.DictInfoToList, ALL),
    "NormalizeObservation": (wrappers.NormalizeObservation, (NEXT,)),
    "TransformObservation": (lambda e: wrappers.TransformObservation(e, lambda o: o * 0.5), LATE),
    "VectorizeTransformObservation": (
        lambda e: wrappers.VectorizeTransformObservation(
            e, gym.wrappers.TransformObservation, func=lambda o: o * 0.5, observation_space=e.single_observation_space
        ),
        LATE,
    ),
    "FlattenObservation": (wrappers.FlattenObservation, LATE),
    "ReshapeObservation": (lambda e: wrappers.ReshapeObservation(e, (1, *e.single_observation_space.shape)), LATE),
    "RescaleObservation": (lambda e: wrappers.RescaleObservation(e, 0.0, 1.0), LATE),
    "DtypeObservation": (lambda e: wrappers.DtypeObservation(e, np.float64), LATE),
    "TransformAction": (lambda e: wrappers.TransformAction(e, lambda a: 1 - np.asarray(a)), ALL),
    "TransformReward": (lambda e: wrappers.TransformReward(e, lambda r: 2 * r), ALL),
    "VectorizeTransformReward": (
        lambda e: wrappers.VectorizeTransformReward(e, gym.wrappers.TransformReward, func=lambda r: 2 * r),
        ALL,
    ),
    "ClipReward": (lambda e: wrappers.ClipReward(e, -0.001, 0.001), ALL),
    "NormalizeReward": (wrappers.NormalizeReward, ALL),
}


def last_rewards(env: Any, mode: AutoresetMode) -> list[np.ndarray]:
    """The rewards of two episodes, without those of dead steps."""
    env.reset(seed=0)
    out = []
    for episode in range(2):
        for action in subsets(episode):
            states, rewards, ended, _, _ = env.step(action)
            assert len(states) == B
            out.append(np.asarray(rewards))
        assert np.asarray(ended).all()
        if mode is DISABLED:
            env.reset()
        elif mode is NEXT:
            env.step(subsets(0)[0])
    return out


@pytest.fixture(scope="module")
def bases(make_vec) -> dict[AutoresetMode, Any]:
    """One environment a mode, for all wrappers: a reset with a seed forgets what was before."""
    return {mode: make_vec(autoreset_mode=mode) for mode in ALL}


@pytest.fixture(scope="module")
def plain(bases) -> list[np.ndarray]:
    return last_rewards(bases[SAME], SAME)


@pytest.mark.parametrize("name", list(WRAPPERS))
def test_a_wrapper_of_gymnasium(name, bases, plain) -> None:
    wrap, modes = WRAPPERS[name]
    for mode in modes:
        rewards = last_rewards(wrap(bases[mode]), mode)
        if "Reward" not in name and name != "TransformAction":
            np.testing.assert_allclose(rewards, plain, rtol=1e-6, atol=1e-9)
        if "TransformReward" in name:
            np.testing.assert_allclose(rewards, 2 * np.array(plain))
    for mode in set(ALL) - set(modes):
        with pytest.raises((AssertionError, ValueError)):
            wrap(bases[mode])


@pytest.mark.parametrize(
    "wrap", [wrappers.ClipAction, lambda e: wrappers.RescaleAction(e, np.float32(-1), np.float32(1))]
)
def test_a_wrapper_of_weights(wrap, make_vec) -> None:
    """ClipAction and RescaleAction need a Box."""
    env = wrap(make_vec(actions="weights"))
    env.reset(seed=0)
    env.action_space.seed(0)
    assert np.isfinite(env.step(env.action_space.sample())[1]).all()


def test_statistics_count_episodes_and_not_dead_steps(bases) -> None:
    env = wrappers.RecordEpisodeStatistics(bases[NEXT])
    env.reset(seed=0)
    lengths = []
    for _ in range(2):
        for action in [*subsets(0), subsets(0)[0]]:
            info = env.step(action)[4]
            if "episode" in info:
                lengths.append(info["episode"]["l"].tolist())
    assert lengths == [[STEPS] * B] * 2
