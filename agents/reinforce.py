"""The paper's selector: K logistic units on the state, trained by REINFORCE while the student learns.

Reinforced Multi-Teacher Selection for Knowledge Distillation, arXiv 2012.06048 (AAAI 2021). From top to bottom: the
policy, its gradient, joint training, and the run:

1. warm start: the student is distilled from the average of all teachers (made once, kept on disk);
2. joint episodes: the selector chooses, the student steps, the selector learns; the best one on dev is kept;
3. from the same warm start, for the same number of steps and on the same batches: the control (all teachers) and the
   student of the learnt policy, now fixed;
4. a table, results.json, TensorBoard events, the student in transformers format, the policy.

`python agents/reinforce.py` runs the bundled task; `--help` lists the settings.

The policy, the state and the warm start are the paper's. Two things differ. The gradient is grad log pi with a baseline: a
public re-implementation uses grad pi without one, which settles near one half whatever the teachers are worth. And with
`credit.name=counterfactual` the environment gives the advantage of every single choice (`info["teacher_advantage"]`), so
the gradient needs no sampled return.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import envs  # noqa: F401  registers TeacherSelect-v0
from agents.experiment import runs
from agents.experiment.checkpoints import Checkpoints, Stage
from agents.experiment.launch import launch, run_folder
from agents.rules import Policy, references
from distill.checks import UserError
from distill.process import TrainingBatch
from distill.progress import Progress, expect
from distill.selection import FORMS, Fit, never_empty
from distill.settings import ReinforceSettings, RunSettings
from distill.state import Stateful
from envs.core import Core
from envs.credit import with_credit
from envs.teacher_select import TeacherSelectVectorEnv

EVENTS_EVERY = 10  # student steps between two points of the entropy's curve

# --- the policy -------------------------------------------------------------------------------------------------------


class Selector(nn.Module):
    """K independent logistic units: p_k = sigmoid(A_k . s + b_k), pi(a) = prod_k p_k^a_k (1 - p_k)^(1 - a_k)."""

    def __init__(self, state: int, teachers: int, bias: float = 0.0) -> None:
        super().__init__()
        self.units = nn.Linear(state, teachers)
        nn.init.zeros_(self.units.weight)
        nn.init.constant_(self.units.bias, bias)

    def forward(self, states: Tensor) -> Tensor:
        """Logits `[B,K]` of states `[B,S]`."""
        out: Tensor = self.units(states)
        return out

    @torch.no_grad()
    def start_at(self, fit: Fit) -> None:
        """Take the weights of a fit."""
        self.units.weight.copy_(torch.from_numpy(fit.weights.T))
        self.units.bias.copy_(torch.from_numpy(fit.bias))

    @torch.no_grad()
    def sample(self, states: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Subsets drawn from pi, float32 `[B,K]`."""
        return torch.bernoulli(torch.sigmoid(self(torch.from_numpy(states))), generator=generator).numpy()

    @torch.no_grad()
    def greedy(self, states: np.ndarray) -> np.ndarray:
        """The most likely subsets, float32 `[B,K]`. A unit at exactly one half is on: without knowledge, all teachers."""
        return (self(torch.from_numpy(states)) >= 0).float().numpy()


# --- its gradient -----------------------------------------------------------------------------------------------------


