"""Write the pictures of the environments that need no data: python docs/pictures.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.image
import numpy as np

import envs  # noqa: F401  registers the ids

FIGURES = Path(__file__).resolve().parent / "figures"
PICTURES = {"TeacherSelect-v0": 32, "TeacherSelect/Tiny-v0": 16, "TeacherSelect/Labels-v0": 256}


def picture(id: str, rows: int) -> None:
    """One episode (of Labels-v0: 200 steps) of random subsets, as `rgb_array` shows it."""
    # The episode stays on the picture when the caller resets.
    env: Any = gym.make_vec(id, num_envs=rows, render_mode="rgb_array", autoreset_mode="next_step")
    env.reset(seed=0)
    rng, ended, steps = np.random.default_rng(0), np.zeros(rows, bool), 0
    single = "Labels" in id
    while steps < 400 if single else not ended.all():
        ended, steps = env.step((rng.random((rows, 4)) < 0.5).astype(np.int8))[2], steps + 1
    name = id.partition("-")[0].replace("/", "-").lower()
    matplotlib.image.imsave(FIGURES / f"env-{name}.png", env.render())


if __name__ == "__main__":
    for name, count in PICTURES.items():
        picture(name, count)
