"""The distillation loss, per instance.

    alpha * CE(z, y) + (1 - alpha) * T^2 * KL(q || softmax(z / T)),   q = sum_k w_k softmax(t_k / T)

with student logits z, label y, teacher logits t_k and weights w_k = a_k / sum(a). An instance without a teacher learns
from its label alone: CE(z, y). An unlabelled instance learns from its teachers alone: T^2 * KL; without a teacher its loss
is zero. The factor T^2 keeps the gradients of both terms on one scale (Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.settings import LossSettings


def teacher_weights(actions: Tensor) -> Tensor:
    """Weights `[B,K]` that sum to 1 a row from non-negative actions `[B,K]`; a row of zeros stays zero."""
    return actions / actions.sum(-1, keepdim=True).clamp_min(torch.finfo(actions.dtype).tiny)


def soft_labels(teacher_logits: Tensor, temperature: float) -> Tensor:
    """Every teacher's distribution at the temperature: `[B,K,C]` from logits `[B,K,C]`."""
    return F.softmax(teacher_logits / temperature, -1)


def mix(weights: Tensor, soft: Tensor) -> Tensor:
    """`q` `[B,C]`: the weighted mean of soft labels `[B,K,C]`; products with 0 and 1 keep a single teacher exact."""
    return (weights.unsqueeze(-1) * soft).sum(1)


def distillation_loss(logits: Tensor, labels: Tensor, actions: Tensor, soft: Tensor, settings: LossSettings) -> Tensor:
    """Loss of every instance, nats.

    Args:
        logits: student, `[B,C]`.
        labels: gold classes, int64 `[B]`; -1: unlabelled.
        actions: subsets (0/1) or non-negative weights, `[B,K]`.
        soft: `soft_labels(teacher logits, T)`, `[B,K,C]`.

    Returns:
        `[B]`.
    """
    alpha, temperature = settings.alpha, settings.temperature
    weights = teacher_weights(actions)
    q = mix(weights, soft)
    hard = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1)  # 0 where there is no label
    kl = F.kl_div(F.log_softmax(logits / temperature, -1), q, reduction="none").sum(-1)
    soft_weight = torch.full_like(kl, (1 - alpha) * temperature**2).masked_fill(labels < 0, temperature**2)
    taught = alpha * hard + soft_weight * kl
    return torch.where(actions.sum(-1) > 0, taught, hard)


def label_loss(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of learning from labels alone: a function from logits `[B,C]` to losses `[B]`, nats. All labels are known."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="none")
