"""The figures of the report, one function a figure. All of them are tidy tables (`Chart`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from agents.experiment.report.chart import Chart, is_learnt, short
from distill.process import Prepared

# Curves that the page shows at first, beside those of learnt agents: what to compare them with.
REFERENCES = ("control", "oracle", "headroom", "best_single")

Rows = list[dict[str, Any]]
Choices = Mapping[str, Sequence[np.ndarray]]


def charts(
    comparison: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    choices: Choices,
    prepared: Prepared,
) -> list[Chart]:
    """All figures of the report.

    Args:
        comparison: content of comparison.json.
        results: results of all finished cells, with their curves.
        choices: the last choices `[N,K]` for the training instances, one array per seed, of every agent that chooses;
            -1 where the run never met an instance.
        prepared: the task with its signals.
    """
    metric = comparison["metric"]
    names = list(results[0]["teachers"])
    found: list[Chart | None] = [
        differences(comparison, test, name) for test in comparison["tests"] for name in (metric, "loss")
    ]
    found += [student_curve(results, metric), training_gain(results), selection_over_time(results, choices)]
    if choices:
        found += [selection(cut, choices, names) for cut in cuts(prepared, len(names))]
    for test in comparison["tests"]:
        found += [reliability(comparison, test, _shown(results)), confusion(comparison, test)]
    found.append(cost(comparison))
    return [chart for chart in found if chart is not None]


# --- quality ----------------------------------------------------------------------------------------------------------


def differences(comparison: Mapping[str, Any], test: str, name: str) -> Chart | None:
    """Every agent's difference to the control on one test, of the metric or of the loss; None when only the control ran."""
    is_loss = name == "loss"
    factor, unit, better = (1, "nats", "left") if is_loss else (100, "percentage points", "right")
    rows = [
        {"agent": short(row["agent"]), **_span(row[f"difference_{name}"], factor)}
        for row in comparison["tables"][test]
        if f"difference_{name}" in row
    ]
    if not rows:
        return None
    title = f"{name.capitalize()} compared with all teachers"
    title += _of(comparison, test)
    note = (
        "Dots: the mean difference to the control, which learns from all teachers. Bars: 95 % intervals, the range in "
        f"which the true difference probably lies. Further {better} is better. A bar that crosses zero shows no "
        "difference; it is grey, as is a single seed."
    )
    frame = pd.DataFrame(rows).sort_values("mean", ascending=not is_loss, kind="stable")
    x_title = f"difference to the control, {unit}"
    return Chart(f"differences-{name}-{test}", title, note, "forest", frame, "mean", "agent", x_title=x_title)


def _span(pair: Mapping[str, Any], factor: float) -> dict[str, float]:
    """Mean and ends of the interval of a paired difference; a single seed has an interval of no width."""
    low, high = pair["interval"] or (pair["mean"], pair["mean"])
    return {"mean": factor * pair["mean"], "low": factor * low, "high": factor * high}


def student_curve(results: Sequence[Mapping[str, Any]], metric: str) -> Chart:
    """The student's dev metric over its steps, one line per agent."""
    rows = [{"agent": short(r["agent"]), "step": c["step"], metric: c[metric]} for r in results for c in r["curve"]]
    note = (
        "All students start from the same warm start and see the same batches. Means over seeds. "
        "The checkpoint with the best dev score is the one evaluated on test. A click on the legend shows or hides a line."
    )
    return Chart(
        "student",
        f"The student's {metric} on dev",
        note,
        "lines",
        _mean_over_seeds(rows, ["agent", "step"]),
        "step",
        metric,
        "agent",
        x_title="student steps",
        y_title=f"{metric} on dev",
        shown=_shown(results),
    )


def training_gain(results: Sequence[Mapping[str, Any]]) -> Chart | None:
    """What learnt agents gained in each episode of their training; None without learnt agents."""
    gains = [
        {"agent": short(r["agent"]), "episode": c["episode"], "gain": c["gain"]}
        for r in results
        for c in r["joint_curve"]
        if "gain" in c
    ]
    if not gains:
        return None
    note = (
        "How much the student's loss on the reward split fell in each episode in which the agent was trained, in nats. "
        "Means over seeds."
    )
    return Chart(
        "gain",
        "Gain while the agent is trained",
        note,
        "lines",
        _mean_over_seeds(gains, ["agent", "episode"]),
        "episode",
        "gain",
        "agent",
        x_title="episode",
        y_title="gain, nats",
        shown=_shown(results),
    )


