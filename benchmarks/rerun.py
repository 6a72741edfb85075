"""Run one cell of every committed comparison again, and see whether it ends within the spread of the seeds.

Another processor rounds otherwise and training amplifies it, so a cell does not repeat to the last digit elsewhere. It must
lie within three standard deviations of the mean of the committed seeds.

    python benchmarks/rerun.py                            the default agent, first seed, of selector-*.json and budget-*.json
    python benchmarks/rerun.py selector-mrpc.json         of this file
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

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def rerun(command: str, agent: str, test: str, metric: str) -> float:
    """Run the command of a cell; returns its test score."""
    _, script, *settings = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        line = [
            sys.executable,
            script,
            *settings,
            "report=false",
            f"cells={folder}/cells",
            f"hydra.run.dir={folder}/run",
        ]
        subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((Path(folder) / "run" / "comparison.json").read_text(encoding="utf-8"))
    cell = next(c for c in found["cells"] if c["agent"] == agent)
    return float(cell[test][metric])


def main() -> int:
    """Run, print a line each; returns the number of cells that ended elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="names in benchmarks/results/")
    parser.add_argument("--agent", default="reinforce", help="entry of the cell")
    args = parser.parse_args()
    names = args.files or sorted(p.name for form in ("selector-*", "budget-*-*") for p in RESULTS.glob(f"{form}.json"))
    apart = 0
    for name in names:
        results = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        test, metric = results["tests"][0], results["metric"]
        values = {c["seed"]: c[test][metric] for c in results["cells"] if c["agent"] == args.agent}
        cell = next(c for c in results["cells"] if c["agent"] == args.agent)
        again = rerun(cell["reproduce"], args.agent, test, metric)
        spread = float(np.std(list(values.values()), ddof=1))
        fits = abs(again - np.mean(list(values.values()))) <= max(3 * spread, 1e-3)
        apart += not fits
        verdict = "within" if fits else "OUTSIDE"
        print(
            f"{name}, seed {cell['seed']}: {again:.4f}, committed {values[cell['seed']]:.4f}; {verdict} the spread of seeds",
            flush=True,
        )
    return apart


if __name__ == "__main__":
    raise SystemExit(main())