def log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi(a|s) `[B]`: the sum over the K units."""
    return -F.binary_cross_entropy_with_logits(logits, actions, reduction="none").sum(-1)


def entropy_of(logits: Tensor) -> Tensor:
    """Mean entropy of the units (nats), a scalar, from logits `[B,K]`."""
    p = torch.sigmoid(logits)
    return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).mean()


def divergence(logits: Tensor, start: Tensor) -> Tensor:
    """Mean KL(pi || pi_start) of the units (nats), a scalar, from logits `[B,K]` of both."""
    p = torch.sigmoid(logits)
    on = F.logsigmoid(logits) - F.logsigmoid(start)
    off = F.logsigmoid(-logits) - F.logsigmoid(-start)
    return (p * on + (1 - p) * off).mean()


def surrogate(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """A scalar whose gradient is the mean over rows of the policy gradient.

    Advantages `[B]` (of the row's subset): REINFORCE, `A grad log pi(a)`. Advantages `[B,K]` (of every teacher: on minus
    off, the other bits as sampled): its Rao-Blackwellised form, `sum_k A_k grad p_k`, where the expectation over bit k
    is exact instead of sampled.
    """
    if advantages.ndim == 1:  # one for every row, or a single one for all rows
        return (advantages * log_prob(logits, actions)).mean()
    return (advantages * torch.sigmoid(logits)).sum(-1).mean()


class Advantages(Stateful):
    """Turns what a step reported into normalised advantages, by the kind of credit that the environment gave."""

    STATE = ("mean", "spread", "count")

    def __init__(self, decay: float, by_row: bool = False) -> None:
        self.decay = decay  # of the shared reward's running mean and spread
        self.by_row = by_row  # whether the credit is by row; steps without any are then not learnt from
        self.mean, self.spread, self.count = 0.0, 0.0, 0

    def __call__(self, rewards: np.ndarray, info: dict[str, Any]) -> Tensor | None:
        """Advantages `[B,K]`, `[B]` or (shared) `[1]`; None while there is nothing to learn from."""
        if "teacher_advantage" in info:
            return _scaled(info["teacher_advantage"])
        if "row_credit" in info:
            return _scaled(rewards - rewards.mean())
        if self.by_row or "measured" not in info:
            return None
        reward = float(rewards.mean())
        self.count += 1
        if self.count == 1:  # nothing to compare with yet
            self.mean = reward
            return None
        advantage = reward - self.mean
        self.mean += (1 - self.decay) * advantage
        self.spread = self.decay * self.spread + (1 - self.decay) * abs(advantage)
        unbiased = self.spread / (1 - self.decay ** (self.count - 1))
        return torch.tensor([advantage / (unbiased + 1e-12)], dtype=torch.float32)


def _scaled(values: np.ndarray) -> Tensor:
    """Values over their standard deviation. In double precision: equal values must give zero, not rounding noise."""
    exact = np.asarray(values, np.float64)
    return torch.from_numpy(exact / (exact.std() + 1e-12)).float()


def update(
    selector: Selector,
    optimizer: torch.optim.Optimizer,
    states: np.ndarray,
    actions: np.ndarray,
    advantages: Tensor,
    entropy_weight: float,
    start: Selector | None = None,
    trust: float = 0.0,
) -> float:
    """One gradient step of the selector on states `[N,S]` and the actions `[N,K]` taken there.

    With a `start` the loss has a penalty on the divergence from it.

    Returns:
        The mean entropy of the units before the step, nats.
    """
    seen = torch.from_numpy(states)
    logits = selector(seen)
    entropy = entropy_of(logits)
    loss = -surrogate(logits, torch.from_numpy(actions), advantages) - entropy_weight * entropy
    if start is not None and trust:
        with torch.no_grad():
            target = start(seen)
        loss = loss + trust * divergence(logits, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(entropy.item())


# --- joint training ---------------------------------------------------------------------------------------------------


class SelectorPolicy(Policy):
    """A selector, fixed.

    Args:
        form: what it gives, see `agents.experiment.runs.final_form`.
    """

    def __init__(self, selector: Selector, form: str) -> None:
        super().__init__(selector.greedy)
        self.selector, self.form = selector, form

    @torch.no_grad()
    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        """Subsets or weights `[B,K]`."""
        if self.form == "subsets":
            return self.act(states)
        probabilities = torch.sigmoid(self.selector(torch.from_numpy(states))).numpy()
        return FORMS[self.form](probabilities, batch.answered)


@torch.no_grad()
def filled(selector: Selector, subsets: np.ndarray, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
    """Subsets `[B,K]` without empty rows, see `distill.selection.never_empty`."""
    return never_empty(subsets, selector(torch.from_numpy(states)).numpy(), batch.answered)


class Kept(Stateful):
    """The selector and the student of an episode."""

    STATE = ("selector", "best", "selected")

    def __init__(self, selector: Selector, best: runs.Best, selected: runs.Selected) -> None:
        self.selector = copy.deepcopy(selector)
        self.best, self.selected = best, selected


@dataclass
class Joint(Stateful):
    """The progress of joint training: everything a checkpoint must hold beside the networks and the environment."""

    best: runs.Best  # the student of this episode with the best dev score
    selected: runs.Selected
    kept: Kept  # of the episode with the best dev score
    states: np.ndarray | None = None  # those that the coming step acts on; None between two episodes
    # states and actions without a reward yet
    pending: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    total: float = 0.0  # gain of this episode
    episode: int = 0
    steps: int = 0
    spent: float = 0.0  # seconds of the steps
    elapsed: float = 0.0  # seconds in all
    curve: list[dict[str, Any]] = field(default_factory=list)


def initial_selector(core: Core, settings: ReinforceSettings) -> tuple[Selector, Fit | None]:
    """The selector before joint training, and the fit behind it; None where it starts at all teachers."""
    selector = Selector(core.observe.space.shape[0], core.process.num_teachers, settings.bias)
    fit = runs.fitted_start(core, settings.start)
    if fit is not None:
        selector.start_at(fit)
    return selector, fit


def train(
    env: TeacherSelectVectorEnv,
    settings: ReinforceSettings,
    start: Selector,
    fit: Fit | None,
    seed: int,
    writer: SummaryWriter,
    stage: Stage | None = None,
) -> Joint:
    """Joint training: in every episode the student restarts and the selector learns on.

    Args:
        env: the vector environment, without automatic resets.
        start: the selector before training. It is not changed; a penalty keeps the learnt one near it.
        fit: the fit behind it; None: it starts at all teachers, and a warm-up comes first.

    Returns:
        The end of joint training; `kept` holds the selector and the student of the episode with the best dev score.
    """
    process, stage = env.core.process, stage or Stage()
    rng = torch.Generator().manual_seed(seed)
    selector = copy.deepcopy(start)
    optimizer = torch.optim.Adam(selector.parameters(), lr=settings.lr)
    credit = Advantages(settings.baseline, env.core.credit.by_row)
    fill = runs.always_taught(env.core, fit)
    all_teachers = np.ones((env.num_envs, process.num_teachers), np.float32)
    at = Joint(runs.Best(process), runs.Selected(process), Kept(start, runs.Best(process), runs.Selected(process)))

    def parts() -> dict[str, Any]:
        """Everything that the coming steps depend on."""
        live = {"at": at, "env": env, "selector": selector, "optimizer": optimizer, "credit": credit}
        return {**live, "rng": rng.get_state()}

    rng.set_state(stage.restore(**parts()).get("rng", rng.get_state()))  # where the run was stopped
    episodes, budget = settings.joint_episodes, process.budget
    shown = Progress(
        "joint training", episodes * budget, initial=at.steps, budget=budget, trainings=episodes, plain=False
    )
    for episode in shown.over(range(at.episode, episodes)):
        if at.states is None:  # not inside an episode that was restored
            at.states, _ = env.reset(
                seed=seed if episode == 0 else None, options={"student": settings.joint if episode else "restart"}
            )
            at.best, at.selected, at.total = runs.Best(process), runs.Selected(process), 0.0
        while at.states is not None:
            stage.offer(at.steps, **parts())
            started = time.perf_counter()

            # 1. Act. The first steps use all teachers: AdamW has no scale yet, so credit means nothing there.
            warming = fit is None and at.steps < settings.warmup
            actions = all_teachers if warming else selector.sample(at.states, rng)
            if fill and process.batch is not None:
                actions = filled(selector, actions, at.states, process.batch)
            rows = env.core.instances()
            next_states, rewards, terminated, _, info = env.step(actions)
            if "failure" in info:
                raise UserError(str(info["failure"][0]))

            # 2. Learn from what was chosen. Learning to repeat the warm-up would only saturate the units.
            if not warming:
                at.pending.append((at.states, actions))
            advantages = None if warming else credit(rewards, info)
            if advantages is not None:
                _learn(env, settings, selector, start, optimizer, at, advantages, writer)
            if credit.by_row or "measured" in info:
                at.pending.clear()  # credit by row answers this step, a shared reward all steps since the last one

            # 3. Keep the books: what was chosen, the gain, the best student on dev.
            at.selected.add(rows, actions)
            at.states = None if terminated.all() else next_states
            at.steps += 1
            at.spent += time.perf_counter() - started
            if "gain" in info:
                at.total += float(info["gain"][0])
                writer.add_scalar("student/value", info["value"][0], at.steps)
            at.best.update()
            shown.update()
            if at.best.ends:  # choices that still wait for a reward get none
                at.states = None
                at.pending.clear()
            at.elapsed += time.perf_counter() - started
        _end_episode(env, selector, at, writer)
        shown.update(at.episode * budget - shown.done)  # what `budget.patience` left out
    stage.finish(at.steps, **parts())
    return at


def _learn(
    env: TeacherSelectVectorEnv,
    settings: ReinforceSettings,
    selector: Selector,
    start: Selector,
    optimizer: torch.optim.Optimizer,
    at: Joint,
    advantages: Tensor,
    writer: SummaryWriter,
) -> None:
    """One update on all pending choices, at the learning rate of this step."""
    if settings.schedule == "linear":
        left = 1 - at.steps / (settings.joint_episodes * env.core.process.budget)
        optimizer.param_groups[0]["lr"] = settings.lr * left
    states, actions = (np.concatenate(column) for column in zip(*at.pending, strict=True))
    at.pending.clear()
    entropy = update(selector, optimizer, states, actions, advantages, settings.entropy, start, settings.trust)
    if not math.isfinite(sum(p.sum().item() for p in selector.parameters())):
        raise UserError(
            f"the selector's weights are not finite after step {at.steps} with agent.lr={settings.lr:g}; lower agent.lr"
        )
    if at.steps % EVENTS_EVERY == 0:  # writing an event takes about 1 % of a small student's step
        writer.add_scalar("policy/entropy", entropy, at.steps)


def _end_episode(env: TeacherSelectVectorEnv, selector: Selector, at: Joint, writer: SummaryWriter) -> None:
    """Write the episode's events, and keep selector and student if they are the best on dev so far."""
    process, best, rates = env.core.process, at.best, at.selected.summary()["rate"]
    for name, rate in zip(process.signals.names, rates, strict=True):
        writer.add_scalar(f"chosen/{name}", rate, at.episode)
    writer.add_scalar(f"dev/{process.task.metric}", best.value, at.episode)
    writer.add_scalar("episode/gain", at.total, at.episode)
    at.curve.append({"episode": at.episode, "gain": at.total, "dev": best.value, "rate": rates})
    if best.value >= at.kept.best.value:
        at.kept = Kept(selector, best, at.selected)
    at.episode += 1


