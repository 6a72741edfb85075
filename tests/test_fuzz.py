"""Every parser against what nobody would write: it reads it, or refuses it in one line, and nothing else.

Each fuzzer runs briefly here; `FUZZ_SECONDS=300 pytest -m slow tests/test_fuzz.py` runs all of them, that long in total.
What was found stays as `@example`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents import compare
from configs import compose
from distill import cache
from distill.checks import UserError
from distill.data.load import load_task
from distill.data.splits import Split, Task
from distill.settings import ProcessSettings, TaskSettings, TeacherSettings
from distill.teachers.sources import FileTeacher
from envs.teacher_select import Core

pytestmark = pytest.mark.faults
BRIEF = hypothesis.settings(max_examples=25)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def reads(parse: Callable[[], Any]) -> Any:
    """What `parse` gives, or None where it refuses in one line."""
    try:
        return parse()
    except UserError as error:
        told = str(error)
    assert len(told.splitlines()) == 1, told
    assert 10 < len(told) <= 1000
    return None


def in_file(name: str, content: bytes, parse: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        before = sorted(Path(folder).rglob("*"))
        made = reads(lambda: parse(Path(folder)))
        assert sorted(Path(folder).rglob("*")) == before
        return made


# --- tables -----------------------------------------------------------------------------------------------------------

CELLS = st.one_of(
    st.sampled_from(
        ["good", "bad", "", "NaN", "1e400", '"', "''", "\t", "a,b", "\r", "\x1a", "\ufeff", "\u2028", "\0"]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
NAMES = st.sampled_from(["id", "text", "label", "bad", "good", "", "text.1", "Unnamed: 0"]) | st.text(max_size=5)


@st.composite
def delimited(draw: st.DrawFn) -> bytes:
    """Something like a CSV or TSV file."""
    separator, end = draw(st.sampled_from([",", "\t", ";"])), draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    header = draw(st.just(["id", "text", "label"]) | st.lists(NAMES, max_size=5))
    width = len(header)
    rows = draw(st.lists(st.lists(CELLS, min_size=max(0, width - 1), max_size=width + 1), max_size=8))
    quote = draw(st.booleans())
    lines = [separator.join(f'"{c}"' if quote else c for c in row) for row in (header, *rows)]
    return end.join(lines).encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def lines_of_json(draw: st.DrawFn) -> bytes:
    """Something like a JSONL file."""
    rows = draw(st.lists(st.dictionaries(NAMES, VALUES, max_size=5) | VALUES, max_size=8))
    text = "\n".join(json.dumps(row, ensure_ascii=draw(st.booleans())) for row in rows)
    return text.encode("utf-8", "surrogatepass") + draw(st.binary(max_size=4))


FILES = st.tuples(st.sampled_from(SUFFIXES), delimited() | lines_of_json() | st.binary(max_size=200))


def table(given: tuple[str, bytes]) -> None:
    """A user's own file, as train and as test."""
    suffix, content = given
    settings = {"name": "files", "text": ["text"], "label": "label", "reward_size": 0.3, "dev_size": 0.3}
    for more in ({}, {"id": "id"}):
        task = in_file(
            f"t{suffix}",
            content,
            lambda folder, more=more: load_task(  # type: ignore[misc]
                TaskSettings(**settings, train=str(folder / f"t{suffix}"), test=str(folder / f"t{suffix}"), **more)
            ),
        )
        if task is not None:
            assert_sound(task)


def assert_sound(task: Task) -> None:
    for split in task.splits.values():
        assert len(split.ids) == len(split.texts) == len(split.labels) > 0
        assert len(set(split.ids)) == len(split.ids)
        assert ((split.labels >= 0) & (split.labels < task.num_classes)).all()
        assert all(isinstance(t, str) and "\0" not in t for texts in split.texts for t in texts)
        assert split.labelled_fingerprint


def glue(content: bytes) -> None:
    """An official TSV file of RTE, as train and as test."""

    def parse(folder: Path) -> Task:
        return load_task(TaskSettings(name="rte", reward_size=0.3, dev_size=0.3), str(folder))

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "RTE").mkdir()
        for name in ("train.tsv", "dev.tsv"):
            (Path(folder) / "RTE" / name).write_bytes(content)
        task = reads(lambda: parse(Path(folder)))
    if task is not None:
        assert_sound(task)


