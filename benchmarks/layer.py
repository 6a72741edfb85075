"""What the environment costs beside the student's own work, and what a reset costs.

The cost is taken within each step of the vector environment behind the SB3 adapter: the time of the step minus the time of its own
distillation step (tokens, signals, forward, backward, optimiser), so that changes in the student's speed cancel. The figure is the
median over all steps. No reward is measured. For comparison, the bare student loop (labels only), the distillation step and the whole
run in turns. Then `reset` with a student of about four million parameters.

    python benchmarks/layer.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import envs  # noqa: F401  registers TeacherSelect-v0
from distill.losses import distillation_loss, label_loss
from distill.student import StepResult
from envs.sb3 import SharedVecEnv

RESULTS = Path(__file__).resolve().parent / "results"
BIG = [
    "student.config.hidden_size=256",
    "student.config.num_hidden_layers=4",
    "student.config.num_attention_heads=4",
    "student.config.intermediate_size=1024",
    "+student.config.vocab_size=3000",
    "budget.warm_steps=0",
]


def per_step(step: Callable[[], object], steps: int) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return 1e3 * (time.perf_counter() - started) / steps


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "layer.json")
    args = parser.parse_args()
    never = f"reward.every={10**9}"
    env = gym.make_vec("TeacherSelect-v0", num_envs=32, overrides=["budget.steps=100000000", never]).unwrapped
    core = env.core  # type: ignore[attr-defined]
    process = core.process
    adapter = SharedVecEnv(env)
    actions = np.ones((32, process.num_teachers), np.int8)
    env.reset(seed=0)
    tokens, chosen = process.tokens("train"), torch.ones(32, process.num_teachers)

    def bare() -> None:
        rows = process.stream.next()
        process.student.step(tokens.batch(rows), label_loss(torch.from_numpy(process.labels[rows])))

    def taught() -> None:
        now = process.batch
        loss = process.settings.loss
        process.student.step(now.inputs, lambda z: distillation_loss(z, now.gold, chosen, now.soft, loss))
        process.batch = process.load(process.stream.next())

    ways = {
        "bare student": bare,
        "distillation": taught,
        "vector env": lambda: env.step(actions),
        "with adapter": lambda: adapter.step(actions),
    }
    inside: list[float] = []
    own_step = process.step

    def timed(actions: np.ndarray) -> StepResult:
        started = time.perf_counter()
        result = own_step(actions)
        inside.append(time.perf_counter() - started)
        return result

    process.step = timed  # type: ignore[method-assign]
    layer = {}
    for name, step in (("vector env", ways["vector env"]), ("with adapter", ways["with adapter"])):
        inside.clear()
        whole = [per_step(step, 1) for _ in range(args.steps * args.repeats)]
        layer[name] = statistics.median(w - 1e3 * i for w, i in zip(whole, inside, strict=True))
    process.step = own_step  # type: ignore[method-assign]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats + 1):
        for name, step in ways.items():
            times[name].append(per_step(step, args.steps))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}

    big = gym.make_vec("TeacherSelect-v0", num_envs=32, overrides=BIG).unwrapped
    student = big.core.process.student  # type: ignore[attr-defined]
    big.reset(seed=0)
    resets = [per_step(big.reset, 5) for _ in range(args.repeats)]
    result = {
        "layer_ms": layer,
        "ms_per_step": median,
        "reset_ms": statistics.median(resets),
        "reset_parameters": sum(p.numel() for p in student.params),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "reproduce": "python benchmarks/layer.py",
    }
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
