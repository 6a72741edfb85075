"""The paper's selector: K logistic units on the state, trained by REINFORCE while the student learns.

Reinforced Multi-Teacher Selection for Knowledge Distillation, arXiv 2012.06048 (AAAI 2021). From top to bottom: the
policy, its gradient under three kinds of credit, the joint training, and the run:

1. warm start: the student distilled from the average of all teachers (made once, kept);
2. joint episodes: the selector chooses, the student steps, the selector learns; the best on dev is kept;
3. from the same warm start, for the same number of steps and on the same batches: the control (all teachers) and the
   student of the learnt policy, now fixed;
4. a table, results.json, TensorBoard events, the student in transformers format, the policy.

`python agents/reinforce.py` runs the bundled task; `--help` lists the settings.

The paper's policy, state and warm start are kept. What is ours: grad log pi with a baseline (a public re-implementation
uses grad pi without one, which settles near one half whatever the teachers are worth), and credit by first-order
influence: `info["influence"]` holds the advantage of every single choice, so the gradient needs no sampled return.
"""

from __future__ import annotations

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
from tqdm.auto import tqdm

import configs
import envs  # noqa: F401  registers TeacherSelect-v0
from agents.experiment import runs
from agents.experiment.checkpoints import Checkpoints, Kept, Stage
from agents.rules import Policy
from distill.checks import UserError, check, check_rate, one_of
from distill.settings import parse
from envs.teacher_select import Core, TeacherSelectVectorEnv

CREDITS = ("shared", "influence", "counterfactual")
SHOWN_EVERY = 10  # student steps between two points of the entropy's curve


