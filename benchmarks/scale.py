"""Stored signals from ten thousand to four hundred thousand instances: time to build and to open, time and memory of random batches.

    python benchmarks/scale.py [--sizes 10000 50000 400000]

Four made-up teachers of three classes and a made-up encoder of 768 numbers. Each size runs in its own process, so that its memory is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from distill.data.splits import Split
from distill.teachers.store import StoredSignals

ROOT = Path(__file__).resolve().parents[1]
CLASSES, WIDTH, TEACHERS, BATCH = 3, 768, 4, 32


class Made:
    """A source of random numbers: only the store is measured."""

    def __init__(self, name: str, width: int) -> None:
        self.name, self.width, self.fingerprint = name, width, name
        self.rng = np.random.default_rng(0)

    def compute(self, split: Split) -> np.ndarray:
        """Float32 `[N, width]`."""
        return self.rng.standard_normal((len(split), self.width), np.float32)

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Not called by the store."""
        raise NotImplementedError

    def release(self) -> None:
        """Nothing to free."""


def measure(count: int, batches: int, home: Path) -> dict[str, float]:
    """Measure one size, in this process."""
    ids = np.array([f"train-{i}" for i in range(count)])
    split = Split("train", ids, [(name,) for name in ids.tolist()], np.zeros(count, np.int64))
    _ = split.fingerprint  # computed now, because it is the cost of the data and not of the store
    teachers, encoder = [Made(f"t{k}", CLASSES) for k in range(TEACHERS)], Made("encoder", WIDTH)
    started = time.perf_counter()
    StoredSignals(split, teachers, encoder, home)
    built = time.perf_counter() - started
    started = time.perf_counter()
    signals = StoredSignals(split, teachers, encoder, home)
    opened = time.perf_counter() - started
    rng, process = np.random.default_rng(1), psutil.Process()
    rows = rng.integers(0, count, (batches, BATCH))
    for batch in rows[:20]:
        signals.logits(batch), signals.vectors(batch)
    before = process.memory_info().rss
    largest, started = before, time.perf_counter()
    for i, batch in enumerate(rows):
        signals.logits(batch)
        signals.vectors(batch)
        if i % 50 == 0:
            largest = max(largest, process.memory_info().rss)
    spent = time.perf_counter() - started
    return {
        "instances": count,
        "build_us_per_instance": 1e6 * built / count,
        "open_s": opened,
        "batch_us": 1e6 * spent / batches,
        "rss_growth_mb": (largest - before) / 2**20,
    }


def main() -> None:
    """Measure every size; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 400_000])
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--home", type=Path, help="folder for the store; a temporary one if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.one, args.batches, args.home)))
        return
    rows = []
    print(
        f"{'instances':>10s} {'build, us each':>15s} {'open, s':>9s} {'batch of 32, us':>16s} {'RSS growth, MB':>15s}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        home = args.home or Path(temporary)
        for size in args.sizes:
            line = [sys.executable, __file__, "--one", str(size), "--batches", str(args.batches), "--home", str(home)]
            row = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            print(
                f"{size:10d} {row['build_us_per_instance']:15.1f} {row['open_s']:9.3f} {row['batch_us']:16.0f} {row['rss_growth_mb']:15.1f}"
            )
    facts = {
        "teachers": TEACHERS,
        "classes": CLASSES,
        "width": WIDTH,
        "batches": args.batches,
        "load": os.getloadavg()[0],
    }
    words = ["python benchmarks/scale.py", "--sizes", *map(str, args.sizes), "--batches", str(args.batches)]
    args.out.write_text(json.dumps({**facts, "sizes": rows, "reproduce": " ".join(words)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
