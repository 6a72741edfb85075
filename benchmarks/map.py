"""Where selection pays on the bundled task and where it cannot: the default agent against all teachers, case by case.

The cases change how wrong the training labels are (or hide them), how many labels the selector is fitted on, how often a
specialist is wrong at home, and which specialists there are.

    python benchmarks/map.py                      seeds=3 jobs=2; finished cells are kept and found again
    python benchmarks/map.py --only noise=0.2     the cases whose name contains this
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import configs
from distill import cache
from distill.process import Prepared
from distill.settings import RunSettings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LABELS = (50, 150, 500)  # of the reward split
WEAK = 800  # reviews a specialist is trained on, of 4000, so that it is wrong at home about four times as often


def pools() -> dict[str, list[str]]:
    """The pools of the map, as overrides: all specialists, one missing, one twice, and all of them weak."""
    teachers = configs.compose([])["teachers"]["pool"]
    twice = [*teachers, {**teachers[0], "name": f"{teachers[0]['name']}2", "seed": 1}]
    return {
        "four specialists": [],
        "one missing": [f"teachers.pool={_written(teachers[:-1])}"],
        "one twice": [f"teachers.pool={_written(twice)}"],
        "weak at home": [f"task.corpus.pool={WEAK}"],
    }


def _written(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_written(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def cases() -> dict[str, list[str]]:
    """Overrides of every case. Without labels on train, dev has as few labels as reward; else it has 500."""
    out = {}
    for count in LABELS:
        few = f"task.corpus.reward={count}"
        for noise in (0, 0.2, 0.35):
            out[f"noise={noise}, {count} labels"] = [f"task.corpus.noise={noise}", few]
        out[f"unlabelled, {count} labels"] = [f"task.labels={2 * count}"]
        for name, overrides in pools().items():
            if overrides:
                out[f"{name}, {count} labels"] = [*overrides, few]
    return out


def home_error(overrides: list[str]) -> dict[str, float]:
    """How often each specialist is wrong on the training reviews of its own domain, by their true labels."""
    clean = [o for o in overrides if not o.startswith("task.labels=")]
    prepared = Prepared.of(RunSettings.from_config(configs.compose([*clean, "task.corpus.noise=0"]))).load()
    split, owners = prepared.task.splits["train"], prepared.task.owners
    assert owners is not None
    guesses = prepared.signals("train").logits(np.arange(len(split))).argmax(2)
    homes = {name: owners == name.rstrip("2") for name in prepared.signals("train").names}
    return {
        name: float((guesses[home, k] != split.labels[home]).mean()) for k, (name, home) in enumerate(homes.items())
    }


def compare(overrides: list[str], seeds: int, jobs: int) -> dict[str, Any]:
    """The comparison of one case."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "agents/compare.py", "agents=[control,reinforce]", f"seeds={seeds}", *overrides]
        command += ["threads=1", f"jobs={jobs}", "report=false", f"hydra.run.dir={folder}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((Path(folder) / "comparison.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run every case that is asked for, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose name contains this; the others are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "map-bundled.json")
    args = parser.parse_args()
    report = json.loads(args.out.read_text(encoding="utf-8")) if args.only and args.out.is_file() else {"cases": {}}
    chosen = {name: overrides for name, overrides in cases().items() if args.only in name}
    for number, (name, overrides) in enumerate(chosen.items(), 1):
        found = compare(overrides, args.seeds, args.jobs)
        row = next(r for r in found["tables"]["test"] if r["agent"] == "reinforce")
        report["cases"][name] = {
            "control": found["tables"]["test"][0]["mean"],
            "gain": row["difference_accuracy"],
            "preflight": found["preflight"],
            "home_error": home_error(overrides),
            "threads": found["threads"],
            "seeds": found["seeds"],
            "reproduce": found["reproduce"],
        }
        gain = row["difference_accuracy"]
        print(f"{number}/{len(chosen)} {name}: {100 * gain['mean']:+.1f} points", flush=True)
        cache.write_json(args.out, report)
    report["reproduce"] = shlex.join(["python", "benchmarks/map.py", f"--seeds={args.seeds}"])
    cache.write_json(args.out, report)


if __name__ == "__main__":
    main()
