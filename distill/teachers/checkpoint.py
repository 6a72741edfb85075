"""Kind `checkpoint`: a fine-tuned classifier, used as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from distill import cache
from distill.data.splits import Split, Task
from distill.data.tokens import TokenizedSplit, run_rows
from distill.models.engine import Engine
from distill.models.loading import check_outputs, load_classifier, load_config, load_tokenizer, output_order, resolve
from distill.models.trial import LOOKED_AT, padded_fingerprint, try_out
from distill.settings import CheckpointTeacher, StudentSettings, digest
from distill.student import Student
from distill.teachers.signals import Source


class ModelTeacher:
    """A fine-tuned classifier with its own tokenizer. The model is loaded when it is first needed.

    Args:
        name: name of the teacher.
        folder: the checkpoint.
        fingerprint: hash of its weights.
        task: the task, whose order of labels the logits follow.
        engine: where and how it computes.
        max_length: longest text, in tokens.
        labels: names of the outputs, if the checkpoint does not have them.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        fingerprint: str,
        task: Task,
        engine: Engine,
        max_length: int,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.name, self.folder, self.width = name, folder, task.num_classes
        self.engine, self.max_length, self.labels, self.label_names = engine, max_length, labels, task.label_names
        self.fingerprint = digest(fingerprint, labels, task.label_names, max_length, engine.form)
        self._texts = task.splits["train"].texts[:LOOKED_AT]
        self._student: Student | None = None
        self._order: list[int] = []
        self._prepared: tuple[str, TokenizedSplit] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Logits in the task's order of labels: float32 `[N,C]`."""
        student, tokens = self.load(), self._tokens(split)
        progress = f"teacher {self.name} on {split.role}" if len(split) > 256 else None
        return student.predict(tokens, progress=progress).numpy()[:, self._order]

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Logits of a few rows: float32 `[B,C]`. The split is tokenised once and kept."""
        student, tokens = self.load(), self._tokens(split)
        return run_rows(tokens, rows, student.forward).numpy()[:, self._order]

    def _tokens(self, split: Split) -> TokenizedSplit:
        if self._prepared is None or self._prepared[0] != split.fingerprint:
            self._prepared = split.fingerprint, self.load().tokenize(split.texts)
        return self._prepared[1]

    def release(self) -> None:
        """Free the model and the tokens. They are loaded again when they are needed."""
        self._student = self._prepared = None

    def load(self) -> Student:
        """The model with its tokenizer, loaded at the first call.

        Raises:
            UserError: for a checkpoint that cannot be loaded, does not fit the task or fails on its texts.
        """
        if self._student is None:
            what = f"teacher {self.name}"
            model = load_classifier(self.folder, None, 0, what)
            self._order = output_order(model, self.label_names, self.labels, what)
            tokenizer, settings = load_tokenizer(self.folder, what), StudentSettings(max_length=self.max_length)
            try_out(model, tokenizer, self._texts, self.max_length, what)
            self._student = Student(model, tokenizer, settings, self.engine)
        return self._student


def build_checkpoint(spec: CheckpointTeacher, task: Task, home: Path, engine: Engine, folds: int) -> Source:
    """The teacher of a checkpoint. Its labels are checked now; its weights are read later.

    Cross-fitting does not apply: this checkpoint was not fine-tuned here.
    """
    folder = resolve(str(spec.path), spec.what)
    # The configuration is enough to find a teacher of another task before anything is trained or written.
    model = SimpleNamespace(config=load_config(folder, spec.what))
    check_outputs(model.config, folder, spec.what)
    output_order(model, task.label_names, spec.labels, spec.what)
    tokenizer = load_tokenizer(folder, spec.what)
    weights = padded_fingerprint(cache.folder_fingerprint(folder), model.config, tokenizer)
    return ModelTeacher(spec.name, folder, weights, task, engine, spec.max_length, spec.labels)
