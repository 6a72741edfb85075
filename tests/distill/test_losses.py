"""The distillation loss against numbers worked out on paper and against a plain numpy version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.losses import distillation_loss, label_loss, mix, soft_labels, teacher_weights
from distill.settings import LossSettings

# Student logits (ln 3, 0): probabilities (3/4, 1/4), and (sqrt 3, 1)/(1 + sqrt 3) at T = 2.
# Teachers at T = 2: (4/5, 1/5) and (1/2, 1/2).
Z = torch.tensor([[math.log(3), 0.0]])
TEACHERS = torch.tensor([[[2 * math.log(4), 0.0], [0.0, 0.0]]])
CE0, CE1 = 0.28768207245178085, 1.3862943611198906  # ln(4/3), ln 4
KL = {"first": 0.06520519973694935, "second": 0.037252286015408226, "both": 0.000556905890612882}
KL_QUARTER = 0.007346897019516033  # weights (1/4, 3/4): q = (0.575, 0.425)


def loss(
    action: list[float], alpha: float = 0.3, temperature: float = 2.0, label: int = 0, z: torch.Tensor = Z
) -> float:
    settings = LossSettings(alpha=alpha, temperature=temperature)
    soft = soft_labels(TEACHERS, temperature)
    return distillation_loss(z, torch.tensor([label]), torch.tensor([action]), soft, settings).item()


@pytest.mark.parametrize(
    ("action", "kl"),
    [
        ([1, 0], KL["first"]),
        ([0, 1], KL["second"]),
        ([1, 1], KL["both"]),
        ([0.2, 0.6], KL_QUARTER),
        ([1, 3], KL_QUARTER),
    ],
)
@pytest.mark.parametrize(("label", "ce"), [(0, CE0), (1, CE1)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_hand_computed(action: list[float], kl: float, label: int, ce: float, alpha: float) -> None:
    assert loss(list(map(float, action)), alpha, 2.0, label) == pytest.approx(
        alpha * ce + (1 - alpha) * 4 * kl, abs=2e-6
    )


def test_no_teacher_is_the_label_alone() -> None:
    for alpha in (0.0, 0.5, 1.0):
        assert loss([0.0, 0.0], alpha) == pytest.approx(CE0, rel=1e-6)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 2, (6, 3)), rng.normal(0, 3, (6, 4, 3))
    return torch.tensor(z, dtype=torch.float32), torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor(t, dtype=torch.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


ACTIONS = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0.5, 0, 0, 2], [0, 0, 0, 1]], np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7, 1.0])
def test_value_and_gradient_in_closed_form(batch: tuple[torch.Tensor, ...], alpha: float, temperature: float) -> None:
    """dL/dz = alpha (p - y) + (1 - alpha) T (p_T - q): the T^2 leaves one factor T."""
    z, labels, t = batch
    z = z.clone().requires_grad_()
    out = distillation_loss(
        z, labels, torch.from_numpy(ACTIONS), soft_labels(t, temperature), LossSettings(alpha, temperature)
    )
    out.sum().backward()
    zs, ts, y = z.detach().double().numpy(), t.double().numpy(), np.eye(3)[labels]
    p, pt = softmax(zs), softmax(zs / temperature)
    for i, a in enumerate(ACTIONS):
        ce, grad = -np.log(p[i][labels[i]]), p[i] - y[i]
        if a.sum():
            q = (a / a.sum()) @ softmax(ts[i] / temperature)
            kl = (q * np.log(q / pt[i])).sum()
            ce, grad = (
                alpha * ce + (1 - alpha) * temperature**2 * kl,
                alpha * grad + (1 - alpha) * temperature * (pt[i] - q),
            )
        assert out[i].item() == pytest.approx(ce, rel=2e-4, abs=2e-5)
        np.testing.assert_allclose(z.grad[i].numpy(), grad, rtol=2e-4, atol=1e-5)


def test_a_changed_action_changes_only_its_own_gradient(batch: tuple[torch.Tensor, ...]) -> None:
    z, labels, t = batch
    grads = []
    for flip in (False, True):
        leaf, actions = z.clone().requires_grad_(), torch.from_numpy(ACTIONS.copy())
        actions[2, 3] = float(flip)
        distillation_loss(leaf, labels, actions, soft_labels(t, 2.0), LossSettings(0.5, 2.0)).sum().backward()
        grads.append(leaf.grad)
    changed = (grads[0] != grads[1]).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("k", range(4))
def test_one_teacher_is_plain_distillation_to_the_bit(batch: tuple[torch.Tensor, ...], k: int) -> None:
    z, labels, t = batch
    alpha, temperature = 0.3, 5.0
    action = torch.zeros(6, 4)
    action[:, k] = 1
    q = torch.softmax(t[:, k] / temperature, -1)
    assert torch.equal(mix(teacher_weights(action), soft_labels(t, temperature)), q)
    kl = F.kl_div(F.log_softmax(z / temperature, -1), q, reduction="none").sum(-1)
    plain = alpha * F.cross_entropy(z, labels, reduction="none") + (1 - alpha) * temperature**2 * kl
    got = distillation_loss(z, labels, action, soft_labels(t, temperature), LossSettings(alpha, temperature))
    assert torch.equal(got, plain)
    alone = distillation_loss(
        z, labels, torch.ones(6, 1), soft_labels(t[:, [k]], temperature), LossSettings(alpha, temperature)
    )
    assert torch.equal(got, alone)


def test_weights_are_normalised() -> None:
    actions = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.2, 0.6], [3.0, 0.0], [1e-30, 1e-30]])
    expected = [[0, 0], [0.5, 0.5], [0.25, 0.75], [1, 0], [0.5, 0.5]]
    torch.testing.assert_close(teacher_weights(actions), torch.tensor(expected))


def test_certain_teachers_give_finite_losses_and_gradients() -> None:
    z = torch.zeros(2, 2, requires_grad=True)
    soft = soft_labels(torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]]), 1.0)
    out = distillation_loss(z, torch.tensor([0, 0]), torch.tensor([[1.0], [0.0]]), soft, LossSettings(0.0, 1.0))
    out.sum().backward()
    assert out.tolist() == pytest.approx([math.log(2), math.log(2)])
    np.testing.assert_allclose(z.grad.numpy(), [[-0.5, 0.5], [-0.5, 0.5]], atol=1e-7)


def test_label_loss() -> None:
    labels = torch.tensor([1])
    assert label_loss(labels)(Z).item() == pytest.approx(CE1, rel=1e-6)
