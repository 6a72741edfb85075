"""AfriSenti as a task, on made-up files and, where it is there, on the data; and teachers of character n-grams."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs import compose
from distill.checks import UserError
from distill.data.afrisenti import LABELS, afrisenti_folders
from distill.data.load import files_of, load_task
from distill.data.splits import Split, Task
from distill.models.engine import Engine
from distill.settings import RunSettings, SklearnTeacher, TaskSettings
from distill.teachers.ngrams import NgramTeacher
from distill.teachers.sources import load_teacher

LANGUAGES = ["aaa", "bbb"]
SIZES = {"train": 61, "dev": 5, "test": 11}
CPU = Engine.pick("cpu", "off", True)


def write(folder: Path, language: str, label: Callable[[int], str] = lambda i: LABELS[i % 3]) -> None:
    (folder / language).mkdir(parents=True, exist_ok=True)
    for split, count in SIZES.items():
        lines = [f'"{language} {split} number {i} ""is {LABELS[i % 3]}\t{label(i)}' for i in range(count)]
        (folder / language / f"{split}.tsv").write_text("\n".join(["tweet\tlabel", *lines, ""]), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language in LANGUAGES:
        write(tmp_path / "afrisenti", language)
    return tmp_path


def settings(**more: Any) -> TaskSettings:
    return TaskSettings(**{"name": "afrisenti", "languages": LANGUAGES, "labels": 24, **more})


@pytest.mark.parametrize("place", ["afrisenti", ".", "glue"])
def test_where_it_is_found(folder: Path, place: str) -> None:
    assert load_task(settings(), str(folder / place)).source == "files"
    assert str(folder / "afrisenti") in files_of(settings(), str(folder / place))


def test_halves_owners_and_roles(folder: Path) -> None:
    task = load_task(settings(), str(folder))
    assert task.label_names == LABELS
    assert {name: len(pool) for name, pool in task.pools.items()} == {"aaa": 30, "bbb": 30}
    assert [len(task.splits[r]) for r in ("train", "reward", "dev", "test")] == [38, 12, 12, 22]
    ids = [i for s in (*task.splits.values(), *task.pools.values()) for i in s.ids.tolist()]
    assert len(set(ids)) == len(ids) == 2 * (61 + 11)
    for name, pool in task.pools.items():
        assert all(i.startswith(f"{name}-train-") for i in pool.ids)
        assert pool.labels.tolist() == [int(i.split("-")[2]) % 3 for i in pool.ids]
    assert task.owners is not None
    assert task.owners.tolist() == [i.split("-")[0] for i in task.splits["train"].ids]
    assert task.specialist is not None
    assert task.specialist.tolist() == [LANGUAGES.index(o) for o in task.owners]
    assert not task.splits["train"].labelled.any()
    assert {i.split("-")[0] for i in task.splits["reward"].ids} == set(LANGUAGES)
    first = task.splits["test"]
    assert (first.ids[0], first.texts[0], first.labels[0]) == ("aaa-test-0", ('"aaa test number 0 ""is negative',), 0)


def test_halves_do_not_depend_on_the_other_languages_or_on_labels(folder: Path) -> None:
    task = load_task(settings(), str(folder))
    turned = load_task(settings(languages=LANGUAGES[::-1]), str(folder))
    other = load_task(settings(split_seed=1), str(folder))
    for name in LANGUAGES:
        assert turned.pools[name].labelled_fingerprint == task.pools[name].labelled_fingerprint
        assert other.pools[name].fingerprint != task.pools[name].fingerprint
    elsewhere = folder / "elsewhere"
    known = {i for s in (*task.pools.values(), task.splits["reward"], task.splits["dev"]) for i in s.ids.tolist()}
    for name in LANGUAGES:
        write(
            elsewhere / "afrisenti",
            name,
            lambda i, n=name: LABELS[(i + (f"{n}-train-{i}" not in known)) % 3],  # type: ignore[misc]
        )
        original = (folder / "afrisenti" / name / "test.tsv").read_text()  # no label of the test is hidden
        (elsewhere / "afrisenti" / name / "test.tsv").write_text(original)
    assert load_task(settings(), str(elsewhere)).fingerprint == task.fingerprint


def test_all_labels_known(folder: Path) -> None:
    task = load_task(settings(labels=None, reward_size=10, dev_size=8), str(folder))
    assert [len(task.splits[r]) for r in ("train", "reward", "dev")] == [44, 10, 8]
    assert task.splits["train"].labelled.all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"languages": []}, r"task\.languages=\[\] must name two or more languages"),
        ({"languages": ["aaa", "aaa"]}, r"must name two or more languages"),
        ({"languages": ["aaa", "../bbb"]}, r"task\.languages: entry='\.\./bbb' cannot name a folder"),
        ({"languages": ["aaa", "ccc"]}, r"ccc/train\.tsv: No such file"),
        ({"languages": ["ccc", "aaa"], "source": "files"}, r"no ccc/train\.tsv in .* or .*; set data_dir"),
    ],
)
def test_mistakes(folder: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_task(settings(**more), str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\na\tneutral\n", "its columns must be tweet and label, got text, label"),
        ("tweet\tlabel\na\tb\tneutral\n", "line 2 has 3 tab-separated columns, 2 are needed"),
        ("tweet\tlabel\na\tneutra\n", "line 2: label=neutra is not known; .*did you mean neutral"),
        ("tweet\tlabel\na\tneutral\n", "1 data rows; at least two are needed"),
    ],
)
def test_malformed_files(folder: Path, content: str, message: str) -> None:
    (folder / "afrisenti" / "bbb" / "train.tsv").write_text(content)
    with pytest.raises(UserError, match=rf"bbb/train\.tsv: {message}"):
        load_task(settings(), str(folder))


def test_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows from the hub's client make the same task."""
    order = ("positive", "neutral", "negative")

    class Data(dict[str, list[Any]]):
        features: Any = {"label": SimpleNamespace(int2str=lambda values: [order[v] for v in values])}  # noqa: RUF012

    def load_dataset(name: str, language: str, split: str) -> Data:
        assert name == "shmuhammad/AfriSenti-twitter-sentiment"
        rows = (folder / "afrisenti" / language / f"{split}.tsv").read_text().splitlines()[1:]
        texts, labels = zip(*(row.split("\t") for row in rows), strict=True)
        return Data(tweet=list(texts), label=[order.index(v) for v in labels])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = load_task(settings(source="hub"), str(folder))
    assert task.source == "hub"
    assert task.fingerprint == load_task(settings(), str(folder)).fingerprint
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    with pytest.raises(UserError, match=r"\(aaa\) could not be read from the hub.* or set data_dir"):
        load_task(settings())


