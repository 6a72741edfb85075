"""What a run says beyond its scores: predictions of single instances, errors by class, and what was chosen for each class."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
from scipy.special import softmax
from torch import Tensor

from distill.cache import write_whole
from distill.data.metrics import by_class
from distill.process import Distillation

PREDICTIONS = "predictions.parquet"


class Outcome(Protocol):
    """A finished run: `agents.experiment.runs.Run`."""

    logits: dict[str, np.ndarray]
    weights: list[Tensor]

    @property
    def choices(self) -> np.ndarray:
        """The latest actions `[N,K]` for the training instances; -1: never seen."""
        ...


def test_logits(process: Distillation, run: Outcome) -> dict[str, np.ndarray]:
    """The student's logits `[N,C]` on each test split.

    A run that was finished by a version that did not keep them is computed again from its weights.
    """
    if not run.logits:
        here = process.student.weights()
        process.student.restore(run.weights)
        run.logits = {test: process.predict(test) for test in process.task.tests}
        process.student.restore(here)
    return run.logits


def by_test(process: Distillation, run: Outcome) -> dict[str, Any]:
    """For each test split the confusion matrix, the scores of each class, and the reliability curve."""
    task = process.task
    return {
        test: by_class(softmax(logits.astype(np.float64), 1), task.splits[test].labels, task.label_names)
        for test, logits in test_logits(process, run).items()
    }


def write_predictions(folder: Path, process: Distillation, run: Outcome, control: Outcome | None = None) -> None:
    """Write `predictions.parquet`: one row for each instance of each test split.

    Columns: `split`, `id`, `label`, `predicted`, `control` (what the control's student predicts; only if there is one),
    and `probability_LABEL` for each class. Labels are written as names.
    """
    task = process.task
    names = np.array(task.label_names)
    others = {} if control is None else test_logits(process, control)
    parts = []
    for test, logits in test_logits(process, run).items():
        split, probs = task.splits[test], softmax(logits.astype(np.float64), 1)
        columns: dict[str, Any] = {"split": [test] * len(split), "id": split.ids.astype(str).tolist()}
        columns |= {"label": names[split.labels].tolist(), "predicted": names[logits.argmax(1)].tolist()}
        if control is not None:
            columns["control"] = names[others[test].argmax(1)].tolist()
        columns |= {f"probability_{name}": probs[:, c] for c, name in enumerate(task.label_names)}
        parts.append(pyarrow.table(columns))
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.concat_tables(parts), content)
    write_whole(folder / PREDICTIONS, content.getvalue())


def selection_by_class(process: Distillation, run: Outcome) -> dict[str, Any]:
    """How often each teacher was last chosen for the training instances of each class.

    Returns:
        For each class that the run has met: `count` of its instances that were met, and `rate` `[K]` (a mean weight where
        the actions are weights). Instances without a label belong to no class.
    """
    last, labels = run.choices, process.labels
    out = {}
    for c, name in enumerate(process.task.label_names):
        met = (labels == c) & (last >= 0).all(1)
        if met.any():
            out[name] = {"count": int(met.sum()), "rate": last[met].mean(0, dtype=np.float64).tolist()}
    return out


# --- over seeds -------------------------------------------------------------------------------------------------------


def pooled(results: Sequence[Mapping[str, Any]], test: str) -> dict[str, Any]:
    """The `details` of each agent on one test split, over all its seeds; agents whose cells have none are left out.

    Numbers of instances are summed. Precision, recall and F1 are means over the seeds.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if "details" in result:  # cells of earlier versions have none
            found.setdefault(result["agent"], []).append(result["details"][test])
    return {agent: _over_seeds(seeds) for agent, seeds in found.items()}


def _over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "labels": seeds[0]["labels"],
        "confusion": np.sum([s["confusion"] for s in seeds], 0).tolist(),
        "classes": [
            {"label": rows[0]["label"], **_mean_scores(rows), "count": sum(r["count"] for r in rows)}
            for rows in zip(*(s["classes"] for s in seeds), strict=True)
        ],
        "macro": _mean_scores([s["macro"] for s in seeds]),
        "reliability": _one_curve([row for s in seeds for row in s["reliability"]]),
    }


def _mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in ("precision", "recall", "f1")}


def _one_curve(bins: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """One reliability curve from the bins of several: bins with the same edges are joined, weighted by their counts."""
    out = []
    for low, high in sorted({(b["low"], b["high"]) for b in bins}):
        same = [b for b in bins if b["low"] == low]
        counts = [b["count"] for b in same]
        means = {key: float(np.average([b[key] for b in same], weights=counts)) for key in ("confidence", "accuracy")}
        out.append({"low": low, "high": high, "count": sum(counts), **means})
    return out