# --- the run ----------------------------------------------------------------------------------------------------------


def learn(settings: RunSettings, folder: Path, checkpoints: Checkpoints | None = None) -> tuple[Core, runs.Learnt]:
    """Joint training alone. Events and the policy are written to `folder`.

    Returns:
        The environment's core, and what was learnt.
    """
    checkpoints = checkpoints or Checkpoints()
    agent = settings.agent
    if not isinstance(agent, ReinforceSettings):
        raise UserError(f"agent={agent.name} runs with python agents/sb3.py; this script takes agent=reinforce")
    settings = with_credit(settings, preferred="counterfactual")
    env: Any = gym.make_vec(
        "envs:TeacherSelect-v0",
        num_envs=settings.budget.batch_size,
        config=settings.to_config(),
        autoreset_mode="disabled",  # the trained student is looked at before the next episode begins
    )
    checkpoints.attach(env.unwrapped.core.process)
    stage = checkpoints.stage("joint")
    core: Core = env.unwrapped.core
    started = time.perf_counter()
    start, fit = initial_selector(core, agent)
    fit_s = time.perf_counter() - started
    with runs.event_writer(folder, stage.purge_step) as writer:
        joint = train(env.unwrapped, agent, start, fit, settings.seed, writer, stage)
    learnt, selector = conclude_training(core, agent, start, fit, joint, settings.seed, checkpoints)
    learnt.seconds += fit_s
    save_file({k: v.contiguous() for k, v in selector.state_dict().items()}, folder / "policy.safetensors")
    return core, learnt