@pytest.mark.parametrize(("preset", "count"), [("afrisenti4", 4), ("afrisenti8", 8)])
@pytest.mark.parametrize("pool", ["", "_minilm"])
def test_presets(preset: str, count: int, pool: str) -> None:
    more = [f"teachers={preset.replace('4', '')}{pool}"] if pool else []
    s = RunSettings.from_config(compose([f"experiment={preset}", *more]))
    assert [t.name for t in s.teachers.pool] == [t.pool for t in s.teachers.pool] == s.task.languages  # type: ignore[attr-defined]
    assert (len(s.task.languages), s.task.labels, s.student.max_length, s.loss.temperature) == (count, 1000, 64, 1.0)
    assert (s.budget.epochs, s.budget.warm_epochs, s.encoder.kind) == (1, 2, "transformer")


# --- teachers of character n-grams ------------------------------------------------------------------------------------


def test_a_teacher_learns_its_pool(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(settings(), str(folder))
    spec = SklearnTeacher(name="a", pool="aaa")
    teacher = load_teacher(spec, task, tmp_path / "home", CPU)
    assert isinstance(teacher, NgramTeacher)
    test = task.splits["test"]
    logits = teacher.compute(test)
    assert logits.shape == (22, 3)
    assert logits.dtype == np.float32
    assert (logits.argmax(1) == test.labels).mean() > 0.9
    np.testing.assert_array_equal(teacher.at(test, np.array([3, 1])), logits[[3, 1]])
    teacher.release()
    # A second one reads the cache and gives the same numbers.
    monkeypatch.setattr("distill.teachers.ngrams._fit", None)
    again = load_teacher(spec, task, tmp_path / "home", CPU)
    assert again.fingerprint == teacher.fingerprint
    np.testing.assert_array_equal(again.compute(test), logits)
    with pytest.raises(TypeError):
        load_teacher(SklearnTeacher(name="a", pool="aaa", c=1.0), task, tmp_path / "home", CPU)


def test_it_is_the_regression_of_scikit_learn(folder: Path, tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    task = load_task(settings(), str(folder))
    pool, test = task.pools["bbb"], task.splits["test"]
    for names, take in ((LABELS, np.arange(len(pool))), (LABELS[:2], np.flatnonzero(pool.labels < 2))):
        data = pool.take(take)
        small = Task("t", "files", names, {"train": data}, pools={"p": data})
        teacher = load_teacher(
            SklearnTeacher(name="b", pool="p", ngrams=[2, 3], max_features=50, c=2.0), small, tmp_path, CPU
        )
        model = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), max_features=50, sublinear_tf=True),
            LogisticRegression(C=2.0, max_iter=300),
        ).fit([t for (t,) in data.texts], data.labels)
        logits = teacher.compute(test).astype(np.float64)
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(probs, model.predict_proba([t for (t,) in test.texts]), atol=1e-5)


