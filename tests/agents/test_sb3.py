"""agents/sb3.py: every algorithm trains from one command line, is judged as REINFORCE is, and decides as documented."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import sb3
from agents.experiment.launch import launch
from distill.checks import UserError
from distill.settings import SB3_DEFAULTS, RunSettings, SB3Settings

FIRST = {"dqn": 8, "qrdqn": 8, "sac": 8, "td3": 8}  # learning starts, within the tiny budget


@pytest.mark.parametrize("name", list(SB3_DEFAULTS))
def test_trains_and_writes_results(name, tiny_overrides, tmp_path, monkeypatch, capsys) -> None:
    if name in sb3.CONTRIB and importlib.util.find_spec("sb3_contrib") is None:
        pytest.skip(f"{name} needs sb3-contrib")
    small = [f"agent.params.learning_starts={FIRST[name]}"] if name in FIRST else []
    small += ["agent.params.batch_size=16"] if name != "a2c" else []
    arguments = [f"agent={name}", "agent.episodes=2", "threads=1", *small, *tiny_overrides]
    monkeypatch.setattr(sys, "argv", ["sb3.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}"])
    launch(sb3.run, config="sb3")
    assert f"{name} - control" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["agent"] == name
    assert results["cost"]["student_steps"] == 12
    assert {"control", "student", "oracle", "warm_start", "selection"} <= set(results)
    weights = load_file(tmp_path / "run" / "policy.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert (tmp_path / "run" / "model.zip").is_file()


def test_the_default_is_ppo(tiny_overrides, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "argv", ["sb3.py", *tiny_overrides, f"hydra.run.dir={tmp_path / 'run'}"])
    launch(lambda config: seen.append(RunSettings.from_config(config).agent.name), config="sb3")
    assert seen == ["ppo"]


@pytest.mark.parametrize("name", list(SB3_DEFAULTS))
def test_the_files_and_the_settings_agree_on_defaults(name) -> None:
    """ppo and dqn have a file of their own in configs/agent, the others only the table in distill/settings.py."""
    from configs import compose

    agent = compose([f"agent={name}"])["agent"]
    assert (agent["lr"], agent["params"]) == SB3_DEFAULTS[name]
    assert RunSettings.from_config(compose([f"agent={name}"])).agent == SB3Settings(name=name)


@pytest.mark.parametrize(
    ("algorithm", "policy", "expected"),
    [
        ("ppo", "linear", {"pi": [], "vf": [64, 64]}),
        ("ppo", "mlp", {"pi": [64, 64], "vf": [64, 64]}),
        ("dqn", "linear", []),
        ("sac", "linear", {"pi": [], "qf": [64, 64]}),
    ],
)
def test_linear_means_the_papers_policy(algorithm, policy, expected) -> None:
    assert sb3.architecture(algorithm, policy)["net_arch"] == expected


def test_an_unknown_policy_is_an_error(tiny_config) -> None:
    with pytest.raises(UserError, match="policy=cubic is not known"):
        RunSettings.from_config(tiny_config("agent=ppo", "policy=cubic"))


def test_a_unit_at_one_half_is_on(tiny_config) -> None:
    """The tie rule of agents/reinforce.py: without knowledge, all teachers and not none."""
    import gymnasium as gym
    from stable_baselines3.common.vec_env import VecMonitor

    from envs.sb3 import SharedVecEnv

    env = gym.make_vec("envs:TeacherSelect-v0", num_envs=8, config=tiny_config())
    settings = SB3Settings(params={"n_steps": 2, "batch_size": 8})
    model = sb3.make(settings, "linear", VecMonitor(SharedVecEnv(env)), 0)
    with torch.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter.zero_()
    states, _ = env.reset(seed=0)
    chosen = sb3.FixedPolicy(model, np.asarray, "subsets")(states, env.unwrapped.core.process.batch)
    assert chosen.shape == (8, 4)
    assert (chosen == 1).all()


def test_gains_of_every_episode_are_kept(tiny_config, tmp_path, monkeypatch) -> None:
    """Gains telescope: the student's value at the end of an episode minus the warm start's."""
    from envs.rewards import ValidationGain

    values = []
    score = ValidationGain.score
    monkeypatch.setattr(ValidationGain, "score", lambda self: values.append(score(self)) or values[-1])
    config = tiny_config(
        "agent=ppo", "agent.episodes=3", "agent.params.batch_size=16", "agent.params.n_steps=2", "reward.every=2"
    )
    core, learnt = sb3.learn(RunSettings.from_config(config), tmp_path)
    assert core.settings.credit.name == "influence"  # what auto means here
    warm, steps = values[0], values[1:10]  # three measurements an episode
    assert [point["episode"] for point in learnt.curve] == [0, 1, 2]
    expected = [steps[2] - warm, steps[5] - warm, steps[8] - warm]
    assert [point["gain"] for point in learnt.curve] == pytest.approx(expected)


def test_wrong_parameters_end_in_one_line(tiny_config) -> None:
    import gymnasium as gym
    from stable_baselines3.common.vec_env import VecMonitor

    from envs.sb3 import SharedVecEnv

    env = VecMonitor(SharedVecEnv(gym.make_vec("envs:TeacherSelect-v0", num_envs=8, config=tiny_config())))
    with pytest.raises(UserError, match="do not fit ppo"):
        sb3.make(SB3Settings(params={"no_such_option": 1}), "linear", env, 0)
