"""Stable-Baselines3 on TeacherSelect-v0: PPO, A2C, TRPO, DQN, QR-DQN, SAC and TD3, judged exactly as the paper's policy is.

`python agents/sb3.py agent=ppo` trains on the vector environment (B rows, one student), then runs the control and the
learnt policy, fixed, from the same warm start for the same number of steps, and writes the same results.json as
`agents/reinforce.py`. `policy=linear` (the default) is the paper's policy: one linear layer, independent Bernoulli units.

Row i holds another instance at every step, so an episode is no trajectory of one thing: with `credit=influence` a row is
paid its own share at once (gamma 0); with `credit=shared` use `agent.params.gamma=1.0`. `VecMonitor`'s episode counts
are rows, not students; what counts is the table at the end. Model files are zip archives with pickled parts: load
only those you wrote.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from safetensors.torch import save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor

import configs
import envs  # noqa: F401  registers TeacherSelect-v0
from agents import runs
from agents.rules import Policy
from distill.settings import UserError, check, check_rate, one_of, parse
from envs.sb3 import SharedVecEnv
from envs.teacher_select import Core
from envs.wrappers import DiscreteSubsetsVector, TeacherWeightsVector

DISCRETE, CONTINUOUS, CONTRIB = ("dqn", "qrdqn"), ("sac", "td3"), ("trpo", "qrdqn")
NAMES = ("ppo", "a2c", "trpo", *DISCRETE, *CONTINUOUS)


@dataclass
class SB3Settings:
    """Options of the agent, `agent.*` on the command line; `params` go to the algorithm as they are."""

    name: str = "ppo"
    credit: str = "influence"
    lr: float = 0.003
    episodes: int = 4
    oracle: bool = True
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of(self.name, NAMES, "agent")
        one_of(self.credit, ("shared", "influence"), "agent.credit")
        check_rate(self.lr, "agent.lr")
        check(self.episodes > 0, f"agent.episodes={self.episodes} must be positive")


def algorithm(name: str) -> Any:
    """The SB3 class; `UserError` when it is in sb3-contrib and that is not installed."""
    if name not in CONTRIB:
        return getattr(stable_baselines3, name.upper())
    try:
        import sb3_contrib
    except ImportError:
        raise UserError(f"agent={name} is in sb3-contrib, which is not installed: pip install sb3-contrib") from None
    return {"trpo": sb3_contrib.TRPO, "qrdqn": sb3_contrib.QRDQN}[name]


def architecture(name: str, policy: str) -> dict[str, Any]:
    """`policy_kwargs`: the paper's linear policy, or two hidden layers of 64; critics always have the hidden layers."""
    one_of(policy, ("linear", "mlp"), "policy")
    actor: list[int] = [] if policy == "linear" else [64, 64]
    if name in DISCRETE:
        return {"net_arch": actor}
    if name in CONTINUOUS:
        return {"net_arch": {"pi": actor, "qf": [64, 64]}}
    return {"net_arch": {"pi": actor, "vf": [64, 64]}, "ortho_init": False}


def make(settings: SB3Settings, policy: str, env: VecMonitor, seed: int) -> BaseAlgorithm:
    """The model over the environment, on the CPU: its networks are far too small for anything else."""
    kwargs: dict[str, Any] = {
        "policy_kwargs": architecture(settings.name, policy),
        "learning_rate": settings.lr,
        "seed": seed,
        "device": "cpu",
    }
    try:
        return algorithm(settings.name)("MlpPolicy", env, **kwargs, **settings.params)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"agent.params={settings.params} do not fit {settings.name} ({' '.join(str(error).split())})"
        ) from None


class Gains(BaseCallback):
    """Keeps the gain of every episode of joint training, for the report."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[dict[str, Any]] = []
        self.total = 0.0

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]  # all rows are one student's
        if "failure" in info:
            raise UserError(str(info["failure"]))
        self.total += float(info.get("gain", 0.0))
        if self.locals["dones"][0]:
            self.curve.append({"episode": len(self.curve), "gain": self.total})
            self.total = 0.0
        return True


def check_policy(model: BaseAlgorithm, settings: SB3Settings) -> None:
    """Raise `UserError` unless the policy's weights are finite."""
    finite = all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())
    check(finite, f"the policy's weights are not finite numbers with agent.lr={settings.lr:g}; lower agent.lr")


def fixed_rule(model: BaseAlgorithm, decode: Callable[[np.ndarray], np.ndarray]) -> Policy:
    """The learnt policy without exploration. A Bernoulli unit at exactly one half is on, as in `agents/reinforce.py`."""

    def choose(states: np.ndarray) -> np.ndarray:
        if isinstance(model.policy, ActorCriticPolicy):
            with torch.no_grad():
                distribution: Any = model.policy.get_distribution(model.policy.obs_to_tensor(states)[0])
                return (distribution.distribution.probs >= 0.5).float().numpy()
        return np.asarray(decode(model.predict(states, deterministic=True)[0]), np.float32)

    return Policy(choose)


def learn(config: dict[str, Any], folder: Path) -> tuple[Core, runs.Learnt]:
    """Training alone: the environment's core and what was learnt; events, model and policy are written to `folder`."""
    name = config["agent"]["name"]
    check(name != "reinforce", "agent=reinforce runs with python agents/reinforce.py; choose from " + ", ".join(NAMES))
    settings = parse(SB3Settings, config["agent"], "agent")
    config["reward"]["credit"] = settings.credit if config["reward"]["name"] == "validation_gain" else "shared"
    algorithm(settings.name)  # a missing package or an unknown policy is told before anything is trained
    architecture(settings.name, config["policy"])
    env: Any = gym.make_vec("envs:TeacherSelect-v0", num_envs=config["budget"]["batch_size"], config=config)
    core: Core = env.unwrapped.core
    decode: Callable[[np.ndarray], np.ndarray] = np.asarray
    if settings.name in DISCRETE:
        env = DiscreteSubsetsVector(env)
        decode = env.actions
    elif settings.name in CONTINUOUS:
        env = TeacherWeightsVector(env)
    model = make(settings, config["policy"], VecMonitor(SharedVecEnv(env)), config["seed"])
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    started = time.perf_counter()
    gains = Gains()
    try:
        model.learn(settings.episodes * core.process.budget * core.batch_size, gains, progress_bar=sys.stderr.isatty())
    finally:  # whatever torch or the environment says of such a policy, this is why
        check_policy(model, settings)
    seconds = time.perf_counter() - started
    model.save(folder / "model.zip")
    state = {k: v.contiguous().clone() for k, v in model.policy.state_dict().items()}
    save_file(state, folder / "policy.safetensors")
    return core, runs.Learnt(fixed_rule(model, decode), seconds, settings.episodes, curve=gains.curve)


def run(config: dict[str, Any]) -> None:
    """One run: training, control, fixed policy, results."""
    core, learnt = learn(config, runs.run_folder())
    runs.conclude(core, config, learnt, "agents/sb3.py", config["agent"]["oracle"])


if __name__ == "__main__":
    from agents import sb3 as script  # a sweep's workers unpickle what they run, so it needs an importable home

    configs.launch(script.run, "agent=ppo")
