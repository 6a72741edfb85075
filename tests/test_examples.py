"""The first examples of README.md and of the cookbook end above all teachers, with three seeds.

On TeacherSelect/Tiny-v0, where the same code runs in seconds; `-m slow` runs it on the bundled task, as it stands.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {"README.md": 0, "docs/how-to/own-agent.md": 0}
SEEDS = (0, 1, 2)


def example(page: str, number: int) -> str:
    found = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert "gain" in found[number]
    return str(found[number])


@lru_cache
def of_all_teachers(id: str, seed: int) -> float:
    """The gain of an episode under all teachers, on the same batches as the examples."""
    env: Any = gym.make_vec(id, num_envs=32)
    env.reset(seed=seed)
    gain, done = 0.0, False
    while not done:
        _, rewards, terminated, _, _ = env.step(np.ones((32, 4)))
        gain, done = gain + rewards.mean(), terminated.all()
    return float(gain)


def gains(code: str, id: str) -> list[tuple[float, float]]:
    """The gain of the example and that of all teachers, for every seed."""
    out = []
    for seed in SEEDS:
        space: dict[str, Any] = {}
        exec(code.replace("seed=0", f"seed={seed}"), space)
        out.append((float(space["gain"]), of_all_teachers(id, seed)))
    return out


@pytest.mark.parametrize("page", list(EXAMPLES))
def test_an_example_ends_above_all_teachers(page, home) -> None:
    small = example(page, EXAMPLES[page]).replace('"TeacherSelect-v0"', '"TeacherSelect/Tiny-v0"')
    small = small.replace('"TeacherSelect/Labels-v0"', '"TeacherSelect/Labels-v0", experiment="tiny"')
    assert small.count("iny") >= 1
    for ours, everyone in gains(small, "TeacherSelect/Tiny-v0"):
        assert ours > everyone + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("page", list(EXAMPLES))
def test_an_example_ends_above_all_teachers_on_the_bundled_task(page, home) -> None:
    for ours, everyone in gains(example(page, EXAMPLES[page]), "TeacherSelect-v0"):
        assert ours > everyone + 0.1
