"""The environment in other libraries: PPO reduces to REINFORCE, RL Zoo trains on it, TorchRL accepts its specs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml

from agents.reinforce import Selector, surrogate
from envs.sb3 import SharedVecEnv

ROOT = Path(__file__).resolve().parents[2]


def test_a_reinforce_update_is_a_ppo_update_without_clipping(tiny_config) -> None:
    """One epoch, one full batch, no discounting, no value, no clipping, plain SGD: the same new weights."""
    from stable_baselines3 import PPO

    config = tiny_config("reward.every=1", "credit.name=influence", "budget.steps=50")
    env = SharedVecEnv(gym.make_vec("envs:TeacherSelect-v0", num_envs=8, config=config))
    rate, steps = 5.0, 3
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=steps,
        batch_size=8 * steps,
        n_epochs=1,
        gamma=0.0,
        gae_lambda=1.0,
        normalize_advantage=False,
        vf_coef=0.0,
        ent_coef=0.0,
        max_grad_norm=1e9,
        learning_rate=rate,
        seed=0,
        policy_kwargs={
            "net_arch": {"pi": [], "vf": []},
            "ortho_init": False,
            "optimizer_class": torch.optim.SGD,
            "optimizer_kwargs": {},
        },
    )
    with torch.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
    selector = Selector(env.observation_space.shape[0], 4)
    selector.units.load_state_dict(model.policy.action_net.state_dict())
    before = selector.units.weight.detach().clone()
    model.learn(8 * steps)
    buffer = model.rollout_buffer  # flattened to [rows, ...] by learn()
    states, actions, rewards = (
        torch.as_tensor(a).float() for a in (buffer.observations, buffer.actions, buffer.returns[:, 0])
    )
    assert rewards.abs().max() > 0
    (-surrogate(selector(states), actions, rewards)).backward()
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter -= rate * parameter.grad
    assert (selector.units.weight - before).abs().max() > 1e-4
    for ours, theirs in zip(selector.units.parameters(), model.policy.action_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_zoo_trains_it(tiny_overrides, tmp_path) -> None:
    pytest.importorskip("rl_zoo3", reason="rl_zoo3 is in the extra 'contrib'")
    settings = yaml.safe_load((ROOT / "configs" / "zoo_ppo.yml").read_text())
    settings["TeacherSelect-v0"] |= {
        "n_timesteps": 96,
        "n_steps": 48,
        "batch_size": 48,
        "env_kwargs": {"overrides": tiny_overrides},
    }
    (tmp_path / "zoo.yml").write_text(yaml.safe_dump(settings))
    words = ["--algo", "ppo", "--env", "TeacherSelect-v0", "--gym-packages", "envs", "--seed", "0", "--device", "cpu"]
    places = ["--conf-file", str(tmp_path / "zoo.yml"), "--log-folder", str(tmp_path / "logs"), "--eval-freq", "-1"]
    done = subprocess.run(
        [sys.executable, "-m", "rl_zoo3.train", *words, *places], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("logs/ppo/TeacherSelect-v0_1/TeacherSelect-v0.zip"))


def test_torchrl_accepts_the_specs(tiny_config) -> None:
    pytest.importorskip("torchrl", reason="torchrl is optional")
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    check_env_specs(GymWrapper(gym.make("envs:TeacherSelect-v0", config=tiny_config())))


def test_the_zoo_file_knows_the_length_of_an_episode() -> None:
    """Four episodes of the default bundled run, as its comment says."""
    from configs import compose

    config = compose()
    batches = round(config["task"]["corpus"]["train"] / config["budget"]["batch_size"])
    rows = config["budget"]["epochs"] * batches * config["budget"]["batch_size"]
    settings = yaml.safe_load((ROOT / "configs" / "zoo_ppo.yml").read_text())["TeacherSelect-v0"]
    assert settings["n_timesteps"] == 4 * rows
