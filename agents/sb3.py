"""Stable-Baselines3 on TeacherSelect-v0: PPO, A2C, TRPO, DQN, QR-DQN, SAC and TD3, judged exactly as the paper's policy is.

`python agents/sb3.py agent=ppo` trains on the vector environment (B rows, one student), then runs the control and the
learnt policy, fixed, from the same warm start for the same number of steps, and writes the same results.json as
`agents/reinforce.py`. `policy=linear` (the default) is the paper's policy: one linear layer, independent Bernoulli units.

Row i holds another instance at every step, so an episode is not the trajectory of one thing. With `credit.name=influence`
(the default) a row is paid its own share at once, so gamma is 0. With `credit.name=shared` use `agent.params.gamma=1.0`.
`VecMonitor` counts rows as episodes, not students; what counts is the table at the end.

A run that is resumed repeats the training of its agent from the beginning, unless that had finished: the algorithms have no
public way to save all of their state. Model files are zip archives with pickled parts: load only those you wrote.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
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
from stable_baselines3.dqn.policies import DQNPolicy

import envs  # noqa: F401  registers TeacherSelect-v0
from agents.experiment import runs
from agents.experiment.checkpoints import Checkpoints, report
from agents.experiment.launch import launch, run_folder
from agents.rules import Policy, references
from distill.checks import UserError
from distill.process import TrainingBatch
from distill.selection import FORMS, Fit
from distill.settings import SB3_DEFAULTS, RunSettings, SB3Settings
from envs.actions import subset_table
from envs.core import Core
from envs.credit import with_credit
from envs.sb3 import SharedVecEnv
from envs.wrappers import DiscreteSubsetsVector, TeacherWeightsVector

DISCRETE, CONTINUOUS, CONTRIB = ("dqn", "qrdqn"), ("sac", "td3"), ("trpo", "qrdqn")


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


def start_at(model: BaseAlgorithm, fit: Fit) -> bool:
    """Give a linear policy the weights of a selector's fit, so that it begins where REINFORCE begins.

    Bernoulli units take the weights as they are. A Q function over subsets gets the sum of the chosen teachers' logits, whose
    largest value is at the selector's own subset.

    Returns:
        Whether it was done: not for hidden layers, and not for continuous weights of the teachers.
    """
    weights, bias = torch.from_numpy(fit.weights.T).float(), torch.from_numpy(fit.bias).float()
    policy: Any = model.policy
    with torch.no_grad():
        if isinstance(model.policy, ActorCriticPolicy) and not list(policy.mlp_extractor.policy_net.parameters()):
            policy.action_net.weight.copy_(weights)
            policy.action_net.bias.copy_(bias)
            return True
        if isinstance(model.policy, DQNPolicy) and len(policy.q_net.q_net) == 1:
            subsets = torch.from_numpy(subset_table(len(bias))).float()
            for net in (policy.q_net, policy.q_net_target):
                net.q_net[0].weight.copy_(subsets @ weights)
                net.q_net[0].bias.copy_(subsets @ bias)
            return True
    return False


class Gains(BaseCallback):
    """Records the gain of every episode, for the report."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[dict[str, Any]] = []
        self.total = 0.0

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]  # all rows share one student
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


class FixedPolicy(Policy):
    """A learnt policy without exploration, as `agents.reinforce.SelectorPolicy` fixes its selector.

    Args:
        decode: from the algorithm's actions to subsets or weights `[B,K]`.
        form: what Bernoulli units give, see `agents.experiment.runs.final_form`. Other algorithms give their own actions,
            and all teachers where every row must be taught and they would choose none.
    """

    def __init__(self, model: BaseAlgorithm, decode: Callable[[np.ndarray], np.ndarray], form: str) -> None:
        super().__init__(self._subsets)
        self.model, self.decode, self.form = model, decode, form

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        """Subsets or weights `[B,K]`."""
        if self.form == "subsets":
            return self.act(states)
        if isinstance(self.model.policy, ActorCriticPolicy):
            return FORMS[self.form](self._probabilities(states), batch.answered)
        given = self.act(states)
        return np.where(batch.audible(given).any(1, keepdims=True), given, np.float32(1))

    def _subsets(self, states: np.ndarray) -> np.ndarray:
        if isinstance(self.model.policy, ActorCriticPolicy):
            return (self._probabilities(states) >= 0.5).astype(np.float32)
        return np.asarray(self.decode(self.model.predict(states, deterministic=True)[0]), np.float32)

    @torch.no_grad()
    def _probabilities(self, states: np.ndarray) -> np.ndarray:
        """Probability that each unit is on, `[B,K]`."""
        policy: Any = self.model.policy
        out: np.ndarray = policy.get_distribution(policy.obs_to_tensor(states)[0]).distribution.probs.numpy()
        return out


