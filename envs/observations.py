"""Observations: the parts of the state of an instance. One class a part, found by name in `PARTS` or by import path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F

from distill.process import Distillation, TrainingBatch
from distill.settings import ObservationSettings
from envs.registry import find

LOSS_CAP = 5.0  # nats; losses and divergences are clipped here and divided by it


class View:
    """What a part may look at: the coming batch and, where a part asks for it, the student on that batch.

    Attributes:
        process: the distillation process.
        batch: the coming batch, B rows.
    """

    def __init__(self, process: Distillation, batch: TrainingBatch) -> None:
        self.process, self.batch = process, batch

    @cached_property
    def student(self) -> dict[str, np.ndarray]:
        """`probs` `[B,C]`, `loss` `[B,1]` and `divergence` `[B,K]` of the student, in [0, 1]: one forward for all of them."""
        logits = self.process.look_ahead()
        with torch.inference_mode():
            log_probs = F.log_softmax(logits, -1)
            gold = self.batch.gold[:, None]
            loss = -log_probs.gather(1, gold.clamp_min(0)).masked_fill(gold < 0, 0.0)
            teachers = torch.from_numpy(self.batch.log_probs).to(log_probs.device)
            # KL(teacher k || student): what the student would have to learn from each teacher
            divergence = (teachers.exp() * (teachers - log_probs[:, None])).sum(-1)
            flat = torch.cat((log_probs.exp(), loss / LOSS_CAP, divergence / LOSS_CAP), 1).clamp(0, 1).cpu().numpy()
        if not np.isfinite(flat).all():  # the student has diverged: the next step reports it, the state stays bounded
            flat = np.nan_to_num(flat, nan=1.0)
        c = log_probs.shape[1]
        return {"probs": flat[:, :c], "loss": flat[:, c : c + 1], "divergence": flat[:, c + 1 :]}


class Part(ABC):
    """One part of the state. A subclass says how wide it is and computes it; values outside the bounds are clipped.

    Attributes:
        low, high: bounds of every number.
        label_free: whether it depends on the instance and the teachers alone, and neither on a label nor on the student.
            A selector's start is fitted on these parts.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    label_free: ClassVar[bool] = False

    @abstractmethod
    def width(self, process: Distillation) -> int:
        """How many numbers it has an instance."""

    @abstractmethod
    def values(self, view: View) -> np.ndarray:
        """`[B, width]`, in [low, high]."""


class Encoder(Part):
    """The encoder's vector of the text: unit length, D numbers."""

    low = -1.0
    label_free = True

    def width(self, process: Distillation) -> int:
        """D."""
        return process.signals.width

    def values(self, view: View) -> np.ndarray:
        """The vectors `[B,D]`."""
        return view.batch.vectors


class TeacherProbs(Part):
    """Every teacher's probabilities: K*C numbers."""

    label_free = True

    def width(self, process: Distillation) -> int:
        """K*C."""
        return process.num_teachers * process.task.num_classes

    def values(self, view: View) -> np.ndarray:
        """The probabilities `[B,K*C]`."""
        return view.batch.probs.reshape(len(view.batch.rows), -1)


class TeacherLoss(Part):
    """Every teacher's cross-entropy on the gold label, over `LOSS_CAP`: K numbers. 0 where there is no label."""

    def width(self, process: Distillation) -> int:
        """K."""
        return process.num_teachers

    def values(self, view: View) -> np.ndarray:
        """The scaled losses `[B,K]`."""
        return view.batch.teacher_losses / LOSS_CAP


class Answered(Part):
    """Whether each teacher has an answer, 0 or 1: K numbers."""

    label_free = True

    def width(self, process: Distillation) -> int:
        """K."""
        return process.num_teachers

    def values(self, view: View) -> np.ndarray:
        """0 or 1, `[B,K]`."""
        return view.batch.answered.astype(np.float32)


