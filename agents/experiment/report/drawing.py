"""Two ways to draw a chart: Plotly for the page, matplotlib for PNG files.

Both libraries are imported when something is drawn, so that programs without the extra `report` can import this module.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.experiment.report.chart import Chart

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")  # Paul Tol's bright scheme
GREY = COLOURS[6]
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}  # Plotly's names and matplotlib's


def _colour(i: int) -> str:
    """Colour of the i-th group."""
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> str:
    """Plotly's name of the i-th group's dashes: they change when the colours repeat."""
    return list(DASHES)[i // len(COLOURS) % len(DASHES)]


def _rate_limit(frame: pd.DataFrame) -> float:
    """Upper end of an axis of rates: just above 1, or above the largest weight."""
    return max(1.02, float(frame["rate"].max()) * 1.02)


# --- Plotly -----------------------------------------------------------------------------------------------------------


def to_plotly(chart: Chart, frame: pd.DataFrame) -> Any:
    """A Plotly figure of one picture of the chart.

    The page sets the colours of text, axes and grid, because they differ between its light and its dark form.
    """
    from plotly import graph_objects as go

    chart, frame = _escaped(chart, frame)
    figure = go.Figure()
    if chart.kind == "forest":
        _plotly_forest(figure, chart, frame)
    else:
        for i, (name, part) in enumerate(chart.series(frame)):
            if chart.kind == "lines":
                _plotly_line(figure, chart, part, name, i)
            else:
                _plotly_bars(figure, chart, part, name, i)
    _plotly_layout(figure, chart, frame)
    return figure


def _escaped(chart: Chart, frame: pd.DataFrame) -> tuple[Chart, pd.DataFrame]:
    """The chart and the picture with all texts escaped: Plotly reads tags in labels."""

    def escape(value: Any) -> Any:
        return html.escape(value, quote=False) if isinstance(value, str) else value

    shown = None if chart.shown is None else frozenset(map(escape, chart.shown))
    return replace(chart, frame=chart.frame.map(escape), shown=shown), frame.map(escape)


def _plotly_forest(figure: Any, chart: Chart, frame: pd.DataFrame) -> None:
    """Means with intervals; grey where the interval contains zero."""
    clear = (frame["low"] > 0) | (frame["high"] < 0)
    figure.add_scatter(
        x=frame["mean"],
        y=frame[chart.y],
        mode="markers",
        marker={"size": 9, "color": [COLOURS[0] if c else GREY for c in clear]},
        error_x={
            "array": frame["high"] - frame["mean"],
            "arrayminus": frame["mean"] - frame["low"],
            "thickness": 1.5,
            "color": GREY,
        },
        hovertemplate="%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
        customdata=frame[["low", "high"]],
    )


def _plotly_line(figure: Any, chart: Chart, part: pd.DataFrame, name: str, i: int) -> None:
    figure.add_scatter(
        x=part[chart.x],
        y=part[chart.y],
        name=name,
        mode="lines+markers" if len(part) < 12 else "lines",
        line={"color": _colour(i), "dash": _dash(i), "width": 2},
        visible=True if chart.shown is None or name in chart.shown else "legendonly",
    )


def _plotly_bars(figure: Any, chart: Chart, part: pd.DataFrame, name: str, i: int) -> None:
    figure.add_bar(
        x=part[chart.x],
        y=part[chart.y],
        name=name,
        marker={"color": _colour(i)},
        orientation="h" if chart.kind == "stack" else "v",
    )


def _plotly_layout(figure: Any, chart: Chart, frame: pd.DataFrame) -> None:
    """Size, axes and legend."""
    rows_of_legend = chart.group_count // 5
    height = 340 + 22 * rows_of_legend
    if chart.kind == "forest":
        height = 90 + 26 * len(frame)
        figure.update_layout(showlegend=False)
        figure.update_xaxes(zeroline=True, zerolinewidth=2)
    if chart.kind == "stack":
        height = 110 + 22 * frame[chart.y].nunique()
        figure.update_layout(barmode="stack")
        figure.update_yaxes(autorange="reversed")
    if chart.y == "rate":
        figure.update_yaxes(range=[0, _rate_limit(frame)])
    figure.update_xaxes(title=chart.x_title or None, automargin=True)
    figure.update_yaxes(title=chart.y_title or None, automargin=True)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 10, "r": 16, "t": 10, "b": 44 + (40 + 20 * rows_of_legend if chart.group else 0)},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        hovermode="closest",
    )


# --- matplotlib -------------------------------------------------------------------------------------------------------


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
    for i, (name, part) in enumerate(chart.series(frame)):
        axes.plot(part[chart.x], part[chart.y], DASHES[_dash(i)], color=_colour(i), label=name, lw=1.4)


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


PANELS = {"forest": _forest_panel, "lines": _line_panel, "stack": _stack_panel, "bars": _bar_panel}


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
