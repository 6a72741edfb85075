"""Charts and tables as PNG files, by matplotlib. The page's script draws the same charts (`report.js`).

The library is imported when something is drawn, so that programs without the extra `report` can import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.experiment.report.chart import Chart

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")  # Paul Tol's bright scheme
GREY = COLOURS[6]
DASHES = ("-", "--", ":", "-.")


def _colour(i: int) -> str:
    """Colour of the i-th group."""
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> str:
    """Dashes of the i-th group: they change when the colours repeat."""
    return DASHES[i // len(COLOURS) % len(DASHES)]


def _rate_limit(frame: pd.DataFrame) -> float:
    """Upper end of an axis of rates: just above 1, or above the largest weight."""
    return max(1.02, float(frame["rate"].max()) * 1.02)


def to_png(chart: Chart, path: Path) -> None:
    """Write the whole chart as a PNG file, one panel per picture."""
    from matplotlib.figure import Figure

    parts = list(chart.parts())
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=_size(chart, rows, columns), layout="constrained")
    for i, (title, frame) in enumerate(parts):
        axes = figure.add_subplot(rows, columns, i + 1)
        PANELS[chart.kind](axes, chart, frame)
        if chart.y == "rate":
            axes.set_ylim(0, _rate_limit(frame))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(chart.x_title)
        axes.set_ylabel(chart.y_title)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if chart.group and handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    figure.suptitle(chart.title, fontsize=12)
    figure.savefig(path, dpi=130)


def _size(chart: Chart, rows: int, columns: int) -> tuple[float, float]:
    """Width and height of the whole picture, inches."""
    horizontal = chart.kind in ("forest", "stack")  # a line of text per agent
    height = 1.2 + 0.24 * chart.frame[chart.y].nunique() if horizontal else 3.2
    legend = 0.17 * -(-chart.group_count // 4)
    return (7.5 if columns == 1 else 4.2 * columns), height * rows + legend


def _forest_panel(axes: Any, chart: Chart, frame: pd.DataFrame) -> None:
    errors = [frame["mean"] - frame["low"], frame["high"] - frame["mean"]]
    axes.errorbar(frame["mean"], frame[chart.y], xerr=errors, fmt="o", color=COLOURS[0], ecolor=GREY, ms=5)
    axes.axvline(0, color="black", lw=0.8)


def _line_panel(axes: Any, chart: Chart, frame: pd.DataFrame) -> None:
    if chart.diagonal:
        axes.plot([0, 1], [0, 1], "--", color=GREY, lw=0.8)
    for i, (name, part) in enumerate(chart.series(frame)):
        marker = "o" if len(part) < 12 else None  # a line of one point has no length
        axes.plot(part[chart.x], part[chart.y], _dash(i), color=_colour(i), label=name, lw=1.4, marker=marker, ms=3)
    values = frame[chart.x].unique()
    if len(values) == 1:  # no negative steps around the only one
        axes.set_xticks(values)


def _matrix_panel(axes: Any, chart: Chart, frame: pd.DataFrame) -> None:
    labels = list(dict.fromkeys(frame[chart.y]))
    shares, counts = (frame[key].to_numpy().reshape(len(labels), -1) for key in ("share", "count"))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, fontsize=7, rotation=20)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    for (row, column), share in np.ndenumerate(shares if len(labels) <= 12 else shares[:0]):
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)


def _stack_panel(axes: Any, chart: Chart, frame: pd.DataFrame) -> None:
    left = pd.Series(0.0, index=dict.fromkeys(frame[chart.y]))  # where the next group's bars begin
    for i, (name, part) in enumerate(chart.series(frame)):
        width = part.set_index(chart.y)[chart.x]
        axes.barh(width.index, width, left=left[width.index], color=_colour(i), label=name)
        left[width.index] += width
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()


def _bar_panel(axes: Any, chart: Chart, frame: pd.DataFrame) -> None:
    """Groups stand side by side at every value of `x`."""
    series = list(chart.series(frame))
    width = 0.8 / len(series)
    for i, (name, part) in enumerate(series):
        places = np.arange(len(part)) + (i - (len(series) - 1) / 2) * width
        axes.bar(places, part[chart.y], width, color=_colour(i), label=name)
        axes.set_xticks(range(len(part)), part[chart.x], fontsize=7, rotation=20)


PANELS = {
    "forest": _forest_panel,
    "lines": _line_panel,
    "stack": _stack_panel,
    "bars": _bar_panel,
    "matrix": _matrix_panel,
}


def table_to_png(table: Mapping[str, Any], path: Path) -> None:
    """Write a table as a PNG file. Its cells are (text, sort value, whether it is printed in bold)."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    texts = [[text for text, _, _ in row] for row in table["rows"]]
    widths = [max(map(len, column)) + 2 for column in zip(table["head"], *texts, strict=True)]
    figure = Figure(figsize=(0.085 * sum(widths), 0.3 * (len(texts) + 1) + 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    drawn = axes.table(
        texts,
        colLabels=table["head"],
        colWidths=[w / sum(widths) for w in widths],
        loc="center",
        cellLoc="right",
        bbox=Bbox.unit(),
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    for (row, column), cell in drawn.get_celld().items():
        cell.visible_edges = "B"
        cell.set_edgecolor("#cccccc")
        if column == 0:
            cell.set_text_props(ha="left")
        if row == 0 or table["rows"][row - 1][column][2]:
            cell.set_text_props(weight="bold")
    figure.savefig(path, dpi=110)
