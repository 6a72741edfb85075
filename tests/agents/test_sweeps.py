"""The table at the end of a sweep."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.experiment.sweeps import Row, best_of, rows_of, table


def scores(dev: float, loss: float = 0.5) -> dict[str, dict[str, float]]:
    return {"dev": {"accuracy": dev, "loss": loss}, "test": {"accuracy": 0.1, "loss": 1.0}}


def row(job: str, *overrides: str, dev: float = 0.5, loss: float = 0.5, model: str = "reinforce") -> Row:
    return Row(job, overrides, model, "accuracy", scores(dev, loss))


def printed(rows: list[Row]) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table(rows))
    return captured.get()


def test_the_best_on_dev_is_marked() -> None:
    rows = [
        row("0", "task=rte", "loss.temperature=1", dev=0.6),
        row("1", "task=rte", "loss.temperature=5", dev=0.7, loss=0.6),
        row("2", "task=rte", "loss.temperature=10", "loss.alpha=[0]", dev=0.7, loss=0.5),
    ]
    assert best_of(rows) == 2
    shown = printed(rows)
    assert "3 jobs" in shown
    (best,) = [line for line in shown.splitlines() if "│ *" in line]
    assert "│ 10 " in best
    assert "[0]" in best  # not read as markup
    assert "task" not in shown.replace("task=", "")  # all jobs share it


def write(folder: Path, job: str, temperature: int, dev: float, comparison: bool = False) -> Path:
    place = folder / job
    place.mkdir(parents=True)
    shared: dict[str, Any] = {"reproduce": f"python x.py 'task.text=[a b]' loss.temperature={temperature}"}
    if comparison:
        cells = [{"agent": "control", **scores(dev + more)} for more in (0.0, 0.1)]
        content = {**shared, "metric": "accuracy", "tests": ["test"], "cells": cells}
        (place / "comparison.json").write_text(json.dumps(content))
        return place / "comparison.json"
    student = {**scores(dev), "best_step": 3}
    (place / "results.json").write_text(json.dumps({**shared, "agent": "ppo", "student": student, "control": student}))
    (place / "config.yaml").write_text("task: {metric: accuracy}\n")
    return place / "results.json"


def test_rows_of_a_folder(tmp_path: Path) -> None:
    """By the number of the job. Those of an earlier sweep are left out."""
    for job, dev in (("10", 0.6), ("9", 0.5)):
        write(tmp_path, job, int(job), dev)
    write(tmp_path, "11", 1, 0.3, comparison=True)
    old = write(tmp_path, "12", 2, 0.9)
    os.utime(old, (1, 1))
    rows = rows_of(tmp_path, since=2.0)
    assert [(r.job, r.model) for r in rows] == [
        *((job, model) for job in ("9", "10") for model in ("ppo", "control")),
        ("11", "control"),
    ]
    assert rows[0].overrides == ("task.text=[a b]", "loss.temperature=9")
    assert rows[-1].scores["dev"]["accuracy"] == pytest.approx(0.35)  # the mean over two seeds
    assert len(rows_of(tmp_path)) == 7


def test_a_sweep_ends_with_one_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from agents import reinforce
    from agents.experiment.launch import launch

    words = ["-m", *tiny_overrides, "agent.start=all_on", "agent.episodes=0", "threads=1", "loss.temperature=1,5"]
    monkeypatch.setattr(sys, "argv", ["reinforce.py", *words, f"hydra.sweep.dir={tmp_path}"])
    launch(reinforce.run)
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line.startswith("bundled: reinforce, seed 0 (job")]
    assert len(titles) == len(set(titles)) == 2
    last = out[out.index("sweep: 2 jobs, the best on dev marked with *") :]
    assert "loss.temperature" in last
    assert last.count("│ *") == 1
    assert sum("reinforce" in line for line in last.splitlines()) == 2
