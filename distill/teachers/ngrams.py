"""Kind `sklearn`: a logistic regression on character n-grams, fitted here with scikit-learn and kept in the cache.

It is stored as JSON and plain arrays. No pickle is written or read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distill import cache
from distill.checks import UserError
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.progress import Progress
from distill.settings import SklearnTeacher, digest
from distill.teachers.finetune import note_fitting, training_data
from distill.teachers.signals import Source

FORMAT = 1  # of a stored teacher; raised whenever fitting changes


class NgramTeacher:
    """A fitted teacher, read from its cache entry when it is first needed.

    Args:
        name: name of the teacher.
        folder: its cache entry, with `ngrams.json`, `idf.npy`, `coef.npy` and `intercept.npy`.
        fingerprint: hash of these files.
        width: number of classes, C.
        ngrams: shortest and longest n-gram, in characters.
    """

    def __init__(self, name: str, folder: Path, fingerprint: str, width: int, ngrams: tuple[int, int]) -> None:
        self.name, self.folder, self.fingerprint, self.width, self.ngrams = name, folder, fingerprint, width, ngrams
        self._parts: tuple[Any, np.ndarray, np.ndarray] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Logits: float32 `[N,C]`."""
        vectorizer, coef, intercept = self._load()
        logits: np.ndarray = vectorizer.transform(_joined(split)) @ coef.T + intercept
        if self.width == 2:  # scikit-learn keeps one row of coefficients for two classes: that of the second
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        return logits.astype(np.float32)

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Logits of a few rows: float32 `[B,C]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """Free the vocabulary and the coefficients. They are read again when they are needed."""
        self._parts = None

    def _load(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """The vectorizer, the coefficients `[C,F]` (`[1,F]` for two classes) and the intercepts."""
        if self._parts is None:
            try:
                grams = json.loads((self.folder / "ngrams.json").read_text(encoding="utf-8"))
                idf, coef, intercept = (
                    np.load(self.folder / f"{name}.npy", allow_pickle=False) for name in ("idf", "coef", "intercept")
                )
            except (OSError, ValueError) as error:
                raise UserError(
                    f"cache entry {self.folder}: cannot be read ({error}){cache.way_out(self.folder)}"
                ) from None
            vectorizer = _vectorizer(self.ngrams, vocabulary={gram: i for i, gram in enumerate(grams)})
            vectorizer.idf_ = idf
            self._parts = vectorizer, coef, intercept
        return self._parts


def _vectorizer(ngrams: tuple[int, int], **more: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=ngrams, sublinear_tf=True, **more)


def _joined(split: Split) -> list[str]:
    """One string an instance; the texts of a pair one after the other."""
    return ["\n".join(texts) for texts in split.texts]


def build_sklearn(spec: SklearnTeacher, task: Task, home: Path, engine: Engine, folds: int) -> Source:
    """The teacher fitted on train or on its pool, from the cache or now; cross-fitted as fine-tuned teachers are.

    Raises:
        UserError: for a pool that the task does not have, or training data that lacks a class.
    """
    return training_data(spec, task, folds).source(lambda data: _fitted(spec, task, data, home))


def _fitted(spec: SklearnTeacher, task: Task, data: Split, home: Path) -> Source:
    facts = {
        "format": FORMAT,
        "spec": asdict(spec),
        "data": data.labelled_fingerprint,
        "labels": list(task.label_names),
    }
    folder = home / "teachers" / f"{task.name}-{spec.name}-{digest(facts)}"

    def build(temporary: Path) -> dict[str, Any]:
        note_fitting(home)
        with Progress(f"fitting {spec.what}", len(data), "instance") as shown:
            made = _fit(spec, task, data, temporary)
            shown.update(len(data))
        return made

    manifest = cache.entry(folder, facts, build)
    ngrams = (spec.ngrams[0], spec.ngrams[1])
    return NgramTeacher(spec.name, folder, digest(manifest["files"], ngrams), task.num_classes, ngrams)


def _fit(spec: SklearnTeacher, task: Task, data: Split, folder: Path) -> dict[str, Any]:
    """Fit one teacher and write its files to the folder."""
    from sklearn.linear_model import LogisticRegression

    data.require("train", "pool")
    absent = [name for i, name in enumerate(task.label_names) if not (data.labels == i).any()]
    if absent:
        raise UserError(f"{spec.what}: its training data has no instance with label {absent[0]!r}")
    vectorizer = _vectorizer((spec.ngrams[0], spec.ngrams[1]), max_features=spec.max_features, dtype=np.float64)
    features = vectorizer.fit_transform(_joined(data))
    model = LogisticRegression(C=spec.c, max_iter=300).fit(features, data.labels)
    grams = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    (folder / "ngrams.json").write_text(json.dumps(grams), encoding="utf-8")
    arrays = {"idf": vectorizer.idf_, "coef": model.coef_, "intercept": model.intercept_}
    for name, array in arrays.items():
        (folder / f"{name}.npy").write_bytes(cache.npy(array))
    return {"instances": len(data), "features": len(grams)}
