"""The short form of benchmarks/soak.py: memory, file descriptors and threads stay as they were."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/soak.py"
pytestmark = pytest.mark.faults


def test_a_short_soak_is_flat(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    line = [sys.executable, str(SCRIPT), "--steps", "2000", "--resets", "40", "--out", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(out.read_text())
    assert facts["flat"]
    assert facts["samples"][-1]["steps"] == 2000
    assert facts["samples"][-1]["resets"] == len(facts["samples"]) == 40


def samples(**change: Any) -> list[dict[str, float]]:
    """A hundred samples of a process that stays as it is, but for `change`: key -> function of the sample's number."""
    same = {"rss_mb": 400.0, "fds": 10, "threads": 4}
    return [same | {key: f(i) for key, f in change.items()} for i in range(100)]


def test_what_counts_as_flat() -> None:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    assert soak.judge(samples())["flat"]
    assert soak.judge(samples(rss_mb=lambda i: 400 + 50 * (i < 8)))["flat"], "the first tenth may settle"
    assert not soak.judge(samples(rss_mb=lambda i: 400 + i / 20))["flat"], "50 kB a sample"
    assert not soak.judge(samples(fds=lambda i: 10 + (i > 90)))["flat"]
    assert not soak.judge(samples(threads=lambda i: 4 + (i == 50)))["flat"]


def test_the_long_soak_was_flat() -> None:
    """The committed result of 200,000 steps."""
    facts = json.loads((ROOT / "benchmarks/results/soak.json").read_text())
    assert facts["flat"]
    assert facts["steps"] >= 200_000
    assert facts["resets"] >= 2_000
    assert facts["reproduce"] == "python benchmarks/soak.py --steps 200000 --resets 2000"
