"""REINFORCE against the control on the bundled task, over seeds: mean difference of test accuracy, with its interval.

`python benchmarks/bundled_seeds.py` runs seeds 0, 1, 2 and writes benchmarks/results/bundled-seeds.json; exit code 1 when
the mean gain is below `--bar` points. More overrides are passed on: `python benchmarks/bundled_seeds.py --seeds 5 agent.credit=shared`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run, tabulate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bar", type=float, default=5.0, help="points of test accuracy (default 5)")
    parser.add_argument("--runs", type=Path, default=Path("outputs/bundled-seeds"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/bundled-seeds.json")
    parser.add_argument("overrides", nargs="*", help="further settings, as key=value")
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        folder = args.runs / f"seed{seed}"
        command = [
            sys.executable,
            str(ROOT / "agents/reinforce.py"),
            f"seed={seed}",
            f"hydra.run.dir={folder}",
            *args.overrides,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads((folder / "results.json").read_text())
        names = ("control", "student", "oracle")
        rows.append(
            {"seed": seed, **{n: result[n]["test"]["accuracy"] for n in names}, "train_s": result["cost"]["train_s"]}
        )
        r = rows[-1]
        print(
            f"seed {seed}: control {r['control']:.4f}  reinforce {r['student']:.4f}  oracle {r['oracle']:.4f}",
            flush=True,
        )
    gain = 100 * np.array([r["student"] - r["control"] for r in rows])
    room = 100 * np.array([r["oracle"] - r["control"] for r in rows])
    half = (
        float(stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)))
        if len(gain) > 1
        else float("nan")
    )
    closed = float(gain.mean() / room.mean())
    print(
        f"reinforce - control: {gain.mean():+.2f} points (95 % interval +-{half:.2f}, n={len(gain)}); {closed:.0%} of the gap to the oracle"
    )
    summary = {"mean_points": float(gain.mean()), "interval_half_width": half, "gap_closed": closed}
    report = {
        "task": "bundled",
        "test_instances": result["data"]["test"],
        "threads": result["threads"],
        "versions": result["versions"],
    }
    command_line = " ".join(["python", "benchmarks/bundled_seeds.py", "--seeds", str(args.seeds), *args.overrides])
    args.out.write_text(json.dumps({**report, "seeds": rows, **summary, "reproduce": command_line}, indent=1) + "\n")
    return 0 if gain.mean() >= args.bar else 1


if __name__ == "__main__":
    raise SystemExit(main())
