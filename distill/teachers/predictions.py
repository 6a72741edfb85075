"""Kind `predictions`: a file of answers that were computed elsewhere, for example by a language model.

Three kinds of file are read: probabilities (`id` and one column for each label), labels (`id,label`), and labels with the
probability of being right (`id,label,confidence`). A row that is missing, or whose cells are all empty, means that the
teacher has no answer for that instance: it is silent there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distill import cache
from distill.checks import UserError, expand
from distill.data.formats import cells_of, read_table
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.models.labels import all_matched, folded
from distill.settings import PredictionsTeacher, digest
from distill.teachers.signals import Source

FLOOR = 1e-8  # least probability, so that logarithms are finite
LABELS_ONLY = (["label"], ["label", "confidence"])  # columns of a file that gives labels


class FileTeacher:
    """Answers from a CSV, TSV, JSONL or Parquet file.

    Args:
        name: name of the teacher.
        path: the file.
        task: the task, whose order of labels the logits follow.

    Attributes:
        says_labels: whether the file gives labels, and not probabilities.
        one_hot: whether every answer puts all probability on one class.

    Raises:
        UserError: for a file that cannot be read or does not fit the task, naming the column or the id.
    """

    def __init__(self, name: str, path: Path, task: Task) -> None:
        self.name, self.width = name, task.num_classes
        self._what = f"teacher {name}: {path}"
        frame = read_table(path)
        frame.columns = [str(c) for c in frame.columns]
        columns = self._check_columns(frame, task)
        self.says_labels = columns is None
        self._ids = cells_of(frame["id"], path)
        self._row = {v: i for i, v in enumerate(self._ids)}
        if len(self._row) != len(self._ids):
            raise UserError(f"{self._what}: an id occurs twice; ids must be unique")
        if columns is None:
            columns = [c for c in frame.columns if c != "id"]
        empty = _empty_cells(frame[columns])
        self._silent = self._silent_rows(empty, columns)
        self._label = np.full(len(frame), -1, np.int64)
        self._confidence: np.ndarray | None = None
        if self.says_labels:
            probs = self._from_labels(frame, task)
        else:
            probs = self._probabilities(frame, columns)
        self._logits = np.log(np.maximum(probs, FLOOR)).astype(np.float32)
        self._logits[self._silent] = 0.0
        heard = probs[~self._silent]
        self.one_hot = bool(len(heard)) and bool((heard.max(1) > 1 - 1e-6).all())
        self.fingerprint = digest("probs", cache.file_sha256(path), task.label_names)

    def _check_columns(self, frame: Any, task: Task) -> list[str] | None:
        """Check the header. Returns the column of each label of the task, or None where the file gives labels."""
        if len(frame) == 0:
            raise UserError(f"{self._what}: holds no rows; give one for every instance that the teacher answers")
        if "id" not in frame.columns:
            raise UserError(f"{self._what}: no column 'id'; it has {', '.join(frame.columns)}")
        classes = [c for c in frame.columns if c != "id"]
        if classes[:1] == ["Unnamed: 0"]:
            raise UserError(
                f"{self._what}: the first column has no name (an index of pandas); write it with to_csv(index=False)"
            )
        if sorted(classes, reverse=True) in LABELS_ONLY and set(classes) != set(task.label_names):
            return None
        if len(classes) != self.width:
            extra = next((f"; {c!r} is no label: remove it" for c in classes if c not in task.label_names), "")
            raise UserError(
                f"{self._what}: has {len(classes)} class columns, the task has {self.width} "
                f"({', '.join(task.label_names)}){extra}; or give the columns id,label or id,label,confidence"
            )
        way_out = f"it has {', '.join(classes)}; name the columns as the labels"
        order = all_matched(classes, task.label_names, f"{self._what}: no column for label", way_out)
        return [classes[i] for i in order]

    def _silent_rows(self, empty: np.ndarray, columns: list[str]) -> np.ndarray:
        """The rows without an answer, bool `[n]`; `UserError` for a row with some empty cells (`empty`: `[n,columns]`)."""
        silent = np.asarray(empty.all(1))
        partly = empty.any(1) & ~silent
        if partly.any():
            row = int(partly.argmax())
            raise UserError(
                f"{self._what}: id {self._ids[row]!r} has an empty cell in column {columns[int(empty[row].argmax())]!r}; "
                "fill all cells of a row, or none where the teacher has no answer"
            )
        return silent

    def _numbers(self, cells: Any, what: str) -> np.ndarray:
        """Float64 of the same shape; 0 for silent rows."""
        values = cells.to_numpy(dtype=object, copy=True)
        values[self._silent] = 0.0
        try:
            return np.asarray(values.astype(np.float64))
        except (ValueError, TypeError, OverflowError):
            flat = values.reshape(len(values), -1)
            row, cell = next((i, c) for i, cells in enumerate(flat) for c in cells if not _is_number(c))
            shown = repr(cell) if len(repr(cell)) <= 40 else f"{repr(cell)[:40]}..."
            raise UserError(f"{self._what}: id {self._ids[row]!r}: a {what} is not a number: {shown}") from None

    def _refuse(self, faults: dict[str, np.ndarray], what: str) -> None:
        """Raise `UserError` for the first row that answers with a fault (`faults`: name -> bool `[n]`)."""
        for fault, bad in faults.items():
            wrong = bad & ~self._silent
            if wrong.any():
                raise UserError(f"{self._what}: id {self._ids[int(wrong.argmax())]!r} has {what} {fault}; fix the file")

    def _probabilities(self, frame: Any, columns: list[str]) -> np.ndarray:
        """Float64 `[n,C]`, in the task's order of labels."""
        probs = self._numbers(frame[columns], "probability")
        faults = {
            "NaN or infinite": ~np.isfinite(probs).all(1),
            "negative": (probs < 0).any(1),
            "in percent (divide by 100)": np.abs(probs.sum(1) - 100) <= 2,
            "not summing to 1": ~(np.abs(probs.sum(1) - 1) <= 1e-3),
        }
        self._refuse(faults, "probabilities")
        return probs

    def _from_labels(self, frame: Any, task: Task) -> np.ndarray:
        """Probabilities `[n,C]` of labels: the confidence for the label, 1 if there is none, and the rest spread evenly."""
        place = {label: i for i, label in enumerate(task.label_names)}
        said = [_as_label(v, place) for v in frame["label"]]
        unknown = np.array([v not in place for v in said]) & ~self._silent
        if unknown.any():
            row = int(unknown.argmax())
            raise UserError(
                f"{self._what}: id {self._ids[row]!r} has label {said[row]!r}; it must be one of {', '.join(place)}"
            )
        self._label[~self._silent] = [place[v] for v, out in zip(said, self._silent, strict=True) if not out]
        sure = np.ones(len(frame))
        if "confidence" in frame.columns:
            self._confidence = sure = self._numbers(frame["confidence"], "confidence")
            given = sure[~self._silent]
            percent = len(given) > 0 and np.median(given) >= 2 and given.max() <= 100
            outside = "in percent (divide by 100)" if percent else "outside [0, 1]"
            self._refuse({outside: ~((sure >= 0) & (sure <= 1))}, "a confidence")
        probs = np.repeat(((1 - sure) / (self.width - 1))[:, None], self.width, 1)
        rows = np.flatnonzero(~self._silent)
        probs[rows, self._label[rows]] = sure[rows]
        return probs

    def _rows(self, split: Split) -> np.ndarray:
        """Where the file has each instance, int64 `[N]`; -1: nowhere."""
        return np.array([self._row.get(i, -1) for i in split.ids.tolist()], np.int64)

    def answered(self, split: Split) -> np.ndarray:
        """Whether the file has an answer for each instance of a whole split, bool `[N]`.

        Raises:
            UserError: if it has none at all.
        """
        rows = self._rows(split)
        given: np.ndarray = (rows >= 0) & ~self._silent[rows]
        if not given.any():
            raise UserError(
                f"{self._what}: no answer for any of the {len(split)} {split.role} instances, such as id "
                f"{str(split.ids[0])!r}; check that the ids are those of the task"
            )
        return given

    def said(self, split: Split) -> tuple[np.ndarray, np.ndarray | None]:
        """Of a file with labels: the label of each instance, int64 `[N]` (-1: silent), and the confidences `[N]`, if any."""
        rows = self._rows(split)
        labels = np.where(rows >= 0, self._label[rows], -1)
        return labels, None if self._confidence is None else self._confidence[rows]

    def compute(self, split: Split) -> np.ndarray:
        """Log-probabilities: float32 `[N,C]`, zeros where the file has no answer."""
        rows = self._rows(split)
        return np.where(rows[:, None] >= 0, self._logits[rows], np.float32(0))

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities of a few rows: float32 `[B,C]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """Nothing to free: the table is small."""


def _empty_cells(frame: Any) -> np.ndarray:
    """Whether each cell of a frame is empty, bool `[n,columns]`."""
    blank = frame.map(lambda value: isinstance(value, str) and not value.strip())
    empty: np.ndarray = (frame.isna() | blank).to_numpy(dtype=bool)
    return empty


def _is_number(cell: Any) -> bool:
    """Whether a cell can be read as a number."""
    try:
        float(cell)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _as_label(value: Any, labels: dict[str, int]) -> str:
    """A cell as a label: as it is, or without regard to case and punctuation where that fits one label alone."""
    # Readers turn whole numbers into floats where a column has empty cells.
    whole = str(value) not in labels and isinstance(value, float) and value.is_integer()
    text = str(int(value)) if whole else str(value)
    alike = [text] if text in labels else [label for label in labels if folded(label) == folded(text)]
    return alike[0] if len(alike) == 1 else text


def build_predictions(spec: PredictionsTeacher, task: Task, home: Path, engine: Engine, folds: int) -> Source:
    """The teacher of a file. Cross-fitting does not apply: it was not fine-tuned here."""
    return FileTeacher(spec.name, expand(str(spec.path)), task)
