"""The report of a comparison: one HTML page that needs nothing else, and every figure and table as PNG and CSV beside it.

`python agents/compare.py` writes it to `<run>/report/`. A figure is a tidy table first; the page (Plotly) and the PNG
(matplotlib) are two ways to draw the same table. Needs the extra `report`.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch

from agents import stats
from agents.rules import RULES
from distill.cache import way_out
from distill.losses import soft_labels
from distill.process import Prepared
from distill.settings import UserError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

PACKAGES = ("jinja2", "plotly", "matplotlib")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")  # Paul Tol's bright scheme
DASHES = ("solid", "dash", "dot", "dashdot")
TEMPLATE = Path(__file__).with_name("report.html")
RULE_OUT = ("control", "labels")  # nothing is chosen there
SHOWN_CURVES = ("control", "oracle", "headroom", "best_single")  # and every learnt agent; the others by a click


@dataclass
class Chart:
    """A figure as a tidy table: `x`, `y` and, where there is one, the `group` drawn in a colour of its own.

    forest: `mean` with `low` and `high` for every `y`. lines and bars: one series a group; `stack` puts bars on each
    other. `facet` names the column of agents when every agent has a picture of its own.
    """

    name: str
    title: str
    note: str
    kind: str  # forest, lines, bars, stack
    frame: pd.DataFrame
    x: str
    y: str
    group: str | None = None
    facet: str | None = None
    x_title: str = ""
    y_title: str = ""

    def parts(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """One picture after another: all of the table, or that of each agent."""
        if self.facet is None:
            yield "", self.frame
            return
        for agent in dict.fromkeys(self.frame[self.facet]):
            yield str(agent), self.frame[self.frame[self.facet] == agent]

    def series(self, frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
        """The groups of a picture, in the order of the whole table."""
        if self.group is None:
            yield "", frame
            return
        for name in dict.fromkeys(self.frame[self.group]):
            part = frame[frame[self.group] == name]
            if len(part):
                yield str(name), part


# --- what was measured ------------------------------------------------------------------------------------------------


def short(agent: str) -> str:
    """An entry of `agents=` as figures call it: the settings that only say how long it trains are left out."""
    words = [w.partition("=") for w in agent.split() if "episodes=" not in w]
    return " ".join(f"{key.rpartition('.')[2]}{sign}{value}" for key, sign, value in words)


def is_learnt(agent: str) -> bool:
    """Whether an entry of `agents=` is a learnt policy and not a rule."""
    return agent.split()[0].partition(":")[0] not in (*RULES, "single")


def charts(
    comparison: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    choices: Mapping[str, Sequence[np.ndarray]],
    prepared: Prepared,
) -> list[Chart]:
    """Every figure of the report; `choices` are the last choices `[N,K]` of every agent, one array a seed."""
    metric = comparison["metric"]
    out = []
    for test in comparison["tests"]:
        for name, factor, unit, better in ((metric, 100, "points", "right"), ("loss", 1, "nats", "left")):
            rows = [
                {"agent": short(r["agent"]), **_span(r[f"difference_{name}"], factor)}
                for r in comparison["tables"][test]
                if f"difference_{name}" in r
            ]
            if rows:
                title = f"{'Accuracy' if name == 'accuracy' else name.capitalize()} against all teachers"
                title += f" ({test})" if len(comparison["tests"]) > 1 else ""
                note = f"Paired differences over seeds with 95 % intervals; further {better} is better. An interval that holds zero shows nothing."
                frame = pd.DataFrame(rows).sort_values("mean", ascending=name == metric, kind="stable")
                out.append(
                    Chart(
                        f"differences-{name}-{test}",
                        title,
                        note,
                        "forest",
                        frame,
                        "mean",
                        "agent",
                        x_title=f"{unit} to the control",
                    )
                )
    curve = _mean_of(
        [{"agent": short(r["agent"]), "step": c["step"], metric: c[metric]} for r in results for c in r["curve"]],
        ["agent", "step"],
    )
    note = "From the same warm start on the same batches; mean over seeds. Dev picks the point that test is read at."
    out.append(
        Chart(
            "student",
            f"The student's dev {metric}",
            note,
            "lines",
            curve,
            "step",
            metric,
            "agent",
            x_title="student steps",
            y_title=f"dev {metric}",
        )
    )
    gains = [{"agent": short(r["agent"]), **c} for r in results for c in r["joint_curve"] if "gain" in c]
    if gains:
        frame = _mean_of([{k: g[k] for k in ("agent", "episode", "gain")} for g in gains], ["agent", "episode"])
        note = "Sum of the measured gains on the reward split, nats, by episode of joint training; mean over seeds."
        out.append(
            Chart(
                "gain",
                "Gain in joint training",
                note,
                "lines",
                frame,
                "episode",
                "gain",
                "agent",
                x_title="episode",
                y_title="gain, nats",
            )
        )
    names = list(results[0]["teachers"])
    rates = [
        {"agent": short(r["agent"]), "step": c["step"], "teacher": t, "rate": rate}
        for r in results
        if r["agent"] in choices
        for c in r["selection_curve"]
        for t, rate in zip(names, c["rate"], strict=True)
    ]
    if rates:
        frame = _mean_of(rates, ["agent", "teacher", "step"])
        note = "Share of instances that each teacher was chosen for (mean weight, where an agent weighs), in the fixed run."
        out.append(
            Chart(
                "selection-time",
                "Selection over time",
                note,
                "lines",
                frame,
                "step",
                "rate",
                "teacher",
                "agent",
                "student steps",
                "rate",
            )
        )
        out += _selection(choices, prepared, names)
    cost = [
        {"agent": short(r["agent"]), "part": part, "seconds": r[key]}
        for r in comparison["tables"][comparison["tests"][0]]
        for part, key in (("training the agent", "train_s"), ("distilling under it", "follow_s"))
    ]
    note = "Mean over seeds. The control's bar is the price of distillation itself."
    out.append(Chart("cost", "Cost", note, "stack", pd.DataFrame(cost), "seconds", "agent", "part", x_title="seconds"))
    return out


def _span(pair: Mapping[str, Any], factor: float) -> dict[str, float]:
    low, high = pair["interval"] or (pair["mean"], pair["mean"])
    return {"mean": factor * pair["mean"], "low": factor * low, "high": factor * high}


def _mean_of(rows: list[dict[str, Any]], keys: list[str]) -> pd.DataFrame:
    """Mean over seeds, in the order that keys came in."""
    return pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index()


def _selection(choices: Mapping[str, Sequence[np.ndarray]], prepared: Prepared, names: list[str]) -> list[Chart]:
    """Who is chosen for what: by class, by whether the teacher is right, by length."""
    task = prepared.task
    train = task.splits["train"]
    logits = prepared.signals("train").logits(np.arange(len(train)))
    right = logits.argmax(-1) == train.labels[:, None]  # [N,K]
    words = np.array([sum(len(t.split()) for t in texts) for texts in train.texts])
    edges = np.unique(np.quantile(words, (0.25, 0.5, 0.75)).astype(int))
    place = np.searchsorted(edges, words)
    bounds = [words.min() - 1, *edges, words.max()]
    lengths = [f"{low + 1} to {high} words" for low, high in itertools.pairwise(bounds)]
    ways: list[tuple[str, str, str, str, list[tuple[str, np.ndarray]]]] = [
        (
            "class",
            "Selection by class",
            "Rate of each teacher among training instances of a class.",
            "class",
            [(name, np.tile((train.labels == i)[:, None], len(names))) for i, name in enumerate(task.label_names)],
        ),
        (
            "correctness",
            "Selection by correctness",
            "Rate of each teacher where its own answer agrees with the training label, and where it does not. Alike bars: the agent does not see who is right.",
            "teacher is",
            [("right", right), ("wrong", ~right)],
        ),
        (
            "length",
            "Selection by length",
            "Rate of each teacher by length of the text, in quarters of the training data.",
            "length",
            [(name, np.tile((place == i)[:, None], len(names))) for i, name in enumerate(lengths)],
        ),
    ]
    out = []
    for key, title, note, column, cuts in ways:
        rows = [
            {
                "agent": short(agent),
                "teacher": name,
                column: label,
                "rate": float(last[mask[:, k] & (last[:, k] >= 0), k].mean()),
            }
            for agent, arrays in choices.items()
            for last in (np.asarray(array, np.float64) for array in arrays)  # kept as float16
            for label, mask in cuts
            for k, name in enumerate(names)
            if (mask[:, k] & (last[:, k] >= 0)).any()
        ]
        if rows:
            frame = _mean_of(rows, ["agent", "teacher", column])
            out.append(
                Chart(
                    f"selection-{key}", title, note, "bars", frame, "teacher", "rate", column, "agent", y_title="rate"
                )
            )
    return out


def explorer(
    cells: Mapping[str, Mapping[str, np.ndarray]], prepared: Prepared, names: list[str], seed: int
) -> dict[str, Any]:
    """What the instance explorer shows: a few hundred training instances of one seed, under every agent."""
    task = prepared.task
    rows = next(iter(cells.values()))["rows"]
    part = task.splits["train"].take(rows)
    signals = prepared.signals("train")
    logits = torch.from_numpy(signals.logits(rows))
    gold = torch.from_numpy(part.labels)
    losses = -logits.log_softmax(-1).gather(2, gold[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    vectors = signals.vectors(rows)
    largest = float(np.abs(vectors).max()) or 1.0
    return {
        "seed": seed,
        "teachers": names,
        "labels": list(task.label_names),
        "ids": [str(i) for i in part.ids],
        "texts": [list(t) for t in part.texts],
        "gold": part.labels.tolist(),
        "probs": _rounded(soft_labels(logits, 1.0).numpy()),
        "losses": _rounded(losses.numpy()),
        "before": _rounded(next(iter(cells.values()))["before"]),
        "agents": {
            short(agent): {"choice": _rounded(cell["last"][rows]), "after": _rounded(cell["after"])}
            for agent, cell in cells.items()
        },
        "width": vectors.shape[1],
        "vectors": base64.b64encode(np.round(vectors / largest * 127).astype(np.int8).tobytes()).decode(),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    return np.asarray(values, np.float64).round(3).tolist()


# --- drawing ----------------------------------------------------------------------------------------------------------


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


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    comparison: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    cells: Mapping[tuple[str, int], Path],
    prepared: Prepared,
) -> Path:
    """Write `index.html` and all PNG and CSV files to `folder`; returns the page.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        comparison: what compare.py writes as comparison.json.
        results: those of all finished cells, with their curves.
        cells: folder of every finished cell, by agent and seed.
        prepared: the task with its signals, for texts and teachers' opinions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loaded: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for (agent, seed), place in cells.items():
        try:
            with np.load(place / "choices.npz", allow_pickle=False) as file:
                loaded.setdefault(agent, {})[seed] = {k: file[k] for k in file.files}
        except (OSError, ValueError, AttributeError, BadZipFile) as error:
            raise UserError(
                f"cell {place}: choices.npz cannot be read ({type(error).__name__}){way_out(place)}"
            ) from None
    choosing = {
        agent: [cell["last"] for cell in seeds.values()]
        for agent, seeds in loaded.items()
        if agent.split()[0] not in RULE_OUT and not agent.startswith("single:")
    }
    drawn = charts(comparison, results, choosing, prepared)
    for chart in drawn:
        chart.frame.to_csv(folder / f"{chart.name}.csv", index=False)
        to_png(chart, folder / f"{chart.name}.png")
    tables = {test: _table(comparison, test) for test in comparison["tests"]}
    for test, table in tables.items():
        texts = [[text for text, _, _ in row] for row in table["rows"]]
        pd.DataFrame(texts, columns=table["head"]).to_csv(folder / f"table-{test}.csv", index=False)
        table_to_png(table, folder / f"table-{test}.png")
    seed = comparison["seeds"][0]
    of_seed = {agent: seeds[seed] for agent, seeds in loaded.items() if seed in seeds}
    known = explorer(of_seed, prepared, list(results[0]["teachers"]), seed) if of_seed else None
    page = folder / "index.html"
    page.write_text(render(comparison, tables, drawn, known), encoding="utf-8")
    return page


