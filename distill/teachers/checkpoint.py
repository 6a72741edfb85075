"""Kind `checkpoint`: a fine-tuned classifier, used as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from distill import cache
from distill.checks import UserError
from distill.data.splits import Split, Task, stratified
from distill.data.tokens import TokenizedSplit, run_rows
from distill.models.engine import Engine
from distill.models.labels import FEWEST, as_list, better_order, unnamed
from distill.models.loading import (
    check_outputs,
    load_classifier,
    load_config,
    load_tokenizer,
    output_order,
    resolve,
    settle_inputs,
    withheld_inputs,
)
from distill.models.trial import LOOKED_AT, padded_fingerprint, try_out
from distill.settings import CheckpointTeacher, StudentSettings, digest
from distill.student import Student
from distill.teachers.signals import Source

SHOWN = 256  # labelled instances that the order of unnamed outputs is checked on; more with many classes


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
        elsewhere: whether it was fine-tuned elsewhere, so that its tokenizer says which inputs it takes.

    Attributes:
        order: for each label of the task, the index of the model's output for it; empty before the model is loaded.
        unnamed: whether nobody has named the outputs, so that their order is a guess.
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
        elsewhere: bool = False,
    ) -> None:
        self.name, self.folder, self.width = name, folder, task.num_classes
        self.engine, self.max_length, self.labels, self.label_names = engine, max_length, labels, task.label_names
        self.elsewhere = elsewhere
        self.fingerprint = digest(fingerprint, labels, task.label_names, max_length, engine.form)
        self._texts = task.splits["train"].texts[:LOOKED_AT]
        self._unchanged = cache.Unchanged(folder, fingerprint, f"teacher {name}")
        self._student: Student | None = None
        self.order: list[int] = []
        self.unnamed = False
        self._prepared: tuple[str, TokenizedSplit] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Logits in the task's order of labels: float32 `[N,C]`."""
        student, tokens = self.load(), self._tokens(split)
        progress = f"teacher {self.name} on {split.role}" if len(split) > 256 else None
        return student.predict(tokens, progress=progress).numpy()[:, self.order]

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Logits of a few rows: float32 `[B,C]`. The split is tokenised once and kept."""
        student, tokens = self.load(), self._tokens(split)
        return run_rows(tokens, rows, student.forward).numpy()[:, self.order]

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
            UserError: for a checkpoint that cannot be loaded, does not fit the task, fails on its texts or has changed.
        """
        if self._student is None:
            what = f"teacher {self.name}"
            model = load_classifier(self.folder, None, 0, what)
            self.order = output_order(model, self.label_names, self.labels, what)
            tokenizer, settings = load_tokenizer(self.folder, what), StudentSettings(max_length=self.max_length)
            if self.elsewhere:
                settle_inputs(model.config, tokenizer)
            try_out(model, tokenizer, self._texts, self.max_length, what)
            self._unchanged.check()
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
    settle_inputs(model.config, tokenizer)
    weights = padded_fingerprint(cache.folder_fingerprint(folder), model.config, tokenizer)
    teacher = ModelTeacher(spec.name, folder, weights, task, engine, spec.max_length, spec.labels, elsewhere=True)
    if withheld := withheld_inputs(model.config, tokenizer):
        teacher.fingerprint = digest(teacher.fingerprint, *withheld)
    names = [str(name) for name in model.config.id2label.values()]
    teacher.unnamed = spec.labels is None and unnamed(names, task.label_names)
    return teacher


def check_order(teacher: ModelTeacher, task: Task, home: Path) -> None:
    """Check the guessed order of unnamed outputs against labelled instances: of the reward split, then of train.

    An order that passes is remembered in the cache, so that the next run need not load the model.

    Raises:
        UserError: if another order of the labels fits far better; the message gives it.
    """
    known = task.splits["reward"]
    train, wanted = task.splits["train"], max(SHOWN, 10 * task.num_classes)
    if len(known) > wanted:
        known = known.take(stratified(known.labels, wanted, np.random.default_rng(0)))
    elif train.labelled.any():
        known = known.joined(train.take(np.flatnonzero(train.labelled)[: wanted - len(known)]))
    facts = {"teacher": teacher.fingerprint, "labels": list(task.label_names), "known": known.labelled_fingerprint}
    folder = home / "orders" / f"{task.name}-{teacher.name}-{digest(facts)}"
    if len(known) < FEWEST or not cache.missing(folder):
        return
    guesses = teacher.compute(known).argmax(1)
    teacher.release()
    found = better_order(guesses, known.labels, task.num_classes)
    if found is not None:
        places = [teacher.order.index(i) for i in range(task.num_classes)]  # the class of each output, as guessed
        guessed, names = ([task.label_names[i] for i in order] for order in (places, found[places]))
        here, there = (guesses == known.labels).mean(), (found[guesses] == known.labels).mean()
        raise UserError(
            f"teacher {teacher.name}: its outputs have no names, and taken as {', '.join(guessed)} they are "
            f"right for {here:.0%} of {len(known)} labelled instances, in another order for {there:.0%}; "
            f"give the teacher labels: {as_list(names)}"
        )
    cache.entry(folder, facts, lambda _: {"instances": len(known)})
