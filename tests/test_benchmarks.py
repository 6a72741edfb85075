"""The benchmarks run in their smallest form, and write what they should. Speeds are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.throughput import TARGETS

ROOT = Path(__file__).resolve().parents[1]


def written(folder: Path, *words: str) -> dict[str, Any]:
    """Run a benchmark; returns the results that it writes."""
    out = folder / "out.json"
    done = subprocess.run(
        [sys.executable, *words, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


@pytest.mark.slow
def test_throughput(tmp_path: Path) -> None:
    (run,) = written(tmp_path, "benchmarks/throughput.py", "--turns", "1", "--steps", "4", "--signals", "64").values()
    rows = {row["way"]: row for row in run["rows"]}
    assert set(TARGETS) < set(rows)
    assert rows["floor"]["ratio"] == rows["floor, fast=false"]["to_plain"] == 1
    assert all(row["examples_per_s"] > 0 for row in run["rows"])
    assert run["fast"] is True
    assert run["threads"] == 1
    assert sum(run["shares"].values()) == pytest.approx(1)


def test_fast_forms(tmp_path: Path) -> None:
    rows = written(tmp_path, "benchmarks/fast.py", "--only", "nano", "--turns", "2", "--threads", "1")["rows"]
    assert len(rows) == 8
    for row in rows:
        assert row["step_gain"] > 0
        assert row["apart"] < (1e-6 if row["amp"] == "off" else 0.02)


@pytest.mark.slow
def test_the_small_form_of_gpu_on_a_cpu(tmp_path: Path) -> None:
    found = written(tmp_path, "-m", "benchmarks.gpu", "--device", "cpu", "--small")
    assert found["correctness"]["fp32"] == 0
    assert 0 < found["correctness"]["bf16"] < 0.05
    for row in found["rows"]:
        assert set(found["targets"]) < set(row["ratio"])
        assert row["mfu"] is None
