"""Observations by name: which parts the state of an instance has, where they lie, and within which bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F

from distill.checks import check, one_of
from distill.process import Distillation

PARTS = ("encoder", "teacher_probs", "teacher_loss", "student_probs", "student_loss", "divergence", "progress")
STUDENT_PARTS = {"student_probs", "student_loss", "divergence"}
LOSS_CAP = 5.0  # nats; losses and divergences above it all look alike to the policy


@dataclass
class ObservationSettings:
    """The parts of the state, in order. The paper's state is encoder, teacher_probs and teacher_loss."""

    parts: list[str] = field(default_factory=lambda: ["encoder", "teacher_probs", "teacher_loss"])

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("observation.parts is empty; name some of " + ", ".join(PARTS))
        for part in self.parts:
            one_of(part, PARTS, "observation.parts")
        if len(set(self.parts)) != len(self.parts):
            raise UserError(f"observation.parts={self.parts} names a part twice")


class Observation:
    """Builds the flat, bounded float32 state of every row of the coming batch.

    Attributes:
        layout: name of a part -> its slice of the vector.
        space: the Box of one row.
    """

    def __init__(self, settings: ObservationSettings, process: Distillation) -> None:
        k, c, d = process.num_teachers, process.task.num_classes, process.signals.width
        widths = {
            "encoder": d,
            "teacher_probs": k * c,
            "teacher_loss": k,
            "student_probs": c,
            "student_loss": 1,
            "divergence": k,
            "progress": 1,
        }
        self.process = process
        self.layout: dict[str, slice] = {}
        start = 0
        for part in settings.parts:
            self.layout[part] = slice(start, start + widths[part])
            start += widths[part]
        low, high = np.zeros(start, np.float32), np.ones(start, np.float32)
        if "encoder" in self.layout:
            low[self.layout["encoder"]] = -1
        self.space = gym.spaces.Box(low, high, dtype=np.float32)
        self.looks_at_student = bool(STUDENT_PARTS & set(settings.parts))

    def __call__(self) -> np.ndarray:
        """States of the coming batch, float32 `[B, size]`; a fresh array at every call."""
        now, student = self.process.current, self.process.student
        assert now is not None
        out = np.empty((len(now.rows), self.space.shape[0]), np.float32)
        for name, place in self.layout.items():
            if name == "encoder":
                np.minimum(np.maximum(now.vectors, -1), 1, out=out[:, place])  # half the price of np.clip
            elif name == "teacher_probs":
                out[:, place] = now.probs.reshape(len(now.rows), -1)
            elif name == "teacher_loss":
                np.minimum(now.teacher_losses / LOSS_CAP, 1, out=out[:, place])
            elif name == "progress":
                out[:, place] = min(1.0, student.steps / student.budget)
        if self.looks_at_student:
            self._student_parts(out)
        return out

    def _student_parts(self, out: np.ndarray) -> None:
        """Write the parts that need a forward of the student."""
        now, logits = self.process.current, self.process.look_ahead()
        assert now is not None
        with torch.inference_mode():
            log_probs = F.log_softmax(logits, -1)
            loss = -log_probs.gather(1, now.gold[:, None])
            teachers = torch.from_numpy(now.log_probs).to(log_probs.device)
            # KL(teacher k || student): what the student would have to learn from each of them
            divergence = (teachers.exp() * (teachers - log_probs[:, None])).sum(-1)
            flat = torch.cat((log_probs.exp(), loss / LOSS_CAP, divergence / LOSS_CAP), 1).clamp(0, 1).cpu().numpy()
        if not np.isfinite(flat).all():  # a student that diverged: the step says so, the state stays in its bounds
            flat = np.nan_to_num(flat, nan=1.0)
        c = log_probs.shape[1]
        parts = {"student_probs": flat[:, :c], "student_loss": flat[:, c : c + 1], "divergence": flat[:, c + 1 :]}
        for name, values in parts.items():
            if name in self.layout:
                out[:, self.layout[name]] = values