def learn(settings: RunSettings, folder: Path, checkpoints: Checkpoints | None = None) -> tuple[Core, runs.Learnt]:
    """Training alone. Events, model and policy are written to `folder`.

    Returns:
        The environment's core, and what was learnt.
    """
    checkpoints = checkpoints or Checkpoints()
    agent = settings.agent
    if not isinstance(agent, SB3Settings):
        raise UserError("agent=reinforce runs with python agents/reinforce.py; choose from " + ", ".join(SB3_DEFAULTS))
    settings = with_credit(settings, preferred="influence")
    algorithm(agent.name)  # a missing package is reported before anything is trained

    # 1. The environment, with the action space that the algorithm needs.
    env: Any = gym.make_vec("envs:TeacherSelect-v0", num_envs=settings.budget.batch_size, config=settings.to_config())
    core: Core = env.unwrapped.core
    decode: Callable[[np.ndarray], np.ndarray] = np.asarray
    if agent.name in DISCRETE:
        env = DiscreteSubsetsVector(env)
        decode = env.actions
    elif agent.name in CONTINUOUS:
        env = TeacherWeightsVector(env)

    # 2. Training, or the policy of a training that had finished.
    model = make(agent, settings.policy, VecMonitor(SharedVecEnv(env)), settings.seed)
    checkpoints.attach(core.process)
    stage = checkpoints.stage("training")
    started = time.perf_counter()
    fit = runs.fitted_start(core, agent.start)
    if fit is not None and not start_at(model, fit):
        report(f"agent={agent.name} with policy={settings.policy} cannot start there; it starts from random weights")
    fit_s = time.perf_counter() - started
    kept: dict[str, Any] = {"curve": [], "seconds": 0.0, **stage.restore(policy=model.policy)}
    if not stage.finished:
        kept |= _train(model, agent, core, folder, stage.purge_step)
        model.save(folder / "model.zip")  # here, because a run that is resumed after training has only the policy
    stage.finish(model.num_timesteps, **{**kept, "policy": model.policy})

    # 3. What the run leaves behind.
    state = {k: v.contiguous().clone() for k, v in model.policy.state_dict().items()}
    save_file(state, folder / "policy.safetensors")
    rule = FixedPolicy(model, decode, runs.final_form(core, fit))
    return core, runs.Learnt(rule, fit_s + kept["seconds"], agent.joint_episodes, curve=kept["curve"])


def _train(
    model: BaseAlgorithm, agent: SB3Settings, core: Core, folder: Path, purge_step: int | None
) -> dict[str, Any]:
    """Train the model for the agent's episodes; returns the gains by episode (`curve`) and the `seconds` it took."""
    runs.event_writer(folder, purge_step).close()  # reports a folder that cannot be written
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    gains, started = Gains(), time.perf_counter()
    total = agent.joint_episodes * core.process.budget * core.batch_size
    try:
        model.learn(total, gains, progress_bar=sys.stderr.isatty())
    finally:  # a policy that is not finite is the cause of whatever else was raised
        check_policy(model, agent)
    return {"curve": gains.curve, "seconds": time.perf_counter() - started}


def run(config: dict[str, Any]) -> None:
    """One run: training, control, fixed policy, results."""
    settings = runs.start(config)
    checkpoints = Checkpoints(run_folder(), settings)
    if checkpoints.already_finished():
        return
    core, learnt = learn(settings, run_folder(), checkpoints)
    rules = references(core, settings.seed, oracle=settings.agent.oracle)
    runs.conclude(core, settings, learnt, rules, "agents/sb3.py", checkpoints)


if __name__ == "__main__":
    from agents import sb3 as script  # the workers of a sweep unpickle what they run, so it needs a module's name

    launch(script.run, config="sb3")
