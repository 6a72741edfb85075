"""Credit: how the reward of a step is shared out among the rows and the teachers of its batch.

One class an estimator, found by name in `CREDITS` or by import path. `shared` pays every row the same. `influence` and
`counterfactual` are first-order: with v the gradient of the reward loss, scaled as the optimiser scales it, one derivative
of the batch's logits along v gives the share of every row. The loss is linear in the soft target, so the same derivative
gives the share of every counterfactual subset too.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.checks import UserError
from distill.data.tokens import Batch
from distill.process import TrainingBatch
from distill.settings import CreditSettings, LossSettings, RunSettings
from distill.state import Array, Optional, is_count, is_generator
from distill.student import Direction, StepResult
from envs.registry import find
from envs.rewards import REWARDS, Reward


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
    logits: Tensor,
    slope: Tensor,
    labels: Tensor,
    actions: Tensor,
    soft: Tensor,
    loss: LossSettings,
    answered: Tensor | None = None,
) -> Shares:
    """Shares of a unit step: `<d loss_i / d logits, d logits_i / d v>`, for the subset given and for every bit flipped.

    The loss is linear in the soft target, so all counterfactual subsets follow from the K products `<soft_k, slope>`.

    Args:
        logits: student before the step, `[B,C]`.
        slope: derivative of the logits along v = grad L_reward, `[B,C]`.
        labels: `[B]`, -1: unlabelled. actions: subsets or weights `[B,K]`. soft: teacher distributions at the
            temperature `[B,K,C]`.
        answered: 0 or 1, `[B,K]`: teachers that may be chosen; a silent one counts as off, and its advantage is 0.
            None: all of them.
    """
    alpha, temperature = loss.alpha, loss.temperature
    if answered is not None:
        actions = actions * answered
    # An unlabelled row has no hard part, and its soft part has weight 1.
    unknown = labels < 0
    scale = torch.full_like(slope[:, 0], (1 - alpha) * temperature).masked_fill(unknown, temperature)[:, None]
    hard = (F.softmax(logits, -1) * slope).sum(-1) - slope.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    hard = hard.masked_fill(unknown, 0.0)
    own = alpha * hard + scale[:, 0] * (F.softmax(logits / temperature, -1) * slope).sum(-1)
    u = (soft * slope[:, None]).sum(-1)  # [B,K]
    total, mass = (actions * u).sum(-1, keepdim=True), actions.sum(-1, keepdim=True)

    def share(numerator: Tensor, denominator: Tensor) -> Tensor:
        taught = own[:, None] - scale * numerator / denominator.clamp_min(1e-12)
        return torch.where(denominator > 1e-6, taught, hard[:, None])

    weight = torch.where(actions > 0, actions, 1.0)
    rest, rest_mass = total - actions * u, mass - actions
    advantage = share(rest + weight * u, rest_mass + weight) - share(rest, rest_mass)
    return Shares(rows=share(total, mass)[:, 0], advantage=advantage if answered is None else advantage * answered)


class Credit(ABC):
    """The credit estimator of one environment: around every student step `before`, then `after`.

    A subclass overrides `after`, and `before` if it must look at the student before it moves.

    Attributes:
        by_row: whether it gives `row_credit` or `teacher_advantage`, in every step or in some.
        first_order: whether it explains gains of V, and so needs a reward that is one.
    """

    by_row: ClassVar[bool] = True
    first_order: ClassVar[bool] = False

    def __init__(self, settings: CreditSettings, reward: Reward) -> None:
        self.settings, self.reward, self.process = settings, reward, reward.process

    def begin(self, seed: int) -> None:  # noqa: B027  most estimators have nothing to do here
        """Start an episode."""

    def before(self, batch: TrainingBatch) -> None:  # noqa: B027
        """Called before the student moves."""

    @abstractmethod
    def after(
        self, batch: TrainingBatch, actions: np.ndarray, result: StepResult, reward: float
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What each row is paid, float64 `[B]`, and arrays for the info: `row_credit` `[B]`, `teacher_advantage` `[B,K]`."""

    def fork(self, reward: Reward) -> Credit:
        """The same estimator over a fork of the reward and its process."""
        other = copy.copy(self)
        other.reward, other.process = reward, reward.process
        return other

    def state_dict(self) -> dict[str, Any]:
        """What coming credit depends on beside the student and the reward."""
        return {}

    def state_template(self) -> dict[str, Any]:
        """The form of `state_dict()`, for `distill.state.check_state`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Continue from `state_dict()`."""


