"""How noisy is a return? One fixed sequence of actions over seeds, and the difference that 5 or 10 seeds can detect.

The seed changes the order of the batches. The actions (half of all teachers, drawn once), the warm start and the data
are the same for all seeds. Detectable: two-sided test at 5 %, power 80 %, unpaired, normal approximation.

    python benchmarks/noise.py
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

import envs  # noqa: F401  registers TeacherSelect-v0

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings, as on any script's command line")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "noise.json")
    args = parser.parse_args()
    env = gym.make_vec("TeacherSelect-v0", num_envs=32, autoreset_mode="disabled", overrides=args.overrides)
    process = env.unwrapped.core.process  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, (process.budget, 32, process.num_teachers), dtype=np.int8)
    returns, accuracies = [], []
    for seed in tqdm(range(args.seeds), desc="seeds"):
        env.reset(seed=seed)
        returns.append(sum(float(env.step(a)[1].mean()) for a in actions))
        accuracies.append(process.evaluate("dev")["accuracy"])
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    report = {
        "task": process.task.name,
        "seeds": args.seeds,
        "student_steps": process.budget,
        "threads": torch.get_num_threads(),
    }
    for name, values in {"return": np.array(returns), "dev_accuracy": np.array(accuracies)}.items():
        deviation = float(values.std(ddof=1))
        detectable = {str(n): float(z * deviation * np.sqrt(2 / n)) for n in (5, 10)}
        report[name] = {"mean": float(values.mean()), "std": deviation, "detectable": detectable}  # type: ignore[assignment]
    report["reproduce"] = shlex.join(["python", "benchmarks/noise.py", *args.overrides, f"--seeds={args.seeds}"])
    print(json.dumps(report, indent=1))
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
