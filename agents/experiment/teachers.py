"""Which teacher matters: the teachers' own scores, how often each is chosen, and what is lost without each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.experiment import stats
from agents.experiment.tables import compare_pairs

WITHOUT = "without:"  # an entry of `agents=`: the default agent with one teacher left out


def left_out_teachers(results: Sequence[Mapping[str, Any]], test: str) -> list[dict[str, Any]]:
    """What each teacher adds: paired differences on one test of the agent with all teachers to the agent without one.

    Returns:
        For each entry `without:TEACHER` that shares a seed with its full pool: `teacher`, `agent` (of the full pool),
        `seeds`, and the differences as in the table. Above zero: the student is better with the teacher.
    """
    cells: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        cells.setdefault(result["agent"], {})[result["seed"]] = result
    out = []
    for entry, without in cells.items():
        name, *more = entry.split(" ", 1)
        full = next((a for a in cells if a.split(" ", 1)[1:] == more and a.split()[0] == "reinforce"), None)
        if not name.startswith(WITHOUT) or full is None:
            continue
        shared = [seed for seed in without if seed in cells[full]]
        if shared:
            with_it, without_it = ([side[s][test] for s in shared] for side in (cells[full], without))
            pair = compare_pairs(with_it, without_it, results[0]["metric"])
            out.append({"teacher": name.removeprefix(WITHOUT), "agent": full, "seeds": shared, **pair})
    return out


def print_left_out(rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Print them, one line each, in points."""
    for row in rows:
        found = row[f"difference_{metric}"]
        text = stats.with_interval(found["mean"], found["interval"], "+.2f", 100)
        count = len(row["seeds"])
        print(
            f"teacher {row['teacher']} adds {text} points of {metric} ({row['agent']}, {count} seed{'s' * (count > 1)})"
        )


def print_teachers(comparison: Mapping[str, Any]) -> None:
    """Print the teachers and their average: their own scores, and how often each learnt agent with all of them uses them."""
    scores = comparison.get("teacher_scores")
    if not scores:
        return
    tests, metric = comparison["tests"], comparison["metric"]
    rows = comparison["tables"][tests[0]]
    choosing = [row for row in rows if row["learnt"] and not row["agent"].startswith(WITHOUT)]
    table = Table(title="the teachers, and how often each is chosen", title_justify="left")
    table.add_column("teacher")
    for role in ("dev", *tests):
        table.add_column(f"{role} {metric}", justify="right")
        table.add_column(f"{role} loss", justify="right")
    for row in choosing:
        table.add_column(Text(row["agent"]), justify="right")
    for teacher in scores:
        cells = [f"{teacher[r][k]:.4f}" if teacher.get(r) else "" for r in ("dev", *tests) for k in (metric, "loss")]
        table.add_row(Text(teacher["name"]), *cells, *(_rate(row, teacher["name"]) for row in choosing))
    Console(width=None if os.isatty(1) else 160).print(table)


def _rate(row: Mapping[str, Any], teacher: str) -> str:
    """How often an agent chooses a teacher; nothing where it does not have it."""
    if teacher not in (row["teachers"] or ()):
        return ""
    return f"{row['rate'][row['teachers'].index(teacher)]:.2f}"
