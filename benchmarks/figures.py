"""Draw the figures of docs/results.md from the committed results in benchmarks/results/.

budget-TASK.png   accuracy of the student against the number of known labels, from budget-TASK-*.json
evidence.png      what the check before training said against what the student gained, over all cases
map-bundled.png   the gain of the default agent over all teachers on the bundled task, case by case

python benchmarks/figures.py
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tables import RESULTS, Evidence, correlation, evidence, map_rows

FIGURES = RESULTS.parents[1] / "docs" / "figures"
TITLES = {
    "control": "all teachers (control)",
    "router": "supervised router",
    "reinforce": "default agent",
    "reward_labels": "these labels alone",
    "control_plus_labels": "all teachers, then these labels",
}
COLOURS = dict(zip(TITLES, ("#555555", "#009e73", "#0072b2", "#d55e00", "#cc79a7"), strict=True))  # of Okabe and Ito
MARKS = dict(zip(TITLES, "osD^v", strict=True))


def read(name: str) -> Any:
    """A committed result."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def save(figure: Figure, name: str) -> None:
    """Write a figure; the same input gives the same bytes."""
    figure.savefig(FIGURES / name, dpi=110, bbox_inches="tight", metadata={"Software": None})


def label_budgets(task: str) -> None:
    """Accuracy against the number of labels, with 95 % intervals over seeds."""
    files = sorted(RESULTS.glob(f"budget-{task}-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    found = {int(path.stem.rpartition("-")[2]): read(path.name) for path in files}
    figure = Figure(figsize=(7, 4.2))
    axes = figure.add_subplot()
    for agent, title in TITLES.items():
        rows = {n: r for n, d in found.items() for r in d["tables"]["test"] if r["agent"] == agent}
        means = np.array([row["mean"] for row in rows.values()])
        low, high = np.array([row["interval"] for row in rows.values()]).T
        axes.errorbar(
            list(rows), means, (means - low, high - means), label=title, color=COLOURS[agent], marker=MARKS[agent], capsize=3
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(list(found), [str(n) for n in found])
    axes.minorticks_off()
    axes.set_xlabel("known labels (half to fit and measure, half to choose the checkpoint); all else is unlabelled")
    axes.set_ylabel("test accuracy of the student")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save(figure, f"budget-{task}.png")


def predictions(cases: list[Evidence]) -> None:
    """Predicted gain of the soft labels against the gain of the student, points of accuracy."""
    figure = Figure(figsize=(5.6, 5))
    axes = figure.add_subplot()
    for group, colour, mark in (("bundled", "#0072b2", "o"), ("afrisenti", "#d55e00", "s"), ("glue", "#009e73", "^")):
        chosen = [case for case in cases if case.group == group]
        if not chosen:
            continue
        x, y = (100 * np.array([getattr(case, name) for case in chosen]) for name in ("predicted", "realised"))
        bars = {"xerr": np.abs(x[:, 1:] - x[:, :1]).T, "yerr": np.abs(y[:, 1:] - y[:, :1]).T}
        axes.errorbar(
            x[:, 0], y[:, 0], **bars, ls="", marker=mark, color=colour, label=group, alpha=0.75, elinewidth=0.7
        )
    axes.axline((0, 0), slope=1, color="grey", lw=0.8, ls="--")
    axes.set_xlabel("predicted: gain of the soft labels over the average, points")
    axes.set_ylabel("student: gain over all teachers, points")
    axes.set_title(f"{len(cases)} cases, r = {correlation(cases):.2f}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save(figure, "evidence.png")


def heat_map(report: dict[str, Any]) -> None:
    """Gain over all teachers, one row a case and one column a number of labels."""
    rows, columns = map_rows(report)
    gains = 100 * np.array([[row[c]["gain"]["mean"] for c in columns] for row in rows.values()])
    figure = Figure(figsize=(5.6, 4))
    axes = figure.add_subplot()
    span = float(np.abs(gains).max())
    axes.imshow(gains, cmap="RdBu", vmin=-span, vmax=span, aspect="auto")
    for i, row in enumerate(gains):
        for j, gain in enumerate(row):
            axes.text(
                j, i, f"{gain:+.1f}", ha="center", va="center", color="white" if abs(gain) > 0.6 * span else "black"
            )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_title("default agent over all teachers, points of test accuracy", fontsize=10)
    save(figure, "map-bundled.png")


def main() -> None:
    """Draw every figure whose results are there."""
    for task in sorted({path.stem.split("-")[1] for path in RESULTS.glob("budget-*-*.json")}):
        label_budgets(task)
    predictions(evidence())
    if (RESULTS / "map-bundled.json").is_file():
        heat_map(read("map-bundled.json"))


if __name__ == "__main__":
    main()
