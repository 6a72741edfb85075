"""Kind `finetune`: teachers that are fine-tuned here, once or cross-fitted, and kept in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import cache
from distill.checks import NotFinite, UserError
from distill.data.splits import Split, Task, stratified
from distill.data.tokens import Stream
from distill.losses import label_loss
from distill.models.build import fresh_classifier, word_tokenizer
from distill.models.engine import Engine, isolated_rng
from distill.models.loading import load_classifier, load_config, load_tokenizer, resolve, withheld_inputs
from distill.models.trial import try_out, try_saving
from distill.progress import Progress
from distill.settings import FinetuneTeacher, SklearnTeacher, StudentSettings, TeacherSettings, digest, notice
from distill.student import Student
from distill.teachers.checkpoint import ModelTeacher
from distill.teachers.signals import Source

FORMAT = 1  # of a fine-tuned teacher; raised whenever fine-tuning changes


class FoldedTeacher:
    """A teacher that is cross-fitted on train: each training instance gets the logits of a copy that never saw it.

    A fine-tuned teacher is over-confident on the instances it was trained on; its copies are not. Instances of other
    splits get the logits of the teacher that was fine-tuned on all of train.

    Args:
        whole: the teacher fine-tuned on all of train.
        copies: for each fold, a teacher fine-tuned on the other folds.
        train: the train split.
        fold: fold of each training instance, int64 `[N]`.
    """

    def __init__(self, whole: Source, copies: list[Source], train: Split, fold: np.ndarray) -> None:
        self.name, self.width, self.whole, self.copies = whole.name, whole.width, whole, copies
        self.fingerprint = digest("folds", whole.fingerprint, [c.fingerprint for c in copies])
        self._fold = dict(zip(train.ids.tolist(), fold.tolist(), strict=True))

    def compute(self, split: Split) -> np.ndarray:
        """Logits: float32 `[N,C]`."""
        if split.role != "train":
            return self.whole.compute(split)
        return self._from_copies(split.ids, lambda copy, here: copy.compute(split.take(here)))

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Logits of a few rows: float32 `[B,C]`."""
        if split.role != "train":
            return self.whole.at(split, rows)
        return self._from_copies(split.ids[rows], lambda copy, here: copy.at(split, rows[here]))

    def _from_copies(self, ids: np.ndarray, logits: Callable[[Source, np.ndarray], np.ndarray]) -> np.ndarray:
        """For each of `ids` the logits of its own copy; `logits(copy, places in ids)` computes them."""
        fold = np.array([self._fold[name] for name in ids.tolist()])
        out = np.empty((len(ids), self.width), np.float32)
        for i, copy in enumerate(self.copies):
            here = np.flatnonzero(fold == i)
            if len(here):
                out[here] = logits(copy, here)
        return out

    def release(self) -> None:
        """Free the models and tokens of the teacher and its copies. They are loaded again when they are needed."""
        for source in (self.whole, *self.copies):
            source.release()


