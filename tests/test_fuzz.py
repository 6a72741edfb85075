"""Every parser with random input: it reads it, or refuses it in one line; anything else is an error.

Each fuzzer runs briefly here; `FUZZ_SECONDS=300 pytest -m slow tests/test_fuzz.py` runs all of them, that long in total.
Inputs that once failed are kept as `@example`.
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

from agents.cell import entry_settings
from distill import cache
from distill.checks import UserError
from distill.data.load import load_task
from distill.data.splits import Split, Task
from distill.settings import RunSettings, TaskSettings
from distill.teachers.predictions import FileTeacher
from envs.teacher_select import TeacherSelectVectorEnv

pytestmark = pytest.mark.faults
BRIEF = hypothesis.settings(max_examples=25)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def reads(parse: Callable[[], Any]) -> Any:
    """What `parse` returns, or None if it refuses in one line."""
    try:
        return parse()
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    assert 10 < len(message) <= 1000
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
        return FileTeacher("llm", folder / f"p{suffix}", TASK).compute(TASK.splits["train"])

    logits = in_file(f"p{suffix}", content, parse)
    if logits is not None:
        assert logits.shape == (4, 2)
        np.testing.assert_allclose(np.exp(logits).sum(1), 1, atol=2e-3)


# --- manifests --------------------------------------------------------------------------------------------------


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
        *("reward=paper1", "reward=x", "credit.name=shared", "credit=x", "agent={a: [1}", "hydra.run.dir=x", "loss.alpha=nan", "--help"),
        *("agent=ppo", "a=${b}", "agent.lr=${oc.env:HOME}", "agent.name=../x", "seed=-1", "student@x=tiny", "'", '"', "\\"),
    ]
)  # fmt: skip
ENTRIES = st.lists(WORDS | st.text(max_size=10), min_size=1, max_size=3).map(" ".join)


def entry(given: str) -> None:
    """One of compare.py's agents=[...], with settings of its own."""
    if not given.split():
        return  # refused by `plan` before
    settings = reads(lambda: entry_settings(given, []))
    assert settings is None or isinstance(settings, RunSettings)
    if settings is not None:
        assert settings.credit.name != "auto"
        assert RunSettings.from_config(settings.to_config()) == settings


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def env(tiny_config) -> TeacherSelectVectorEnv:
    made = TeacherSelectVectorEnv(config=tiny_config("credit.name=influence", "observation=student"))
    made.reset(seed=0)
    made.step(np.ones((8, 4), np.int8))
    return made


ODD = st.sampled_from(
    [
        *(np.array(None, object), np.array("x"), np.array(np.nan), np.zeros(0), np.zeros((1, 1)), np.array([2**62]), 3, None),
        *(np.zeros(3, "M8[s]"), np.zeros(2, [("a", "i4")]), np.array([-1]), np.array([True]), np.zeros(0, np.int64)),
    ]
)  # fmt: skip


def state(env: TeacherSelectVectorEnv) -> Callable[[Any], None]:
    """A state with one array or one fact replaced. If it is refused, nothing has changed; else the episode can continue."""
    good = env.get_state()

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
        if reads(lambda: env.set_state(bad) or True) is None:
            after = env.get_state()
            assert after.keys() == good.keys()
            for key, value in good.items():
                np.testing.assert_array_equal(after[key], value, err_msg=key)
        else:
            fork = env.core.fork()
            if not fork.process.done and fork.failure is None and fork.process.batch is not None:
                observations, rewards, *_ = fork.step(np.ones((8, 4), np.int8))
                assert fork.observe.space.contains(observations[0])
                assert np.isfinite(rewards).all()
            env.set_state(good)

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
@example("reinforce ~agent.lr")
@example("reinforce credit=x")
@example("reinforce ~task.name")
def test_entries_of_a_comparison(text):
    entry(text)


@hypothesis.settings(max_examples=40)
@given(STATES)
def test_states(env, given):
    state(env)(given)


@pytest.mark.parametrize(
    "part", ["process/rows", "process/cuda_rng", "credit/direction", "interface/kind", "failure", "credit/steps"]
)
@pytest.mark.parametrize("odd", [{}, [], "x", {"$": "process/stream/queue"}, {"$": "nothing"}], ids=str)
def test_each_fact_of_a_state(env, part, odd):
    """Arrays where a value belongs, and values where an array belongs."""
    good = env.get_state()
    facts = json.loads(str(good["facts"]))
    group, *path = facts, *part.split("/")
    for key in path[:-1]:
        group = group[key]
    group[path[-1]] = odd
    kept = {"facts": np.array(json.dumps(facts)), **{k: v for k, v in good.items() if k != part and k != "facts"}}
    taken = reads(lambda: env.set_state({k: v for k, v in kept.items() if not k.startswith(f"{part}/")}) or True)
    assert taken is None or (part, odd) in [("credit/direction", {}), ("failure", "x")]
    if taken is None:
        after = env.get_state()
        assert after.keys() == good.keys()
        for key, value in good.items():
            np.testing.assert_array_equal(after[key], value, err_msg=key)
    env.set_state(good)


@pytest.mark.slow
def test_for_long(env, record_property):
    """All fuzzers in turn, with new examples each round, for FUZZ_SECONDS."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "300"))
    targets: list[tuple[Callable[[Any], None], Any]] = [
        (table, FILES),
        (glue, like_glue() | st.binary(max_size=80)),
        (probability_file, probabilities() | FILES),
        (manifest, MANIFESTS),
        (entry, ENTRIES),
        (state(env), STATES),
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
