"""The report of a comparison: one HTML page that works offline, and each of its figures and tables as PNG and CSV files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch

from agents.experiment import stats
from agents.experiment.report.chart import Chart, is_learnt, short
from agents.experiment.report.charts import charts
from agents.experiment.report.drawing import table_to_png, to_plotly, to_png
from distill.cache import way_out
from distill.checks import UserError
from distill.losses import soft_labels
from distill.process import Prepared

PACKAGES = ("jinja2", "plotly", "matplotlib")  # of the extra `report`; imported only when a report is written
TEMPLATE = Path(__file__).with_name("report.html")
CONSTANT = ("control", "labels", "single")  # rules that choose the same for all instances: no figures of selection
UPPER_BOUNDS = ("oracle", "headroom")

Row = Mapping[str, Any]


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    comparison: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    cells: Mapping[tuple[str, int], Path],
    prepared: Prepared,
) -> Path:
    """Write `index.html` and all PNG and CSV files to `folder`.

    Args:
        folder: made if it does not exist; files of the same names are replaced.
        comparison: content of comparison.json.
        results: results of all finished cells, with their curves.
        cells: folder of every finished cell, by agent and seed.
        prepared: the task with its signals.

    Returns:
        Path of the page.

    Raises:
        UserError: when the choices of a cell cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choices = _load_choices(cells)
    last = {
        agent: [arrays["last"] for arrays in seeds.values()]
        for agent, seeds in choices.items()
        if agent.split()[0].partition(":")[0] not in CONSTANT
    }
    figures = charts(comparison, results, last, prepared)
    for chart in figures:
        chart.frame.to_csv(folder / f"{chart.name}.csv", index=False)
        to_png(chart, folder / f"{chart.name}.png")
    tables = {test: make_table(comparison, test) for test in comparison["tests"]}
    for test, table in tables.items():
        texts = [[cell.text for cell in row] for row in table["rows"]]
        pd.DataFrame(texts, columns=table["head"]).to_csv(folder / f"table-{test}.csv", index=False)
        table_to_png(table, folder / f"table-{test}.png")
    seed = comparison["seeds"][0]
    of_seed = {agent: seeds[seed] for agent, seeds in choices.items() if seed in seeds}
    instances = explorer(of_seed, prepared, list(results[0]["teachers"]), seed) if of_seed else None
    page = folder / "index.html"
    page.write_text(render(comparison, tables, figures, instances), encoding="utf-8")
    return page


def _load_choices(cells: Mapping[tuple[str, int], Path]) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """The arrays of every cell's choices.npz, by agent and seed."""
    loaded: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for (agent, seed), place in cells.items():
        try:
            with np.load(place / "choices.npz", allow_pickle=False) as file:
                loaded.setdefault(agent, {})[seed] = {k: file[k] for k in file.files}
        except (OSError, ValueError, AttributeError, BadZipFile) as error:
            raise UserError(
                f"cell {place}: choices.npz cannot be read ({type(error).__name__}){way_out(place)}"
            ) from None
    return loaded


def render(
    comparison: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
    charts: Sequence[Chart],
    instances: Mapping[str, Any] | None,
) -> str:
    """The HTML of the page.

    All text from data is escaped: by the template, or because the page's script sets it as `textContent`.
    """
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
        for c in charts
    ]
    rows = comparison["tables"][comparison["tests"][0]]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        comparison=comparison,
        figures=figures,
        agents=list(dict.fromkeys(part for f in figures for part in f["plots"] if part)),
        learnt=[short(row["agent"]) for row in rows if is_learnt(row)],
        tables=tables,
        cards=cards(comparison),
        explorer=instances,
        check=comparison.get("preflight"),
        plotly=get_plotlyjs(),
    )


# --- the first lines --------------------------------------------------------------------------------------------------


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


# --- the table --------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell of the table: its text, the number to sort by, and whether it is printed in bold."""

    text: str
    value: float | None = None
    bold: bool = False


@dataclass
class Column:
    """A column of the table: heading, explanation, and the cell of a row."""

    title: str
    help: str
    cell: Callable[[Row], Cell]


METRIC_HELP = {
    "accuracy": "Share of the instances that the student labels correctly. Mean over seeds; higher is better.",
    "f1": "F1 score: the balance of precision and recall on the positive class. Mean over seeds; higher is better.",
    "matthews": "Matthews correlation of predictions and labels: 1 is perfect, 0 is guessing. Mean over seeds.",
}
INTERVAL_HELP = (
    "In brackets the 95 % interval, the range in which the true difference probably lies. "
    "Bold: the interval does not contain zero, so the difference is unlikely to be chance."
)


def make_table(comparison: Mapping[str, Any], test: str) -> dict[str, Any]:
    """The table of one test: `head` (titles), `help` (an explanation of each column) and `rows` of `Cell`."""
    rows = comparison["tables"][test]
    columns = _columns(comparison["metric"], rows[0])
    return {
        "head": [c.title for c in columns],
        "help": [c.help for c in columns],
        "rows": [[c.cell(row) for c in columns] for row in rows],
    }