def folds_of(train: Split, folds: int) -> np.ndarray:
    """The fold of every training instance, int64 `[N]`: stratified by label, and the same for all teachers of a pool.

    Raises:
        UserError: if a class has fewer instances than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.unique(train.labels, return_counts=True)[1].min())
    if fewest < folds:
        raise UserError(f"teachers.folds={folds}: the rarest class has {fewest} training instances; use fewer folds")
    fold = np.empty(len(train), np.int64)
    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(train.labels, train.labels)
    for i, (_, held_out) in enumerate(parts):
        fold[held_out] = i
    return fold


def learns_train(spec: TeacherSettings) -> bool:
    """Whether the teacher learns the train split here. Only such teachers can be cross-fitted."""
    return isinstance(spec, FinetuneTeacher | SklearnTeacher) and spec.pool is None


@dataclass(frozen=True)
class TrainingData:
    """What a teacher learns from.

    Attributes:
        data: labelled instances of train, or of a pool.
        fold: fold of each instance for cross-fitting, int64 `[N]`; None: no cross-fitting.
    """

    data: Split
    fold: np.ndarray | None = None

    def source(self, fitted: Callable[[Split], Source]) -> Source:
        """The teacher that `fitted` makes of the data; with folds, also a copy for each of them."""
        whole = fitted(self.data)
        if self.fold is None:
            return whole
        others = [self.data.take(np.flatnonzero(self.fold != i)) for i in range(int(self.fold.max()) + 1)]
        return FoldedTeacher(whole, [fitted(part) for part in others], self.data, self.fold)


def training_data(spec: FinetuneTeacher | SklearnTeacher, task: Task, folds: int) -> TrainingData:
    """The labelled instances of train or of its pool, with folds if it learns train and `folds` is not 0.

    Raises:
        UserError: for a pool that the task does not have, train without labels, or too many folds.
    """
    if spec.pool is not None:
        if spec.pool not in task.pools:
            raise UserError(
                f"{spec.what}: task {task.name} has no pool {spec.pool!r}; it has {', '.join(task.pools) or 'none'}"
            )
        return TrainingData(task.pools[spec.pool])
    data = task.splits["train"]
    if data.labelled.all():
        return TrainingData(data, folds_of(data, folds) if folds else None)
    if folds:
        raise UserError(f"teachers.folds={folds} needs labels for all of train; use 0")
    known = data.take(np.flatnonzero(data.labelled))
    absent = [name for i, name in enumerate(task.label_names) if not (known.labels == i).any()]
    if absent:
        raise UserError(
            f"{spec.what}: kind={spec.kind} without pool learns the labels of train, and train has none for "
            f"{absent[0]!r}; use a teacher that exists (kind=checkpoint, predictions) or one with a pool"
        )
    return TrainingData(known)


def build_finetune(spec: FinetuneTeacher, task: Task, home: Path, engine: Engine, folds: int) -> Source:
    """The teacher fine-tuned on train or on its pool, and cross-fitted if it learns train and `folds` is not 0.

    Raises:
        UserError: for a pool that the task does not have, train without labels, too many folds, or a checkpoint that
            cannot be fine-tuned.
    """
    return training_data(spec, task, folds).source(lambda data: fine_tuned(spec, task, data, home, engine))


def note_fitting(home: Path) -> None:
    """Print a note, once a process, that teachers are fitted now: the first run with a pool takes longer than the next."""
    notice(f"teachers are fitted now, which takes a while, and kept in {home}; the next run finds them there")


def fine_tuned(spec: FinetuneTeacher, task: Task, data: Split, home: Path, engine: Engine) -> Source:
    """The teacher fine-tuned on `data`, from the cache or made now."""
    base = resolve(spec.path, spec.what) if spec.path else None
    facts = {
        "format": FORMAT,
        # The weights of the checkpoint are part of the identity, not where they are.
        "spec": {k: v for k, v in asdict(spec).items() if k != "path"},
        "base": cache.folder_fingerprint(base) if base else None,
        "data": data.labelled_fingerprint,
        "vocabulary": None if base else _vocabulary_fingerprint(task),
        "labels": list(task.label_names),
        "amp": engine.form,
    }
    if base and (withheld := withheld_inputs(load_config(base, spec.what), load_tokenizer(base, spec.what))):
        facts["inputs"] = withheld
    folder = home / "teachers" / f"{task.name}-{spec.name}-{digest(facts)}"

    def build(temporary: Path) -> dict[str, Any]:
        note_fitting(home)
        return fit(spec, task, data, base, temporary, engine)

    manifest = cache.entry(folder, facts, build)
    return ModelTeacher(spec.name, folder, digest(manifest["files"]), task, engine, spec.max_length)


def _vocabulary_fingerprint(task: Task) -> str:
    return digest([task.splits["train"].fingerprint, *(p.fingerprint for p in task.pools.values())])


def vocabulary_texts(task: Task) -> list[tuple[str, ...]]:
    """The texts that a word-level vocabulary is made from: train and the pools, never reward, dev or test."""
    return [t for s in (task.splits["train"], *task.pools.values()) for t in s.texts]


def fit(
    spec: FinetuneTeacher,
    task: Task,
    data: Split,
    base: Path | None,
    folder: Path,
    engine: Engine,
) -> dict[str, Any]:
    """Fine-tune one teacher and save it in the format of `transformers`.

    Args:
        spec: settings of the teacher.
        task: the task.
        data: training data, of role train or pool.
        base: the checkpoint to start from; None: random weights.
        folder: where the teacher is saved.
        engine: where and how it computes.

    Returns:
        For the manifest of its cache entry: `steps`, `instances` and `seconds`.

    Raises:
        RoleError: for data of another role.
        NotFinite: when a loss or a weight is not finite.
    """
    data.require("train", "pool")
    rng = np.random.default_rng(spec.seed)
    if spec.share < 1:
        data = data.take(stratified(data.labels, max(1, round(spec.share * len(data))), rng))
    # 1. The model and its tokenizer.
    model, tokenizer = _initial(spec, task, base, data.texts)
    settings = StudentSettings(
        lr=spec.lr, schedule="linear", warmup=0.06, max_length=spec.max_length, freeze_embeddings=spec.freeze_embeddings
    )
    student = Student(model, tokenizer, settings, engine)
    # 2. Batches of labelled texts.
    tokens = student.tokenize(data.texts)
    labels = torch.from_numpy(data.labels).to(engine.device)
    stream = Stream(tokens.lengths, min(spec.batch_size, len(data)), spec.seed)
    steps = max(1, spec.epochs * len(data) // stream.batch_size)
    # 3. Train on the labels alone. Dropout draws from the global generator, which must not notice.
    student.begin(steps)
    started = time.perf_counter()
    try:
        with isolated_rng(spec.seed), Progress(f"fine-tuning {spec.what}", steps) as shown:
            for _ in range(steps):
                rows = stream.next()
                gold = labels[torch.from_numpy(rows).to(engine.device)]
                student.step(tokens.batch(rows), label_loss(gold))
                shown.update()
        student.check_weights()
    except NotFinite:
        raise NotFinite(
            f"{spec.what}: fine-tuning gave a loss or weights that are not finite by step {student.steps} "
            f"with lr={spec.lr:g}; lower its lr"
        ) from None
    student.save(folder, cut=False)  # it is used by this project alone
    return {"steps": steps, "instances": len(data), "seconds": round(time.perf_counter() - started, 1)}


def _initial(spec: FinetuneTeacher, task: Task, base: Path | None, texts: Sequence[tuple[str, ...]]) -> tuple[Any, Any]:
    """The model before fine-tuning, and its tokenizer, after they were tried out on `texts`."""
    if base is None:
        tokenizer = word_tokenizer(vocabulary_texts(task), spec.max_length)
        config = {"max_position_embeddings": spec.max_length, **spec.config}
        model = fresh_classifier(config, tokenizer, task.label_names, spec.seed, spec.what)
    else:
        tokenizer = load_tokenizer(base, spec.what)
        model = load_classifier(base, task.label_names, spec.seed, spec.what, spec.layers)
    try_out(model, tokenizer, texts, spec.max_length, spec.what, trains=True)
    if base is not None:
        try_saving(model, tokenizer, spec.what)
    return model, tokenizer
