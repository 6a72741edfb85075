"""The table of a comparison: paired differences to the control, on the terminal and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.experiment import stats
from distill import cache


def summarise(results: Sequence[dict[str, Any]], test: str) -> list[dict[str, Any]]:
    """One row per agent: every seed, IQM with interval, paired differences to the control, calibration, cost."""
    agents = list(dict.fromkeys(r["agent"] for r in results))
    by = {a: {r["seed"]: r for r in results if r["agent"] == a} for a in agents}
    metric = results[0]["metric"]
    control = by.get("control", {})
    rows = []
    for agent in agents:
        cells = by[agent]
        values = np.array([c[test][metric] for c in cells.values()])
        row: dict[str, Any] = {
            "agent": agent,
            "test": test,
            "metric": metric,
            "seeds": list(cells),
            "values": values.tolist(),
            "mean": float(values.mean()),
            "iqm": stats.iqm(values),
            "interval": stats.bootstrap([values]),
        }
        for name in cells[next(iter(cells))][test]:
            row[f"mean_{name}"] = float(np.mean([c[test][name] for c in cells.values()]))
        row["mean_size"] = float(np.mean([c["selection"]["mean_size"] for c in cells.values()]))
        row["rate"] = np.mean([c["selection"]["rate"] for c in cells.values()], 0).tolist()
        row["train_s"] = float(np.mean([c["cost"]["train_s"] for c in cells.values()]))
        row["follow_s"] = float(np.mean([c["cost"]["follow_s"] for c in cells.values()]))
        both = [s for s in cells if s in control]
        if agent != "control" and both:
            ours, theirs = ([group[s][test] for s in both] for group in (cells, control))
            for name in (metric, "loss"):
                pair = stats.paired(np.array([o[name] for o in ours]), np.array([t[name] for t in theirs]))
                row[f"difference_{name}"] = asdict(pair)
            a, b = (np.array([x[metric] for x in group]) for group in (ours, theirs))
            row["improvement"] = stats.improvement(a, b)
        rows.append(row)
    compared = [r for r in rows if f"difference_{metric}" in r]
    corrected = stats.holm([r[f"difference_{metric}"]["p"] for r in compared])
    for row, p in zip(compared, corrected, strict=True):
        row["p_holm"] = p
    return rows


def print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    """The table on the terminal; a difference whose interval does not hold zero is bold."""
    metric = rows[0]["metric"]
    table = Table(title=title, title_justify="left")
    table.add_column("agent")
    columns = (metric, "IQM [95 %]", "- control [95 %]", "P(better)", "p (Holm)", "loss", "- control", "ece", "on")
    for column in (*columns, "train s"):
        table.add_column(column.replace("[", "\\["), justify="right")

    for row in rows:
        difference, loss, p = row.get(f"difference_{metric}"), row.get("difference_loss"), row.get("p_holm")
        text, interval = "", None
        if difference is not None:
            interval = difference["interval"]
            text = stats.with_interval(difference["mean"], interval, "+.4f")
        table.add_row(
            Text(row["agent"]),
            f"{row['mean']:.4f}",
            Text(stats.with_interval(row["iqm"], row["interval"], ".4f")),
            Text(text, style="bold" if stats.is_clear(interval) else ""),
            f"{row['improvement']:.2f}" if "improvement" in row else "",
            "" if p is None else f"{p:.3f}",
            f"{row['mean_loss']:.4f}",
            "" if loss is None else f"{loss['mean']:+.4f}",
            f"{row['mean_ece']:.3f}",
            f"{row['mean_size']:.2f}",
            f"{row['train_s']:.0f}",
        )
    Console(width=None if os.isatty(1) else 160).print(table)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The table as CSV, one line per agent and test."""
    flat = []
    for row in rows:
        line = {k: v for k, v in row.items() if not isinstance(v, dict | list | tuple)}
        for name in ("interval", f"difference_{row['metric']}", "difference_loss"):
            value = row.get(name)
            if isinstance(value, dict):
                line[name] = value["mean"]
                value = value["interval"]
            if value is not None:
                line |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        line["seeds"] = len(row["seeds"])
        flat.append(line)
    columns = list(dict.fromkeys(k for line in flat for k in line))
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, columns)
    writer.writeheader()
    writer.writerows(flat)
    cache.write_whole(path, content.getvalue().encode())
