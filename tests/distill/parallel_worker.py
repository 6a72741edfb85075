"""One of the processes of tests/distill/test_parallel.py: signals, then student steps that two policies disagree on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import envs  # noqa: F401  registers TeacherSelect-v0
from distill import parallel


def play(overrides: list[str], home: str, agree: bool = True) -> dict[str, np.ndarray]:
    """A short episode under random subsets; all processes but the first use other subsets, unless they `agree`."""
    torch.set_num_threads(1)
    env = gym.make_vec("TeacherSelect-v0", num_envs=8, overrides=[*overrides, f"home={home}"])
    core = env.unwrapped.core  # type: ignore[attr-defined]
    rng = np.random.default_rng(0 if agree else parallel.rank())
    observation, _ = env.reset(seed=0 if agree else parallel.rank())
    kept = {"first": observation, "logits": core.process.signals.logits(np.arange(len(core.process.labels)))}
    rewards, done = [], False
    while not done:
        _, reward, terminated, _, info = env.step((rng.random((8, core.process.num_teachers)) < 0.5).astype(np.int8))
        rewards.append(reward)
        done = bool(terminated.all())
        kept |= {key: info[key] for key in ("row_credit", "teacher_advantage") if key in info}  # not in the last step
    student = core.process.student
    # AdamW turns the rounding noise of a gradient that is zero into steps: attention keys need no bias.
    weights = [w.detach().flatten().numpy() for n, w in student.named.items() if not n.endswith("key.bias")]
    kept |= {"weights": np.concatenate(weights), "predicted": student.predict(core.process.tokens("dev")).numpy()}
    return {**kept, "rewards": np.array(rewards), "actions": core.shown.arrays()["actions"]}


if __name__ == "__main__":
    out, home, overrides = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    np.savez(out / f"{parallel.rank()}.npz", **play(overrides, home, agree=False))