def render(
    comparison: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
    drawn: Sequence[Chart],
    known: Mapping[str, Any] | None,
) -> str:
    """The page. All text from data is escaped, by the template or by the browser's own `textContent`."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = [
        {
            "name": c.name,
            "title": c.title,
            "note": c.note,
            "plots": {part: json.loads(to_plotly(c, frame).to_json()) for part, frame in c.parts()},
        }
        for c in drawn
    ]
    agents = list(dict.fromkeys(part for f in figures for part in f["plots"] if part))
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        comparison=comparison,
        figures=figures,
        agents=agents,
        tables=tables,
        cards=_cards(comparison),
        explorer=known,
        plotly=get_plotlyjs(),
    )


def _cards(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    """What to know first: the control, the first learnt agent, the ceiling."""
    metric, test = comparison["metric"], comparison["tests"][0]
    rows = {r["agent"]: r for r in comparison["tables"][test]}
    seeds = len(comparison["seeds"])
    cards = []
    if "control" in rows:
        cards.append(
            {
                "name": "all teachers (control)",
                "value": f"{rows['control']['mean']:.4f}",
                "note": f"{test} {metric}, mean of {seeds} seed{'s' * (seeds != 1)}",
            }
        )
    learnt = next((a for a in rows if is_learnt(a)), None)
    ceiling = next((a for a in rows if a.split()[0] in ("oracle", "headroom")), None)
    for agent in (learnt, ceiling):
        pair = rows[agent].get(f"difference_{metric}") if agent is not None else None
        if agent is None or pair is None:
            continue
        if pair["interval"] is None:
            note = "points to the control; one seed, no interval"
        else:
            low, high = (100 * x for x in pair["interval"])
            verdict = "above zero" if low > 0 else "below zero" if high < 0 else "zero is inside: nothing shown"
            note = f"points to the control, 95 % [{low:+.2f}, {high:+.2f}]: {verdict}"
        kind = "ceiling: " if agent == ceiling else ""
        cards.append({"name": kind + short(agent), "value": f"{100 * pair['mean']:+.2f}", "note": note})
    return cards


def _table(comparison: Mapping[str, Any], test: str) -> dict[str, Any]:
    """Header and rows; a cell is (text, number to sort by, whether it stands out)."""
    metric = comparison["metric"]
    extra = [m for m in ("f1", "matthews") if m != metric and f"mean_{m}" in comparison["tables"][test][0]]
    plain = [metric] if metric == "accuracy" else [metric, "accuracy"]
    head = [
        "agent",
        *plain,
        "IQM [95 %]",
        "vs control, points [95 %]",
        "P(better)",
        "p (Holm)",
        "loss",
        "vs control, nats [95 %]",
    ]
    head += ["Brier", "ECE", *extra, "teachers on", "training, s"]

    def number(value: float | None, form: str) -> tuple[str, float | None, bool]:
        return ("" if value is None else f"{value:{form}}", value, False)

    def pair(found: Mapping[str, Any] | None, factor: float, form: str) -> tuple[str, float | None, bool]:
        if found is None:
            return ("", None, False)
        text = stats.with_interval(found["mean"], found["interval"], form, factor)
        return (text, found["mean"], stats.is_clear(found["interval"]))

    rows = []
    for r in comparison["tables"][test]:
        row = [(r["agent"], None, False), *(number(r[f"mean_{m}"], ".4f") for m in plain)]
        row += [
            (stats.with_interval(r["iqm"], r["interval"], ".4f"), r["iqm"], False),
            pair(r.get(f"difference_{metric}"), 100, "+.2f"),
        ]
        row += [number(r.get("improvement"), ".2f"), number(r.get("p_holm"), ".3f"), number(r["mean_loss"], ".4f")]
        row += [pair(r.get("difference_loss"), 1, "+.4f"), number(r["mean_brier"], ".4f"), number(r["mean_ece"], ".3f")]
        row += [
            *(number(r[f"mean_{m}"], ".4f") for m in extra),
            number(r["mean_size"], ".2f"),
            number(r["train_s"], ".0f"),
        ]
        rows.append(row)
    return {"head": head, "rows": rows}
