"""The report of a comparison: one HTML page that needs nothing else, with every figure and table as PNG and CSV beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch

from agents.experiment import stats
from agents.experiment.report.charts import RULE_OUT, Chart, charts, is_learnt, short
from agents.experiment.report.drawing import table_to_png, to_plotly, to_png
from distill.cache import way_out
from distill.checks import UserError
from distill.losses import soft_labels
from distill.process import Prepared

PACKAGES = ("jinja2", "plotly", "matplotlib")


TEMPLATE = Path(__file__).with_name("report.html")


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