@st.composite
def like_glue(draw: st.DrawFn) -> bytes:
    labels = st.sampled_from(["entailment", "not_entailment"]) | CELLS
    rows = draw(st.lists(st.tuples(CELLS, CELLS, CELLS, labels), max_size=12))
    lines = ["index\tsentence1\tsentence2\tlabel", *("\t".join(r) for r in rows)]
    return "\n".join(lines).encode("utf-8", "replace")


IDS = np.array([f"a{i}" for i in range(4)])
TASK = Task("t", "files", ("bad", "good"), {"train": Split("train", IDS, [("x",)] * 4, np.array([0, 1, 0, 1]))})
NUMBERS = st.sampled_from([0.0, 0.5, 1.0, -0.5, 2.0]) | st.floats() | st.text(max_size=4) | VALUES


@st.composite
def probabilities(draw: st.DrawFn) -> tuple[str, bytes]:
    ids = draw(st.permutations(list(IDS)) | st.lists(st.text(max_size=3), max_size=5))
    rows = [{"id": i, "bad": draw(NUMBERS), "good": draw(NUMBERS)} for i in ids]
    if draw(st.booleans()):
        return ".jsonl", "\n".join(json.dumps(r) for r in rows).encode("utf-8", "surrogatepass")
    lines = ["id,bad,good", *(",".join(str(v) for v in r.values()) for r in rows)]
    return ".csv", "\n".join(lines).encode("utf-8", "replace")


def probability_file(given: tuple[str, bytes]) -> None:
    """A teacher given as a file."""
    suffix, content = given

    def parse(folder: Path) -> np.ndarray:
        spec = TeacherSettings(name="llm", probs=str(folder / f"p{suffix}"))
        return FileTeacher(spec, TASK).compute(TASK.splits["train"])

    logits = in_file(f"p{suffix}", content, parse)
    if logits is not None:
        assert logits.shape == (4, 2)
        np.testing.assert_allclose(np.exp(logits).sum(1), 1, atol=2e-3)


# --- JSON of our own --------------------------------------------------------------------------------------------------


def manifest(content: bytes) -> None:
    """The manifest of a cache entry."""
    made = in_file(cache.MANIFEST, content, cache.read_manifest)
    assert made is None or isinstance(made, dict)


MANIFESTS = st.binary(max_size=60) | st.fixed_dictionaries(
    {}, optional={"files": VALUES, "sizes": VALUES, "seal": VALUES, "format": VALUES}
).map(lambda content: json.dumps(content).encode("utf-8", "surrogatepass"))


# --- command lines ----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("control", "reinforce", "ppo", "single:film", "single:", "best_single", "agent.lr=1", "agent.lr=", "+a.b=1", "~agent"),
        *("reward=paper1", "reward=x", "agent.credit=shared", "agent={a: [1}", "hydra.run.dir=x", "loss.alpha=nan", "--help"),
        *("agent=ppo", "a=${b}", "agent.lr=${oc.env:HOME}", "agent.name=../x", "seed=-1", "student@x=tiny", "'", '"', "\\"),
    ]
)  # fmt: skip
ENTRIES = st.lists(WORDS | st.text(max_size=10), min_size=1, max_size=3).map(" ".join)


def entry(given: str) -> None:
    """One of compare.py's agents=[...], with settings of its own."""
    settings = ProcessSettings.from_config(BASE)
    if not given.split():
        return  # refused by `plan` before
    config = reads(lambda: compare.entry_config(given, [], settings))
    assert config is None or {"task", "agent", "reward"} <= config.keys()


BASE = compose()


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core(tiny_config) -> Core:
    made = Core(tiny_config("reward.credit=influence", "observation=student"))
    made.begin(0)
    made.step(np.ones((8, 4), np.int8))
    return made


def snapshot(core: Core) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0).bit_generator.state
    return core.state({"env_rng": rng, "running": True, "restart": True})


ODD = st.sampled_from(
    [
        *(np.array(None, object), np.array("x"), np.array(np.nan), np.zeros(0), np.zeros((1, 1)), np.array([2**62]), 3, None),
        *(np.zeros(3, "M8[s]"), np.zeros(2, [("a", "i4")]), np.array([-1]), np.array([True]), np.zeros(0, np.int64)),
    ]
)  # fmt: skip


