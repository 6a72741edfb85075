"""PPO trained on TeacherSelect/Labels-v0, and what its policy is worth in TeacherSelect-v0.

python benchmarks/labels.py --out benchmarks/results/labels-bundled.json
python benchmarks/labels.py --seeds=1 experiment=tiny

For every seed: PPO on the labels of the reward split, then two students from the same warm start, on the same batches: one
that all teachers teach, and one whose teachers the policy chooses. Words as `key=value` are settings.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import configs
from agents import sb3
from agents.experiment import runs
from agents.rules import AllTeachers
from distill.settings import RunSettings


def cell(overrides: list[str], seed: int) -> dict[str, Any]:
    """Scores of one seed."""
    words = ["agent=ppo", "agent.env=TeacherSelect/Labels-v0", *overrides, f"seed={seed}"]
    settings = RunSettings.from_config(configs.compose(words))
    with tempfile.TemporaryDirectory() as folder:
        core, learnt = sb3.learn(settings, Path(folder))
    ours = runs.follow(core, learnt.rule, seed, "ppo")
    control = runs.follow(core, AllTeachers(core, seed), seed, "control")
    test, metric = core.process.task.tests[0], core.process.task.metric
    return {
        "seed": seed,
        "train_s": round(learnt.seconds, 2),
        "control": control.tests[test][metric],
        "ppo": ours.tests[test][metric],
        "points": 100 * (ours.tests[test][metric] - control.tests[test][metric]),
        "on_labels": {name: round(value, 4) for name, value in (learnt.on_labels or {}).items()},
    }


def processor() -> str:
    """The kind of processor, where Linux says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def main() -> int:
    """Run all seeds, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    cells = []
    for seed in range(given.seeds):
        cells.append(cell(overrides, seed))
        print("seed {seed}: control {control:.4f}, ppo {ppo:.4f}, {points:+.1f} points".format(**cells[-1]))
    result = {
        "command": shlex.join(["python", "benchmarks/labels.py", *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "seconds": round(time.perf_counter() - started, 1),
        "least": min(c["points"] for c in cells),
        "mean": float(np.mean([c["points"] for c in cells])),
        "cells": cells,
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
