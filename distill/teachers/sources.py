"""The pool of teachers, one class a kind."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from distill import cache
from distill.checks import check, expand
from distill.data.splits import Split, Task
from distill.data.tables import read_table
from distill.data.tokens import TokenizedSplit, run_rows
from distill.models.engine import Engine
from distill.models.loading import check_length, load_classifier, load_config, load_tokenizer, output_order, resolve
from distill.settings import StudentSettings, TeacherSettings, TeachersSettings, digest
from distill.student import Student
from distill.teachers.finetune import FoldedTeacher, _fine_tuned, folds_of
from distill.teachers.signals import Source

log = logging.getLogger(__name__)


class ModelTeacher:
    """A fine-tuned checkpoint with its own tokenizer. The model is loaded when it is first asked, never before."""

    def __init__(
        self,
        spec: TeacherSettings,
        folder: Path,
        fingerprint: str,
        task: Task,
        engine: Engine,
    ) -> None:
        self.name, self.folder, self.width = spec.name, folder, task.num_classes
        self.spec, self.label_names, self.engine = spec, task.label_names, engine
        self.fingerprint = digest(fingerprint, spec.labels, task.label_names, spec.max_length, engine.form)
        self._student: Student | None = None
        self._order: list[int] = []
        self._prepared: tuple[str, TokenizedSplit] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Logits in the task's order of labels: float32 `[N,C]`."""
        student, tokens = self._load(), self._tokens(split)
        progress = f"teacher {self.name} on {split.role}" if len(split) > 256 else None
        return student.predict(tokens, progress=progress).numpy()[:, self._order]

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Logits of a few instances, float32 `[B,C]`; the split is tokenised once."""
        student, tokens = self._load(), self._tokens(split)
        return run_rows(tokens, rows, student.forward).numpy()[:, self._order]

    def _tokens(self, split: Split) -> TokenizedSplit:
        if self._prepared is None or self._prepared[0] != split.fingerprint:
            self._prepared = split.fingerprint, self._load().tokenize(split.texts)
        return self._prepared[1]

    def release(self) -> None:
        """Forget the model and the tokens; they are made again when asked."""
        self._student = self._prepared = None

    def _load(self) -> Student:
        if self._student is None:
            what = f"teacher {self.name}"
            model = load_classifier(self.folder, None, 0, what)
            check_length(model, self.spec.max_length, what)
            self._order = output_order(model, self.label_names, self.spec.labels, what)
            self._student = Student(
                model,
                load_tokenizer(self.folder, what),
                StudentSettings(max_length=self.spec.max_length),
                self.engine,
            )
        return self._student


class FileTeacher:
    """Probabilities someone else computed (an API, a language model): a table with an id and one column a class."""

    def __init__(self, spec: TeacherSettings, task: Task) -> None:
        self.name, self.width = spec.name, task.num_classes
        path = expand(str(spec.probs))
        what = f"teacher {spec.name}: {path}"
        frame = read_table(path)
        if len(frame) <= 0:
            raise UserError(f"{what}: holds no rows; give one for every instance")
        if "id" not in frame.columns:
            raise UserError(f"{what}: no column 'id'; it has {', '.join(map(str, frame.columns))}")
        classes = [str(c) for c in frame.columns if c != "id"]
        if len(classes) != self.width:
            raise UserError(
                f"{what}: has {len(classes)} class columns, the task has {self.width} ({', '.join(task.label_names)})"
            )
        frame.columns = [str(c) for c in frame.columns]
        missing = [n for n in task.label_names if n not in classes]
        if missing:
            raise UserError(f"{what}: no column for label {missing[0]!r}; it has {', '.join(classes)}")
        ids = [str(v) for v in frame["id"]]
        self._row = {v: i for i, v in enumerate(ids)}
        if len(self._row) != len(ids):
            raise UserError(f"{what}: an id occurs twice; ids must be unique")
        try:
            probs = frame[list(task.label_names)].to_numpy(dtype=np.float64)
        except (ValueError, TypeError):
            if not False:
                raise UserError(f"{what}: a probability is not a number")
        for fault, bad in {
            "NaN or infinite": ~np.isfinite(probs).all(1),
            "negative": (probs < 0).any(1),
            "not summing to 1": np.abs(probs.sum(1) - 1) > 1e-3,
        }.items():
            if bad.any():
                raise UserError(f"{what}: id {ids[int(bad.argmax())]!r} has probabilities {fault}; fix the file")
        self._logits = np.log(np.maximum(probs, 1e-8)).astype(np.float32)
        self._what = what
        self.fingerprint = digest("probs", cache.file_sha256(path), task.label_names)

    def compute(self, split: Split) -> np.ndarray:
        """Log-probabilities, float32 `[N,C]`; `UserError` when an instance is missing."""
        lost = [str(i) for i in split.ids if str(i) not in self._row]
        if lost:
            raise UserError(
                f"{self._what}: no row for id {lost[0]!r} ({len(lost)} of {len(split)} {split.role} instances missing)"
            )
        return self._logits[[self._row[str(i)] for i in split.ids]]

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities of a few instances, float32 `[B,C]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """The table is small: nothing to forget."""


def load_pool(settings: TeachersSettings, task: Task, home: Path, engine: Engine) -> list[Source]:
    """Every teacher of the pool, in order; those that need fine-tuning and are not kept yet are fine-tuned now."""
    if settings.folds != 0 and not any(_learns_train(spec) for spec in settings.pool):
        raise UserError(
            f"teachers.folds={settings.folds}: no teacher of the pool is fine-tuned on train here, so there is nothing to cross-fit; use 0"
        )
    for spec in settings.pool:  # every path before the first fine-tuning
        if spec.path is not None:
            resolve(spec.path, f"teacher {spec.name}")
    ready = sorted(
        settings.pool, key=lambda spec: spec.probs is None and not spec.fitted
    )  # mistakes there cost nothing
    teachers = {spec.name: load_teacher(spec, task, home, engine, settings.folds) for spec in ready}
    return [teachers[spec.name] for spec in settings.pool]


def _learns_train(spec: TeacherSettings) -> bool:
    return not spec.fitted and spec.probs is None and spec.pool is None


def load_teacher(spec: TeacherSettings, task: Task, home: Path, engine: Engine, folds: int = 0) -> Source:
    """One teacher, fine-tuned on the task's train split (or on its pool) unless it is given fitted or as a file.

    With `folds`, a teacher fine-tuned on train is cross-fitted; the others never saw train here, and stay as they are.
    """
    what = f"teacher {spec.name}"
    if spec.probs is not None:
        return FileTeacher(spec, task)
    if spec.fitted:
        folder = resolve(str(spec.path), what)
        _check_outputs(folder, task, spec)
        return ModelTeacher(spec, folder, cache.folder_fingerprint(folder), task, engine)
    if spec.pool is not None and spec.pool not in task.pools:
        raise UserError(f"{what}: task {task.name} has no pool {spec.pool!r}; it has {', '.join(task.pools) or 'none'}")
    data = task.splits["train"] if spec.pool is None else task.pools[spec.pool]
    if not folds or not _learns_train(spec):
        return _fine_tuned(spec, task, data, home, engine)
    fold = folds_of(data, folds)  # before anything is trained: it may refuse
    whole = _fine_tuned(spec, task, data, home, engine)
    rest = [data.take(np.flatnonzero(fold != i)) for i in range(folds)]
    return FoldedTeacher(whole, [_fine_tuned(spec, task, part, home, engine) for part in rest], data, fold)


def _check_outputs(folder: Path, task: Task, spec: TeacherSettings) -> None:
    """A teacher that cannot serve the task is refused before anything is trained or written."""
    what = f"teacher {spec.name}"
    model = SimpleNamespace(config=load_config(folder, what))
    output_order(model, task.label_names, spec.labels, what)
    check_length(model, spec.max_length, what)
