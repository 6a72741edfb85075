"""The wrappers with other action spaces give the same students as subsets do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import B, K, assert_same, subsets, weights
from gymnasium.vector import VectorEnv

from distill.checks import UserError
from envs.wrappers import DiscreteSubsets, DiscreteSubsetsVector, TeacherWeights, TeacherWeightsVector

ALL = np.array([[n >> k & 1 for k in range(K)] for n in range(2**K)], np.int8)  # [2^K, K]
CREDIT = "credit.name=counterfactual"


def run(env: Any, actions: Any, seed: int = 0) -> list[Any]:
    seen: list[Any] = [env.reset(seed=seed)]
    for action in actions:
        seen.append((env.step(action), weights(env)))
    return seen


class Space(gym.Env[Any, Any]):
    """An environment with nothing but an action space."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.action_space = space


class VectorSpace(VectorEnv[Any, Any, Any]):
    """The same with the vector interface."""

    num_envs = 2

    def __init__(self, space: gym.Space[Any]) -> None:
        self.single_action_space = space
        self.observation_space = self.single_observation_space = self.action_space = space


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_every_number_is_its_subset(make):
    env = DiscreteSubsets(make(CREDIT))
    assert env.action_space == gym.spaces.Discrete(2**K)
    assert_same(run(env, range(2**K)), run(make(CREDIT), ALL))
    kinds = [int, np.int64, np.int32, np.asarray]
    assert_same(run(env, [kinds[n % 4](n) for n in range(2**K)]), run(make(CREDIT), ALL))


def test_every_number_is_its_subset_in_a_batch(make_vec):
    env = DiscreteSubsetsVector(make_vec(CREDIT, num_envs=2**K))
    assert env.single_action_space == gym.spaces.Discrete(2**K)
    assert env.action_space == gym.spaces.MultiDiscrete([2**K] * 2**K)
    order = np.random.default_rng(0).permutation(2**K)
    wanted = run(make_vec(CREDIT, num_envs=2**K), [ALL, ALL[order]])
    assert_same(run(env, [np.arange(2**K), order]), wanted)
    assert env.step(env.action_space.sample())[1].shape == (2**K,)


@pytest.mark.parametrize(("wrapper", "stub"), [(DiscreteSubsets, Space), (DiscreteSubsetsVector, VectorSpace)])
def test_too_many_teachers_for_numbers(wrapper, stub):
    env = wrapper(stub(gym.spaces.MultiBinary(6)))
    assert getattr(env, "single_action_space", env.action_space) == gym.spaces.Discrete(64)
    with pytest.raises(UserError, match=r"^[^\n]*7 teachers[^\n]*at most 6[^\n]*$"):
        wrapper(stub(gym.spaces.MultiBinary(7)))


@pytest.mark.parametrize("wrapper", [DiscreteSubsets, DiscreteSubsetsVector, TeacherWeights, TeacherWeightsVector])
def test_only_subsets_can_be_wrapped(wrapper):
    space = gym.spaces.Discrete(3)
    with pytest.raises(UserError, match=r"Discrete\(3\)"):
        wrapper((VectorSpace if wrapper.__name__.endswith("Vector") else Space)(space))


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["single", "vector"])
def pair(request: pytest.FixtureRequest, make: Any, make_vec: Any) -> tuple[Any, Any, Any]:
    """The environment, the same with weights, and how it takes subsets `[T,B,K]` one by one."""
    if request.param == "single":
        return make(CREDIT), TeacherWeights(make(CREDIT)), lambda a: a.reshape(-1, K)
    return make_vec(CREDIT), TeacherWeightsVector(make_vec(CREDIT)), lambda a: a


def test_weights_of_0_and_1_are_subsets(pair):
    plain, weighted, cut = pair
    space = getattr(weighted, "single_action_space", weighted.action_space)
    assert space == gym.spaces.Box(0, 1, (K,), np.float32)
    chosen = subsets(3, 4)
    chosen[0, :3] = 0  # the label alone
    assert_same(run(weighted, cut(chosen.astype(np.float32))), run(plain, cut(chosen)))


def test_weights_change_the_student_and_are_normalised(pair):
    plain, weighted, cut = pair
    chosen = np.ones((2, B, K), np.float32)
    equal = run(plain, cut(chosen))[-1][1]
    tilted = run(weighted, cut(chosen * [1, 0.5, 0.25, 0.125]))[-1][1]
    assert not torch.allclose(tilted, equal, atol=1e-5)
    less = run(weighted, cut(chosen * [0.5, 0.25, 0.125, 0.0625]))[-1][1]
    torch.testing.assert_close(less, tilted, rtol=1e-4, atol=1e-6)
    half = run(weighted, cut(chosen / 2))[-1][1]
    torch.testing.assert_close(half, equal, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan, np.inf])
def test_a_weight_out_of_range_is_refused_and_changes_nothing(pair, wrong):
    _, env, cut = pair
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    action = cut(np.ones((1, B, K), np.float32))[0].copy()
    action[..., 1] = wrong
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        env.step(action)
    assert_same(env.unwrapped.get_state(), before)


def test_without_the_wrapper_weights_are_refused(pair):
    plain, _, cut = pair
    plain.reset(seed=0)
    with pytest.raises(ValueError, match="0 and 1"):
        plain.step(cut(np.full((1, B, K), 0.5, np.float32))[0])


def test_a_run_with_weights_replays(pair):
    _, env, cut = pair
    run(env, cut(np.random.default_rng(0).random((3, B, K), np.float32)))
    assert env.unwrapped.validate(env.unwrapped.trajectory()) == 0.0
    fork = env.unwrapped.fork()
    action = cut(np.full((1, B, K), 0.3, np.float32))[0]
    assert_same(fork.step(action), env.step(action))
