"""Stable-Baselines3 on TeacherSelect-v0: PPO, A2C, TRPO, DQN, QR-DQN, SAC and TD3, judged exactly as the paper's policy is.

`python agents/sb3.py agent=ppo` trains on the vector environment (B rows, one student), then runs the control and the
learnt policy, fixed, from the same warm start for the same number of steps, and writes the same results.json as
`agents/reinforce.py`. `policy=linear` (the default) is the paper's policy: one linear layer, independent Bernoulli units.

Row i holds another instance at every step, so an episode is not the trajectory of one thing. With `credit.name=influence`
(the default) a row is paid its own share at once, so gamma is 0. With `credit.name=shared` use `agent.params.gamma=1.0`.
`VecMonitor` counts rows as episodes, not students; what counts is the table at the end.

`agent.env=TeacherSelect/Labels-v0` trains on the labels of the reward split instead, in seconds and without a student. The
policy that was learnt there then chooses the teachers of the student in `TeacherSelect-v0`.

A run that is resumed repeats the training of its agent from the beginning, unless that had finished: the algorithms have no
public way to save all of their state. Model files are zip archives with pickled parts: load only those you wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
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
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.dqn.policies import DQNPolicy

import envs  # noqa: F401  registers TeacherSelect-v0
from agents.experiment import runs
from agents.experiment.checkpoints import Checkpoints, report
from agents.experiment.launch import launch, run_folder
from agents.rules import Policy, references
from distill.checks import UserError
from distill.process import TrainingBatch
from distill.progress import Progress, expect
from distill.selection import FORMS, Fit
from distill.settings import SB3_DEFAULTS, RunSettings, SB3Settings
from envs.actions import Actions, subset_table
from envs.core import Core
from envs.credit import with_credit
from envs.labels import Labels, LabelsVectorEnv
from envs.sb3 import SharedVecEnv

DISCRETE, CONTINUOUS, CONTRIB = ("dqn", "qrdqn"), ("sac", "td3"), ("trpo", "qrdqn")
LABEL_ROWS = 64  # rows of TeacherSelect/Labels-v0


def algorithm(name: str) -> Any:
    """The SB3 class; `UserError` when it is in sb3-contrib and that is not installed."""
    if name not in CONTRIB:
        return getattr(stable_baselines3, name.upper())
    try:
        import sb3_contrib
    except ImportError:
        raise UserError(f"agent={name} is in sb3-contrib, which is not installed: pip install sb3-contrib") from None
    return {"trpo": sb3_contrib.TRPO, "qrdqn": sb3_contrib.QRDQN}[name]


def action_form(name: str) -> str:
    """The form of action that an algorithm supports, an argument of the environment."""
    return "discrete" if name in DISCRETE else "weights" if name in CONTINUOUS else "subset"


def decoder(env: Any) -> Callable[[np.ndarray], np.ndarray]:
    """From actions of an environment's rows to subsets or weights `[B,K]`."""
    actions: Actions = env.unwrapped.actions
    return lambda given: actions.decode(given, (len(given),))


def architecture(name: str, policy: str) -> dict[str, Any]:
    """`policy_kwargs`: the paper's linear policy, or two hidden layers of 64; critics always have the hidden layers."""
    actor: list[int] = [] if policy == "linear" else [64, 64]
    if name in DISCRETE:
        return {"net_arch": actor}
    if name in CONTINUOUS:
        return {"net_arch": {"pi": actor, "qf": [64, 64]}}
    return {"net_arch": {"pi": actor, "vf": [64, 64]}, "ortho_init": False}


def make(settings: SB3Settings, policy: str, env: VecEnv, seed: int) -> BaseAlgorithm:
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


class Curve(BaseCallback):
    """Records the mean gain of every episode, for the report, and shows the progress."""

    def __init__(self, shown: Progress) -> None:
        super().__init__()
        self.shown = shown
        self.curve: list[dict[str, Any]] = []
        self.total = 0.0

    def end(self, gain: float) -> None:
        """The end of an episode."""
        self.curve.append({"episode": len(self.curve), "gain": gain})
        self.total = 0.0


class Gains(Curve):
    """In TeacherSelect-v0: what the student gained."""

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]  # all rows share one student
        if "failure" in info:
            raise UserError(str(info["failure"]))
        self.shown.update()
        self.total += float(info.get("gain", 0.0))
        if self.locals["dones"][0]:
            self.end(self.total)
        return True