def _shown(results: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Agents whose curves are drawn at first; all of them together would be hard to read."""
    learnt = (short(r["agent"]) for r in results if is_learnt(r) and not r["agent"].startswith("without:"))
    return frozenset({*REFERENCES, *learnt})


def _mean_over_seeds(rows: Rows, keys: list[str]) -> pd.DataFrame:
    """Mean of rows with equal keys, in the order in which the keys first occur."""
    return pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index()


# --- selection --------------------------------------------------------------------------------------------------------


def selection_over_time(results: Sequence[Mapping[str, Any]], choices: Choices) -> Chart | None:
    """How often each teacher is chosen over the student's steps, one picture per agent."""
    rates = [
        {"agent": short(r["agent"]), "step": c["step"], "teacher": teacher, "rate": rate}
        for r in results
        if r["agent"] in choices
        for c in r["selection_curve"]
        for teacher, rate in zip(r["teachers"], c["rate"], strict=True)  # a smaller pool where one was left out
    ]
    if not rates:
        return None
    note = (
        "Share of the instances for which each teacher is chosen (its mean weight, if the agent gives weights), while the "
        "student learns from the finished policy."
    )
    return Chart(
        "selection-time",
        "Selection over time",
        note,
        "lines",
        _mean_over_seeds(rates, ["agent", "teacher", "step"]),
        "step",
        "rate",
        "teacher",
        "agent",
        "student steps",
        "rate",
        section="selection",
    )


@dataclass
class Cut:
    """One way to divide the training instances into groups.

    Attributes:
        name: word in the chart's name and title.
        note: how to read the chart.
        column: what the groups are called in the chart's table.
        masks: label and bool mask `[N,K]` of each group; the mask says which pairs of instance and teacher belong to it.
    """

    name: str
    note: str
    column: str
    masks: list[tuple[str, np.ndarray]]


def cuts(prepared: Prepared, teachers: int) -> list[Cut]:
    """The training instances by class, by whether each teacher is right, and by length of the text."""
    task = prepared.task
    train = task.splits["train"]
    logits = prepared.signals("train").logits(np.arange(len(train)))
    right, known = logits.argmax(-1) == train.labels[:, None], train.labelled[:, None]  # [N,K], [N,1]
    words = np.array([sum(len(t.split()) for t in texts) for texts in train.texts])

    def for_all_teachers(mask: np.ndarray) -> np.ndarray:
        return np.tile(mask[:, None], teachers)

    return [
        Cut(
            "class",
            "How often each teacher is chosen for the training instances of a class.",
            "class",
            [(name, for_all_teachers(train.labels == i)) for i, name in enumerate(task.label_names)],
        ),
        Cut(
            "correctness",
            "How often each teacher is chosen where its answer agrees with the training label (right), and where it does "
            "not (wrong). Equal rates: the agent does not tell the two apart.",
            "teacher is",
            [("right", right & known), ("wrong", ~right & known)],
        ),
        Cut(
            "length",
            "How often each teacher is chosen by length of the text, in groups of similar size.",
            "length",
            [(name, for_all_teachers(mask)) for name, mask in _quarters(words)],
        ),
    ]


def _quarters(words: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Label and mask `[N]` of the texts in each quarter of the lengths `[N]`; equal quartiles make fewer groups."""
    edges = np.unique(np.quantile(words, (0.25, 0.5, 0.75)).astype(int))
    place = np.searchsorted(edges, words)
    bounds = [words.min() - 1, *edges, words.max()]
    labels = [f"{low + 1} to {high} words" for low, high in itertools.pairwise(bounds)]
    return [(label, place == i) for i, label in enumerate(labels)]


def selection(cut: Cut, choices: Choices, names: list[str]) -> Chart | None:
    """How often each teacher is chosen in each group of a cut, one picture per agent."""
    rows = [
        {"agent": short(agent), **row}
        for agent, arrays in choices.items()
        for last in arrays
        for row in _rates(cut, np.asarray(last, np.float64), names)  # stored as float16
    ]
    if not rows:
        return None
    return Chart(
        f"selection-{cut.name}",
        f"Selection by {cut.name}",
        cut.note,
        "bars",
        _mean_over_seeds(rows, ["agent", "teacher", cut.column]),
        "teacher",
        "rate",
        cut.column,
        "agent",
        y_title="rate",
        section="selection",
    )


def _rates(cut: Cut, last: np.ndarray, names: list[str]) -> Rows:
    """Mean choice of each teacher in each group; groups without an instance that the run met are left out."""
    rows: Rows = []
    for label, mask in cut.masks:
        for k, name in enumerate(names):
            met = mask[:, k] & (last[:, k] >= 0)
            if met.any():
                rows.append({"teacher": name, cut.column: label, "rate": float(last[met, k].mean())})
    return rows


# --- errors -----------------------------------------------------------------------------------------------------------


def reliability(comparison: Mapping[str, Any], test: str, shown: frozenset[str]) -> Chart | None:
    """How often each agent's student is right, by its confidence; None where the cells do not say so."""
    rows = [
        {"agent": short(agent), **{key: bin[key] for key in ("confidence", "accuracy", "count")}}
        for agent, found in _details(comparison, test).items()
        for bin in found["reliability"]
    ]
    if not rows:
        return None
    note = (
        "The test instances in groups of similar confidence (the probability of the predicted label). On the dashed line "
        "a student is right as often as it says; below it, it is too sure of itself. All seeds together."
    )
    return Chart(
        f"reliability-{test}",
        "Can the probabilities be trusted?" + _of(comparison, test),
        note,
        "lines",
        pd.DataFrame(rows),
        "confidence",
        "accuracy",
        "agent",
        x_title="confidence",
        y_title="share that is right",
        shown=shown,
        diagonal=True,
        section="errors",
    )


def confusion(comparison: Mapping[str, Any], test: str) -> Chart | None:
    """Which labels are taken for which, one picture per agent; None where the cells do not say so."""
    rows = [
        {
            "agent": short(agent),
            "label": found["labels"][gold],
            "predicted": found["labels"][predicted],
            "count": count,
            "share": count / max(1, sum(counts)),
        }
        for agent, found in _details(comparison, test).items()
        for gold, counts in enumerate(found["confusion"])
        for predicted, count in enumerate(counts)
    ]
    if not rows:
        return None
    return Chart(
        f"confusion-{test}",
        "Which labels are taken for which" + _of(comparison, test),
        "Each row holds the test instances of one label, by the label that the student predicts. All seeds together.",
        "matrix",
        pd.DataFrame(rows),
        "predicted",
        "label",
        facet="agent",
        x_title="predicted",
        y_title="label",
        section="errors",
    )


def _details(comparison: Mapping[str, Any], test: str) -> Mapping[str, Any]:
    """The errors of each agent on one test; comparisons of earlier versions have none."""
    found: Mapping[str, Any] = comparison.get("details", {}).get(test, {})
    return found


def _of(comparison: Mapping[str, Any], test: str) -> str:
    """The end of a title that names the test where there are several."""
    return f" ({test})" if len(comparison["tests"]) > 1 else ""


# --- cost -------------------------------------------------------------------------------------------------------------


def cost(comparison: Mapping[str, Any]) -> Chart:
    """Seconds of every agent: its own training, and the student's."""
    rows = [
        {"agent": short(row["agent"]), "part": part, "seconds": row[key]}
        for row in comparison["tables"][comparison["tests"][0]]
        for part, key in (("training the agent", "train_s"), ("training the student", "follow_s"))
    ]
    note = "Means over seeds. The control's bar is the time of distillation itself."
    return Chart("cost", "Cost", note, "stack", pd.DataFrame(rows), "seconds", "agent", "part", x_title="seconds")
