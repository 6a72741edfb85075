"""Kind `predictions`: a file of probabilities that were computed elsewhere, for example by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distill import cache
from distill.checks import UserError, expand
from distill.data.splits import Split, Task
from distill.data.tables import read_table
from distill.models.engine import Engine
from distill.settings import PredictionsTeacher, digest
from distill.teachers.signals import Source


class FileTeacher:
    """Probabilities from a CSV, TSV, JSONL or Parquet file with a column `id` and one column for each label.

    Args:
        name: name of the teacher.
        path: the file.
        task: the task, whose order of labels the logits follow.

    Raises:
        UserError: for a file that cannot be read or does not fit the task, naming the column or the id.
    """

    def __init__(self, name: str, path: Path, task: Task) -> None:
        self.name, self.width = name, task.num_classes
        self._what = f"teacher {name}: {path}"
        frame = read_table(path)
        frame.columns = [str(c) for c in frame.columns]
        self._check_columns(frame, task)
        ids = [str(v) for v in frame["id"]]
        self._row = {v: i for i, v in enumerate(ids)}
        if len(self._row) != len(ids):
            raise UserError(f"{self._what}: an id occurs twice; ids must be unique")
        probs = self._probabilities(frame, ids, task)
        self._logits = np.log(np.maximum(probs, 1e-8)).astype(np.float32)
        self.fingerprint = digest("probs", cache.file_sha256(path), task.label_names)

    def _check_columns(self, frame: Any, task: Task) -> None:
        if len(frame) == 0:
            raise UserError(f"{self._what}: holds no rows; give one for every instance")
        if "id" not in frame.columns:
            raise UserError(f"{self._what}: no column 'id'; it has {', '.join(frame.columns)}")
        classes = [c for c in frame.columns if c != "id"]
        if len(classes) != self.width:
            raise UserError(
                f"{self._what}: has {len(classes)} class columns, the task has {self.width} "
                f"({', '.join(task.label_names)})"
            )
        missing = [n for n in task.label_names if n not in classes]
        if missing:
            raise UserError(f"{self._what}: no column for label {missing[0]!r}; it has {', '.join(classes)}")

    def _probabilities(self, frame: Any, ids: list[str], task: Task) -> np.ndarray:
        """Float64 `[N,C]`, in the task's order of labels."""
        try:
            probs: np.ndarray = frame[list(task.label_names)].to_numpy(dtype=np.float64)
        except (ValueError, TypeError):
            raise UserError(f"{self._what}: a probability is not a number") from None
        for fault, bad in {
            "NaN or infinite": ~np.isfinite(probs).all(1),
            "negative": (probs < 0).any(1),
            "not summing to 1": np.abs(probs.sum(1) - 1) > 1e-3,
        }.items():
            if bad.any():
                raise UserError(f"{self._what}: id {ids[int(bad.argmax())]!r} has probabilities {fault}; fix the file")
        return probs

    def compute(self, split: Split) -> np.ndarray:
        """Log-probabilities: float32 `[N,C]`.

        Raises:
            UserError: if the file has no row for an instance.
        """
        missing = [str(i) for i in split.ids if str(i) not in self._row]
        if missing:
            raise UserError(
                f"{self._what}: no row for id {missing[0]!r} "
                f"({len(missing)} of {len(split)} {split.role} instances missing)"
            )
        return self._logits[[self._row[str(i)] for i in split.ids]]

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities of a few rows: float32 `[B,C]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """Nothing to free: the table is small."""


def build_predictions(spec: PredictionsTeacher, task: Task, home: Path, engine: Engine, folds: int) -> Source:
    """The teacher of a file. Cross-fitting does not apply: it was not fine-tuned here."""
    return FileTeacher(spec.name, expand(str(spec.path)), task)