class LabelRewards(Curve):
    """In TeacherSelect/Labels-v0, where an episode is a pass over the `size` instances: the mean reward."""

    def __init__(self, shown: Progress, size: int) -> None:
        super().__init__(shown)
        self.size, self.rows = size, 0

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        self.total += float(rewards.sum())
        self.rows += len(rewards)
        self.shown.update()
        if self.rows >= self.size:
            self.end(self.total / self.rows)
            self.rows = 0
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
        return self.choose(states, batch.answered)

    def choose(self, states: np.ndarray, answered: np.ndarray) -> np.ndarray:
        """Subsets or weights `[B,K]`, where the teachers `answered` `[B,K]` have an answer."""
        if self.form == "subsets":
            return self.act(states)
        if isinstance(self.model.policy, ActorCriticPolicy):
            return FORMS[self.form](self._probabilities(states), answered)
        given = self.act(states)
        return np.where((given * answered).any(1, keepdims=True), given, np.float32(1))

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
    if agent.on_labels:
        return learn_on_labels(settings, agent, folder, checkpoints)

    # 1. The environment, with the action space that the algorithm needs.
    env: Any = gym.make_vec(
        "envs:TeacherSelect-v0",
        num_envs=settings.budget.batch_size,
        config=settings.to_config(),
        actions=action_form(agent.name),
    )
    core: Core = env.unwrapped.core
    budget = core.process.budget
    steps = agent.joint_episodes * budget

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
        shown = Progress("joint training", steps, budget=budget, trainings=agent.joint_episodes, plain=False)
        kept |= _train(model, agent, steps * core.batch_size, Gains(shown), folder, stage.purge_step)
        model.save(folder / "model.zip")  # here, because a run that is resumed after training has only the policy
    stage.finish(model.num_timesteps, **{**kept, "policy": model.policy})

    # 3. What the run leaves behind.
    save_policy(model, folder)
    rule = FixedPolicy(model, decoder(env), runs.final_form(core, fit))
    return core, runs.Learnt(rule, fit_s + kept["seconds"], steps, curve=kept["curve"])


def save_policy(model: BaseAlgorithm, folder: Path) -> None:
    """Write the policy's weights to `folder/policy.safetensors`."""
    save_file({k: v.contiguous().clone() for k, v in model.policy.state_dict().items()}, folder / "policy.safetensors")


def learn_on_labels(
    settings: RunSettings, agent: SB3Settings, folder: Path, checkpoints: Checkpoints
) -> tuple[Core, runs.Learnt]:
    """`learn` on TeacherSelect/Labels-v0: one labelled reward instance a step, no student.

    The student's environment has the parts of the observation that the policy has seen.
    """
    # 1. The environment of the labels, and the student's with the same observation.
    form = action_form(agent.name)
    env: Any = gym.make_vec("envs:TeacherSelect/Labels-v0", LABEL_ROWS, config=settings.to_config(), actions=form)
    labels: LabelsVectorEnv = env.unwrapped
    seen = replace(settings.observation, parts=list(labels.observe.parts))
    core = Core(replace(settings, observation=seen))
    checkpoints.attach(core.process)

    # 2. Training, or the policy of a training that had finished.
    model = make(agent, settings.policy, SharedVecEnv(env), settings.seed)
    stage = checkpoints.stage("training")
    kept: dict[str, Any] = {"curve": [], "seconds": 0.0, **stage.restore(policy=model.policy)}
    if not stage.finished:
        total = agent.passes * len(labels.problem)
        callback = LabelRewards(Progress("training on the labels", -(-total // LABEL_ROWS)), len(labels.problem))
        kept |= _train(model, agent, total, callback, folder, stage.purge_step)
        model.save(folder / "model.zip")
    stage.finish(model.num_timesteps, **{**kept, "policy": model.policy})
    save_policy(model, folder)

    # 3. How good it is there, against the best linear policy.
    rule = FixedPolicy(model, decoder(env), "weights" if form == "weights" else "taught")
    scores = label_scores(labels, rule)
    report(
        "on the labels, nats over all teachers: reward {reward:+.3f} (regret to the best linear policy {regret:.3f}), "
        "dev {dev:+.3f} (fit by likelihood {fit:+.3f})".format(**scores)
    )
    return core, runs.Learnt(rule, kept["seconds"], 0, curve=kept["curve"], on_labels=scores)


def label_scores(labels: Labels, rule: FixedPolicy) -> dict[str, float]:
    """Mean reward of a policy over all labels of a split, nats over all teachers.

    Returns:
        `reward` and `dev`, its scores on these splits; `regret`, to the best linear policy on reward; `fit`, the score on
        dev of the selector that is fitted by likelihood.
    """

    def chosen(role: str) -> np.ndarray:
        problem = labels.split(role)
        return rule.choose(problem.states.astype(np.float32), problem.answered > 0)

    dev = labels.split("dev")
    return {
        **{role: labels.score(chosen(role), role) for role in ("reward", "dev")},
        "regret": labels.regret(chosen("reward")),
        "fit": labels.score(labels.fit.choose(dev.states, dev.answered > 0), "dev"),
    }


def _train(
    model: BaseAlgorithm, agent: SB3Settings, total: int, callback: Curve, folder: Path, purge_step: int | None
) -> dict[str, Any]:
    """Train the model for `total` rows; returns the curve of the callback and the `seconds` it took."""
    runs.event_writer(folder, purge_step).close()  # reports a folder that cannot be written
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    started = time.perf_counter()
    try:
        with callback.shown:
            model.learn(total, callback)
    finally:  # a policy that is not finite is the cause of whatever else was raised
        check_policy(model, agent)
    return {"curve": callback.curve, "seconds": time.perf_counter() - started}


def run(config: dict[str, Any]) -> None:
    """One run: training, control, fixed policy, results."""
    settings = runs.start(config)
    checkpoints = Checkpoints(run_folder(), settings)
    if checkpoints.already_finished():
        return
    expect(runs.trainings_of(settings))
    core, learnt = learn(settings, run_folder(), checkpoints)
    rules = references(core, settings.seed, oracle=settings.agent.oracle)
    runs.conclude(core, settings, learnt, rules, "agents/sb3.py", checkpoints)


if __name__ == "__main__":
    from agents import sb3 as script  # the workers of a sweep unpickle what they run, so it needs a module's name

    launch(script.run, config="sb3")
