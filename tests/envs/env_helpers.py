"""What the tests of the environments share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distill.settings import PARTS

B, K, STEPS = 8, 4, 6  # of the tiny run
ALL_PARTS = f"observation.parts=[{', '.join(PARTS)}]"
STATES = ["credit.name=counterfactual", "student.dropout=0.1", ALL_PARTS]  # every part that a state must hold
Make = Callable[..., Any]


def subsets(seed: int, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (steps, B, K)).astype(np.int8)


def weights(env: Any) -> torch.Tensor:
    return torch.cat([w.flatten() for w in env.unwrapped.core.process.student.weights()])


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit, whatever the nesting."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        np.testing.assert_array_equal(a, b)


def episode(env: Any, seed: int | None, actions: np.ndarray) -> list[Any]:
    """Everything that a single environment returns in an episode."""
    seen: list[Any] = [env.reset(seed=seed)]
    for action in actions.reshape(-1, K):
        seen.append(env.step(action))
    return seen
