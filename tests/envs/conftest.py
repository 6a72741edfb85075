"""The two interfaces of the tiny run."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from env_helpers import B, Make

import envs  # noqa: F401  registers TeacherSelect-v0


@pytest.fixture(scope="session")
def make(tiny_overrides: list[str]) -> Make:
    """`make("student.lr=0.1", ...)`: the single environment of the tiny run, without Gymnasium's wrappers."""
    return lambda *more, **kwargs: gym.make("TeacherSelect-v0", overrides=[*tiny_overrides, *more], **kwargs).unwrapped


@pytest.fixture(scope="session")
def make_vec(tiny_overrides: list[str]) -> Make:
    """The vector environment of the same run."""

    def build(*more: str, num_envs: int = B, **kwargs: Any) -> Any:
        return gym.make_vec("TeacherSelect-v0", num_envs=num_envs, overrides=[*tiny_overrides, *more], **kwargs)

    return build
