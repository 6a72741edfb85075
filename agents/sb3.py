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

import random
import sys
import time
from collections import deque
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
from torch.utils.tensorboard import SummaryWriter

import configs
import envs  # noqa: F401  registers TeacherSelect-v0
from agents.experiment import runs
from agents.experiment.checkpoints import Checkpoints, Kept, Stage
from agents.rules import Policy
from distill.checks import UserError, check, check_rate, one_of
from distill.settings import parse
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
        if self.episodes <= 0:
            raise UserError(f"agent.episodes={self.episodes} must be positive")


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


class Gains(Kept, BaseCallback):
    """Keeps the gain of every episode of joint training, for the report."""

    KEPT = ("curve", "total")

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
    if not finite:
        raise UserError(f"the policy's weights are not finite numbers with agent.lr={settings.lr:g}; lower agent.lr")


class Training:
    """All that the coming steps of an algorithm depend on between two rollouts: networks, replay, generators, environment."""

    ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")  # of a replay buffer

    def __init__(self, model: BaseAlgorithm, monitor: VecMonitor, env: Any) -> None:
        self.model, self.monitor, self.env = model, monitor, env
        self.replay: Any = getattr(model, "replay_buffer", None)

    def _tensors(self) -> dict[str, Any]:
        """Those that belong to no module (SAC's temperature)."""
        return {name: getattr(self.model, name) for name in self.model._get_torch_save_params()[1]}

    def _rows(self) -> dict[str, np.ndarray]:
        """What the replay buffer holds so far, as views."""
        held = {n: getattr(self.replay, n) for n in self.ARRAYS if hasattr(self.replay, n)}
        return {n: values if self.replay.full else values[: self.replay.pos] for n, values in held.items()}

    def get_state(self) -> dict[str, Any]:
        """Arrays, tensors and JSON values."""
        model, clock = self.model, ("start_time", "_num_timesteps_at_start")
        counters = {k: v for k, v in vars(model).items() if isinstance(v, int | float) and k not in clock}
        return {
            "counters": counters,
            "modules": model.get_parameters(),
            "tensors": self._tensors(),
            "last": [model._last_obs, model._last_episode_starts],
            "replay": None
            if self.replay is None
            else {"pos": self.replay.pos, "full": self.replay.full, **self._rows()},
            "episodes": [{k: float(v) for k, v in info.items()} for info in model.ep_info_buffer or ()],
            "monitor": [self.monitor.episode_returns, self.monitor.episode_lengths],
            "env": self.env.get_state(),
            # Stable-Baselines3 draws from the global generators.
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
            "python": random.getstate(),
            "actions": model.action_space.np_random.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state()` of an algorithm with the same settings."""
        model = self.model
        vars(model).update(state["counters"])
        model.set_parameters(state["modules"], device=model.device)
        with torch.no_grad():
            for name, value in self._tensors().items():
                value.copy_(state["tensors"][name])
        model._last_obs, model._last_episode_starts = state["last"]
        if self.replay is not None:
            self.replay.pos, self.replay.full = state["replay"]["pos"], state["replay"]["full"]
            for name, values in self._rows().items():
                values[:] = state["replay"][name]
        model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
        self.monitor.episode_returns, self.monitor.episode_lengths = state["monitor"]
        self.env.set_state(state["env"])
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        model.action_space.np_random.bit_generator.state = state["actions"]


class Keeper(BaseCallback):
    """Takes checkpoints, and goes on from one, where an algorithm's state is whole: before a rollout."""

    def __init__(self, stage: Stage, training: Training, gains: Gains) -> None:
        super().__init__()
        self.stage, self.parts = stage, {"training": training, "gains": gains}
        self.started = time.perf_counter()
        self.exact = not training.model.use_sde  # its noise is part of no state

    def restore(self) -> None:
        """Go on from the stage's checkpoint, if there is one."""
        self.started -= self.stage.restore(**self.parts).get("spent", 0.0)

    @property
    def spent(self) -> float:
        """Seconds of training."""
        return time.perf_counter() - self.started

    def _on_rollout_start(self) -> None:
        self.restore()  # here and not before `learn`, which begins by resetting what it finds
        if self.exact:
            self.stage.offer(self.model.num_timesteps, **self.parts, spent=self.spent)

    def _on_step(self) -> bool:
        return True


def fixed_rule(model: BaseAlgorithm, decode: Callable[[np.ndarray], np.ndarray]) -> Policy:
    """The learnt policy without exploration. A Bernoulli unit at exactly one half is on, as in `agents/reinforce.py`."""

    def choose(states: np.ndarray) -> np.ndarray:
        if isinstance(model.policy, ActorCriticPolicy):
            with torch.no_grad():
                distribution: Any = model.policy.get_distribution(model.policy.obs_to_tensor(states)[0])
                return (distribution.distribution.probs >= 0.5).float().numpy()
        return np.asarray(decode(model.predict(states, deterministic=True)[0]), np.float32)

    return Policy(choose)


def learn(config: dict[str, Any], folder: Path, checkpoints: Checkpoints | None = None) -> tuple[Core, runs.Learnt]:
    """Training alone: the environment's core and what was learnt; events, model and policy are written to `folder`."""
    checkpoints = checkpoints or Checkpoints()
    name = config["agent"]["name"]
    if name == "reinforce":
        raise UserError("agent=reinforce runs with python agents/reinforce.py; choose from " + ", ".join(NAMES))
    settings = parse(SB3Settings, config["agent"], "agent")
    config["reward"]["credit"] = settings.credit if config["reward"]["name"] == "validation_gain" else "shared"
    algorithm(settings.name)  # a missing package or an unknown policy is told before anything is trained
    architecture(settings.name, config["policy"])
    env: Any = gym.make_vec("envs:TeacherSelect-v0", num_envs=config["budget"]["batch_size"], config=config)
    core, inner = env.unwrapped.core, env.unwrapped
    decode: Callable[[np.ndarray], np.ndarray] = np.asarray
    if settings.name in DISCRETE:
        env = DiscreteSubsetsVector(env)
        decode = env.actions
    elif settings.name in CONTINUOUS:
        env = TeacherWeightsVector(env)
    monitor = VecMonitor(SharedVecEnv(env))
    model = make(settings, config["policy"], monitor, config["seed"])
    checkpoints.attach(core.process)
    stage = checkpoints.stage("training")
    if stage.purge_step is not None:  # SB3's own writer cannot purge
        SummaryWriter(str(folder / "tensorboard"), purge_step=stage.purge_step).close()
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    gains = Gains()
    keeper = Keeper(stage, Training(model, monitor, inner), gains)
    if stage.finished:
        keeper.restore()
    else:
        total = settings.episodes * core.process.budget * core.batch_size
        try:
            model.learn(total, [gains, keeper], progress_bar=sys.stderr.isatty())
        finally:  # whatever torch or the environment says of such a policy, this is why
            check_policy(model, settings)
    seconds = keeper.spent
    stage.finish(model.num_timesteps, **keeper.parts, spent=seconds)
    model.save(folder / "model.zip")
    state = {k: v.contiguous().clone() for k, v in model.policy.state_dict().items()}
    save_file(state, folder / "policy.safetensors")
    return core, runs.Learnt(fixed_rule(model, decode), seconds, settings.episodes, curve=gains.curve)


def run(config: dict[str, Any]) -> None:
    """One run: training, control, fixed policy, results."""
    checkpoints = Checkpoints(runs.run_folder(), config)
    if checkpoints.already_finished():
        return
    core, learnt = learn(config, runs.run_folder(), checkpoints)
    runs.conclude(core, config, learnt, "agents/sb3.py", config["agent"]["oracle"], checkpoints)


if __name__ == "__main__":
    from agents import sb3 as script

    configs.launch(script.run, "agent=ppo")