def state(core: Core) -> Callable[[Any], None]:
    """A state of which one array, or one fact, is another. Refused, it has moved nothing; taken, it can be gone on from."""
    good = snapshot(core)

    def check(given: tuple[int, str, Any, Any]) -> None:
        number, how, odd, fact = given
        bad = dict(good)
        name = sorted(good)[number % len(good)]
        if how == "drop":
            del bad[name]
        elif how == "odd":
            bad[name] = odd
        elif how == "cast":
            bad[name] = good[name].astype(np.float16 if good[name].dtype.kind == "f" else "U9")
        elif how == "cut":
            bad[name] = good[name][..., :-1] if good[name].ndim else np.zeros(2)
        elif how == "range" and good[name].dtype.kind == "i":
            bad[name] = good[name] + 10**6
        elif how == "new":
            bad[f"process/{fact}"] = good[name]
        elif how == "text":
            bad["facts"] = np.array(str(fact))
        else:
            facts = json.loads(str(good["facts"]))
            group = facts
            while isinstance(group[key := sorted(group)[number % len(group)]], dict) and (number := number // 7):
                group = group[key]
            group[key] = fact
            bad["facts"] = np.array(json.dumps(facts))
        if reads(lambda: core.set_state(bad)) is None:
            after = snapshot(core)
            assert after.keys() == good.keys()
            for key, value in good.items():
                np.testing.assert_array_equal(after[key], value, err_msg=key)
        else:
            fork = core.fork()
            if not fork.process.done and fork.failure is None and fork.process.current is not None:
                observations, rewards, *_ = fork.step(np.ones((8, 4), np.int8))
                assert fork.observe.space.contains(observations[0])
                assert np.isfinite(rewards).all()
            core.set_state(good)

    return check


HOW = st.sampled_from(["drop", "odd", "cast", "cut", "range", "new", "text", "fact", "fact", "fact"])
STATES = st.tuples(st.integers(0, 10**6), HOW, ODD, VALUES)


# --- brief and long ---------------------------------------------------------------------------------------------------


@BRIEF
@given(FILES)
def test_tables(content):
    table(content)


@BRIEF
@given(like_glue() | st.binary(max_size=80))
def test_glue(content):
    glue(content)


@BRIEF
@given(probabilities() | FILES)
@example((".csv", b"id,bad,good"))
def test_probability_files(content):
    probability_file(content)


@BRIEF
@given(MANIFESTS)
@example(b"[" * 100_000)
@example(b'{"files": {"a": 1}}')
@example(b'{"files": [[null, null]]}')
def test_manifests(content):
    manifest(content)


@hypothesis.settings(max_examples=12)
@given(ENTRIES)
@example("reinforce ~agent")
@example("control ~agent")
@example("reinforce ~hints.selector_lr")
@example("reinforce ~task.name")
def test_entries_of_a_comparison(text):
    entry(text)


@hypothesis.settings(max_examples=40)
@given(STATES)
def test_states(core, given):
    state(core)(given)


@pytest.mark.slow
def test_for_long(core, record_property):
    """All fuzzers in turn, anew drawn each round, for FUZZ_SECONDS."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "300"))
    targets: list[tuple[Callable[[Any], None], Any]] = [
        (table, FILES),
        (glue, like_glue() | st.binary(max_size=80)),
        (probability_file, probabilities() | FILES),
        (manifest, MANIFESTS),
        (entry, ENTRIES),
        (state(core), STATES),
    ]
    started, round_, cases = time.monotonic(), 0, [0]
    while time.monotonic() < started + seconds:
        round_ += 1
        for check, strategy in targets:
            body = given(strategy)(check_of(check, cases))
            long = hypothesis.settings(max_examples=30 if check is entry else 150, derandomize=False)
            hypothesis.seed(round_)(long(body))()
    record_property("rounds", round_)
    record_property("cases", cases[0])
    assert cases[0] > 100 * len(targets)


def check_of(check: Callable[[Any], None], cases: list[int]) -> Callable[[Any], None]:
    """A function that hypothesis may wrap again and again; counts its calls."""

    def body(content: Any) -> None:
        cases[0] += 1
        check(content)

    return body
