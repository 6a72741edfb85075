"""Two ways to draw a chart: Plotly for the page, matplotlib for PNG files."""

from __future__ import annotations


import html
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.experiment.report.charts import Chart, is_learnt

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")  # Paul Tol's bright scheme


DASHES = ("solid", "dash", "dot", "dashdot")


SHOWN_CURVES = ("control", "oracle", "headroom", "best_single")  # and every learnt agent; the others by a click


def to_plotly(chart: Chart, frame: pd.DataFrame) -> PlotlyFigure:
    """One picture for the page. Colours of text and lines are the page's, which knows light from dark."""
    from plotly import graph_objects as go

    # Plotly reads tags in labels
    frame, whole = (
        f.map(lambda v: html.escape(v, quote=False) if isinstance(v, str) else v) for f in (frame, chart.frame)
    )
    chart = replace(chart, frame=whole)
    groups = 1 if chart.group is None else chart.frame[chart.group].nunique()
    figure = go.Figure(layout={"height": 340 + 22 * (groups // 5)})
    if chart.kind == "forest":
        clear = (frame["low"] > 0) | (frame["high"] < 0)
        figure.add_scatter(
            x=frame["mean"],
            y=frame[chart.y],
            mode="markers",
            marker={"size": 9, "color": [COLOURS[0] if c else COLOURS[6] for c in clear]},
            error_x={
                "array": frame["high"] - frame["mean"],
                "arrayminus": frame["mean"] - frame["low"],
                "thickness": 1.5,
                "color": COLOURS[6],
            },
            hovertemplate="%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
            customdata=frame[["low", "high"]],
        )
        figure.update_layout(height=90 + 26 * len(frame), showlegend=False)
        figure.update_xaxes(zeroline=True, zerolinewidth=2)
    for i, (name, part) in enumerate(() if chart.kind == "forest" else chart.series(frame)):
        colour = COLOURS[i % len(COLOURS)]
        if chart.kind == "lines":
            shown = chart.group != "agent" or name in SHOWN_CURVES or is_learnt(name)
            figure.add_scatter(
                x=part[chart.x],
                y=part[chart.y],
                name=name,
                mode="lines+markers" if len(part) < 12 else "lines",
                line={"color": colour, "dash": DASHES[i // len(COLOURS) % len(DASHES)], "width": 2},
                visible=True if shown else "legendonly",
            )
        else:
            across = chart.kind == "stack"
            figure.add_bar(
                x=part[chart.x],
                y=part[chart.y],
                name=name,
                marker={"color": colour},
                orientation="h" if across else "v",
            )
    if chart.kind == "stack":
        figure.update_layout(barmode="stack", height=110 + 22 * frame[chart.y].nunique())
        figure.update_yaxes(autorange="reversed")
    if chart.y == "rate":
        figure.update_yaxes(range=[0, max(1.02, float(frame["rate"].max()) * 1.02)])
    figure.update_xaxes(title=chart.x_title or None, automargin=True)
    figure.update_yaxes(title=chart.y_title or None, automargin=True)
    figure.update_layout(
        template="none",
        margin={"l": 10, "r": 16, "t": 10, "b": 44 + (40 + 20 * (groups // 5) if chart.group else 0)},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        hovermode="closest",
    )
    return figure


def to_png(chart: Chart, path: Path) -> None:
    """The whole chart as a picture, one panel for each of its parts."""
    from matplotlib.figure import Figure

    parts = list(chart.parts())
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    groups = 0 if chart.group is None else chart.frame[chart.group].nunique()
    tall = 1.2 + 0.24 * chart.frame[chart.y].nunique() if chart.kind in ("forest", "stack") else 3.2
    tall += 0.17 * -(-groups // 4) / rows  # the legend
    figure = Figure(figsize=(7.5 if columns == 1 else 4.2 * columns, tall * rows), layout="constrained")
    for i, (title, frame) in enumerate(parts):
        axes = figure.add_subplot(rows, columns, i + 1)
        _panel(axes, chart, frame)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(chart.x_title)
        axes.set_ylabel(chart.y_title)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if chart.group and handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    figure.suptitle(chart.title, fontsize=12)
    figure.savefig(path, dpi=130)


def table_to_png(table: Mapping[str, Any], path: Path) -> None:
    """A table as a picture, what stands out in bold."""
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


def _panel(axes: Any, chart: Chart, frame: pd.DataFrame) -> None:
    if chart.kind == "forest":
        errors = [frame["mean"] - frame["low"], frame["high"] - frame["mean"]]
        axes.errorbar(frame["mean"], frame[chart.y], xerr=errors, fmt="o", color=COLOURS[0], ecolor=COLOURS[6], ms=5)
        axes.axvline(0, color="black", lw=0.8)
        return
    series = list(chart.series(frame))
    left = pd.Series(0.0, index=dict.fromkeys(frame[chart.y])) if chart.kind == "stack" else None
    for i, (name, part) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        if chart.kind == "lines":
            style = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
            axes.plot(part[chart.x], part[chart.y], style, color=colour, label=name, lw=1.4)
        elif left is not None:
            wide = part.set_index(chart.y)[chart.x]
            axes.barh(wide.index, wide, left=left[wide.index], color=colour, label=name)
            left[wide.index] += wide
            axes.tick_params(axis="y", labelsize=8)
        else:
            places = np.arange(len(part)) + (i - (len(series) - 1) / 2) * 0.8 / len(series)
            axes.bar(places, part[chart.y], 0.8 / len(series), color=colour, label=name)
            axes.set_xticks(range(len(part)), part[chart.x], fontsize=7, rotation=20)
    if left is not None:
        axes.invert_yaxis()
    if chart.y == "rate":
        axes.set_ylim(0, max(1.02, float(frame["rate"].max()) * 1.02))
