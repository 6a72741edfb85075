"""Unlabelled instances and silent teachers in credit, states and action masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from env_helpers import Make
from gymnasium.error import ResetNeeded

from distill.losses import distillation_loss, soft_labels
from distill.settings import LossSettings
from envs.credit import influence_shares

# --- credit -----------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([-1, 2, -1, 0, -1, -1])


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits `[6,3]`, slopes `[6,3]` and teacher logits `[6,2,3]`, in double precision."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=g, dtype=torch.double) for shape in ((6, 3), (6, 3), (6, 2, 3)))  # type: ignore[return-value]


def by_autograd(
    logits: torch.Tensor, slope: torch.Tensor, actions: torch.Tensor, soft: torch.Tensor, loss: LossSettings
) -> torch.Tensor:
    """`<d loss_i / d logits_i, slope_i>`, `[6]`."""
    z = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(z, LABELS, actions, soft, loss).sum(), z)
    return (gradient * slope).sum(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("subset", list(itertools.product([0.0, 1.0], repeat=2)))
def test_shares_and_counterfactuals(alpha: float, temperature: float, subset: tuple[float, float]) -> None:
    logits, slope, teachers = drawn()
    soft, loss = soft_labels(teachers, temperature), LossSettings(alpha, temperature)
    actions = torch.tensor(subset, dtype=torch.double).expand(6, 2)
    shares = influence_shares(logits, slope, LABELS, actions, soft, loss)
    torch.testing.assert_close(shares.rows, by_autograd(logits, slope, actions, soft, loss))
    for k in range(2):
        on, off = actions.clone(), actions.clone()
        on[:, k], off[:, k] = 1, 0
        wanted = by_autograd(logits, slope, on, soft, loss) - by_autograd(logits, slope, off, soft, loss)
        torch.testing.assert_close(shares.advantage[:, k], wanted)
    if not any(subset):
        assert not shares.rows[LABELS < 0].any(), "an unlabelled row without a teacher moves nothing"


def test_an_unlabelled_row_by_hand() -> None:
    """Two classes, T = 1: the gradient is p - q = (.5 - .9, .5 - .1), along the slope (1, 0)."""
    logits, slope = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    soft = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]])
    loss, label = LossSettings(0.7, 1.0), torch.tensor([-1])
    shares = influence_shares(logits, slope, label, torch.tensor([[1.0, 0.0]]), soft, loss)
    torch.testing.assert_close(shares.rows, torch.tensor([-0.4]))
    # Without the first teacher nothing is learnt: -0.4 - 0. With the second one too, q = .6: -0.1 - -0.4.
    torch.testing.assert_close(shares.advantage, torch.tensor([[-0.4, 0.3]]))


def test_silent_teachers_count_as_off() -> None:
    logits, slope, teachers = drawn(1)
    soft, loss = soft_labels(teachers, 2.0), LossSettings(0.3, 2.0)
    actions = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [0, 1]], dtype=torch.double)
    answered = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0], [1, 1]], dtype=torch.double)
    shares = influence_shares(logits, slope, LABELS, actions, soft, loss, answered)
    plain = influence_shares(logits, slope, LABELS, actions * answered, soft, loss)
    torch.testing.assert_close(shares.rows, plain.rows)
    torch.testing.assert_close(shares.advantage, plain.advantage * answered)
    assert not shares.advantage[answered == 0].any()


# --- states and masks -------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_env(tmp_path: Path, tiny_overrides: list[str]) -> Callable[..., Any]:
    """`silent_env(vector, *overrides)`: 40 labelled and 20 unlabelled texts; the second teacher knows two of three."""
    names = ("bad", "good", "mixed")

    def table(count: int, start: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "key": [f"k{start + i}" for i in range(count)],
                "review": [f"text {start + i} says {names[i % 3]}" for i in range(count)],
                "label": [names[i % 3] for i in range(count)],
            }
        )

    for i, (role, count) in enumerate({"train": 70, "test": 12, "unlabelled": 20}.items()):
        table(count, 100 * i).to_csv(tmp_path / f"{role}.csv", index=False)
    ids = [k for i, n in enumerate((70, 12, 20)) for k in table(n, 100 * i)["key"]]
    probs = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(3), len(ids)), columns=list(names)).assign(id=ids)
    probs.to_csv(tmp_path / "one.csv", index=False)
    probs[probs.index % 3 > 0].to_csv(tmp_path / "two.csv", index=False)
    pool = [f"{{name: {n}, kind: predictions, path: {tmp_path / n}.csv}}" for n in ("one", "two")]
    task = ["task=files", "task.text=[review]", "task.id=key", "task.reward_size=15", "task.dev_size=15"]
    task += [f"task.{role}={tmp_path / role}.csv" for role in ("train", "test")]

    def make(vector: bool, *more: str, unlabelled: bool = True, silent: bool = True) -> Any:
        extra = [f"task.unlabelled={tmp_path / 'unlabelled.csv'}"] if unlabelled else []
        chosen = pool if silent else pool[:1]
        overrides = [*tiny_overrides, *task, *extra, f"teachers.pool=[{', '.join(chosen)}]", *more]
        if vector:
            return gym.make_vec("TeacherSelect-v0", num_envs=8, overrides=overrides)
        return gym.make("TeacherSelect-v0", overrides=overrides).unwrapped

    return make


@pytest.mark.parametrize(
    ("how", "more", "parts"),
    [
        ({}, (), ["encoder", "teacher_probs", "answered", "labelled"]),
        ({"silent": False}, (), ["encoder", "teacher_probs", "labelled"]),
        ({"silent": False}, ("task.labels=40",), ["encoder", "teacher_probs"]),
        ({"unlabelled": False}, (), ["encoder", "teacher_probs", "teacher_loss", "answered"]),
        ({"unlabelled": False, "silent": False}, (), ["encoder", "teacher_probs", "teacher_loss"]),
        ({}, ("observation.parts=[teacher_loss,progress]",), ["teacher_loss", "progress"]),
    ],
)
def test_the_parts_suit_the_task(silent_env: Any, how: Any, more: tuple[str, ...], parts: list[str]) -> None:
    assert list(silent_env(False, *more, **how).layout) == parts


def test_the_paper_state_on_the_bundled_task(make: Make) -> None:
    assert list(make().layout) == ["encoder", "teacher_probs", "teacher_loss"]


def test_what_the_parts_read(silent_env: Any) -> None:
    names = "answered,labelled,teacher_loss,student_loss"
    env = silent_env(True, f"observation.parts=[{names}]")
    states, info = env.reset(seed=0)
    batch, seen = env.unwrapped.core.process.batch, {n: states[:, s] for n, s in env.unwrapped.layout.items()}
    known = env.unwrapped.core.process.labels[info["instance"]] >= 0
    assert 0 < known.sum() < 8
    assert seen["labelled"][:, 0].tolist() == known.tolist()
    np.testing.assert_array_equal(seen["answered"], batch.answered)
    assert 0 < batch.answered[:, 1].sum() < 8
    for part in ("teacher_loss", "student_loss"):
        assert not seen[part][~known].any()
        assert seen[part][known].all()


def test_action_masks(silent_env: Any) -> None:
    vector, single = silent_env(True), silent_env(False)
    for env in (vector, single):
        with pytest.raises(ResetNeeded):
            env.unwrapped.action_masks()
        env.reset(seed=3)
    masks = vector.unwrapped.action_masks()
    answered = vector.unwrapped.core.process.batch.answered
    assert masks.shape == (8, 4)
    assert masks.dtype == bool
    assert masks[:, 0::2].all(), "off is always allowed"
    np.testing.assert_array_equal(masks[:, 1::2], answered)
    for row in range(8):  # the same batch, one instance after the other
        np.testing.assert_array_equal(single.action_masks(), masks[row])
        single.step(np.ones(2, np.int8))
    assert single.action_masks().shape == (4,)


def test_a_choice_of_silent_teachers_is_the_choice_without_them(silent_env: Any) -> None:
    ends = []
    for mask in (False, True):
        env = silent_env(True, "credit.name=counterfactual")
        env.reset(seed=1)
        for _ in range(3):
            answered = env.unwrapped.core.process.batch.answered
            _, rewards, _, _, info = env.step(np.where(answered | (not mask), 1, 0).astype(np.int8))
            assert not info["teacher_advantage"][~answered].any()
        ends.append((rewards, info["row_credit"]))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
