"""Runs all fault tests, long forms included (docs/reliability.md), and writes their outcomes.

python benchmarks/faults.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


class Record:
    """A pytest plugin that records outcome and seconds of every test, and the properties that long forms report."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.files: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: Counter[str] = Counter()
        self.long: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for setup, call and teardown of each test."""
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration  # type: ignore[assignment]
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
            self.files[file][report.outcome] += 1
            if "slow" in report.keywords:
                facts = dict(report.user_properties)
                self.long[report.nodeid] = {"outcome": report.outcome, "seconds": round(report.duration, 1), **facts}


def main() -> None:
    """Run, print and write; exit code 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.json")
    args = parser.parse_args()
    record, started = Record(), time.perf_counter()
    code = pytest.main(["-m", "faults", "-q", "--rootdir", str(ROOT), str(ROOT / "tests")], plugins=[record])
    facts = {
        "seconds": round(time.perf_counter() - started, 1),
        "exit_code": int(code),
        "outcomes": record.outcomes,
        "files": {f: {**record.files[f], "seconds": round(s, 1)} for f, s in sorted(record.seconds.items())},
        "long_forms": record.long,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "reproduce": "python benchmarks/faults.py",
    }
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{facts['seconds']:.0f} s: {dict(record.outcomes)}; {len(record.long)} long forms; written to {args.out}")
    raise SystemExit(int(code))


if __name__ == "__main__":
    main()
