"""Rewards by name: how much a student step was worth, and how that is credited to the rows of the batch.

`validation_gain` is V(after) - V(before) on the reward split. `paper1`, `paper2` and `paper3` are the rewards that are
known of the paper (arXiv 2012.06048), measured after the step on the batch learnt from, or (`paper1`) on the one to come.
Every reward is one scalar a step, shared by the rows, unless `validation_gain` is asked for `influence` credit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.checks import check, one_of
from distill.data.splits import stratified
from distill.data.tokens import Batch
from distill.losses import distillation_loss
from distill.process import Current, Distillation
from distill.settings import LossSettings
from distill.student import Direction

REWARDS = ("validation_gain", "paper1", "paper2", "paper3")
FAILED = -10.0  # nats: the reward of a step after which the student's numbers are not finite


@dataclass
class RewardSettings:
    """The reward's name and options."""

    name: str = "validation_gain"
    metric: str = "loss"  # V: minus mean cross-entropy (nats), or accuracy
    every: int = 8  # student steps between two measurements; `reward=paper1` and the like say 1
    size: int | None = 512  # reward instances that are measured (fixed, stratified); none: all
    at: str = "batch"  # paper1 only: measured on the `batch` learnt from, or on the `next` one, whose forward the next step needs anyway
    credit: str = "shared"  # shared, or influence: per row, first order
    direction_size: int = 64  # reward instances behind the gradient v of influence credit, drawn anew each time
    direction_every: int = 1  # student steps that one v serves
    direction_decay: float = 0.0  # of a running average of v's over the episode; 0: each stands alone
    horizon: int = 0  # v is taken this many student steps ahead, on a fork that all teachers teach
    center: bool = True  # credit only what sets a row's slope apart from its batch: no class prior, no confidence
    method: str = "auto"  # derivative of the logits along v: finite, central, exact, or auto: the cheaper one
    accuracy_weight: float = 0.5  # paper3 only; the paper's value is not known

    def __post_init__(self) -> None:
        one_of(self.name, REWARDS, "reward.name")
        one_of(self.metric, ("loss", "accuracy"), "reward.metric")
        one_of(self.at, ("batch", "next"), "reward.at")
        one_of(self.credit, ("shared", "influence"), "reward.credit")
        one_of(self.method, ("auto", "finite", "central", "exact"), "reward.method")
        for key in ("every", "direction_size", "direction_every"):
            if getattr(self, key) <= 0:
                raise UserError(f"reward.{key}={getattr(self, key)} must be positive")
        if self.size is not None and self.size <= 0:
            raise UserError(f"reward.size={self.size} must be positive, or null for the whole split")
        if not 0 <= self.direction_decay < 1:
            raise UserError(f"reward.direction_decay={self.direction_decay} must lie in [0, 1)")
        if self.horizon < 0:
            raise UserError(f"reward.horizon={self.horizon} must not be negative")
        if not 0 <= self.accuracy_weight <= 1:
            raise UserError(f"reward.accuracy_weight={self.accuracy_weight} must lie in [0, 1]")
        if self.at != "batch" and self.name != "paper1":
            raise UserError(
                f"reward.at=next goes with paper1, not with {self.name}: what the next batch's teachers say is not chosen yet"
            )
        if self.credit != "shared" and self.name != "validation_gain":
            raise UserError(f"reward.credit=influence goes with validation_gain, not with {self.name}")


