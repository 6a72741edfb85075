"""Whether a long run leaks: memory, file descriptors and threads of the environment over many episodes.

    python benchmarks/soak.py [--steps 200000 --resets 2000]

Random subsets through `gym.make_vec` on a very small bundled run, one process, one thread. Whatever grows within an episode (the log,
the optimiser's state) must be freed at its end. A hundred samples are taken, each right after a reset; the first tenth is left out.
The run is flat if the median memory of the last tenth is less than 4 MB above that of the first, and all samples have the same number
of file descriptors and threads. Exit code 1 if it is not flat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import psutil
import torch

import envs  # noqa: F401  registers TeacherSelect-v0

ROOT = Path(__file__).resolve().parents[1]
ROWS, SAMPLES = 8, 100
WIDTHS = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32"
POOL = ", ".join(
    f"{{name: {d}, kind: finetune, pool: {d}, config: {{{WIDTHS}}}, max_length: 32, epochs: 1}}"
    for d in ("film", "food", "hotel")
)
OVERRIDES = (
    "task.corpus={train: 200, reward: 60, dev: 60, test: 80, pool: 100}",
    f"teachers.pool=[{POOL}]",
    f"++student.config={{{WIDTHS}}}",
    "student.dropout=0.1",
    "observation.parts=[encoder, teacher_probs, teacher_loss, student_probs, student_loss, divergence, progress]",
    "++budget.warm_steps=4",
    "reward.size=40",
    "reward.every=20",
    "credit.name=influence",
    "credit.size=16",
    "credit.every=20",
    "threads=1",
)


def soak(steps: int, resets: int, home: Path) -> list[dict[str, float]]:
    """Run `steps` vector steps in `resets` episodes; returns memory (MiB), descriptors and threads at every sample."""
    length = steps // resets
    env = gym.make_vec(
        "TeacherSelect-v0", num_envs=ROWS, overrides=[*OVERRIDES, f"budget.steps={length}", f"home={home}"]
    )
    process, started = psutil.Process(), time.perf_counter()
    env.reset(seed=0)
    env.action_space.seed(0)
    samples = []
    for episode in range(1, resets + 1):
        for _ in range(length):
            _, _, ended, _, _ = env.step(env.action_space.sample())
        assert ended.all(), "an episode is as long as the budget"
        if episode % max(1, resets // SAMPLES) == 0:
            samples.append(
                {
                    "steps": episode * length,
                    "resets": episode,
                    "rss_mb": process.memory_info().rss / 2**20,
                    "fds": process.num_fds(),
                    "threads": process.num_threads(),
                    "seconds": time.perf_counter() - started,
                }
            )
    env.close()
    return samples


def judge(samples: list[dict[str, float]], limit_mb: float) -> dict[str, float | bool]:
    """Growth of memory from the second tenth to the last, MiB, and whether the run is flat."""
    tenth = max(1, len(samples) // 10)
    kept = samples[tenth:]
    first, last = ([s["rss_mb"] for s in part] for part in (kept[:tenth], kept[-tenth:]))
    growth = statistics.median(last) - statistics.median(first)
    same = all(len({s[key] for s in kept}) == 1 for key in ("fds", "threads"))
    return {"rss_growth_mb": growth, "flat": growth < limit_mb and same}


def main() -> None:
    """Run; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--resets", type=int, default=2_000)
    parser.add_argument("--limit-mb", type=float, default=4.0, help="growth of memory from which the run is not flat")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/soak.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        samples = soak(args.steps, args.resets, Path(home))
    verdict = judge(samples, args.limit_mb)
    print(f"{'steps':>8s} {'resets':>7s} {'RSS, MB':>9s} {'fds':>5s} {'threads':>8s} {'seconds':>8s}")
    for row in samples[:: max(1, len(samples) // 10)] + samples[-1:]:
        print(
            f"{row['steps']:8d} {row['resets']:7d} {row['rss_mb']:9.1f} {row['fds']:5d} {row['threads']:8d} {row['seconds']:8.1f}"
        )
    print(f"RSS {verdict['rss_growth_mb']:+.2f} MB: {'flat' if verdict['flat'] else 'NOT FLAT'}")
    facts = {
        "steps": args.steps,
        "resets": args.resets,
        "rows": ROWS,
        "limit_mb": args.limit_mb,
        **verdict,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "reproduce": f"python benchmarks/soak.py --steps {args.steps} --resets {args.resets}",
        "samples": samples,
    }
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(0 if verdict["flat"] else 1)


if __name__ == "__main__":
    main()
