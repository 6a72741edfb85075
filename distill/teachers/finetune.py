"""Fine-tuning teachers, whole or cross-fitted, and keeping them in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from distill import cache
from distill.checks import NotFinite, check
from distill.data.splits import Split, Task, stratified
from distill.data.tokens import Stream
from distill.losses import label_loss
from distill.models.build import fresh_classifier, word_tokenizer
from distill.models.engine import Engine, isolated_rng
from distill.models.loading import check_length, load_classifier, load_tokenizer, resolve
from distill.settings import StudentSettings, TeacherSettings, digest
from distill.student import Student
from distill.teachers.signals import Source
from distill.teachers.sources import ModelTeacher

FORMAT = 1  # of a fine-tuned teacher; raised whenever fine-tuning changes


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
    if fewest < folds:
        raise UserError(f"teachers.folds={folds}: the rarest class has {fewest} training instances; use fewer folds")
    fold = np.empty(len(train), np.int64)
    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(train.labels, train.labels)
    for i, (_, held_out) in enumerate(parts):
        fold[held_out] = i
    return fold


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