def conclude_training(
    core: Core,
    settings: ReinforceSettings,
    start: Selector,
    fit: Fit | None,
    joint: Joint,
    seed: int,
    checkpoints: Checkpoints,
) -> tuple[runs.Learnt, Selector]:
    """What training leaves behind, and its selector.

    From all teachers, the fixed policy trains a new student, as in the paper. From a fitted start, the student of the
    fixed start competes with those of the joint episodes. The best on dev is kept; ties go to the start.
    """
    kept, seconds, form = joint.kept, joint.elapsed, runs.final_form(core, fit)
    if not joint.episode:  # the start, fixed; at all teachers it gives them all the same
        return runs.Learnt(SelectorPolicy(start, "subsets" if fit is None else form), seconds, 0), start
    student = (kept.best.dev, kept.best.weights)
    learnt = runs.Learnt(SelectorPolicy(kept.selector, form), seconds, joint.steps, student, joint.curve)
    learnt.step_seconds = joint.spent
    if fit is None:
        return learnt, kept.selector
    fixed = runs.follow(core, SelectorPolicy(start, form), seed, "start", checkpoints.stage("start"))
    learnt.seconds += fixed.seconds
    metric = core.process.task.metric
    if kept.best.value > fixed.dev[metric]:
        learnt.final = runs.tested(core.process, kept.best, kept.selected, seconds)
        return learnt, kept.selector
    learnt.final, learnt.rule = fixed, SelectorPolicy(start, form)
    return learnt, start


def run(config: dict[str, Any]) -> None:
    """One run: joint training, control, fixed policy, results."""
    settings = runs.start(config)
    checkpoints = Checkpoints(run_folder(), settings)
    if checkpoints.already_finished():
        return
    expect(runs.trainings_of(settings))
    core, learnt = learn(settings, run_folder(), checkpoints)
    rules = references(core, settings.seed, oracle=settings.agent.oracle)
    runs.conclude(core, settings, learnt, rules, "agents/reinforce.py", checkpoints)


if __name__ == "__main__":
    from agents import reinforce as script  # the workers of a sweep unpickle what they run, so it needs a module's name

    launch(script.run)