def test_pairs_of_texts_and_a_damaged_entry(pairs: Callable[..., Split], tmp_path: Path) -> None:
    task = Task("t", "files", ("a", "b"), {"train": pairs(13)})
    teacher: Any = load_teacher(SklearnTeacher(name="b"), task, tmp_path, CPU)
    assert teacher.compute(pairs(5)).shape == (5, 2)
    other: Any = load_teacher(SklearnTeacher(name="b"), task, tmp_path, CPU)
    (other.folder / "idf.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"cannot be read .*; delete .* to build it again"):
        other.compute(pairs(5))


def test_training_data_without_a_class(folder: Path, tmp_path: Path) -> None:
    task = load_task(settings(), str(folder))
    pool = task.pools["aaa"].take(np.flatnonzero(task.pools["aaa"].labels > 0))
    task = Task("t", "files", LABELS, task.splits, pools={"aaa": pool})
    with pytest.raises(UserError, match="teacher a: its training data has no instance with label 'negative'"):
        load_teacher(SklearnTeacher(name="a", pool="aaa"), task, tmp_path, CPU)
    with pytest.raises(UserError, match="teacher a: task t has no pool 'zzz'; it has aaa"):
        load_teacher(SklearnTeacher(name="a", pool="zzz"), task, tmp_path, CPU)


@pytest.mark.parametrize(
    "wrong", [{"ngrams": [3]}, {"ngrams": [4, 2]}, {"ngrams": [0, 2]}, {"c": 0.0}, {"max_features": 0}]
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"teacher a: .*{next(iter(wrong))}"):
        SklearnTeacher(name="a", **wrong)


# --- the data ---------------------------------------------------------------------------------------------------------


def test_the_data(afrisenti_dir: Path) -> None:
    task = load_task(settings(languages=["hau", "ibo", "yor", "pcm"], labels=1000), str(afrisenti_dir))
    assert [len(task.splits[r]) for r in ("train", "reward", "dev", "test")] == [18004, 500, 500, 17654]
    assert {n: len(p) for n, p in task.pools.items()} == {"hau": 7086, "ibo": 5096, "yor": 4261, "pcm": 2560}
    assert afrisenti_folders(str(afrisenti_dir))[0] == afrisenti_dir