class Labelled(Part):
    """Whether the gold label is known, 0 or 1: one number."""

    def width(self, process: Distillation) -> int:
        """1."""
        return 1

    def values(self, view: View) -> np.ndarray:
        """0 or 1, `[B,1]`."""
        return view.batch.labelled[:, None].astype(np.float32)


class StudentProbs(Part):
    """The student's probabilities now: C numbers."""

    def width(self, process: Distillation) -> int:
        """C."""
        return process.task.num_classes

    def values(self, view: View) -> np.ndarray:
        """The probabilities `[B,C]`."""
        return view.student["probs"]


class StudentLoss(Part):
    """The student's cross-entropy on the gold label now, over `LOSS_CAP`: one number. 0 where there is no label."""

    def width(self, process: Distillation) -> int:
        """1."""
        return 1

    def values(self, view: View) -> np.ndarray:
        """The scaled losses `[B,1]`."""
        return view.student["loss"]


class Divergence(Part):
    """KL(teacher k || student), over `LOSS_CAP`: K numbers."""

    def width(self, process: Distillation) -> int:
        """K."""
        return process.num_teachers

    def values(self, view: View) -> np.ndarray:
        """The scaled divergences `[B,K]`."""
        return view.student["divergence"]


class Progress(Part):
    """Student steps over the budget: one number."""

    def width(self, process: Distillation) -> int:
        """1."""
        return 1

    def values(self, view: View) -> np.ndarray:
        """The same number for every row, `[B,1]`."""
        student = view.process.student
        return np.full((len(view.batch.rows), 1), student.steps / student.budget)


PARTS: dict[str, type[Part]] = {
    "encoder": Encoder,
    "teacher_probs": TeacherProbs,
    "teacher_loss": TeacherLoss,
    "answered": Answered,
    "labelled": Labelled,
    "student_probs": StudentProbs,
    "student_loss": StudentLoss,
    "divergence": Divergence,
    "progress": Progress,
}


def parts_of(settings: ObservationSettings, process: Distillation) -> list[str]:
    """The parts that the settings name. With `observation.parts=null`, what suits the task.

    That is the paper's state on a labelled task. The teachers' losses are left out where some training instance has no
    label; a policy would have to read 0 as "right". `answered` joins where a teacher is silent on a training instance,
    `labelled` where only some training instances have a label.
    """
    if settings.parts is not None:
        return settings.parts
    known = process.train_split.labelled
    parts = ["encoder", "teacher_probs"]
    if known.all():
        parts.append("teacher_loss")
    if not process.signals.complete:
        parts.append("answered")
    if known.any() and not known.all():
        parts.append("labelled")
    return parts


class Observation:
    """Builds the flat, bounded float32 state of every row of the coming batch.

    Attributes:
        layout: name of a part -> its slice of the vector.
        space: the Box of one row.
    """

    def __init__(self, settings: ObservationSettings, process: Distillation) -> None:
        self.process = process
        names = parts_of(settings, process)
        self.parts = {name: find(name, PARTS, Part, "observation.parts")() for name in names}  # type: ignore[type-abstract]
        self.layout: dict[str, slice] = {}
        start = 0
        for name, part in self.parts.items():
            self.layout[name] = slice(start, start + part.width(process))
            start = self.layout[name].stop
        low, high = np.zeros(start, np.float32), np.ones(start, np.float32)
        for name, part in self.parts.items():
            low[self.layout[name]], high[self.layout[name]] = part.low, part.high
        self.space = gym.spaces.Box(low, high, dtype=np.float32)

    def __call__(self) -> np.ndarray:
        """States of the coming batch, float32 `[B, size]`; a new array at every call."""
        batch = self.process.batch
        assert batch is not None
        view = View(self.process, batch)
        out = np.empty((len(batch.rows), self.space.shape[0]), np.float32)
        for name, part in self.parts.items():
            # minimum and maximum cost half of np.clip
            np.minimum(
                np.maximum(part.values(view), part.low), part.high, out=out[:, self.layout[name]], casting="same_kind"
            )
        return out
