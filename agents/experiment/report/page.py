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
from agents.experiment.report.drawing import COLOURS, table_to_png, to_png
from agents.experiment.report.glossary import WORDS, anchor
from agents.experiment.report.words import cards, gives_all, headline
from distill.cache import way_out
from distill.checks import UserError
from distill.losses import soft_labels
from distill.process import Prepared

PACKAGES = ("jinja2", "matplotlib")  # of the extra `report`; imported only when a report is written
TEMPLATE = Path(__file__).with_name("report.html")
CONSTANT = ("control", "labels", "single")  # rules that choose the same for all instances: no figures of selection
LARGEST = 1_000_000  # characters of JSON that the explorer may take; the whole page stays below 2 MB
LONGEST = 600  # characters of a text that the explorer shows

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
    names = list(comparison["teachers"])
    _widen(choices, results, names)
    changing = {
        agent: [arrays["last"] for arrays in seeds.values()]
        for agent, seeds in choices.items()
        if agent.split()[0].partition(":")[0] not in CONSTANT
    }
    untouched = [agent for agent, arrays in changing.items() if gives_all(arrays)]
    last = {agent: arrays for agent, arrays in changing.items() if agent not in untouched}
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
    instances = explorer(of_seed, prepared, names, seed) if of_seed else None
    page = folder / "index.html"
    page.write_text(render(comparison, tables, figures, instances, untouched), encoding="utf-8")
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


