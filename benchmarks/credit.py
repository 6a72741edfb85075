"""With which credit does the selector learn? REINFORCE against control and oracle on the bundled task, over seeds.

Every cell is one run of `agents/reinforce.py`. Finished cells are found and skipped, so a table that was stopped can be continued.

    python benchmarks/credit.py                                            all six variants, 5 seeds
    python benchmarks/credit.py --variants counterfactual --seeds 3        the default alone

Exit code 1 when the default credit gains less than `--bar` percentage points over the control.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from agents.experiment import stats

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = "counterfactual"
VARIANTS = {
    "shared": ["credit.name=shared"],
    "influence": ["credit.name=influence"],
    DEFAULT: ["credit.name=counterfactual"],
    "paper1": ["credit.name=shared", "reward=paper1"],
    "paper2": ["credit.name=shared", "reward=paper2"],
    "paper3": ["credit.name=shared", "reward=paper3"],
}


def cell(runs: Path, variant: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """results.json of one cell, which is run first if it is missing."""
    folder = runs / f"{variant}-seed{seed}"
    if not (folder / "results.json").is_file():
        command = [sys.executable, str(ROOT / "agents/reinforce.py"), f"seed={seed}", f"hydra.run.dir={folder}"]
        subprocess.run([*command, *VARIANTS[variant], *overrides], check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return result


def over_control(points: np.ndarray, control: np.ndarray) -> dict[str, float | None]:
    """Mean of paired differences and the half width of its 95 % interval; a single seed has none."""
    pair = stats.paired(points, control)
    return {"mean": pair.mean, "half_width": None if pair.interval is None else pair.interval[1] - pair.mean}


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table, from the cells of one variant."""
    accuracy = {
        n: np.array([r[n]["test"]["accuracy"] for r in results]) for n in ("control", "student", "oracle", "joint")
    }
    gain, room = (100 * (accuracy[n] - accuracy["control"]) for n in ("student", "oracle"))
    return {
        "seeds": [r["seed"] for r in results],
        **{name: values.tolist() for name, values in accuracy.items()},
        "points_over_control": over_control(100 * accuracy["student"], 100 * accuracy["control"]),
        "gap_closed": float(gain.mean() / room.mean()),
        "mean_size": [r["selection"]["mean_size"] for r in results],
        "train_s": [r["cost"]["train_s"] for r in results],
    }


def main() -> int:
    """Run the cells, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each on one thread")
    parser.add_argument(
        "--bar", type=float, default=5.0, help="percentage points of test accuracy that the default must gain"
    )
    parser.add_argument("--runs", type=Path, default=Path("outputs/credit"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/credit.json")
    parser.add_argument("overrides", nargs="*", help="further settings for every cell, as key=value")
    args = parser.parse_args()
    cells = [(variant, seed) for variant in args.variants for seed in range(args.seeds)]
    first = cell(args.runs, *cells[0], args.overrides)  # alone: it trains the teachers that all others share
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda c: cell(args.runs, *c, args.overrides), cells))
    table = {v: summarise([r for (name, _), r in zip(cells, results, strict=True) if name == v]) for v in args.variants}
    print(
        f"{'credit':16s} {'control':>8s} {'student':>8s} {'oracle':>8s} {'points over control':>24s} {'gap closed':>11s}"
    )
    for name, row in table.items():
        means = " ".join(f"{np.mean(row[k]):8.4f}" for k in ("control", "student", "oracle"))
        d = row["points_over_control"]
        half = f"+-{d['half_width']:.2f}" if d["half_width"] is not None else ""
        print(f"{name:16s} {means} {d['mean']:+14.2f} {half:>9s} {row['gap_closed']:10.0%}")
    words = ["python benchmarks/credit.py", "--variants", *args.variants, "--seeds", str(args.seeds), *args.overrides]
    facts = {k: first[k] for k in ("task", "data", "threads", "device", "versions")}
    args.out.write_text(json.dumps({**facts, "credit": table, "reproduce": " ".join(words)}, indent=1) + "\n")
    return 0 if DEFAULT not in table or table[DEFAULT]["points_over_control"]["mean"] >= args.bar else 1


if __name__ == "__main__":
    raise SystemExit(main())
