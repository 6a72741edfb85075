"""Where tasks come from, how their roles are cut, and the messages for a user's mistakes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from distill.checks import RoleError, UserError
from distill.data.formats import read_table
from distill.data.glue import GLUE
from distill.data.load import TASKS, assign_roles, load_task, size_of
from distill.data.splits import RawTask, Split, Table, Task, stratified
from distill.settings import TaskSettings

# --- GLUE: every official layout, written here ------------------------------------------------------------------------

QUOTES = ['He said "no', '\'tis "fine"', '"', "plain", 'ends with "', '""']
HEADERS = {
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "cola": None,
}
LINES: dict[str, Callable[[int, str, str, str], str]] = {
    "sst2": lambda i, a, b, y: f"{a}\t{y}",
    "mrpc": lambda i, a, b, y: f"{y}\t{i}\t{i + 1}\t{a}\t{b}",
    "qqp": lambda i, a, b, y: f"{i}\t{i}\t{i + 1}\t{a}\t{b}\t{y}",
    "mnli": lambda i, a, b, y: f"{i}\t{i}p\t{i}n\tfiction\t( x )\t( y )\tROOT\tROOT\t{a}\t{b}\tneutral\t{y}",
    "qnli": lambda i, a, b, y: f"{i}\t{a}\t{b}\t{y}",
    "rte": lambda i, a, b, y: f"{i}\t{a}\t{b}\t{y}",
    "cola": lambda i, a, b, y: f"gj04\t{y}\t*\t{a}",
}
FOLDERS = {"sst2": "SST-2", "mrpc": "MRPC", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE", "cola": "CoLA"}
# What the files write for each class, and the names of the classes in the hub's order.
CLASSES = {
    "sst2": {"0": "negative", "1": "positive"},
    "mrpc": {"0": "not_equivalent", "1": "equivalent"},
    "qqp": {"0": "not_duplicate", "1": "duplicate"},
    "mnli": {n: n for n in ("entailment", "neutral", "contradiction")},
    "qnli": {n: n for n in ("entailment", "not_entailment")},
    "rte": {n: n for n in ("entailment", "not_entailment")},
    "cola": {"0": "unacceptable", "1": "acceptable"},
}
TESTS = {"mnli": {"test": "dev_matched", "test_mm": "dev_mismatched"}}
Rows = dict[str, tuple[tuple[str, ...], str]]


def write_glue(root: Path, name: str, end: str = "\n", bom: str = "") -> dict[str, Rows]:
    """Write the official files of one task under `root`. Returns the texts and label of each id, by file."""
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    values, expected = list(CLASSES[name]), {}
    for file in ("train", *TESTS.get(name, {"test": "dev"}).values()):
        lines, rows = [], {}
        for i in range(30 if file == "train" else 7):
            a, b, y = f"{QUOTES[i % 6]} {file} a{i}", f"b{i} {QUOTES[(i + 1) % 6]}", values[i % len(values)]
            lines.append(LINES[name](i, a, b, y))
            rows[f"{file}-{i}"] = ((a,) if name in ("sst2", "cola") else (a, b), CLASSES[name][y])
        header = [HEADERS[name]] if HEADERS[name] else []
        (folder / f"{file}.tsv").write_bytes((bom + end.join([*header, *lines]) + end).encode())  # type: ignore[list-item]
        expected[file] = rows
    return expected


def as_read(task: Task, *roles: str) -> Rows:
    return {
        str(i): (t, task.label_names[y])
        for r in roles
        for i, t, y in zip(task.splits[r].ids, task.splits[r].texts, task.splits[r].labels, strict=True)
    }


@pytest.mark.parametrize(("end", "bom"), [("\n", ""), ("\r\n", "\ufeff")], ids=["unix", "windows"])
@pytest.mark.parametrize("name", HEADERS)
def test_glue_files(tmp_path: Path, name: str, end: str, bom: str) -> None:
    expected = write_glue(tmp_path, name, end, bom if HEADERS[name] else "")
    task = load_task(TaskSettings(name=name, reward_size=0.2, dev_size=5), str(tmp_path))
    assert task.label_names == tuple(CLASSES[name].values())
    assert task.source == "files"
    assert task.tests == tuple(TESTS.get(name, {"test": ""}))
    assert as_read(task, "train", "reward", "dev") == expected["train"]
    assert [len(task.splits[r]) for r in ("train", "reward", "dev")] == [19, 6, 5]
    for test, file in TESTS.get(name, {"test": "dev"}).items():
        assert as_read(task, test) == expected[file]
        assert task.splits[test].role == "test"


def test_cola_has_no_header_and_mnli_has_two_tests() -> None:
    assert [n for n, g in GLUE.items() if isinstance(g.label, int)] == ["cola"]
    assert {n: len(g.tests) for n, g in GLUE.items()} == dict.fromkeys(HEADERS, 1) | {"mnli": 2}


def test_qqp_broken_rows_are_skipped_and_ids_stay(tmp_path: Path) -> None:
    write_glue(tmp_path, "qqp")
    file = tmp_path / "QQP" / "train.tsv"
    lines = file.read_text().split("\n")
    lines.insert(4, "99\t1\t2\tcut short")  # data row 3
    file.write_text("\n".join(lines))
    rows = as_read(load_task(TaskSettings(name="qqp"), str(tmp_path)), "train", "reward", "dev")
    assert len(rows) == 30
    assert "train-3" not in rows
    assert rows["train-30"][0][0].endswith("a29")


def test_a_truncated_row_of_another_task_is_an_error(tmp_path: Path) -> None:
    write_glue(tmp_path, "rte")
    with (tmp_path / "RTE" / "train.tsv").open("a") as file:
        file.write("99\tcut short\n")
    with pytest.raises(UserError, match=r"train\.tsv: line 32 has 2 tab-separated columns, 4 are needed"):
        load_task(TaskSettings(name="rte"), str(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tlabel\n", "\tgold\n", r"no column 'label'; it has index, sentence1, sentence2, gold"),
        ("\tnot_entailment\n", "\tmaybe\n", r"line 3: label 'maybe' is not one of entailment, not_entailment"),
    ],
)
def test_glue_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_glue(tmp_path, "rte")
    file = tmp_path / "RTE" / "train.tsv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_task(TaskSettings(name="rte"), str(tmp_path))


def test_glue_without_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RTE/train\.tsv: No such file"):
        load_task(TaskSettings(name="rte"), str(tmp_path))
    with pytest.raises(UserError, match=r"needs data_dir=FOLDER .*RTE/train\.tsv"):
        load_task(TaskSettings(name="rte", source="files"), None)


@pytest.mark.parametrize("name", HEADERS)
def test_glue_from_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    spec, asked = GLUE[name], []

    def load_dataset(path: str, config: str, split: str) -> dict[str, list[Any]]:
        assert (path, config) == ("nyu-mll/glue", name)
        asked.append(split)
        columns = {c: [f"{c} {split} {i}" for i in range(30)] for c in spec.hub_text}
        return columns | {"label": [i % len(spec.labels) for i in range(30)]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = load_task(TaskSettings(name=name))
    assert task.source == "hub"
    assert asked[0] == "train"
    rows = as_read(task, *task.splits)
    assert len(rows) == 30 * len(asked)
    for i in (0, 7, 29):
        expected = tuple(f"{c} train {i}" for c in spec.hub_text), list(CLASSES[name].values())[i % len(spec.labels)]
        assert rows[f"train-{i}"] == expected


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"\(ConnectionError: no route\), and HF_HUB_OFFLINE=1 .*set data_dir .*RTE/train\.tsv"
    ):
        load_task(TaskSettings(name="rte"))


@pytest.mark.parametrize(("name", "train", "test"), [("mrpc", 3668, 408), ("rte", 2490, 277), ("sst2", 67349, 872)])
def test_the_official_files(glue_dir: Path, name: str, train: int, test: int) -> None:
    folder = glue_dir / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    task = load_task(TaskSettings(name=name, reward_size=0.1, dev_size=0.1), str(glue_dir))
    sizes = {r: len(s) for r, s in task.splits.items()}
    assert sizes["train"] + sizes["reward"] + sizes["dev"] == train
    assert sizes["test"] == test
    lines = [line.split("\t") for line in (folder / "dev.tsv").read_text("utf-8-sig").split("\n")[1:] if line]
    values = list(CLASSES[name])
    assert task.splits["test"].labels.tolist() == [values.index(c[0 if name == "mrpc" else -1]) for c in lines]
    assert task.splits["test"].texts[5][-1] == lines[5][{"mrpc": 4, "rte": 2, "sst2": 0}[name]]


def test_a_user_can_add_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function in the registry makes a task; `assign_roles` cuts its splits."""

    def load(settings: TaskSettings, data_dir: str | None) -> Task:
        texts = [(f"{data_dir} {i}",) for i in range(30)]
        table = Table([f"a{i}" for i in range(30)], texts, ["no", "yes"] * 15)
        test = Table([f"b{i}" for i in range(30)], texts, ["yes", "no"] * 15)
        return assign_roles(settings, RawTask("mine", {"train": table, "test": test}, ("no", "yes")))

    monkeypatch.setitem(TASKS, "mine", load)
    task = load_task(TaskSettings(name="mine", reward_size=5, dev_size=5), "somewhere")
    assert (task.name, task.source, task.tests) == ("mine", "mine", ("test",))
    assert {r: len(s) for r, s in task.splits.items()} == {"train": 20, "reward": 5, "dev": 5, "test": 30}
    assert task.splits["test"].texts[3] == ("somewhere 3",)
    with pytest.raises(UserError, match=r"task\.name=mien is not known; choose from .*did you mean mine\?"):
        load_task(TaskSettings(name="mien"))