@dataclass
class ReinforceSettings:
    """Options of the agent, `agent.*` on the command line."""

    name: str = "reinforce"
    credit: str = "counterfactual"  # what the choice of a teacher is credited with, see `surrogate`
    lr: float = 0.005  # of the selector (Adam), falling linearly to zero unless `schedule` is constant
    schedule: str = "linear"
    episodes: int = 4  # of joint training, each of budget.steps student steps
    warmup: int = 8  # student steps with all teachers on before the selector chooses and learns
    baseline: float = 0.9  # decay of the running mean and spread of the shared reward
    entropy: float = 0.01  # weight of the entropy bonus
    pull: float = 0.0  # towards all teachers: weight of the mean of log p_k; advantages have spread 1
    bias: float = 1.0  # first logit of every unit
    joint: str = "restart"  # every episode from the warm start, or `continue` from where the last one ended
    oracle: bool = True  # run the best known selection too, where the task knows it

    def __post_init__(self) -> None:
        one_of(self.credit, CREDITS, "agent.credit")
        one_of(self.schedule, ("linear", "constant"), "agent.schedule")
        one_of(self.joint, ("restart", "continue"), "agent.joint")
        check_rate(self.lr, "agent.lr")
        if self.episodes <= 0:
            raise UserError(f"agent.episodes={self.episodes} must be positive")
        if self.warmup < 0:
            raise UserError(f"agent.warmup={self.warmup} must not be negative")
        if not 0 <= self.baseline < 1:
            raise UserError(f"agent.baseline={self.baseline} must lie in [0, 1)")
        if self.entropy < 0:
            raise UserError(f"agent.entropy={self.entropy} must not be negative")
        if self.pull < 0:
            raise UserError(f"agent.pull={self.pull} must not be negative")


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
    def sample(self, states: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Subsets drawn from pi, float32 `[B,K]`."""
        return torch.bernoulli(torch.sigmoid(self(torch.from_numpy(states))), generator=generator).numpy()

    @torch.no_grad()
    def greedy(self, states: np.ndarray) -> np.ndarray:
        """The likeliest subsets, float32 `[B,K]`; a unit at exactly one half is on, so that knowing nothing means all teachers."""
        return (self(torch.from_numpy(states)) >= 0).float().numpy()


# --- its gradient -----------------------------------------------------------------------------------------------------


def log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi(a|s) `[B]`: the sum over the K units."""
    return -F.binary_cross_entropy_with_logits(logits, actions, reduction="none").sum(-1)


def surrogate(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """A scalar whose gradient is the mean over rows of the policy gradient.

    Advantages `[B]` (of the row's subset): REINFORCE, `A grad log pi(a)`. Advantages `[B,K]` (of every teacher: on minus
    off, the other bits as sampled): its Rao-Blackwellised form, `sum_k A_k grad p_k`, where the expectation over bit k
    is taken exactly instead of by its sample.
    """
    if advantages.ndim == 1:  # one for every row, or a single one for all
        return (advantages * log_prob(logits, actions)).mean()
    return (advantages * torch.sigmoid(logits)).sum(-1).mean()


class Credit(Kept):
    """Turns what a step reported into normalised advantages."""

    KEPT = ("mean", "spread", "count")

    def __init__(self, settings: ReinforceSettings) -> None:
        self.settings = settings
        self.mean, self.spread, self.count = 0.0, 0.0, 0

    def __call__(self, rewards: np.ndarray, info: dict[str, Any]) -> Tensor | None:
        """Advantages `[B,K]`, `[B]` or (shared) `[1]`; None while there is nothing to learn from."""
        kind = self.settings.credit
        if kind == "counterfactual":
            return _scaled(info["influence"])
        if kind == "influence":
            return _scaled(rewards - rewards.mean())
        if "measured" not in info:
            return None
        reward, decay = float(rewards.mean()), self.settings.baseline
        self.count += 1
        if self.count == 1:  # nothing to compare with yet
            self.mean = reward
            return None
        advantage = reward - self.mean
        self.mean += (1 - decay) * advantage
        self.spread = decay * self.spread + (1 - decay) * abs(advantage)
        return torch.tensor([advantage / (self.spread / (1 - decay ** (self.count - 1)) + 1e-12)], dtype=torch.float32)


def _scaled(values: np.ndarray) -> Tensor:
    """Values over their standard deviation, in double precision first: equal ones must give zero, not rounding noise."""
    exact = np.asarray(values, np.float64)
    return torch.from_numpy(exact / (exact.std() + 1e-12)).float()


# --- joint training ---------------------------------------------------------------------------------------------------


@dataclass
class Joint(Kept):
    """Where joint training stands."""

    best: runs.Best  # of this episode
    selected: runs.Selected
    states: np.ndarray | None = None  # that the coming step answers; None between two episodes
    pending: list[tuple[np.ndarray, np.ndarray]] = field(
        default_factory=list
    )  # states and actions no reward has answered yet
    total: float = 0.0  # gain of this episode
    episode: int = 0
    steps: int = 0
    spent: float = 0.0  # seconds
    kept: tuple[float, dict[str, Tensor], dict[str, Any], list[Tensor]] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


def train(
    env: TeacherSelectVectorEnv,
    settings: ReinforceSettings,
    seed: int,
    writer: SummaryWriter,
    stage: Stage | None = None,
) -> tuple[Selector, runs.Learnt]:
    """Joint episodes. Returns the best selector on dev, and what it leaves behind as a fixed policy."""
    process, stage = env.core.process, stage or Stage()
    torch_rng = torch.Generator().manual_seed(seed)
    selector = Selector(env.single_observation_space.shape[0], process.num_teachers, settings.bias)  # type: ignore[index]
    optimizer = torch.optim.Adam(selector.parameters(), lr=settings.lr)
    credit = Credit(settings)
    everyone = np.ones((env.num_envs, process.num_teachers), np.float32)
    at = Joint(runs.Best(process), runs.Selected(process))
    parts = {"at": at, "env": env, "selector": selector, "optimizer": optimizer, "credit": credit, "rng": torch_rng}
    stage.restore(**parts)
    for episode in tqdm(range(at.episode, settings.episodes), desc="joint episodes", disable=None, leave=False):
        if at.states is None:  # else it was begun before the run was stopped
            at.states, _ = env.reset(
                seed=seed if episode == 0 else None, options={"student": settings.joint if episode else "restart"}
            )
            at.best, at.selected, at.total = runs.Best(process), runs.Selected(process), 0.0
        while at.states is not None:
            stage.offer(at.steps, **parts)
            started = time.perf_counter()
            warming = at.steps < settings.warmup
            actions = everyone if warming else selector.sample(at.states, torch_rng)
            rows = env.core.instances()
            next_states, rewards, terminated, _, info = env.step(actions)
            if "failure" in info:
                raise UserError(str(info["failure"][0]))
            advantages = None if warming else credit(rewards, info)
            if not warming:  # learning to repeat what was not chosen would only saturate the units
                at.pending.append((at.states, actions))
            if advantages is not None:
                logits = selector(torch.from_numpy(np.concatenate([s for s, _ in at.pending])))
                chosen = torch.from_numpy(np.concatenate([a for _, a in at.pending]))
                at.pending.clear()
                p = torch.sigmoid(logits)
                entropy = -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).mean()
                if settings.schedule == "linear":
                    left = 1 - at.steps / (settings.episodes * process.budget)
                    optimizer.param_groups[0]["lr"] = settings.lr * left
                optimizer.zero_grad()
                regular = settings.entropy * entropy + settings.pull * F.logsigmoid(logits).mean()
                (-surrogate(logits, chosen, advantages) - regular).backward()
                optimizer.step()
                if not math.isfinite(sum(p.sum().item() for p in selector.parameters())):
                    raise UserError(
                        f"the selector's numbers are not finite after step {at.steps} with agent.lr={settings.lr:g}; lower agent.lr"
                    )
                if at.steps % SHOWN_EVERY == 0:  # an event costs as much as a hundredth of a small student's step
                    writer.add_scalar("policy/entropy", entropy.item(), at.steps)
            elif "measured" in info:
                at.pending.clear()  # answered, by a first reward that has nothing to be compared with
            at.selected.add(rows, actions)
            at.states = None if terminated.all() else next_states
            at.steps += 1
            at.spent += time.perf_counter() - started
            if "gain" in info:
                at.total += float(info["gain"][0])
                writer.add_scalar("student/value", info["value"][0], at.steps)
            at.best.look()
        best, stats = at.best, at.selected.summary()
        for name, rate in zip(process.signals.names, stats["rate"], strict=True):
            writer.add_scalar(f"chosen/{name}", rate, episode)
        writer.add_scalar(f"dev/{process.task.metric}", best.value, episode)
        writer.add_scalar("episode/gain", at.total, episode)
        at.curve.append({"episode": episode, "gain": at.total, "dev": best.value, "rate": stats["rate"]})
        if at.kept is None or best.value >= at.kept[0]:
            at.kept = (best.value, {k: v.clone() for k, v in selector.state_dict().items()}, best.dev, best.weights)
        at.episode += 1
    stage.finish(at.steps, **parts)
    assert at.kept is not None
    selector.load_state_dict(at.kept[1])
    joint = (at.kept[2], at.kept[3])
    return selector, runs.Learnt(Policy(selector.greedy), at.spent, settings.episodes, joint, at.curve)


# --- the run ----------------------------------------------------------------------------------------------------------


def learn(config: dict[str, Any], folder: Path, checkpoints: Checkpoints | None = None) -> tuple[Core, runs.Learnt]:
    """Joint training alone: the environment's core and what was learnt; events and the policy are written to `folder`."""
    checkpoints = checkpoints or Checkpoints()
    name, reward = config["agent"]["name"], config["reward"]["name"]
    if name != "reinforce":
        raise UserError(f"agent={name} runs with python agents/sb3.py; this script takes agent=reinforce")
    settings = parse(ReinforceSettings, config["agent"], "agent")
    if settings.credit != "shared" and reward != "validation_gain":
        raise UserError(
            f"agent.credit={settings.credit} needs reward=validation_gain; with reward={reward} give agent.credit=shared"
        )
    config["reward"]["credit"] = "shared" if settings.credit == "shared" else "influence"
    env: Any = gym.make_vec(
        "envs:TeacherSelect-v0", num_envs=config["budget"]["batch_size"], config=config, autoreset_mode="disabled"
    )
    checkpoints.attach(env.unwrapped.core.process)
    stage = checkpoints.stage("joint")
    with SummaryWriter(str(folder / "tensorboard"), purge_step=stage.purge_step) as writer:
        selector, learnt = train(env.unwrapped, settings, config["seed"], writer, stage)
    save_file({k: v.contiguous() for k, v in selector.state_dict().items()}, folder / "policy.safetensors")
    return env.unwrapped.core, learnt


def run(config: dict[str, Any]) -> None:
    """One run: joint training, control, fixed policy, results."""
    checkpoints = Checkpoints(runs.run_folder(), config)
    if checkpoints.already_finished():
        return
    core, learnt = learn(config, runs.run_folder(), checkpoints)
    runs.conclude(core, config, learnt, "agents/reinforce.py", config["agent"]["oracle"], checkpoints)


if __name__ == "__main__":
    from agents import reinforce as script

    configs.launch(script.run)
