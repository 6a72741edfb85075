"""The table at the end of a sweep (`-m loss.temperature=1,5,10`): every job beside the others, the best on dev marked."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill import parallel

SLACK = 2.0  # seconds that the clocks of the disk and of this process may differ


@dataclass(frozen=True)
class Row:
    """One student of one job.

    Attributes:
        job: folder of the job inside that of the sweep.
        overrides: the settings that the job was started with.
        model: the agent, or `control`.
        metric: of model selection.
        scores: metrics by split: dev and the tests.
    """

    job: str
    overrides: tuple[str, ...]
    model: str
    metric: str
    scores: Mapping[str, Mapping[str, float]]


class SweepTable(Callback):
    """Hydra's callback after the last job of a sweep."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the time: a folder that is used again may hold the results of an earlier sweep."""
        self.started = time.time() - SLACK

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table, if at least two jobs have finished."""
        rows = rows_of(Path(config.hydra.sweep.dir), 0.0 if config.get("resume") else self.started)
        if len({row.job for row in rows}) > 1 and parallel.is_first():
            Console(width=None if sys.stdout.isatty() else 140).print(table(rows))


def rows_of(folder: Path, since: float = 0.0) -> list[Row]:
    """The students of all jobs in a sweep's folder whose results were written at `since` (seconds) or later."""
    rows = []
    for name in ("results.json", "comparison.json"):
        for path in folder.rglob(name):
            if path.stat().st_mtime >= since:
                rows += _rows(path, str(path.parent.relative_to(folder)))
    return sorted(
        rows, key=lambda row: [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in Path(row.job).parts]
    )


def _rows(path: Path, job: str) -> list[Row]:
    """The students in one `results.json` or `comparison.json`."""
    results = json.loads(path.read_text(encoding="utf-8"))
    words = tuple(word for word in shlex.split(results["reproduce"])[2:] if "=" in word)
    if path.name == "comparison.json":
        by_agent: dict[str, list[Any]] = {}
        for cell in results["cells"]:
            by_agent.setdefault(cell["agent"], []).append(cell)
        roles = ("dev", *results["tests"])
        return [Row(job, words, agent, results["metric"], _means(cells, roles)) for agent, cells in by_agent.items()]
    metric = OmegaConf.load(path.with_name("config.yaml"))["task"]["metric"]  # type: ignore[index]
    roles = tuple(role for role in results["control"] if role != "best_step")
    models = {results["agent"]: results["student"], "control": results["control"]}
    return [Row(job, words, name, metric, {role: scores[role] for role in roles}) for name, scores in models.items()]


def _means(cells: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> dict[str, dict[str, float]]:
    """Means over the seeds of one agent."""
    return {role: {name: float(np.mean([c[role][name] for c in cells])) for name in cells[0][role]} for role in roles}


def differing(rows: Sequence[Row]) -> list[list[str]]:
    """For every row the overrides that not all jobs share, one for each setting that differs; empty: the job has none."""
    shared = set(rows[0].overrides).intersection(*(row.overrides for row in rows))
    own = [
        {word.partition("=")[0]: word.partition("=")[2] for word in row.overrides if word not in shared} for row in rows
    ]
    keys = list(dict.fromkeys(key for words in own for key in words))
    return [keys, *([words.get(key, "") for key in keys] for words in own)]


def best_of(rows: Sequence[Row]) -> int:
    """The place of the row with the best dev score; of equal ones that with the lowest dev loss."""
    return max(range(len(rows)), key=lambda i: (rows[i].scores["dev"][rows[i].metric], -rows[i].scores["dev"]["loss"]))


def table(rows: Sequence[Row]) -> Table:
    """All rows; the best on dev is bold and marked."""
    keys, *values = differing(rows)
    best, metric = best_of(rows), rows[0].metric
    out = Table(
        title=f"sweep: {len({row.job for row in rows})} jobs, the best on dev marked with *", title_justify="left"
    )
    for name in ("", "job", *keys, "model"):
        out.add_column(Text(name))
    for role in rows[0].scores:
        for column in (metric, "loss"):
            out.add_column(f"{role} {column}", justify="right")
    for i, (row, own) in enumerate(zip(rows, values, strict=True)):
        numbers = [f"{row.scores[role][c]:.4f}" for role in rows[0].scores for c in (metric, "loss")]
        words = [Text(word) for word in ("*" if i == best else "", row.job, *own, row.model)]
        out.add_row(*words, *numbers, style="bold" if i == best else None)
    return out
