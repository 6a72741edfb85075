"""What a user may type as a setting: one line that names it and the way out, never a message of Hydra or OmegaConf."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents import compare
from agents.cell import entry_settings
from agents.experiment.grid import words_of
from agents.experiment.launch import launch
from configs import compose
from distill.checks import UserError
from distill.settings import CompareSettings, PredictionsTeacher, RunSettings, parse
from distill.teachers.__main__ import main as teachers_command

pytestmark = pytest.mark.faults

POOL = "teachers.pool=[{{name: llm, kind: {}, path: {}}}]"
FOREIGN = re.compile(
    r"Lexer|viable|mismatched|hydra\.cc|AnyNode|ListConfig|DictConfig|struct|full_key|object_type|<EOF>"
)


def settings(*overrides: str) -> RunSettings:
    return RunSettings.from_config(compose(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        settings(*overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not FOREIGN.search(message), message
    return message


# --- quotes -----------------------------------------------------------------------------------------------------------

PATHS = ["my file (1).csv", "Größe/tränen.csv", "a&b.csv", "a=b.csv", "it's.csv", "a#1.csv", "~/x.csv", "a[1].csv", "a;b.csv", "e\u0301.csv"]  # fmt: skip


def advised(message: str) -> str:
    """The override that a message advises, as a shell hands it over."""
    match = re.search(r"quote it: (.*), or write the setting to a YAML file of your own \(--config-dir\)$", message)
    assert match is not None, message
    (word,) = shlex.split(match[1])
    return word


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_needs_quotes(path: str) -> None:
    """The message holds the whole setting in quotes, and that works."""
    message = refusal(f"task.train={path}")
    assert message.startswith(f"task.train={path} cannot be read")
    assert settings(advised(message)).task.train == path


@pytest.mark.parametrize("path", [p for p in PATHS if "[" not in p])
def test_a_path_in_a_pool_that_needs_quotes(path: str) -> None:
    (teacher,) = settings(advised(refusal(POOL.format("predictions", path)))).teachers.pool
    assert isinstance(teacher, PredictionsTeacher)
    assert (teacher.name, teacher.path) == ("llm", path)


@pytest.mark.parametrize("labels", [["very good", "R&D"], ["so-so!", "ja, doch"], ["schön", "(none)"], ["it's", "#1"]])
def test_labels_that_need_quotes(labels: list[str]) -> None:
    inner = ", ".join(f"'{label}'" if "," in label else label for label in labels)
    fixed = advised(refusal(f"teachers.pool=[{{name: a, kind: checkpoint, path: x, labels: [{inner}]}}]"))
    assert settings(fixed).teachers.pool[0].labels == labels  # type: ignore[attr-defined]


def test_a_long_pool_names_the_texts_alone() -> None:
    entries = [f"{{name: t{i}, kind: checkpoint, path: folder (1)/number-{i}}}" for i in range(12)]
    message = refusal(f"teachers.pool=[{', '.join(entries)}]")
    assert message.startswith('teachers.pool cannot be read; use these quotes: "folder (1)/number-0", "folder')


@pytest.mark.parametrize("value", ["[{name: a]", "[{name: a}", "[a, (b]", "{", "["])
def test_brackets_that_are_not_closed(value: str) -> None:
    message = refusal(f"teachers.pool={value}")
    assert message.startswith(f"teachers.pool={value} cannot be read")
    assert "--config-dir" in message


@pytest.mark.parametrize("word", ["true", "True", "false"])
@pytest.mark.parametrize("key", ["task.label", "task.id", "task.owner"])
def test_a_word_that_is_read_as_true_or_false(key: str, word: str) -> None:
    message = refusal(f"{key}={word}")
    assert f"{key}={word.capitalize()} is read as true or false" in message
    (fixed,) = shlex.split(message.partition("quote the word: ")[2])
    assert fixed == f"{key}='true'"
    section, _, name = key.partition(".")
    assert getattr(getattr(settings(fixed), section), name) == "true"
    assert "quote the word" in refusal("task.text=[true]")


# --- lists of one -----------------------------------------------------------------------------------------------------


def test_a_list_may_be_one_word() -> None:
    assert settings("task.text=review").task.text == ["review"]
    assert settings("task.text=my text").task.text == ["my text"]
    assert settings("task.text=5").task.text == ["5"]
    assert settings("task.languages=hau").task.languages == ["hau"]
    assert settings("observation.parts=encoder").observation.parts == ["encoder"]
    assert settings("plugins=json").plugins == ["json"]
    labels = settings("teachers.pool=[{name: a, kind: checkpoint, path: x, labels: good}]").teachers.pool[0]
    assert labels.labels == ["good"]  # type: ignore[attr-defined]
    assert parse(CompareSettings, {"agents": "control"}, "compare").agents == ["control"]


# fmt: off
REFUSED: dict[str, tuple[str, list[str]]] = {
    "a group for a list": ("task.text={a: 1}", ["task.text={a: 1}", "must be a list", "task.text=[...]"]),
    "a group for a pool": ("teachers.pool={name: a, kind: finetune}", ["must be a list", "teachers.pool=[...]"]),
    "a list for a word": ("task.label=[a]", ["task.label=['a']", "must be a text"]),
    "null for a word": ("task.label=null", ["task.label=None", "must be a text"]),
    "a word for a number": ("budget.steps=many", ["budget.steps='many'", "a whole number or null"]),
    "nothing for a number": ("loss.alpha=", ["loss.alpha=''", "must be a number"]),
    "a word for a switch": ("fast=maybe", ["fast", "'maybe'", "true or false"]),
    "two words": ("task.train=a,b.csv", ["several values", "-m", "task.train=[a,b.csv]", "\"task.train='a,b.csv'\""]),
    "two seeds": ("seed=1,2", ["seed=1,2", "several values", "-m"]),
    "a range": ("seed=range(1,3)", ["seed=range(1,3)", "several runs", "-m"]),
    "no value": ("loss.alpha", ["loss.alpha has no value", "loss.alpha=VALUE"]),
    "no key": ("=3", ["'=3'", "NAME=VALUE"]),
    "an empty word": ("", ["''", "NAME=VALUE"]),
    "a flag": ("--foo=3", ["--foo", "NAME=VALUE"]),
    "a file's name alone": ("my file (1).csv", ["my file (1).csv", "NAME=VALUE"]),
    "an unknown key": ("loss.alhpa=1", ["loss.alhpa is not a known setting", "did you mean loss.alpha?"]),
    "an unknown key of a group": ("task.txet=[a]", ["task.txet is not a known setting", "did you mean task.text?"]),
    "an unknown key at the top": ("sead=1", ["sead is not a known setting", "did you mean seed?"]),
    "an unknown key in a group": ("loss={beta: 1}", ["loss.beta is not a known setting"]),
    "an added key": ("+loss.alhpa=1", ["alhpa is not known", "did you mean alpha?"]),
    "an unknown option": ("task=fils", ["task=fils is not known", "did you mean files?", "--config-dir"]),
    "an unknown option with a folder": ("teachers=my/pool", ["teachers=my/pool is not known", "specialists"]),
    "an unknown experiment": ("experiment=mine", ["experiment=mine", "DIR/experiment/mine.yaml", "--config-dir DIR"]),
    "two options": ("teachers=[minilm,nope]", ["nope is not known"]),
    "a number for a group": ("task=3", ["task=3"]),
    "a variable that is missing": ("home=${oc.env:NOPE_NOT_SET}", ["NOPE_NOT_SET"]),
    "a file for a group of settings": ("teachers.pool=[llm.csv]", ["'llm.csv'", "{name: a, kind: predictions, path: PATH}"]),
    "a folder for a group of settings": ("teachers.pool=[./bert]", ["'./bert'", "{name: a, kind: checkpoint, path: PATH}"]),
    "a file as labels": ("teachers.pool=[{name: llm, labels: file.csv}]", ["teacher llm", "labels=file.csv is a file of answers", "{name: llm, kind: predictions, path: file.csv}"]),
    "a file as predictions": ("teachers.pool=[{name: llm, predictions: a/file.jsonl}]", ["teacher llm", "{name: llm, kind: predictions, path: a/file.jsonl}"]),
    "a file without a kind": ("teachers.pool=[{name: llm, path: file.csv}]", ["teacher llm", "kind: predictions"]),
}
# fmt: on


@pytest.mark.parametrize(("override", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_way_out(override: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(override)
    for word in words:
        assert word in message, message
    assert capsys.readouterr().err == ""  # no note besides


@pytest.mark.parametrize(("key", "value"), [("student.config.hidden_act", "relu"), ("agent.params.n_steps", "4")])
def test_the_advice_for_a_key_of_an_open_group_works(key: str, value: str) -> None:
    agent = ["agent=ppo"] if key.startswith("agent") else []
    message = refusal(*agent, "student=tiny", f"{key.rpartition('.')[0]}={{made_up: {value}}}")
    match = re.search(r"write (\+\+\S+)=VALUE", message)
    assert match is not None, message
    config = compose([*agent, f"++{key}={value}"])
    for part in key.split("."):
        config = config[part]
    assert str(config) == value


# --- entries of a comparison ------------------------------------------------------------------------------------------

OWN_POOL = (
    'teachers.pool=[{name: a, kind: checkpoint, path: "my (1)", labels: [very good, bad]}, {name: b, kind: finetune}]'
)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("control", ["control"]),
        (" reinforce  seed=1 ", ["reinforce", "seed=1"]),
        (f"reinforce {OWN_POOL} loss.alpha=0.5", ["reinforce", OWN_POOL, "loss.alpha=0.5"]),
        ("control home='my home'", ["control", "home='my home'"]),
        ("control home=it's seed=1", ["control", "home=it's", "seed=1"]),
        ("control teachers.pool=[{name: a}", ["control", "teachers.pool=[{name:", "a}"]),
    ],
)
def test_words_of_an_entry(entry: str, words: list[str]) -> None:
    assert words_of(entry) == words


def test_an_entry_may_hold_a_pool() -> None:
    pool = entry_settings(f"best_single {OWN_POOL}", []).teachers.pool
    assert [t.name for t in pool] == ["a", "b"]
    assert pool[0].path == "my (1)"  # type: ignore[attr-defined]


# --- YAML files of one's own ------------------------------------------------------------------------------------------

GRID = "# @package _global_\nagents: [control]\nseeds: 2\nbudget: {steps: 7}\n"
MINE = 'name: mine\npool:\n  - {name: a, kind: checkpoint, path: "my (1)/é", labels: [R&D, very good]}\n'
Go = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with blanks in its name and files of each kind."""
    place = tmp_path / "my conf (1)"
    (place / "experiment").mkdir(parents=True)
    (place / "teachers").mkdir()
    for name, text in {
        "good": "# @package _global_\nbudget: {steps: 7}\n",
        "grid": GRID,
        "typo": "# @package _global_\nbudget: {stepz: 7}\n",
        "nowhere": "budget: {steps: 7}\n",
        "broken": "# @package _global_\npool: [\n",
        "tabs": "# @package _global_\nbudget:\n\tsteps: 7\n",
    }.items():
        (place / "experiment" / f"{name}.yaml").write_text(text)
    (place / "teachers" / "mine.yaml").write_text(MINE)
    return place


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Go:
    """Call a script in this process; returns its exit code and stderr."""

    def call(run: Callable[[dict[str, Any]], None], config: str, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *words, f"hydra.run.dir={tmp_path / 'run'}"])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            launch(run, config)
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def test_a_pool_from_a_file_of_ones_own(folder: Path) -> None:
    pool = RunSettings.from_config(compose(["teachers=mine"], folders=[str(folder)])).teachers.pool
    assert (pool[0].path, pool[0].labels) == ("my (1)/é", ["R&D", "very good"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["good", "grid"])
def test_an_experiment_of_ones_own_in_a_comparison(
    go: Go, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cells follow the file, and the command of each cell names the folder."""
    planned: list[Any] = []
    monkeypatch.setattr(compare, "run_grid", lambda cells, jobs: planned.extend(cells) or ([], {}))
    more = [] if name == "grid" else ["agents=[control]", "seeds=2"]
    code, err = go(compare.run, "compare", "--config-dir", str(folder), f"experiment={name}", "teachers=mine", *more)
    assert (code, err.splitlines()[-1][:23]) == (2, "error: no cell finished")
    assert [cell.seed for cell in planned] == [0, 1]
    for cell in planned:
        assert (cell.settings.budget.steps, cell.settings.teachers.pool[0].path) == (7, "my (1)/é")
        words = shlex.split(cell.reproduce)
        assert words[2:6] == ["--config-dir", str(folder), f"experiment={name}", "teachers=mine"]


def test_words_and_flags_in_any_order(go: Go, folder: Path) -> None:
    seen: list[dict[str, Any]] = []
    words = ["seed=3", "--config-dir", str(folder), "experiment=good", f"--config-dir={folder}", "threads=1"]
    for given in (words[:4], words[3:], [words[0], *words[4:], words[3]]):
        assert go(seen.append, "config", *given)[0] == 0
    assert [config["budget"]["steps"] for config in seen] == [7, 7, 7]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["experiment=typo"], ["budget", "stepz", "did you mean steps?"]),
        (["experiment=nowhere"], ["experiment", "# @package _global_"]),
        (["experiment=broken"], ["broken.yaml: line", "not readable as YAML"]),
        (["experiment=tabs"], ["tabs.yaml: line 3", "not readable as YAML"]),
        (["experiment=goud"], ["experiment=goud", "did you mean good?"]),
        (["--config-dir", "gone", "experiment=good"], ["gone"]),
        (["--foo", "seed=1"], ["--foo", "NAME=VALUE"]),
    ],
)
def test_mistakes_in_files_of_ones_own(go: Go, folder: Path, words: list[str], named: list[str]) -> None:
    own = [] if "--config-dir" in words else ["--config-dir", str(folder)]
    code, err = go(lambda config: RunSettings.from_config(config) and None, "config", *own, *words)
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert not FOREIGN.search(err), err
    for word in named:
        assert word in err, err


def test_files_of_ones_own_for_the_teachers_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        (["--config-dir", str(folder), "experiment=typo"], "stepz"),
        ([f"--config-dir={folder}", "experiment=typo"], "stepz"),
        (["--config-dir", "gone", "experiment=good"], "--config-dir gone: no such folder"),
        (["--config-dir"], "--config-dir FOLDER"),
    ):
        assert teachers_command(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line