def _widen(
    choices: Mapping[str, Mapping[int, dict[str, np.ndarray]]],
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> None:
    """Give the choices of a smaller pool a column for each teacher of `names`: -1, never seen, for those it does not have."""
    pools = {result["agent"]: list(result["teachers"]) for result in results}
    for agent, seeds in choices.items():
        own = pools.get(agent, list(names))
        if len(own) == len(names):
            continue
        places = [names.index(teacher) for teacher in own]
        for arrays in seeds.values():
            wide = np.full((len(arrays["last"]), len(names)), -1, arrays["last"].dtype)
            wide[:, places] = arrays["last"]
            arrays["last"] = wide


def render(
    comparison: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
    charts: Sequence[Chart],
    instances: Mapping[str, Any] | None,
    untouched: Sequence[str] = (),
) -> str:
    """The HTML of the page.

    All text from data is escaped: by the template, or because the page's script sets it as `textContent`.

    Args:
        comparison: content of comparison.json.
        tables: from `make_table`, by test.
        charts: the figures, which the page's script draws.
        instances: from `explorer`.
        untouched: agents that choose all teachers for every instance; a sentence names them.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = comparison["tables"][comparison["tests"][0]]
    figures = [_drawn(chart) for chart in charts]
    data = {
        "figures": figures,
        "explorer": instances,
        "learnt": [short(row["agent"]) for row in rows if is_learnt(row)],
        "colours": COLOURS,
        "classes": {
            test: {short(agent): found["classes"] for agent, found in by_agent.items()}
            for test, by_agent in comparison.get("details", {}).items()
        },
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        comparison=comparison,
        figures=figures,
        data=data,
        tables=tables,
        headline=headline(comparison),
        cards=cards(comparison),
        models=models(comparison),
        explorer=instances,
        untouched=[short(agent) for agent in untouched],
        check=comparison.get("preflight"),
        glossary=WORDS,
        anchor=anchor,
        style=TEMPLATE.with_suffix(".css").read_text(encoding="utf-8"),
        script=TEMPLATE.with_suffix(".js").read_text(encoding="utf-8"),
    )


def _drawn(chart: Chart) -> dict[str, Any]:
    """A chart as the page's script draws it."""
    parts = {part: _columns_of(frame) for part, frame in chart.parts()}
    groups = [] if chart.group is None else [str(name) for name in dict.fromkeys(chart.frame[chart.group])]
    kept = ("name", "title", "note", "kind", "x", "y", "group", "facet", "x_title", "y_title", "diagonal", "section")
    facts = {key: getattr(chart, key) for key in kept}
    return {**facts, "groups": groups, "parts": parts, "shown": None if chart.shown is None else sorted(chart.shown)}


def _columns_of(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns of a table as JSON: six digits, which are more than a picture shows."""
    return {
        str(name): [float(f"{v:.6g}") for v in column] if pd.api.types.is_float_dtype(column) else column.tolist()
        for name, column in frame.items()
    }


def models(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The student and the teachers as rows of texts: what they score, their size and latency, and what each teacher adds."""
    metric, tests = comparison["metric"], comparison["tests"]
    known = {row["name"]: row for row in comparison.get("models") or ()}
    added = {row["teacher"]: row for row in (comparison.get("leave_one_out") or {}).get(tests[0], ())}
    rows = []
    for row in comparison.get("teacher_scores") or ():
        name, pair = row["name"], added.get(row["name"], {}).get(f"difference_{metric}")
        rows.append(
            {
                "name": "teachers averaged" if name == "ensemble" else name,
                "scores": [f"{row[r][metric]:.4f}" if row.get(r) else "" for r in ("dev", *tests)],
                "adds": "" if pair is None else stats.with_interval(pair["mean"], pair["interval"], "+.2f", 100),
                **_size(known.get(name, {})),
            }
        )
    if "student" in known:
        control = next((r for r in comparison["tables"][tests[0]] if r["agent"] == "control"), None)
        scores = [f"{control['mean']:.4f}"] if control else [""]
        blank = [""] * (len(tests) - 1)
        rows.append(
            {"name": "student (control)", "scores": ["", *scores, *blank], "adds": "", **_size(known["student"])}
        )
    return rows


def _size(facts: Mapping[str, Any]) -> dict[str, str]:
    """Parameters, megabytes and milliseconds as texts; empty where they are not known."""
    parameters, size, ms = (facts.get(key) for key in ("parameters", "bytes", "ms"))
    return {
        "parameters": "" if parameters is None else f"{parameters / 1e6:.2f} M",
        "bytes": "" if size is None else f"{size / 1e6:.1f} MB",
        "ms": "" if ms is None else f"{ms:.1f} ms",
    }


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

    Fewer where the page would become too large. Long texts are cut.

    Args:
        cells: by agent, the arrays of its choices.npz: `rows` `[R]` (the instances shown), `last` `[N,K]` (its last
            choices), and the student's probabilities `before` and `after` `[R,C]`.
        prepared: the task with its signals.
        names: of the teachers.
        seed: of all these cells.
    """
    count = len(next(iter(cells.values()))["rows"])
    while True:
        found = _explored(cells, prepared, names, seed, count)
        if count <= 25 or len(json.dumps(found)) <= LARGEST:
            return found
        count //= 2


def _explored(
    cells: Mapping[str, Mapping[str, np.ndarray]], prepared: Prepared, names: list[str], seed: int, count: int
) -> dict[str, Any]:
    """The same for the first `count` instances."""
    task = prepared.task
    first = next(iter(cells.values()))  # the instances, and the student before, are the same for all agents
    rows = first["rows"][:count]
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
        "texts": [[text if len(text) <= LONGEST else text[:LONGEST] + " …" for text in t] for t in part.texts],
        "gold": part.labels.tolist(),
        "probs": _rounded(soft_labels(logits, 1.0).numpy()),
        "losses": _rounded(losses.numpy()),
        "before": _rounded(first["before"][:count]),
        "agents": {
            short(agent): {"choice": _rounded(cell["last"][rows]), "after": _rounded(cell["after"][:count])}
            for agent, cell in cells.items()
        },
        "width": vectors.shape[1],
        "vectors": base64.b64encode(np.round(vectors / largest * 127).astype(np.int8).tobytes()).decode(),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    """To three decimals, which keeps the page small."""
    return np.asarray(values, np.float64).round(3).tolist()