def _columns(metric: str, example: Row) -> list[Column]:
    """The columns for a metric; F1 and Matthews correlation where the rows, of which `example` is one, have them."""
    main = [metric] if metric == "accuracy" else [metric, "accuracy"]
    extra = [m for m in ("f1", "matthews") if m != metric and f"mean_{m}" in example]
    return [
        Column(
            "agent",
            "Who chooses the teachers, with the settings that differ from the defaults.",
            lambda row: Cell(row["agent"]),
        ),
        *(_number(m, METRIC_HELP[m], f"mean_{m}", ".4f") for m in main),
        Column(
            "IQM [95 %]",
            f"Interquartile mean of {metric}: the mean over seeds without the best and the worst quarter, so that one "
            "unusual run counts little. In brackets its 95 % interval.",
            lambda row: Cell(stats.with_interval(row["iqm"], row["interval"], ".4f"), row["iqm"]),
        ),
        _difference(
            "vs control, points [95 %]",
            f"Difference of {metric} to the control at the same seed, in percentage points. Mean over seeds.",
            f"difference_{metric}",
            "+.2f",
            factor=100,
        ),
        _number(
            "P(better)",
            "Probability that a run of the agent is better than a run of the control. 0.5: neither is better.",
            "improvement",
            ".2f",
        ),
        _number(
            "p (Holm)",
            "How often a difference this large would occur if agent and control were equally good. Corrected for the "
            "number of agents in the table, by Holm's method. Small values, usually below 0.05, speak for a difference.",
            "p_holm",
            ".3f",
        ),
        _number(
            "loss",
            "Mean cross-entropy: how little probability the student gives to the correct labels, in nats. Lower is better.",
            "mean_loss",
            ".4f",
        ),
        _difference(
            "vs control, nats [95 %]",
            "Difference of the loss to the control at the same seed. Mean over seeds; below zero is better.",
            "difference_loss",
            "+.4f",
        ),
        _number("Brier", "Mean squared error of the predicted probabilities. Lower is better.", "mean_brier", ".4f"),
        _number(
            "ECE",
            "Expected calibration error: how far the student's confidence is from its accuracy. 0: none.",
            "mean_ece",
            ".3f",
        ),
        *(_number(m, METRIC_HELP[m], f"mean_{m}", ".4f") for m in extra),
        _number("teachers on", "Number of teachers chosen for an instance. Mean.", "mean_size", ".2f"),
        _number("training, s", "Seconds spent on training the agent; rules need none.", "train_s", ".0f"),
        _number(
            "whole job",
            "Time from stored signals and warm start to the final student, over the control's.",
            "whole_job",
            ".1f",
        ),
        Column("labels used", "Whose labels the choices use. Dev labels also pick every checkpoint.", _labels),
    ]


def _labels(row: Row) -> Cell:
    return Cell(row.get("labels", ""))


def _number(title: str, help: str, key: str, form: str) -> Column:
    """A column of plain numbers; empty where a row has none."""

    def cell(row: Row) -> Cell:
        value = row.get(key)
        return Cell("") if value is None else Cell(f"{value:{form}}", value)

    return Column(title, help, cell)


def _difference(title: str, help: str, key: str, form: str, factor: float = 1) -> Column:
    """A column of paired differences with their intervals; empty for the control."""

    def cell(row: Row) -> Cell:
        pair = row.get(key)
        if pair is None:
            return Cell("")
        text = stats.with_interval(pair["mean"], pair["interval"], form, factor)
        return Cell(text, pair["mean"], stats.is_clear(pair["interval"]))

    return Column(title, f"{help} {INTERVAL_HELP}", cell)


# --- the instances ----------------------------------------------------------------------------------------------------


def explorer(
    cells: Mapping[str, Mapping[str, np.ndarray]], prepared: Prepared, names: list[str], seed: int
) -> dict[str, Any]:
    """What the page shows of single instances: a few hundred training instances of one seed, under every agent.

    Args:
        cells: by agent, the arrays of its choices.npz: `rows` `[R]` (the instances shown), `last` `[N,K]` (its last
            choices), and the student's probabilities `before` and `after` `[R,C]`.
        prepared: the task with its signals.
        names: of the teachers.
        seed: of all these cells.
    """
    task = prepared.task
    first = next(iter(cells.values()))  # the instances, and the student before, are the same for all agents
    rows = first["rows"]
    part = task.splits["train"].take(rows)
    signals = prepared.signals("train")
    logits = torch.from_numpy(signals.logits(rows))
    gold = torch.from_numpy(part.labels).clamp_min(0)  # unlabelled instances show no loss
    losses = -logits.log_softmax(-1).gather(2, gold[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    # Encoder vectors as bytes: for a strip of colours, 255 steps are enough.
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
        "before": _rounded(first["before"]),
        "agents": {
            short(agent): {"choice": _rounded(cell["last"][rows]), "after": _rounded(cell["after"])}
            for agent, cell in cells.items()
        },
        "width": vectors.shape[1],
        "vectors": base64.b64encode(np.round(vectors / largest * 127).astype(np.int8).tobytes()).decode(),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    """To three decimals, which keeps the page small."""
    return np.asarray(values, np.float64).round(3).tolist()
