"""The pool of teachers: fine-tuned here and kept, taken as they are, or given as a file of probabilities.

`python -m distill.teachers task=mrpc teachers=minilm` fine-tunes a pool ahead of time and prints how good it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from . import cache
from .losses import label_loss
from .models import (
    Engine,
    check_length,
    fresh_classifier,
    isolated_rng,
    load_classifier,
    load_config,
    load_tokenizer,
    output_order,
    resolve,
    word_tokenizer,
)
from .settings import NotFinite, StudentSettings, TeacherSettings, TeachersSettings, check, digest, expand
from .signals import Source
from .student import Student
from .tasks import Split, Task, read_table, stratified
from .tokens import Stream, TokenizedSplit, run_rows

log = logging.getLogger(__name__)
FORMAT = 1  # of a fine-tuned teacher; raised whenever fine-tuning changes


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
        check(len(frame) > 0, f"{what}: holds no rows; give one for every instance")
        check("id" in frame.columns, f"{what}: no column 'id'; it has {', '.join(map(str, frame.columns))}")
        classes = [str(c) for c in frame.columns if c != "id"]
        check(
            len(classes) == self.width,
            f"{what}: has {len(classes)} class columns, the task has {self.width} ({', '.join(task.label_names)})",
        )
        frame.columns = [str(c) for c in frame.columns]
        missing = [n for n in task.label_names if n not in classes]
        check(
            not missing, f"{what}: no column for label {missing[0] if missing else ''!r}; it has {', '.join(classes)}"
        )
        ids = [str(v) for v in frame["id"]]
        self._row = {v: i for i, v in enumerate(ids)}
        check(len(self._row) == len(ids), f"{what}: an id occurs twice; ids must be unique")
        try:
            probs = frame[list(task.label_names)].to_numpy(dtype=np.float64)
        except (ValueError, TypeError):
            check(False, f"{what}: a probability is not a number")
        for fault, bad in {
            "NaN or infinite": ~np.isfinite(probs).all(1),
            "negative": (probs < 0).any(1),
            "not summing to 1": np.abs(probs.sum(1) - 1) > 1e-3,
        }.items():
            check(not bad.any(), f"{what}: id {ids[int(bad.argmax())]!r} has probabilities {fault}; fix the file")
        self._logits = np.log(np.maximum(probs, 1e-8)).astype(np.float32)
        self._what = what
        self.fingerprint = digest("probs", cache.file_sha256(path), task.label_names)

    def compute(self, split: Split) -> np.ndarray:
        """Log-probabilities, float32 `[N,C]`; `UserError` when an instance is missing."""
        lost = [str(i) for i in split.ids if str(i) not in self._row]
        check(
            not lost,
            f"{self._what}: no row for id {lost[0] if lost else ''!r} ({len(lost)} of {len(split)} {split.role} instances missing)",
        )
        return self._logits[[self._row[str(i)] for i in split.ids]]

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities of a few instances, float32 `[B,C]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """The table is small: nothing to forget."""


class FoldedTeacher:
    """A teacher cross-fitted on the train split: of every training instance its signals come from a copy that never saw it.

    A fine-tuned teacher is over-confident where it was trained; its copies are not. Other splits, which no copy saw,
    are left to the teacher fine-tuned on everything.
    """

    def __init__(self, whole: Source, copies: list[Source], train: Split, fold: np.ndarray) -> None:
        self.name, self.width, self.whole, self.copies = whole.name, whole.width, whole, copies
        self.fingerprint = digest("folds", whole.fingerprint, [c.fingerprint for c in copies])
        self._fold = dict(zip(train.ids.tolist(), fold.tolist(), strict=True))

    def compute(self, split: Split) -> np.ndarray:
        """Logits, float32 `[N,C]`."""
        if split.role != "train":
            return self.whole.compute(split)
        return self._from_copies(split.ids, lambda copy, here: copy.compute(split.take(here)))

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Logits of a few instances, float32 `[B,C]`."""
        if split.role != "train":
            return self.whole.at(split, rows)
        return self._from_copies(split.ids[rows], lambda copy, here: copy.at(split, rows[here]))

    def _from_copies(self, ids: np.ndarray, ask: Callable[[Source, np.ndarray], np.ndarray]) -> np.ndarray:
        """What `ask` gets of each instance's own copy, by place in `ids`."""
        fold = np.array([self._fold[name] for name in ids.tolist()])
        out = np.empty((len(ids), self.width), np.float32)
        for i, copy in enumerate(self.copies):
            here = np.flatnonzero(fold == i)
            if len(here):
                out[here] = ask(copy, here)
        return out

    def release(self) -> None:
        """Forget the loaded models; they are loaded again when asked."""
        for source in (self.whole, *self.copies):
            source.release()


def folds_of(train: Split, folds: int) -> np.ndarray:
    """The fold `[N]` of every training instance: stratified by label, and the same for all teachers of a pool."""
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.unique(train.labels, return_counts=True)[1].min())
    check(fewest >= folds, f"teachers.folds={folds}: the rarest class has {fewest} training instances; use fewer folds")
    fold = np.empty(len(train), np.int64)
    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(train.labels, train.labels)
    for i, (_, held_out) in enumerate(parts):
        fold[held_out] = i
    return fold