def part_of(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays of a state whose names begin with `name/`, under the rest of their names."""
    return {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}


@dataclass
class Shares:
    """First-order shares of the gain.

    Attributes:
        rows: `[B]`, of every row with the subset it was given.
        advantage: `[B,K]`, share with teacher k on minus share with it off, the other bits as they are.
    """

    rows: Tensor
    advantage: Tensor


def influence_shares(
    logits: Tensor, slope: Tensor, labels: Tensor, actions: Tensor, soft: Tensor, loss: LossSettings
) -> Shares:
    """Shares of a unit step: `<d loss_i / d logits, d logits_i / d v>`, for the subset given and for every bit flipped.

    The loss is linear in the soft target, so all counterfactual subsets follow from the K products `<soft_k, slope>`.

    Args:
        logits: student before the step, `[B,C]`.
        slope: derivative of the logits along v = grad L_reward, `[B,C]`.
        labels: `[B]`. actions: subsets or weights `[B,K]`. soft: teacher distributions at the temperature `[B,K,C]`.
    """
    alpha, temperature = loss.alpha, loss.temperature
    scale = (1 - alpha) * temperature
    hard = (F.softmax(logits, -1) * slope).sum(-1) - slope.gather(1, labels[:, None])[:, 0]
    own = alpha * hard + scale * (F.softmax(logits / temperature, -1) * slope).sum(-1)
    u = (soft * slope[:, None]).sum(-1)  # [B,K]
    total, mass = (actions * u).sum(-1, keepdim=True), actions.sum(-1, keepdim=True)

    def share(numerator: Tensor, denominator: Tensor) -> Tensor:
        taught = own[:, None] - scale * numerator / denominator.clamp_min(1e-12)
        return torch.where(denominator > 1e-6, taught, hard[:, None])

    weight = torch.where(actions > 0, actions, 1.0)
    rest, rest_mass = total - actions * u, mass - actions
    on = share(rest + weight * u, rest_mass + weight)
    return Shares(rows=share(total, mass)[:, 0], advantage=on - share(rest, rest_mass))


class Reward:
    """The reward of one environment. `begin` at a reset; around every student step `before`, then `after`."""

    def __init__(self, settings: RewardSettings, process: Distillation) -> None:
        self.settings, self.process = settings, process
        split = process.task.splits["reward"].require("reward")
        size = min(settings.size or len(split), len(split))
        self.rows = stratified(split.labels, size, np.random.default_rng(0))
        self.labels = split.labels
        # One large batch keeps an accelerator busy; a processor would only pad it.
        self.batches = self._prepare(64 if process.device.type == "cpu" else 256)
        self.value, self.steps = 0.0, 0
        self._warm_value: float | None = None  # every restart begins at the same student: measured once
        self.rng = np.random.default_rng(0)
        self.direction: Direction | None = None
        self.total: Direction = {}  # with `direction_decay`: discounted sum of reward gradients ...
        self.weight = 0.0  # ... and of their weights
        self._probe: Callable[[Tensor], Tensor] | None = None

    def _prepare(self, batch_size: int) -> list[tuple[Batch, Tensor]]:
        """The measured instances as padded batches of like length, ready on the device."""
        tokens = self.process.tokens("reward")
        order = self.rows[np.argsort(tokens.lengths[self.rows], kind="stable")]
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return [(tokens.batch(p), self._gold(p)) for p in parts]

    def _gold(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.labels[rows]).to(self.process.device)

    def measure(self) -> float:
        """V of the student now: minus mean cross-entropy (nats), or accuracy; weights and generators stay as they are."""
        loss, accuracy = self.process.student.score(self.batches)
        return accuracy if self.settings.metric == "accuracy" else -loss

    def begin(self, seed: int, restart: bool) -> None:
        """A new episode: gains count from the student's present value, the warm start's after a restart."""
        self.rng = np.random.default_rng((seed, 1))
        self.steps, self.direction, self.total, self.weight = 0, None, {}, 0.0
        if self.settings.name != "validation_gain":
            self.value = 0.0
            return
        if not restart:
            self.value = self.measure()
            return
        if self._warm_value is None:
            self._warm_value = self.measure()
        self.value = self._warm_value

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What coming rewards depend on beside the student: arrays and JSON-able facts."""
        kept = (("direction", self.direction or {}), ("total", self.total))
        arrays = {f"{part}/{n}": v.cpu().numpy().copy() for part, group in kept for n, v in group.items()}
        facts = {"value": self.value, "steps": self.steps, "weight": self.weight}
        return arrays, {**facts, "rng": self.rng.bit_generator.state}

    def set_state(self, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Go on from `state()`."""
        direction, self.total = (
            {n: torch.from_numpy(v.copy()).to(self.process.device) for n, v in part_of(arrays, name).items()}
            for name in ("direction", "total")
        )
        self.direction = direction or None
        self.value, self.steps, self.weight = facts["value"], facts["steps"], facts["weight"]
        self.rng.bit_generator.state = facts["rng"]

    def fork(self, process: Distillation) -> Reward:
        """The same reward over a fork of the process."""
        other = copy.copy(self)
        other.process, other.rng = process, np.random.default_rng(0)
        other.set_state(*self.state())
        return other

    # --- around one step --------------------------------------------------------------------------------------------

    def before(self) -> None:
        """What must be known before the student moves: where the batch's logits go along the reward gradient."""
        s = self.settings
        if s.credit != "influence":
            return
        student, now = self.process.student, self.process.current
        assert now is not None
        # AdamW knows no scale before its first step: that direction is zero, and must not serve the next steps.
        if self.direction is None or self.steps % s.direction_every == 0 or self.steps == 1:
            self.direction = student.precondition(self._gradient())
        self._probe = student.probe(now.inputs, self.direction, s.method)

    def penalty(self, left: int) -> float:
        """Reward of a failed step, with `left` student steps to go: once for the gain; for costs of every step, so that
        an early end never pays, for each of them."""
        return FAILED * (1 if self.settings.name == "validation_gain" else left)

    def slope(self, logits: Tensor) -> Tensor:
        """Derivative `[B,C]` along the reward gradient of the batch that `before` saw; `logits`: the step's, before it."""
        assert self._probe is not None
        slope = self._probe(logits)
        return slope - slope.mean(0) if self.settings.center else slope

    def shares_of(self, subsets: np.ndarray) -> np.ndarray:
        """First-order shares `[B,S]` of a unit step on the coming batch, had each of the subsets `[S,K]` been given to all rows.

        For rules that compare subsets outside an episode of the environment; every call counts as a step.
        """
        now = self.process.current
        assert now is not None
        self.before()
        with torch.no_grad():
            logits = self.process.student.forward(now.inputs)
        slope = self.slope(logits)
        chosen = torch.from_numpy(subsets.astype(np.float32)).to(logits.device)
        loss, (b, k) = self.process.settings.loss, now.shape
        columns = [influence_shares(logits, slope, now.gold, row.expand(b, k), now.soft, loss).rows for row in chosen]
        self.steps += 1
        return torch.stack(columns, 1).cpu().numpy()

    def _gradient(self) -> Direction:
        """Gradient of the reward loss on instances drawn anew: of the student now or `horizon` steps ahead, averaged if asked."""
        s, student = self.settings, self.process.student
        rows = np.sort(self.rng.choice(self.rows, min(s.direction_size, len(self.rows)), replace=False))
        if s.horizon:
            ahead = self.process.fork()
            everyone = np.ones((ahead.stream.batch_size, ahead.num_teachers), np.float32)
            while not ahead.done and ahead.student.steps < student.steps + s.horizon:
                ahead.step(everyone)
            student = ahead.student
        gradient = student.gradient(self.process.tokens("reward").batch(rows), self._gold(rows))
        if not s.direction_decay:
            return gradient
        self.total = {n: g + s.direction_decay * self.total.get(n, 0.0) for n, g in gradient.items()}
        self.weight = 1 + s.direction_decay * self.weight
        return {n: g / self.weight for n, g in self.total.items()}

    def after(
        self, batch: Current, logits: Tensor, actions: np.ndarray, lr: float
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards of the rows, float64 `[B]`, and what the info shows of them.

        Args:
            batch: the batch just learnt from.
            logits: the student's on it before the step, `[B,C]`.
            lr: learning rate of the step.
        """
        s = self.settings
        self.steps += 1
        size = len(batch.rows)
        info: dict[str, np.ndarray] = {}
        due = self.steps % s.every == 0 or self.process.done
        if due:
            info["measured"] = np.ones(size, bool)
        if s.name != "validation_gain":
            if due:
                self.value = self._paper(batch, actions)
            return np.full(size, self.value), info
        gain = 0.0
        if due:
            value = self.measure()
            gain, self.value = value - self.value, value
            info["gain"], info["value"] = np.full(size, gain), np.full(size, value)
        rewards = np.full(size, gain)
        if s.credit == "influence":
            shares, advantage = self._influence(batch, logits, actions, lr)
            rewards += size * (shares - shares.mean())
            info["share"], info["influence"] = shares, advantage
        return rewards, info

    def _influence(
        self, batch: Current, logits: Tensor, actions: np.ndarray, lr: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shares `[B]` and advantages `[B,K]`: the unit shares times lr/B and the step's clipping factor.

        In units of V for SGD. AdamW's momentum spreads a step's effect over later ones, so there they are of the
        gain's order, not its size.
        """
        chosen = torch.from_numpy(np.asarray(actions, np.float32)).to(logits.device)
        shares = influence_shares(
            logits, self.slope(logits), batch.gold, chosen, batch.soft, self.process.settings.loss
        )
        student = self.process.student
        scale = torch.tensor(lr / len(batch.rows), device=logits.device)
        if student.norm is not None:
            scale = scale * (student.settings.clip / (student.norm + 1e-6)).clamp_max(1)
        both = torch.cat((shares.rows[:, None], shares.advantage), 1) * scale
        flat = both.cpu().numpy().astype(np.float64)
        return flat[:, 0], flat[:, 1:].astype(np.float32)

    def _paper(self, batch: Current, actions: np.ndarray) -> float:
        """`paper1` = -CE (on the next batch if so asked); `paper2` = -CE - KD; `paper3` = paper2 mixed with accuracy on the reward split. Student after the step.

        KD is `T^2 KL(q || student)` for the chosen teachers, 0 for a row without any; means over the batch, nats.
        """
        s, student = self.settings, self.process.student
        if s.at == "next":
            coming = self.process.current
            assert coming is not None
            return -F.cross_entropy(self.process.look_ahead(), coming.gold).item()
        with torch.inference_mode():
            logits = student.forward(batch.inputs)
            reward = -F.cross_entropy(logits, batch.gold)
            if s.name != "paper1":
                chosen = torch.from_numpy(np.asarray(actions, np.float32)).to(logits.device)
                temperature = self.process.settings.loss.temperature
                settings = LossSettings(alpha=0.0, temperature=temperature)
                kd = distillation_loss(logits, batch.gold, chosen, batch.soft_for(actions), settings)
                reward = reward - torch.where(chosen.sum(-1) > 0, kd, 0.0).mean()
            value = float(reward)
        if s.name == "paper3":
            value = (1 - s.accuracy_weight) * value + s.accuracy_weight * student.score(self.batches)[1]
        return value
