"""The table of a comparison, with paired differences to the control: as rows, on the terminal and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.experiment import stats
from distill import cache

# What a learnt agent is compared with beside the control. `reinforce` is the default agent: the fitted start as it is. So
# the difference to it is what an agent's joint training adds.
BASELINES = (
    "reinforce",
    "router",
    "likelihood",
    "likelihood_weights",
    "most_confident",
    "reward_labels",
    "control_plus_labels",
    "oracle",
)
Cells = Mapping[int, Mapping[str, Any]]  # results of one agent, by seed


def summarise(results: Sequence[Mapping[str, Any]], test: str) -> list[dict[str, Any]]:
    """The table of one test, one row per agent.

    A row holds the values of all seeds, their interquartile mean with its interval, means of the other metrics, of the
    selection and of the cost, and paired differences to the control. `difference_*`, `improvement` and `p_holm` are
    missing where an agent shares no seed with the control.
    """
    by_agent: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_agent.setdefault(result["agent"], {})[result["seed"]] = result
    metric, control = results[0]["metric"], by_agent.get("control", {})
    rows = []
    for agent, cells in by_agent.items():
        row = _row(agent, cells, test, metric)
        shared = [seed for seed in cells if seed in control]
        if agent != "control" and shared:
            row |= compare_pairs([cells[s][test] for s in shared], [control[s][test] for s in shared], metric)
        if shared:
            row["whole_job"] = float(np.mean([_seconds(cells[s]) / _seconds(control[s]) for s in shared]))
        rows.append(row)
    compared = [row for row in rows if f"difference_{metric}" in row]
    corrected = stats.holm([row[f"difference_{metric}"]["p"] for row in compared])
    for row, p in zip(compared, corrected, strict=True):
        row["p_holm"] = p
    return rows


def _seconds(cell: Mapping[str, Any]) -> float:
    """From stored signals and warm start to the final student."""
    return float(cell["cost"]["train_s"] + cell["cost"]["follow_s"])


def against_baselines(results: Sequence[Mapping[str, Any]], test: str) -> list[dict[str, Any]]:
    """Paired differences of every learnt agent to the strong rules of the comparison, at the seeds that both have."""
    by_agent: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_agent.setdefault(result["agent"], {})[result["seed"]] = result
    metric, out = results[0]["metric"], []
    for agent, cells in by_agent.items():
        if not next(iter(cells.values())).get("learnt"):
            continue
        for baseline in (b for b in BASELINES if b in by_agent and b != agent):
            shared = [s for s in cells if s in by_agent[baseline]]
            if shared:
                ours, theirs = ([side[s][test] for s in shared] for side in (cells, by_agent[baseline]))
                pair = compare_pairs(ours, theirs, metric)
                out.append({"agent": agent, "baseline": baseline, "seeds": shared, **pair})
    return out


def print_against(pairs: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Print them, one line each, in points."""
    for pair in pairs:
        found = pair[f"difference_{metric}"]
        text = stats.with_interval(found["mean"], found["interval"], "+.2f", 100)
        print(f"{pair['agent']} - {pair['baseline']}: {text} points of {metric}, {len(pair['seeds'])} seeds")


def _row(agent: str, cells: Cells, test: str, metric: str) -> dict[str, Any]:
    """What one agent reached and what it cost, without a comparison."""
    group = list(cells.values())
    values = np.array([c[test][metric] for c in group])
    return {
        "agent": agent,
        "learnt": bool(group[0].get("learnt", group[0]["cost"]["train_s"] > 0)),  # cells of version 0.1 do not say
        "test": test,
        "metric": metric,
        "seeds": list(cells),
        "values": values.tolist(),
        "mean": float(values.mean()),
        "iqm": stats.iqm(values),
        "interval": stats.bootstrap([values]),
        **{f"mean_{name}": float(np.mean([c[test][name] for c in group])) for name in group[0][test]},
        "mean_size": float(np.mean([c["selection"]["mean_size"] for c in group])),
        "teachers": group[0].get("teachers"),
        "rate": np.mean([c["selection"]["rate"] for c in group], 0).tolist(),
        "rate_by_class": _by_class([c["selection"].get("by_class", {}) for c in group]),
        "labels": group[0].get("labels", ""),
        "train_s": float(np.mean([c["cost"]["train_s"] for c in group])),
        "follow_s": float(np.mean([c["cost"]["follow_s"] for c in group])),
    }


def _by_class(selections: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """How often each teacher is chosen for each class: the mean over the seeds that met the class."""
    labels = dict.fromkeys(label for found in selections for label in found)
    return {label: np.mean([s[label]["rate"] for s in selections if label in s], 0).tolist() for label in labels}


def compare_pairs(
    ours: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any]:
    """Paired differences to the control: the scores of one test at the same seeds, in the same order."""

    def of(scores: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
        return np.array([s[name] for s in scores])

    out: dict[str, Any] = {
        f"difference_{name}": asdict(stats.paired(of(ours, name), of(control, name))) for name in (metric, "loss")
    }
    return {**out, "improvement": stats.improvement(of(ours, metric), of(control, metric))}


COLUMNS = ("IQM [95 %]", "- control [95 %]", "P(better)", "p (Holm)", "loss", "- control", "ece", "on", "job", "labels")


def print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print the table on the terminal. A difference whose interval does not contain zero is bold."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("agent")
    for column in (rows[0]["metric"], *COLUMNS):
        table.add_column(column.replace("[", "\\["), justify="right")
    for row in rows:
        table.add_row(*_texts(row))
    Console(width=None if os.isatty(1) else 160).print(table)


def _texts(row: Mapping[str, Any]) -> list[Text | str]:
    """The cells of a row on the terminal; those of a comparison are empty for the control."""
    return [
        Text(row["agent"]),
        f"{row['mean']:.4f}",
        Text(stats.with_interval(row["iqm"], row["interval"], ".4f")),
        *_comparison_texts(row),
        f"{row['mean_ece']:.3f}",
        f"{row['mean_size']:.2f}",
        f"{row['whole_job']:.1f}" if "whole_job" in row else "",
        Text(row["labels"]),
    ]


def _comparison_texts(row: Mapping[str, Any]) -> list[Text | str]:
    """Difference of the metric, probability of improvement, p, loss, difference of the loss."""
    difference = row.get(f"difference_{row['metric']}")
    if difference is None:
        return ["", "", "", f"{row['mean_loss']:.4f}", ""]
    text = stats.with_interval(difference["mean"], difference["interval"], "+.4f")
    p = row["p_holm"]
    return [
        Text(text, style="bold" if stats.is_clear(difference["interval"]) else ""),
        f"{row['improvement']:.2f}",
        "" if p is None else f"{p:.3f}",
        f"{row['mean_loss']:.4f}",
        f"{row['difference_loss']['mean']:+.4f}",
    ]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table as CSV, one line per agent and test; an interval becomes two columns, `_low` and `_high`."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(k for line in flat for k in line))
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, columns)
    writer.writeheader()
    writer.writerows(flat)
    cache.write_whole(path, content.getvalue().encode())


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without nested values."""
    line = {k: v for k, v in row.items() if not isinstance(v, dict | list | tuple)}
    for name in ("interval", f"difference_{row['metric']}", "difference_loss"):
        value = row.get(name)
        if isinstance(value, dict):
            line[name] = value["mean"]
            value = value["interval"]
        if value is not None:
            line |= {f"{name}_low": value[0], f"{name}_high": value[1]}
    line["seeds"] = len(row["seeds"])
    return line