class Shared(Credit):
    """Every row is paid the reward of the step."""

    by_row = False

    def after(
        self, batch: TrainingBatch, actions: np.ndarray, result: StepResult, reward: float
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The reward for every row."""
        return np.full(len(batch.rows), reward), {}


class Influence(Credit):
    """Row i is paid `gain + B * (c_i - mean c)`, with `c_i` its first-order share of the gain: `row_credit` in the info.

    The batch mean is still the measured gain. Shares are in units of V for SGD. AdamW's momentum spreads the effect of a
    step over later ones, so there they are of the gain's order, not of its size.
    """

    first_order = True

    def __init__(self, settings: CreditSettings, reward: Reward) -> None:
        super().__init__(settings, reward)
        self.steps = 0
        self.rng = np.random.default_rng(0)
        self.direction: Direction | None = None
        self._probe: Callable[[Tensor], Tensor] | None = None

    def begin(self, seed: int) -> None:
        """Start an episode: reward instances are drawn anew by `seed`."""
        self.rng = np.random.default_rng((seed, 1))
        self.steps, self.direction = 0, None

    def before(self, batch: TrainingBatch) -> None:
        """Find where the batch's logits move along v, the gradient of the reward loss."""
        self._probe = None
        if self.steps % self.settings.period:
            return  # this step gets no credit by row
        # AdamW has no scale before its first step. That direction is zero and must not serve the steps after it.
        given = self.steps // self.settings.period
        if self.direction is None or given % self.settings.every == 0 or given == 1:
            self.direction = self._find()
        self._probe = self._look(batch)

    def _find(self) -> Direction:
        """The direction v: the gradient of the reward loss, scaled as the optimiser scales it."""
        return self.process.student.precondition(self._gradient())

    def _look(self, batch: TrainingBatch) -> Callable[[Tensor], Tensor]:
        """From the logits of the coming step to their derivative along v, both `[B,C]`."""
        assert self.direction is not None
        return self.process.student.probe(batch.inputs, self.direction)

    def _gradient(self) -> Direction:
        """Gradient of the reward loss on reward instances that are drawn anew."""
        rows = self.reward.rows
        size = min(self.settings.size or len(rows), len(rows))
        drawn = np.sort(self.rng.choice(rows, size, replace=False))
        return self.process.student.gradient(self.process.tokens("reward").batch(drawn), self.reward.gold(drawn))

    def slope(self, logits: Tensor) -> Tensor:
        """Derivative `[B,C]` along v of the batch that `before` saw; `logits`: those of the step, before it."""
        assert self._probe is not None
        slope = self._probe(logits)
        # What all rows have in common (class prior, confidence) says nothing about which row was taught well.
        return slope - slope.mean(0) if self.settings.center else slope

    def _shares(self, batch: TrainingBatch, actions: np.ndarray, result: StepResult) -> tuple[np.ndarray, np.ndarray]:
        """Shares `[B]` and advantages `[B,K]`: unit shares times lr/B and the factor by which the gradient was clipped."""
        chosen = torch.from_numpy(np.asarray(actions, np.float32)).to(result.logits.device)
        slope = self.slope(result.logits)
        loss = self.process.settings.loss
        shares = influence_shares(result.logits, slope, batch.gold, chosen, batch.soft, loss, batch.heard)
        scale = torch.tensor(result.lr / len(batch.rows), device=result.logits.device)
        if result.clip is not None:
            scale = scale * result.clip
        both = torch.cat((shares.rows[:, None], shares.advantage), 1) * scale
        flat = both.cpu().numpy().astype(np.float64)  # one transfer for both
        return flat[:, 0], flat[:, 1:].astype(np.float32)

    def after(
        self, batch: TrainingBatch, actions: np.ndarray, result: StepResult, reward: float
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards by row, and `row_credit`."""
        self.steps += 1
        if self._probe is None:
            return np.full(len(batch.rows), reward), {}
        shares, _ = self._shares(batch, actions, result)
        return self._paid(reward, shares), {"row_credit": shares}

    def _paid(self, reward: float, shares: np.ndarray) -> np.ndarray:
        """`reward + B * (c - mean c)`, float64 `[B]`."""
        size = len(shares)
        return np.full(size, reward) + size * (shares - shares.mean())

    def subset_credit(self, subsets: np.ndarray) -> np.ndarray:
        """First-order shares `[B,S]` of a unit step on the coming batch, had each subset of `[S,K]` been given to all rows.

        For rules that compare subsets outside an episode of the environment. Every call counts as a step.
        """
        now = self.process.batch
        assert now is not None
        self.before(now)
        with torch.no_grad():
            logits = self.process.student.forward(now.inputs)
        slope = self.slope(logits)
        chosen = torch.from_numpy(subsets.astype(np.float32)).to(logits.device)
        loss, (b, k) = self.process.settings.loss, now.shape
        columns = [
            influence_shares(logits, slope, now.gold, row.expand(b, k), now.soft, loss, now.heard).rows
            for row in chosen
        ]
        self.steps += 1
        return torch.stack(columns, 1).cpu().numpy()

    def fork(self, reward: Reward) -> Credit:
        """The same estimator over a fork, with a generator of its own."""
        other = copy.copy(self)
        other.reward, other.process, other.rng = reward, reward.process, np.random.default_rng(0)
        other.load_state_dict(self.state_dict())
        return other

    def state_dict(self) -> dict[str, Any]:
        """The step count, the direction v and the generator."""
        direction = None if self.direction is None else {n: v.cpu().numpy().copy() for n, v in self.direction.items()}
        return {"steps": self.steps, "direction": direction, "rng": self.rng.bit_generator.state}

    def state_template(self) -> dict[str, Any]:
        """The form of `state_dict()`, for `distill.state.check_state`."""
        direction = {n: Array("float32", tuple(p.shape)) for n, p in self.process.student.named.items()}
        return {"steps": is_count, "direction": Optional(direction), "rng": is_generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        kept, device = state["direction"], self.process.device
        self.direction = None if not kept else {n: torch.from_numpy(v.copy()).to(device) for n, v in kept.items()}
        self.steps, self.rng.bit_generator.state = state["steps"], state["rng"]


class Counterfactual(Influence):
    """`influence`, and for each teacher the share with it on minus the share with it off: `teacher_advantage` in the info."""

    def after(
        self, batch: TrainingBatch, actions: np.ndarray, result: StepResult, reward: float
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards by row, `row_credit` and `teacher_advantage`."""
        self.steps += 1
        if self._probe is None:
            return np.full(len(batch.rows), reward), {}
        shares, advantage = self._shares(batch, actions, result)
        if self.settings.center_teachers:
            advantage = advantage - advantage.mean(1, keepdims=True)
        return self._paid(reward, shares), {"row_credit": shares, "teacher_advantage": advantage}


class Lookahead(Counterfactual):
    """`counterfactual` over a long step: v is what `credit.steps` steps on reward instances change in a copy of the student.

    One gradient says how the next step changes the reward loss; many steps say where it leads (a finite difference of
    the fine-tuned student, as in data selection by validation training, arXiv 2510.00386). The student itself is not trained on
    reward labels. Every row counts the same: a row's slope is scaled to length 1.
    """

    def _find(self) -> Direction:
        """What training a copy on the reward instances changes."""
        process, rows = self.process, self.reward.rows
        size = min(process.stream.batch_size, len(rows))
        tokens, order, start = process.tokens("reward"), self.rng.permutation(rows), 0

        def batches() -> Iterator[tuple[Batch, Tensor]]:
            nonlocal order, start
            for _ in range(self.settings.steps):
                if start + size > len(order):
                    order, start = self.rng.permutation(rows), 0
                drawn = order[start : start + size]
                start += size
                yield tokens.batch(drawn), self.reward.gold(drawn)

        return process.student.lookahead(batches())

    def _look(self, batch: TrainingBatch) -> Callable[[Tensor], Tensor]:
        assert self.direction is not None
        return self.process.student.step_probe(batch.inputs, self.direction)

    def slope(self, logits: Tensor) -> Tensor:
        """As of `Influence`, each row of length 1."""
        return F.normalize(super().slope(logits), dim=-1)


CREDITS: dict[str, type[Credit]] = {
    "shared": Shared,
    "influence": Influence,
    "counterfactual": Counterfactual,
    "lookahead": Lookahead,
}


def make_credit(settings: CreditSettings, reward: Reward) -> Credit:
    """The estimator that the settings name; `with_credit` has replaced `auto`."""
    return find(settings.name, CREDITS, Credit, "credit.name")(settings, reward)  # type: ignore[type-abstract]


def with_credit(settings: RunSettings, preferred: str) -> RunSettings:
    """The settings with `credit.name=auto` replaced: `preferred` where the reward is a gain of V, else `shared`.

    Raises:
        UserError: for an unknown reward or credit, or two that do not go together. Nothing has been built yet.
    """
    reward = find(settings.reward.name, REWARDS, Reward, "reward.name")  # type: ignore[type-abstract]
    name = settings.credit.name
    if name == "auto":
        name = preferred if reward.first_order else "shared"
    if find(name, CREDITS, Credit, "credit.name").first_order and not reward.first_order:  # type: ignore[type-abstract]
        raise UserError(
            f"credit.name={name} goes with reward=validation_gain, not with reward={settings.reward.name}; "
            "give credit.name=shared"
        )
    return replace(settings, credit=replace(settings.credit, name=name))
