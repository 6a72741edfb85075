"""The pool of teachers: one function for each kind, and the registry `SOURCES` that `load_teacher` looks them up in.

A kind of your own is a dataclass in `distill.settings.TEACHER_KINDS` and a function in `SOURCES`, both under its name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distill.checks import UserError, one_of
from distill.data.splits import Task
from distill.models.engine import Engine
from distill.models.loading import resolve
from distill.settings import (
    CheckpointTeacher,
    FinetuneTeacher,
    PredictionsTeacher,
    SklearnTeacher,
    TeacherSettings,
    TeachersSettings,
)
from distill.teachers.checkpoint import ModelTeacher, build_checkpoint, check_order
from distill.teachers.finetune import build_finetune, learns_train, training_data
from distill.teachers.ngrams import build_sklearn
from distill.teachers.predictions import FileTeacher, build_predictions
from distill.teachers.signals import Source
from distill.teachers.store import is_stored

log = logging.getLogger(__name__)

# From the settings of a kind, the task, the folder of all caches, the engine and `teachers.folds` to a source of logits.
SOURCES: dict[str, Callable[[Any, Task, Path, Engine, int], Source]] = {
    FinetuneTeacher.kind: build_finetune,
    CheckpointTeacher.kind: build_checkpoint,
    PredictionsTeacher.kind: build_predictions,
    SklearnTeacher.kind: build_sklearn,
}


def load_teacher(spec: TeacherSettings, task: Task, home: Path, engine: Engine, folds: int = 0) -> Source:
    """One teacher. A teacher of kind `finetune` is fine-tuned now, unless it is in the cache.

    Args:
        spec: settings of one of the kinds in `SOURCES`.
        task: the task.
        home: folder of all caches.
        engine: where and how it computes.
        folds: number of parts for cross-fitting, which teachers that are not fine-tuned on train ignore; 0: none.

    Raises:
        UserError: for an unknown kind, or a teacher that cannot be used on the task.
    """
    one_of(spec.kind, tuple(SOURCES), f"{spec.what}: kind")
    return SOURCES[spec.kind](spec, task, home, engine, folds)


def load_pool(settings: TeachersSettings, task: Task, home: Path, engine: Engine) -> list[Source]:
    """Every teacher of the pool, in order.

    Raises:
        UserError: for a teacher that cannot be used on the task. Mistakes that show without training are found before
            the first teacher is fine-tuned.
    """
    if settings.folds and not any(learns_train(spec) for spec in settings.pool):
        raise UserError(
            f"teachers.folds={settings.folds}: no teacher of the pool is fine-tuned on train here, "
            "so there is nothing to cross-fit; use 0"
        )
    # Everything that costs nothing comes first: the paths and training data, then the teachers that are not fine-tuned.
    for spec in settings.pool:
        if isinstance(spec, FinetuneTeacher | CheckpointTeacher) and spec.path is not None:
            resolve(spec.path, spec.what)
        if isinstance(spec, FinetuneTeacher | SklearnTeacher):
            training_data(spec, task, settings.folds)
    trained = [spec for spec in settings.pool if isinstance(spec, FinetuneTeacher | SklearnTeacher)]
    given = [spec for spec in settings.pool if spec not in trained]
    teachers = {spec.name: load_teacher(spec, task, home, engine, settings.folds) for spec in given}
    _check_models(teachers.values(), task, home, load=bool(trained))
    teachers |= {spec.name: load_teacher(spec, task, home, engine, settings.folds) for spec in trained}
    if settings.calibrate == "none":
        _warn_of_certain(teachers.values())
    return [teachers[spec.name] for spec in settings.pool]


def _check_models(teachers: Iterable[Source], task: Task, home: Path, load: bool) -> None:
    """Check the order of unnamed outputs, and `load` the checkpoints without stored outputs, so that faults show early."""
    for teacher in teachers:
        if not isinstance(teacher, ModelTeacher):
            continue
        if teacher.unnamed:
            check_order(teacher, task, home)
        if load and not is_stored(teacher, task.splits["train"], home):
            teacher.load()
            teacher.release()


def _warn_of_certain(teachers: Iterable[Source]) -> None:
    """Warn of teachers whose answers leave no room for doubt: the student would learn to be certain from them."""
    for teacher in teachers:
        if isinstance(teacher, FileTeacher) and (teacher.says_labels or teacher.one_hot):
            what = "labels" if teacher.says_labels else "probabilities of 0 and 1"
            log.warning("teacher %s gives %s; teachers.calibrate=auto makes probabilities of them", teacher.name, what)
