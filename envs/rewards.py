"""Rewards: how much a student step was worth. One class a reward, found by name in `REWARDS` or by import path.

`validation_gain` is V(after) - V(before) on the reward split. `paper1`, `paper2` and `paper3` are the rewards that are
known of the paper (arXiv 2012.06048). They are measured after the step, on the batch that was learnt from.
How a reward is shared out among the rows and teachers of the batch is the business of `envs.credit`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.checks import UserError
from distill.data.splits import stratified
from distill.data.tokens import Batch
from distill.losses import distillation_loss
from distill.process import Distillation, TrainingBatch
from distill.settings import LossSettings, RewardSettings
from distill.state import is_count, is_number
from distill.student import StepResult
from envs.registry import find

FAILED = -10.0  # nats: the reward of a step after which the student's numbers are not finite


class Reward(ABC):
    """The reward of one environment: `begin` at a reset, `after` behind every student step.

    A subclass overrides `measure`. It is called every `reward.every` student steps and at the end of an episode.

    Attributes:
        rows: rows of the reward split that are measured, int64 `[R]`: a fixed stratified sample of `reward.size`.
        labels: of the whole reward split, int64 `[N]`.
        value: the last measured value.
        steps: student steps of this episode.
    """

    first_order: ClassVar[bool] = False  # whether it is a gain of V, so that first-order credit explains it
    needs_labels: ClassVar[bool] = False  # whether it reads the labels of the training batch

    def __init__(self, settings: RewardSettings, process: Distillation) -> None:
        self.settings, self.process = settings, process
        split = process.task.splits["reward"].require("reward")
        size = min(settings.size or len(split), len(split))
        self.rows = stratified(split.labels, size, np.random.default_rng(0))
        self.labels = split.labels
        # One large batch keeps an accelerator busy. A processor would only compute padding.
        self.batches = self._prepare(64 if process.device.type == "cpu" else 256)
        self.value, self.steps = 0.0, 0

    def _prepare(self, batch_size: int) -> list[tuple[Batch, Tensor]]:
        """The measured instances as padded batches of similar length, on the device."""
        tokens = self.process.tokens("reward")
        order = self.rows[np.argsort(tokens.lengths[self.rows], kind="stable")]
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return [(tokens.batch(p), self.gold(p)) for p in parts]

    def gold(self, rows: np.ndarray) -> Tensor:
        """Labels `[R]` of rows of the reward split, on the device."""
        return torch.from_numpy(self.labels[rows]).to(self.process.device)

    def begin(self, seed: int, restart: bool) -> None:
        """Start an episode. `restart`: the student has returned to the warm start."""
        self.steps, self.value = 0, 0.0

    @abstractmethod
    def measure(self, batch: TrainingBatch, actions: np.ndarray, result: StepResult) -> float:
        """The reward of the step that just trained on `batch` with `actions` `[B,K]`."""

    def after(
        self, batch: TrainingBatch, actions: np.ndarray, result: StepResult
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The reward of the step, and arrays `[B]` for the info.

        Between two measurements the last value is paid again, 0 before the first.
        """
        self.steps += 1
        info: dict[str, np.ndarray] = {}
        if self.due:
            info["measured"] = np.ones(len(batch.rows), bool)
            self.value = self.measure(batch, actions, result)
        return self.value, info

    @property
    def due(self) -> bool:
        """Whether this step is measured."""
        return self.steps % self.settings.every == 0 or self.process.done

    def failed(self, left: int) -> float:
        """The reward of a failed step with `left` student steps to go.

        The values of these rewards are costs of every step, so every step that is left costs: an early end never pays.
        """
        return FAILED * left

    def fork(self, process: Distillation) -> Reward:
        """The same reward over a fork of the process."""
        other = copy.copy(self)
        other.process = process
        return other

    def state_dict(self) -> dict[str, Any]:
        """What coming rewards depend on beside the student."""
        return {"value": self.value, "steps": self.steps}

    def state_template(self) -> dict[str, Any]:
        """The form of `state_dict()`, for `distill.state.check_state`."""
        return {"value": is_number, "steps": is_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.value, self.steps = state["value"], state["steps"]


class ValidationGain(Reward):
    """V(after) - V(before): V is minus the mean cross-entropy on the reward split (nats), or its accuracy.

    The gains of an episode add up to V(end) - V(start), however often V is measured.
    """

    first_order = True

    def __init__(self, settings: RewardSettings, process: Distillation) -> None:
        super().__init__(settings, process)
        self._warm_value: float | None = None  # every restart begins at the same student, so it is measured once

    def begin(self, seed: int, restart: bool) -> None:
        """Gains count from the student's present value: the warm start's after a restart."""
        self.steps = 0
        if not restart:
            self.value = self.score()
            return
        if self._warm_value is None:
            self._warm_value = self.score()
        self.value = self._warm_value

    def score(self) -> float:
        """V of the student now. Weights and generators stay as they are."""
        loss, accuracy = self.process.student.score(self.batches)
        return accuracy if self.settings.metric == "accuracy" else -loss

    def measure(self, batch: TrainingBatch, actions: np.ndarray, result: StepResult) -> float:
        """V of the student now."""
        return self.score()

    def after(
        self, batch: TrainingBatch, actions: np.ndarray, result: StepResult
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The gain since the last measurement, 0 in the steps between; `gain` and `value` in the info of those measured."""
        before = self.value
        value, info = super().after(batch, actions, result)
        if "measured" not in info:
            return 0.0, info
        gain, size = value - before, len(batch.rows)
        return gain, {**info, "gain": np.full(size, gain), "value": np.full(size, value)}

    def failed(self, left: int) -> float:
        """A failure costs once."""
        return FAILED


class Paper1(Reward):
    """Minus the cross-entropy of the student after the step: on the batch learnt from, or (`reward.at=next`) on the next."""

    needs_labels = True

    def measure(self, batch: TrainingBatch, actions: np.ndarray, result: StepResult) -> float:
        """Mean over the batch, nats."""
        if self.settings.at == "next":
            coming = self.process.batch
            assert coming is not None
            return -F.cross_entropy(self.process.look_ahead(), coming.gold).item()
        with torch.inference_mode():
            return float(-F.cross_entropy(self.process.student.forward(batch.inputs), batch.gold))


class Paper2(Reward):
    """`paper1` minus the distillation loss."""

    needs_labels = True

    def measure(self, batch: TrainingBatch, actions: np.ndarray, result: StepResult) -> float:
        """-CE - KD, means over the batch, nats. KD is `T^2 KL(q || student)` of the chosen teachers, 0 for a row without any."""
        with torch.inference_mode():
            logits = self.process.student.forward(batch.inputs)
            reward = -F.cross_entropy(logits, batch.gold)
            chosen = torch.from_numpy(batch.audible(actions)).to(logits.device)
            soft_only = LossSettings(alpha=0.0, temperature=self.process.settings.loss.temperature)
            kd = distillation_loss(logits, batch.gold, chosen, batch.soft_for(actions), soft_only)
            return float(reward - torch.where(chosen.sum(-1) > 0, kd, 0.0).mean())


class Paper3(Paper2):
    """`paper2` mixed with accuracy on the reward split. Its form and weight in the paper are not known."""

    def measure(self, batch: TrainingBatch, actions: np.ndarray, result: StepResult) -> float:
        """`(1 - w) * paper2 + w * accuracy`, with w = `reward.accuracy_weight`."""
        weight = self.settings.accuracy_weight
        accuracy = self.process.student.score(self.batches)[1]
        return (1 - weight) * super().measure(batch, actions, result) + weight * accuracy


REWARDS: dict[str, type[Reward]] = {
    "validation_gain": ValidationGain,
    "paper1": Paper1,
    "paper2": Paper2,
    "paper3": Paper3,
}


def make_reward(settings: RewardSettings, process: Distillation) -> Reward:
    """The reward that the settings name.

    Raises:
        UserError: for an unknown reward, or one that reads labels which train does not have.
    """
    cls = find(settings.name, REWARDS, Reward, "reward.name")  # type: ignore[type-abstract]
    if cls.needs_labels and not process.train_split.labelled.all():
        raise UserError(
            f"reward.name={settings.name} reads the labels of train, which has unlabelled instances; "
            "use reward=validation_gain"
        )
    return cls(settings, process)
