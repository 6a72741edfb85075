"""What the report says in sentences: its first line, the numbers below it, and which policies leave the teachers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.experiment.report.chart import is_learnt, short

UPPER_BOUNDS = ("oracle", "home", "headroom")
# Trained on the labels of dev: their score there says nothing.
TRAINED_ON_DEV = ("reward_labels", "control_plus_labels")


def best_on_dev(comparison: Mapping[str, Any]) -> tuple[str, float] | None:
    """The agent with the best mean on dev, and that mean.

    Upper bounds cannot be used, and controls that are trained on dev's labels have no fair score there: both are left out.
    Of equal ones the control is taken, because it is the simplest. None: the cells hold no scores.
    """
    scores: dict[str, list[float]] = {}
    for cell in comparison["cells"]:
        if cell["agent"].split()[0] not in (*UPPER_BOUNDS, *TRAINED_ON_DEV):
            scores.setdefault(cell["agent"], []).append(cell["dev"][comparison["metric"]])
    means = {agent: float(np.mean(values)) for agent, values in scores.items()}
    if not means:
        return None
    best = max(means, key=lambda agent: (means[agent], agent == "control"))
    return best, means[best]


def headline(comparison: Mapping[str, Any]) -> str:
    """The first line, for a reader who knows no statistics: what is best on dev, and whether it beats all teachers."""
    found = best_on_dev(comparison)
    if found is None:
        return "No agent has a score on dev."
    agent, _ = found
    name = "all teachers (the control)" if agent == "control" else short(agent)
    test, metric = comparison["tests"][0], comparison["metric"]
    if agent == "control":
        return f"Best on dev: {name}. No other agent is better there: use all teachers."
    pairs = [r.get(f"difference_{metric}") for r in comparison["tables"][test] if r["agent"] == agent]
    pair = pairs[0] if pairs else None
    if pair is None:
        return f"Best on dev: {name}. It was not compared with all teachers: the control did not finish."
    return f"Best on dev: {name}; on {test} {_in_words(pair)}."


def _in_words(pair: Mapping[str, Any]) -> str:
    """A paired difference to the control in words, in percentage points."""
    mean = 100 * pair["mean"]
    if pair["interval"] is None:
        return f"{mean:+.1f} points compared with all teachers; one seed, so no conclusion"
    low, high = (100 * end for end in pair["interval"])
    if low > 0:
        return f"better than all teachers by {mean:.1f} points [{low:.1f}, {high:.1f}]"
    if high < 0:
        return f"worse than all teachers by {-mean:.1f} points [{-high:.1f}, {-low:.1f}]"
    return f"no difference to all teachers shown: {mean:+.1f} points [{low:+.1f}, {high:+.1f}]"


def cards(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    """What to know first: the control, the first learnt agent and the upper bound, as far as the comparison has them."""
    metric, test = comparison["metric"], comparison["tests"][0]
    rows = {row["agent"]: row for row in comparison["tables"][test]}
    found = []
    if "control" in rows:
        seeds = len(comparison["seeds"])
        note = f"{metric} on {test}, mean of {seeds} seed{'s' * (seeds != 1)}"
        found.append({"name": "all teachers (the control)", "value": f"{rows['control']['mean']:.4f}", "note": note})
    learnt = next((row for row in rows.values() if is_learnt(row)), None)
    bound = next((row for row in rows.values() if row["agent"].split()[0] in UPPER_BOUNDS), None)
    for row, kind in ((learnt, ""), (bound, "upper bound: ")):
        pair = None if row is None else row.get(f"difference_{metric}")
        if row is not None and pair is not None:
            value = f"{100 * pair['mean']:+.2f}"
            found.append({"name": kind + short(row["agent"]), "value": value, "note": _verdict(pair["interval"])})
    return found


def _verdict(interval: Sequence[float] | None) -> str:
    """What a paired difference to the control says, in words."""
    if interval is None:
        return "percentage points compared with the control; one seed, so no interval and no conclusion"
    low, high = (100 * end for end in interval)
    words = f"percentage points compared with the control, 95 % interval [{low:+.2f}, {high:+.2f}]: "
    if low > 0:
        return words + "better than the control"
    if high < 0:
        return words + "worse than the control"
    return words + "it contains zero, so no difference is shown"


def gives_all(last: Sequence[np.ndarray]) -> bool:
    """Whether the last choices `[N,K]` of every seed are all teachers for every instance that the run met (-1: not met).

    A run that met no instance chose nothing.
    """
    return all(bool((choices >= 0).any()) and bool((choices[choices >= 0] == 1).all()) for choices in last)
