"""How good, how sure and how alike the teachers of a task are: what there is to choose from before anything is chosen.

    python benchmarks/teachers.py bundled
    python benchmarks/teachers.py task=mrpc teachers=minilm [teachers.folds=2]

Adds one entry a call to benchmarks/results/teachers.json, named by its settings. On train and test: each teacher's accuracy and loss,
how often two teachers agree, and how often at least one of them, and how often all, are right.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import configs
from distill.process import Prepared
from distill.settings import RunSettings

ROOT = Path(__file__).resolve().parents[1]


def describe(prepared: Prepared, role: str) -> dict[str, Any]:
    """Figures of one split."""
    split = prepared.task.splits[role]
    logits = prepared.signals(role).logits(np.arange(len(split)))
    guesses = logits.argmax(-1)
    right = guesses == split.labels[:, None]
    scores = [prepared.task.scores(logits[:, k], split.labels) for k in range(logits.shape[1])]
    pairs = [float((guesses[:, a] == guesses[:, b]).mean()) for a, b in combinations(range(logits.shape[1]), 2)]
    return {
        "accuracy": [s["accuracy"] for s in scores],
        "loss": [s["loss"] for s in scores],
        "agreement": float(np.mean(pairs)),
        "any_right": float(right.any(1).mean()),
        "all_right": float(right.all(1).mean()),
    }


def main() -> None:
    """Measure one pool; write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="bundled, or task=... teachers=... as for agents/reinforce.py")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/teachers.json")
    args = parser.parse_args()
    overrides = [o for o in args.settings if o != "bundled"]
    prepared = Prepared.of(RunSettings.from_config(configs.compose(overrides))).load()
    entry = {
        "task": prepared.task.name,
        "teachers": [t.name for t in prepared.teachers],
        **{role: describe(prepared, role) for role in ("train", prepared.task.tests[0])},
    }
    print(json.dumps(entry, indent=1))
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    known[" ".join(args.settings)] = entry
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
