"""How good, how confident and how similar the teachers of a task are, before any selection.

    python benchmarks/teachers.py bundled
    python benchmarks/teachers.py task=mrpc teachers=minilm [teachers.folds=2]

Each call adds one entry, named by its settings, to benchmarks/results/teachers.json. On train and test: accuracy and loss of each teacher,
how often two teachers agree, how often at least one of them is right, and how often all are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import configs
from distill.preflight import in_common
from distill.process import Prepared
from distill.settings import RunSettings

ROOT = Path(__file__).resolve().parents[1]


def describe(prepared: Prepared, role: str) -> dict[str, Any]:
    """Accuracy, loss and agreement of the teachers on one split."""
    split = prepared.task.splits[role]
    signals, rows = prepared.signals(role), np.arange(len(split))
    logits = signals.logits(rows)
    scores = [prepared.task.scores(logits[:, k], split.labels) for k in range(logits.shape[1])]
    agreement, any_right, all_right = in_common(logits.argmax(-1), split.labels, signals.answered(rows))
    return {
        "accuracy": [s["accuracy"] for s in scores],
        "loss": [s["loss"] for s in scores],
        "agreement": agreement,
        "any_right": any_right,
        "all_right": all_right,
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
