"""Every figure of the report as a tidy table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from agents.rules import RULES
from distill.process import Prepared

RULE_OUT = ("control", "labels")  # nothing is chosen there


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
