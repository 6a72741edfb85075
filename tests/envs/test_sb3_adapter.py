"""A Gymnasium vector environment as an SB3 `VecEnv`, against SB3's own."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import STEPS, B, K, subsets
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from distill.checks import UserError
from envs.sb3 import SharedVecEnv

COUNT = 4


def cart() -> gym.Env[Any, Any]:
    """Random play falls within some 20 steps: part of the episodes is cut by the limit."""
    return gym.make("CartPole-v1", max_episode_steps=20)


def carts(mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([cart] * COUNT, autoreset_mode=mode)


def test_it_equals_dummy_vec_env():
    ours, theirs = SharedVecEnv(carts(AutoresetMode.SAME_STEP)), DummyVecEnv([cart] * COUNT)
    assert (ours.num_envs, ours.observation_space, ours.action_space) == (
        theirs.num_envs,
        theirs.observation_space,
        theirs.action_space,
    )
    # The adapter passes its first seed on, and a SyncVectorEnv counts up from it: environment i has 7 + i in both.
    assert ours.seed(7) == theirs.seed(7) == [7 + i for i in range(COUNT)]
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    rng, ends = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(400):
        actions = rng.integers(0, 2, COUNT)
        (obs, rewards, dones, infos), wanted = ours.step(actions), theirs.step(actions)
        for found, expected in zip((obs, rewards, dones), wanted[:3], strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
        for done, info, expected in zip(dones, infos, wanted[3], strict=True):
            assert ("terminal_observation" in info) == ("terminal_observation" in expected) == done
            assert info.get("TimeLimit.truncated", False) == expected["TimeLimit.truncated"]
            if done:
                ends[info["TimeLimit.truncated"]] += 1
                np.testing.assert_array_equal(info["terminal_observation"], expected["terminal_observation"])
            assert set(info) - {"TimeLimit.truncated"} == set(expected) - {"TimeLimit.truncated"}
        assert ours.reset_infos == theirs.reset_infos
    assert min(ends.values()) >= 5, ends  # both kinds of end were seen
    np.testing.assert_array_equal(ours.reset(), theirs.reset())  # without a seed: the generators continue
    ours.close()
    theirs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode, make_vec):
    with pytest.raises(UserError, match=r"^autoreset_mode=[^\n]*same step$"):
        SharedVecEnv(carts(mode))
    if mode is AutoresetMode.DISABLED:
        with pytest.raises(UserError, match="autoreset_mode"):
            SharedVecEnv(make_vec(autoreset_mode="disabled"))


@pytest.mark.parametrize("more", [[], ["credit.name=counterfactual"]], ids=["shared", "counterfactual"])
def test_rows_are_the_vector_environments(make_vec, more):
    ours, plain = SharedVecEnv(make_vec(*more)), make_vec(*more)
    ours.seed(3)
    states, info = plain.reset(seed=3)
    np.testing.assert_array_equal(ours.reset(), states)
    assert [row["instance"] for row in ours.reset_infos] == list(info["instance"])
    for actions in subsets(0, STEPS + 1):
        states, rewards, ended, _, info = plain.step(actions)
        obs, got, dones, rows = ours.step(actions)
        np.testing.assert_array_equal(obs, states)
        np.testing.assert_array_equal(got, rewards.astype(np.float32))
        np.testing.assert_array_equal(dones, ended)
        returned = info["final_info"] if ended.all() else info
        for i, row in enumerate(rows):
            assert row["instance"] == returned["instance"][i]
            assert ("gain" in row) == ("gain" in returned)
            if more:
                for key in ("row_credit", "teacher_advantage"):
                    np.testing.assert_array_equal(row[key], returned[key][i])
            if ended.all():
                np.testing.assert_array_equal(row["terminal_observation"], info["final_obs"][i])
                assert row["TimeLimit.truncated"] is False
                assert ours.reset_infos[i]["instance"] == info["instance"][i]
    obs[:], got[:] = 0, 0  # SB3 writes into what it is given
    np.testing.assert_array_equal(ours.step(subsets(1)[0])[0], plain.step(subsets(1)[0])[0])


def test_reset_options_and_attributes_reach_the_environment(make_vec):
    ours = SharedVecEnv(make_vec())
    ours.reset()
    for actions in subsets(0, 2):
        ours.step(actions)
    process = ours.get_attr("core")[0].process
    ours.set_options({"student": "continue"})
    trained = process.student.weights()
    ours.reset()
    assert all((a == b).all() for a, b in zip(process.student.weights(), trained, strict=True))
    ours.reset()  # options count once
    assert all((a == b).all() for a, b in zip(process.student.weights(), process.warm, strict=True))
    assert len(ours.env_method("trajectory")) == B
    assert ours.env_is_wrapped(gym.Wrapper) == [False] * B


def test_ppo_learns_one_rollout(make_vec):
    env = VecMonitor(SharedVecEnv(make_vec("credit.name=influence")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("MlpPolicy", env, n_steps=2 * STEPS, batch_size=B, n_epochs=1, seed=0, device="cpu")
        before = [p.detach().clone() for p in model.policy.parameters()]
        model.learn(2 * STEPS * B)
    assert model.num_timesteps == 2 * STEPS * B
    assert any((p != q).any() for p, q in zip(model.policy.parameters(), before, strict=True))
    assert model.rollout_buffer.actions.shape == (2 * STEPS * B, K)  # flattened when the epoch began
    assert [e["l"] for e in model.ep_info_buffer] == [STEPS] * 2 * B
    totals = model.rollout_buffer.rewards.reshape(2, STEPS, B).sum(1).flatten()
    np.testing.assert_allclose([e["r"] for e in model.ep_info_buffer], totals, atol=2e-6)
    starts = model.rollout_buffer.episode_starts
    assert [t for t in range(2 * STEPS) if starts[t].all()] == [0, STEPS]
    assert starts.sum() == 2 * B