def test_every_task_is_in_the_registry() -> None:
    assert set(TASKS) == {"bundled", "files", "afrisenti", *GLUE}


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qnli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of 400 instances; one class is three times as frequent as the other."""
    root = tmp_path_factory.mktemp("qnli")
    (root / "QNLI").mkdir()
    for file, count in (("train", 400), ("dev", 40)):
        rows = [f"{i}\tq{i}\ts{i}\t{'entailment' if i % 4 else 'not_entailment'}" for i in range(count)]
        (root / "QNLI" / f"{file}.tsv").write_text("\n".join([str(HEADERS["qnli"]), *rows, ""]))
    return root


def cut(root: Path, **settings: Any) -> Task:
    return load_task(TaskSettings(name="qnli", **settings), str(root))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [(0.1, 0.1), (40, 80), (0.5, 3)])
def test_roles_are_disjoint_stratified_and_complete(qnli: Path, seed: int, sizes: tuple[float, float]) -> None:
    task = cut(qnli, split_seed=seed, reward_size=sizes[0], dev_size=sizes[1])
    ids = [str(i) for r in ("train", "reward", "dev") for i in task.splits[r].ids]
    assert sorted(ids) == sorted(f"train-{i}" for i in range(400))
    for role, split in task.splits.items():
        assert split.role == role
        prefix = "dev" if role == "test" else "train"
        for i, text, y in zip(split.ids, split.texts, split.labels, strict=True):
            row = int(str(i).removeprefix(f"{prefix}-"))
            assert text == (f"q{row}", f"s{row}"), "an id names the same instance in every role"
            assert y == int(row % 4 == 0)
        assert abs(split.labels.sum() - len(split) / 4) <= 1


def test_split_seed_sets_the_split(qnli: Path) -> None:
    a, b, c = cut(qnli), cut(qnli), cut(qnli, split_seed=1)
    for role in ("train", "reward", "dev"):
        assert a.splits[role].ids.tolist() == b.splits[role].ids.tolist()
        assert a.splits[role].fingerprint == b.splits[role].fingerprint
        assert a.splits[role].ids.tolist() != c.splits[role].ids.tolist()
    assert a.fingerprint == b.fingerprint != c.fingerprint


def test_train_limit(qnli: Path) -> None:
    full, small = cut(qnli), cut(qnli, train_limit=40)
    assert len(small.splits["train"]) == 40
    assert small.splits["train"].labels.sum() == 10
    assert set(small.splits["train"].ids) < set(full.splits["train"].ids)
    assert small.splits["dev"].ids.tolist() == full.splits["dev"].ids.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_size": 400}, "task.reward_size=400"),
        ({"dev_size": 1000}, "task.dev_size=1000"),
        ({"reward_size": 0.6, "dev_size": 0.6}, "task.dev_size leaves no training data"),
        ({"reward_size": 0.0001}, "task.reward_size=0.0001"),
        ({"train_limit": 1}, "no training instance left with label 'not_entailment'"),
    ],
)
def test_impossible_splits(qnli: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(qnli, **settings)


@pytest.mark.parametrize("role", ["train", "reward", "dev", "test"])
def test_roles_never_mix(small_task: Task, role: str) -> None:
    split = small_task.splits[role]
    others = {"train", "reward", "dev", "test"} - {role}
    assert split.require(role, "pool") is split
    with pytest.raises(RoleError, match=f"data of role {role} given"):
        split.require(*others)


def test_fingerprints_depend_on_ids_texts_and_labels() -> None:
    base = {"role": "dev", "ids": np.array(["a", "b"]), "texts": [("x", "y"), ("z", "")], "labels": np.array([0, 1])}
    first = Split(**base)
    assert Split(**base | {"labels": np.array([1, 1])}).fingerprint == first.fingerprint
    assert Split(**base | {"labels": np.array([1, 1])}).labelled_fingerprint != first.labelled_fingerprint
    for change in ({"ids": np.array(["a", "c"])}, {"texts": [("x", "y"), ("z", "!")]}, {"texts": [("xy",), ("z", "")]}):
        assert Split(**base | change).fingerprint != first.fingerprint


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return labels, draw(st.integers(1, len(labels))), draw(st.integers(0, 2**31))


@given(samples())
def test_stratified(sample: tuple[np.ndarray, int, int]) -> None:
    labels, count, seed = sample
    rows = stratified(labels, count, np.random.default_rng(seed))
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < len(labels)
    sizes, taken = np.bincount(labels), np.bincount(labels[rows], minlength=labels.max() + 1)
    exact = sizes * count / len(labels)
    if count >= len(sizes):
        assert (taken > 0).all()
    if (exact >= 1).all():
        assert (np.abs(taken - exact) < 1).all()
    assert np.array_equal(rows, stratified(labels, count, np.random.default_rng(seed)))


@pytest.mark.parametrize("count", [0, -1, 11])
def test_stratified_refuses(count: int) -> None:
    with pytest.raises(UserError, match=f"a sample of {count} was asked for, from 10"):
        stratified(np.zeros(10, int), count, np.random.default_rng(0))


@given(st.floats(1e-4, 2000, allow_nan=False), st.integers(2, 2000))
def test_size_of(value: float, total: int) -> None:
    wanted = math.floor(value) if value >= 1 else round(value * total)
    if 0 < wanted < total:
        assert size_of(value, total, "x") == wanted
    else:
        with pytest.raises(UserError, match=r"^x="):
            size_of(value, total, "x")


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_by_hand(small_task: Task) -> None:
    logits = np.array([[math.log(3), 0], [0, 0.5], [2, 0], [0, math.log(9)]])
    got = small_task.scores(logits, np.array([0, 0, 1, 1]))  # right, wrong, wrong, right
    losses = [math.log(4 / 3), math.log1p(math.exp(0.5)), math.log1p(math.exp(2)), math.log(10 / 9)]
    half, two = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2))  # the surenesses of the wrong ones
    brier = 2 * (0.25**2 + half**2 + two**2 + 0.1**2) / 4
    # Of 15 bins 3/4 and `half` have one each; `two` and 0.9 share that of (13/15, 14/15].
    ece = ((1 - 0.75) + half + (two + 0.9 - 1)) / 4
    expected = {"accuracy": 0.5, "loss": sum(losses) / 4, "brier": brier, "ece": ece, "f1": 0.5, "matthews": 0.0}
    assert got == pytest.approx(expected)


def test_scores_against_sklearn(small_task: Task) -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 4):
        task = Task("t", "files", tuple("abcd"[:classes]), {})
        labels, logits = rng.integers(classes, size=90), rng.normal(0, 30, (90, classes))
        logits[0] = 1e4  # no overflow
        got = task.scores(logits, labels)
        e = np.exp(logits - logits.max(1, keepdims=True))
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, logits.argmax(1)),
            "loss": -np.log(np.maximum((e / e.sum(1, keepdims=True))[np.arange(90), labels], 1e-300)).mean(),
        }
        probs = e / e.sum(1, keepdims=True)
        gold = np.eye(classes)[labels]
        expected["brier"] = classes * sklearn.metrics.mean_squared_error(gold, probs)
        gaps = []
        for low in np.arange(15) / 15:
            held = (probs.max(1) > low) & (probs.max(1) <= low + 1 / 15 + 1e-12)
            right = (probs.argmax(1) == labels)[held]
            gaps.append(abs(right.mean() - probs.max(1)[held].mean()) * held.mean() if held.any() else 0.0)
        expected["ece"] = sum(gaps)
        if classes == 2:
            expected["f1"] = sklearn.metrics.f1_score(labels, logits.argmax(1))
            expected["matthews"] = sklearn.metrics.matthews_corrcoef(labels, logits.argmax(1))
        assert got == pytest.approx(expected)


# --- the user's own files ---------------------------------------------------------------------------------------------

NAMES = ("good", "bad", "so so")


def frame(count: int = 30, start: int = 0) -> pd.DataFrame:
    """With texts that CSV readers often convert to other types."""
    odd = ["NA", "007", "1e5", "2024-01-02", "a, b", "null", "true"]
    return pd.DataFrame(
        {
            "key": [f"k{start + i}" for i in range(count)],
            "review": [f"text {i}" if i >= len(odd) else odd[i] for i in range(count)],
            "verdict": [NAMES[i % 3] for i in range(count)],
        }
    )


def write(path: Path, table: pd.DataFrame) -> str:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in table.to_dict("records")))
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def files(train: str, test: str, **more: Any) -> TaskSettings:
    return TaskSettings(
        **{"name": "files", "train": train, "test": test, "text": ["review"], "label": "verdict"} | more
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
@pytest.mark.parametrize("own_dev", [True, False])
@pytest.mark.parametrize("key", ["key", None])
def test_own_files(tmp_path: Path, suffix: str, own_dev: bool, key: str | None) -> None:
    parts = {"train": frame(), "dev": frame(9, 100), "test": frame(12, 200)}
    paths = {r: write(tmp_path / f"{r}{suffix}", f) for r, f in parts.items()}
    more = {"dev": paths["dev"]} if own_dev else {}
    task = load_task(files(paths["train"], paths["test"], id=key, reward_size=6, dev_size=6, **more))
    assert task.label_names == ("bad", "good", "so so")
    assert task.source == "files"

    def expected(role: str) -> Rows:
        f = parts[role]
        ids = f["key"] if key else [f"{role}-{i}" for i in range(len(f))]
        return {i: ((t,), y) for i, t, y in zip(ids, f["review"], f["verdict"], strict=True)}

    assert as_read(task, "test") == expected("test")
    if own_dev:
        assert as_read(task, "train", "reward") == expected("train")
        assert as_read(task, "dev") == expected("dev")
    else:
        assert as_read(task, "train", "reward", "dev") == expected("train")
        assert len(task.splits["dev"]) == 6


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_numbers_as_labels_and_pairs(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"a": [f"x{i}" for i in range(20)], "b": [f"y{i}" for i in range(20)], "label": [10, 9] * 10})
    path, other = write(tmp_path / f"a{suffix}", table), write(tmp_path / f"b{suffix}", table)
    task = load_task(TaskSettings(name="files", train=path, test=other, text=["b", "a"]))
    assert task.label_names == ("9", "10")
    assert task.splits["test"].texts[3] == ("y3", "x3")
    assert task.splits["test"].labels.tolist() == [1, 0] * 10


def test_every_cell_as_it_was_written(tmp_path: Path) -> None:
    odd = ["NA", "007", "1e5", "2024-01-02", "1.0", "null", "True", " x "]
    for suffix in (".csv", ".tsv", ".jsonl"):
        table = read_table(Path(write(tmp_path / f"t{suffix}", pd.DataFrame({"a": odd, "date": odd}))))
        assert table["a"].tolist() == table["date"].tolist() == odd


def test_quotes_have_no_meaning_in_tsv(tmp_path: Path) -> None:
    rows = [('"she" said', '"open'), ("'", '""'), ('a "b', 'c", d')]
    (tmp_path / "t.tsv").write_text("\n".join(["x\ty", *map("\t".join, rows), ""]))
    assert list(read_table(tmp_path / "t.tsv").itertuples(index=False, name=None)) == rows


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("wide", [(1, 2, 3), (1,), (3,), (2, 3)])
def test_surplus_cells_are_an_error_in_any_row(tmp_path: Path, suffix: str, wide: tuple[int, ...]) -> None:
    lines = [["x", "y"], *([str(i), "b", "c"][: 3 if i in wide else 2] for i in (1, 2, 3))]
    (tmp_path / f"t{suffix}").write_text("\n".join(("," if suffix == ".csv" else "\t").join(r) for r in lines))
    with pytest.raises(UserError, match=rf"^[^\n]*t\{suffix}: line \d has more cells than the header[^\n]*$"):
        read_table(tmp_path / f"t{suffix}")


def one(**cells: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The table with some cells of its third row changed."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype(object)
        for name, value in cells.items():
            table.loc[2, name] = value
        return table

    return change


@pytest.mark.parametrize(
    ("suffix", "change", "more", "message"),
    [
        (".csv", None, {"text": ["text"]}, r"train\.csv: no column 'text'; it has key, review, verdict"),
        (".csv", None, {"label": "label"}, r"no column 'label'"),
        (".csv", None, {"id": "id"}, r"no column 'id'"),
        (".xlsx", None, {}, r"train\.xlsx: unknown kind of file; use \.csv"),
        (".csv", one(key="k1"), {"id": "key"}, r"train\.csv: id 'k1' occurs twice"),
        (".csv", one(key=""), {"id": "key"}, r"train\.csv: row 3 has no id in column 'key'"),
        (".csv", one(verdict=""), {}, r"train\.csv: row 3 has no label in column 'verdict'"),
        (".jsonl", one(verdict=None), {}, r"train\.jsonl: row 3 has an empty cell"),
        (".jsonl", one(review=None), {}, r"train\.jsonl: row 3 has an empty cell"),
        (".parquet", one(review=None), {}, r"train\.parquet: row 3 has an empty cell"),
        (".csv", lambda t: t.assign(verdict="good"), {}, r"column 'verdict' holds one class only \('good'\)"),
        (".csv", lambda t: t[:1], {}, r"train\.csv: 1 data rows; at least two"),
        (".jsonl", lambda t: t[:0], {}, r"train\.jsonl"),
        (".csv", lambda t: t[t["verdict"] != "bad"], {}, r"test\.csv: label 'bad' never occurs in .*train\.csv"),
        (".csv", None, {"text": []}, r"task\.text=\[\] must name one or two"),
        (".csv", None, {"text": ["a", "b", "c"]}, r"must name one or two"),
        (".csv", None, {"test": None}, r"needs task\.train=FILE and task\.test=FILE"),
        (".csv", None, {"train": "gone.csv"}, r"gone\.csv: No such file"),
        (".csv", None, {"name": "fils"}, r"task\.name=fils is not known; .*did you mean files\?"),
    ],
)
def test_own_files_mistakes(tmp_path: Path, suffix: str, change: Any, more: dict[str, Any], message: str) -> None:
    table = change(frame()) if change else frame()
    train = write(tmp_path / f"train{suffix}", table)
    settings = files(**{"train": train, "test": write(tmp_path / "test.csv", frame(12, 200))} | more)
    with pytest.raises(UserError, match=message) as caught:
        load_task(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x01garbage", "review,verdict\ncaf\xe9,good\n".encode("latin-1")],
    ids=["empty", "garbage", "latin-1"],
)
def test_unreadable_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    settings = files(str(path), write(tmp_path / "test.csv", frame(12)))
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load_task(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rte", "files"])
def test_not_utf8_names_the_byte(tmp_path: Path, name: str) -> None:
    (tmp_path / "RTE").mkdir()
    path = tmp_path / "RTE" / ("train.tsv" if name == "rte" else "train.csv")
    path.write_bytes("index\tsentence1\tsentence2\tlabel\n0\tcaf\xe9\ty\tentailment\n".encode("latin-1"))
    settings = TaskSettings(name="rte") if name == "rte" else files(str(path), str(path))
    with pytest.raises(UserError, match=rf"{path.name}: not UTF-8 at byte \d+; convert it"):
        load_task(settings, str(tmp_path))


def test_a_row_with_too_few_cells_is_refused(tmp_path: Path) -> None:
    rows = [f"text {i},{NAMES[i % 3]}" for i in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(["review,verdict", *rows[:5], "no verdict here", *rows[5:]]))
    with pytest.raises(UserError, match=r"a\.csv: row 6 has (an empty cell|no label)"):
        load_task(files(str(tmp_path / "a.csv"), str(tmp_path / "a.csv")))


def test_a_row_with_too_many_cells_is_not_shifted(tmp_path: Path) -> None:
    """A comma in an unquoted text is an error in any row; it never moves the other columns."""
    rows = "".join(f"good, number {i},{NAMES[i % 3]}\n" for i in range(12))
    (tmp_path / "a.csv").write_text("review,verdict\n" + rows)
    with pytest.raises(UserError, match=r"a\.csv"):
        load_task(files(str(tmp_path / "a.csv"), str(tmp_path / "a.csv")))


def test_the_same_ids_in_two_files(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.csv", frame()), write(tmp_path / "b.csv", frame(12))
    with pytest.raises(UserError, match=r"b\.csv: id 'k0' occurs twice \(also in .*a\.csv\)"):
        load_task(files(train, test, id="key"))