def load_pool(settings: TeachersSettings, task: Task, home: Path, engine: Engine) -> list[Source]:
    """Every teacher of the pool, in order; those that need fine-tuning and are not kept yet are fine-tuned now."""
    check(
        settings.folds == 0 or any(_learns_train(spec) for spec in settings.pool),
        f"teachers.folds={settings.folds}: no teacher of the pool is fine-tuned on train here, so there is nothing to cross-fit; use 0",
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
    check(
        spec.pool is None or spec.pool in task.pools,
        f"{what}: task {task.name} has no pool {spec.pool!r}; it has {', '.join(task.pools) or 'none'}",
    )
    data = task.splits["train"] if spec.pool is None else task.pools[spec.pool]
    if not folds or not _learns_train(spec):
        return _fine_tuned(spec, task, data, home, engine)
    fold = folds_of(data, folds)  # before anything is trained: it may refuse
    whole = _fine_tuned(spec, task, data, home, engine)
    rest = [data.take(np.flatnonzero(fold != i)) for i in range(folds)]
    return FoldedTeacher(whole, [_fine_tuned(spec, task, part, home, engine) for part in rest], data, fold)


def _fine_tuned(spec: TeacherSettings, task: Task, data: Split, home: Path, engine: Engine) -> Source:
    """The teacher fine-tuned on `data`, from the cache or made now."""
    base = resolve(spec.path, f"teacher {spec.name}") if spec.path else None
    facts = {
        "format": FORMAT,
        "spec": {k: v for k, v in asdict(spec).items() if k not in ("path", "labels")},
        "base": cache.folder_fingerprint(base) if base else None,
        "data": data.labelled_fingerprint,
        "vocabulary": None if base else _vocabulary_fingerprint(task),
        "labels": list(task.label_names),
        "amp": engine.form,
    }
    folder = home / "teachers" / f"{task.name}-{spec.name}-{digest(facts)}"
    manifest = cache.entry(folder, facts, lambda temporary: fit(spec, task, data, base, temporary, engine))
    return ModelTeacher(spec, folder, digest(manifest["files"]), task, engine)


def _check_outputs(folder: Path, task: Task, spec: TeacherSettings) -> None:
    """A teacher that cannot serve the task is refused before anything is trained or written."""
    what = f"teacher {spec.name}"
    model = SimpleNamespace(config=load_config(folder, what))
    output_order(model, task.label_names, spec.labels, what)
    check_length(model, spec.max_length, what)


def _vocabulary_fingerprint(task: Task) -> str:
    return digest([task.splits["train"].fingerprint, *(p.fingerprint for p in task.pools.values())])


def vocabulary_texts(task: Task) -> list[tuple[str, ...]]:
    """The texts that a word-level vocabulary is made of: train and the pools, never reward, dev or test."""
    return [t for s in (task.splits["train"], *task.pools.values()) for t in s.texts]


def fit(
    spec: TeacherSettings,
    task: Task,
    data: Split,
    base: Path | None,
    folder: Path,
    engine: Engine,
) -> dict[str, Any]:
    """Fine-tune one teacher on `data` and write it to `folder` in transformers format; returns facts for its manifest."""
    data.require("train", "pool")
    what = f"teacher {spec.name}"
    rng = np.random.default_rng(spec.seed)
    if spec.share < 1:
        data = data.take(stratified(data.labels, max(1, round(spec.share * len(data))), rng))
    if base is None:
        tokenizer = word_tokenizer(vocabulary_texts(task), spec.max_length)
        config = {"max_position_embeddings": spec.max_length, **spec.config}
        model = fresh_classifier(config, tokenizer, task.label_names, spec.seed, what)
    else:
        tokenizer = load_tokenizer(base, what)
        model = load_classifier(base, task.label_names, spec.seed, what, spec.layers)
    check_length(model, spec.max_length, what)
    how = StudentSettings(
        lr=spec.lr, schedule="linear", warmup=0.06, max_length=spec.max_length, freeze_embeddings=spec.freeze_embeddings
    )
    student = Student(model, tokenizer, how, engine)
    tokens = student.tokenize(data.texts)
    labels = torch.from_numpy(data.labels).to(engine.device)
    stream = Stream(tokens.lengths, min(spec.batch_size, len(data)), spec.seed)
    steps = max(1, spec.epochs * len(data) // stream.batch_size)
    student.begin(steps)
    started = time.perf_counter()
    try:
        with isolated_rng(spec.seed):
            for _ in tqdm(range(steps), desc=f"fine-tuning {what}", unit="step", disable=None, leave=False):
                rows = stream.next()
                gold = labels[torch.from_numpy(rows).to(engine.device)]
                student.step(tokens.batch(rows), label_loss(gold))
        student.check_weights()
    except NotFinite:
        raise NotFinite(
            f"{what}: fine-tuning left the finite numbers by step {student.steps} with lr={spec.lr:g}; lower its lr"
        ) from None
    student.save(folder)
    return {"steps": steps, "instances": len(data), "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    """Command line: fine-tune the configured pool, store its signals and print a table."""
    from configs import launch

    launch(_command)


def _command(config: Any) -> None:
    from .process import prepare
    from .settings import ProcessSettings

    prepared = prepare(ProcessSettings.from_config(config))
    roles = ("train", "dev", *prepared.task.tests)
    print(f"\n{'teacher':24s}" + "".join(f" {f'{r} acc':>12s} {f'{r} loss':>12s}" for r in roles))
    for row in prepared.teacher_scores():
        print(f"{row['name']:24s}" + "".join(f" {row[r]['accuracy']:12.3f} {row[r]['loss']:12.3f}" for r in roles))


if __name__ == "__main__":
    main()
