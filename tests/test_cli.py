"""The command lines, from outside: what they write, what they print, and how a user's mistake ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from stderr_lines import without_progress

ROOT = Path(__file__).resolve().parent.parent
REINFORCE, TEACHERS = ["agents/reinforce.py"], ["-m", "distill.teachers"]
SHORT = ["threads=1", "agent.start=all_on", "agent.episodes=2", "agent.warmup=2"]
WORDS = {"bad": "awful boring dull", "fine": "plain usual decent", "great": "superb lovely brilliant"}


class Result(SimpleNamespace):
    """Exit code, stdout and stderr of a command, and the run's folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())


def command(script: list[str], *arguments: str, folder: Path | None = None) -> Result:
    """Run a script as a user does, from the repository's root."""
    place = [] if folder is None else [f"hydra.run.dir={folder}"]
    done = subprocess.run(
        [sys.executable, *script, *arguments, *place], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return Result(code=done.returncode, out=done.stdout, err=done.stderr, folder=folder)


@pytest.fixture
def inside(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """The same within this process, which has the imports behind it; the run's folder is `tmp_path/out/run`."""
    from agents import reinforce
    from agents.experiment.launch import launch
    from distill.teachers import __main__ as teachers

    programs = {tuple(REINFORCE): lambda: launch(reinforce.run), tuple(TEACHERS): teachers.main}

    def go(*arguments: str, script: list[str] = REINFORCE, folder: Path = tmp_path / "out" / "run") -> Result:
        monkeypatch.setattr(sys, "argv", ["program", *arguments, f"hydra.run.dir={folder}"])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        code = 0
        try:
            programs[tuple(script)]()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code=code, **capsys.readouterr()._asdict(), folder=folder)

    return go


def files_task(folder: Path, count: int = 90) -> list[str]:
    """Train and test CSV with three string labels, written to `folder`; the overrides that use them."""
    rng = np.random.default_rng(0)
    for role, n in (("train", count), ("test", 30)):
        lines = ["key,review,verdict"]
        for i in range(n):
            label = list(WORDS)[i % 3]
            said = " and ".join(rng.choice(WORDS[label].split(), 2))
            what = "film" if role == "train" else "show"  # no text is in both files
            lines.append(f'{role}{i},"the {what} was {said}, friends",{label}')
        (folder / f"{role}.csv").write_text("\n".join(lines) + "\n")
    paths = [f"task.{role}={folder / f'{role}.csv'}" for role in ("train", "test")]
    return ["task=files", *paths, "task.text=[review]", "task.label=verdict", "task.id=key"]


WIDTHS = (
    "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, initializer_range: 0.3}"
)


def small_teachers(epochs: int = 4) -> str:
    """Two teachers that are fine-tuned on the task itself."""
    rest = f"config: {WIDTHS}, max_length: 16, lr: 0.01, batch_size: 16, epochs: {epochs}"
    return f"teachers.pool=[{', '.join(f'{{name: t{i}, kind: finetune, seed: {i}, {rest}}}' for i in range(2))}]"


SMALL = [
    f"++student.config={WIDTHS}",
    "encoder.dim=8",
    "budget.batch_size=8",
    "budget.steps=6",
    "budget.evals=2",
    "reward.every=2",
    "credit.size=8",
]


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home_of_runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli") / "home"


def tree(folder: Path) -> dict[str, int]:
    """When each file was written last; lock files aside."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files}


@pytest.fixture(scope="module")
def first(tiny_overrides, home_of_runs) -> Result:
    """A run of the script with a cold cache."""
    done = command(
        REINFORCE, *tiny_overrides, *SHORT, "seed=3", f"home={home_of_runs}", folder=home_of_runs.parent / "first"
    )
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def second(first, home_of_runs) -> Result:
    """The command that the first run's results say gives it again; the cache is warm now."""
    words = shlex.split(first.results["reproduce"])
    assert words[:2] == ["python", *REINFORCE]
    cached = tree(home_of_runs)
    done = command(REINFORCE, *words[2:], f"home={home_of_runs}", folder=home_of_runs.parent / "second")
    assert done.code == 0, done.err
    assert any(name.startswith("teachers/") for name in cached)
    assert tree(home_of_runs) == cached
    return done


METRICS = {"accuracy": float, "loss": float}
TRAINED = {"dev": METRICS, "test": METRICS}
DETAILS = {
    "test": {
        "labels": [str],
        "confusion": [[int]],
        "classes": [{"label": str, "precision": float, "recall": float, "f1": float, "count": int}],
        "macro": {"precision": float, "recall": float, "f1": float},
        "reliability": [{"low": float, "high": float, "count": int, "confidence": float, "accuracy": float}],
    }
}
SCHEMA: dict[str, Any] = {
    "schema": int,
    "task": str,
    "agent": str,
    "seed": int,
    "config_hash": str,
    "device": str,
    "threads": int,
    "versions": {"python": str, "torch": str, "transformers": str, "gymnasium": str, "numpy": str},
    "data": {"train": int, "reward": int, "dev": int, "test": int, "source": str, "sha256": str},
    "teachers": [{"name": str, "test": METRICS}],
    "ensemble": {"test": METRICS},
    "warm_start": TRAINED,
    "control": TRAINED,
    "student": TRAINED,
    "selection": {"rate": [float], "mean_size": float, "empty": float},
    "details": {"student": DETAILS, "control": DETAILS},
    "cost": {
        **dict.fromkeys(("teacher_fit_s", "signals_s", "warm_start_s", "train_s"), float),
        "student_steps": int,
        "examples_per_s": float,
        "floor_examples_per_s": float,
    },
    "reproduce": str,
}


def assert_fits(value: Any, schema: Any, where: str = "results") -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for key, inner in schema.items():
            assert key in value, f"{where}.{key}"
            assert_fits(value[key], inner, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        assert value, where
        for i, one in enumerate(value):
            assert_fits(one, schema[0], f"{where}[{i}]")
    else:
        assert type(value) is schema, f"{where}={value!r}"
        assert schema is not float or np.isfinite(value), where


def test_results_follow_the_schema(first):
    results = first.results
    assert_fits(results, SCHEMA)
    assert (results["schema"], results["task"], results["agent"], results["seed"]) == (1, "bundled", "reinforce", 3)
    assert (results["device"], results["threads"]) == ("cpu", 1)
    data = {r: results["data"][r] for r in ("train", "reward", "dev", "test", "source")}
    assert data == {"train": 200, "reward": 60, "dev": 60, "test": 80, "source": "bundled"}
    assert [t["name"] for t in results["teachers"]] == ["film", "food", "hotel", "electronics"]
    selection, cost = results["selection"], results["cost"]
    assert len(selection["rate"]) == 4
    assert all(0 <= r <= 1 for r in (*selection["rate"], selection["empty"]))
    assert selection["mean_size"] == pytest.approx(sum(selection["rate"]))
    assert cost["student_steps"] == 2 * 6
    assert all(cost[key] > 0 for key in ("teacher_fit_s", "signals_s", "examples_per_s", "floor_examples_per_s"))
    assert cost["examples_per_s"] >= 12 * 8 / cost["train_s"]  # the steps alone take less than the training
    assert cost["whole_job_s"] >= cost["train_s"]
    assert cost["whole_job"] > 1  # joint training, and then the fixed policy's run


def test_predictions_of_every_test_instance(first):
    """The file, the matrix, the curve and the scores agree; the shipped student predicts the same."""
    import pandas as pd
    from omegaconf import OmegaConf
    from transformers import pipeline

    from distill.data.load import load_task
    from distill.settings import RunSettings

    found, results = pd.read_parquet(first.folder / "predictions.parquet"), first.results
    labels = results["data"]["labels"]
    probabilities = [f"probability_{name}" for name in labels]
    assert list(found.columns) == ["split", "id", "label", "predicted", "control", *probabilities]
    assert (len(found), found["id"].nunique(), set(found["split"])) == (80, 80, {"test"})
    probs = found[probabilities].to_numpy()
    assert probs.sum(1) == pytest.approx(1)
    assert (found["predicted"] == np.array(labels)[probs.argmax(1)]).all()
    for who, column in (("student", "predicted"), ("control", "control")):
        right = float((found[column] == found["label"]).mean())
        details = results["details"][who]["test"]
        assert right == pytest.approx(results[who]["test"]["accuracy"])
        assert np.trace(details["confusion"]) / 80 == pytest.approx(right)
        gaps = [bin["count"] * abs(bin["confidence"] - bin["accuracy"]) for bin in details["reliability"]]
        assert sum(gaps) / 80 == pytest.approx(results[who]["test"]["ece"])
    by_class = results["selection"]["by_class"]
    assert list(by_class) == labels
    assert all(len(row["rate"]) == 4 and row["count"] for row in by_class.values())
    settings = RunSettings.from_config(OmegaConf.to_container(OmegaConf.load(first.folder / "config.yaml")))
    test = load_task(settings.task, settings.data_dir).splits["test"]
    assert found["id"].tolist() == test.ids.tolist()
    told = pipeline("text-classification", str(first.folder / "student"), device="cpu")([t[0] for t in test.texts[:8]])
    assert [row["label"] for row in told] == found["predicted"][:8].tolist()
    assert [row["score"] for row in told] == pytest.approx(probs[:8].max(1).tolist(), abs=1e-5)


def test_the_table_is_printed(first):
    results = first.results
    for name in ("film", "food", "hotel", "electronics", "warm start", "control", "reinforce"):
        assert re.search(rf"\b{name}\b", first.out), name
    for row in ("warm_start", "control", "student"):
        assert f"{results[row]['test']['accuracy']:.4f}" in first.out
    assert str(first.folder.name) in first.out


def test_the_run_folder(first):
    from omegaconf import OmegaConf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = OmegaConf.load(first.folder / "config.yaml")
    assert (config.seed, config.agent.episodes, config.task.corpus.train, config.loss.alpha) == (3, 2, 200, 0.3)
    assert "${" not in (first.folder / "config.yaml").read_text()
    events = EventAccumulator(str(first.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"dev/accuracy", "episode/gain", "chosen/film", "student/value"} <= set(tags)
    assert len(events.Scalars("dev/accuracy")) == 2
    policy = load_file(first.folder / "policy.safetensors")
    assert {name: value.shape for name, value in policy.items()} == {
        "units.weight": (4, 8 + 4 * 2 + 4),
        "units.bias": (4,),
    }
    assert not [p for p in first.folder.rglob("*") if p.suffix in {".pt", ".pth", ".pkl", ".bin", ".tmp"}]


def test_the_student_loads_as_a_pipeline_and_scores_the_same(first):
    from transformers import pipeline

    from distill.data import bundled
    from distill.settings import CorpusSettings

    made = bundled.corpus(CorpusSettings(train=200, reward=60, dev=60, test=80, pool=100))[0]["test"]
    classify = pipeline("text-classification", model=str(first.folder / "student"), device="cpu")
    said = [one["label"] for one in classify(made.texts)]
    assert set(said) <= set(bundled.LABELS)
    right = np.mean([s == bundled.LABELS[y] for s, y in zip(said, made.labels, strict=True)])
    assert right == pytest.approx(first.results["student"]["test"]["accuracy"], abs=1e-9)


def test_the_reproduce_line_gives_the_same_run(first, second):
    for path in ("student/model.safetensors", "policy.safetensors"):
        a, b = load_file(first.folder / path), load_file(second.folder / path)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a), path
    one, two = first.results, second.results
    for key in set(one) - {"cost"}:
        assert one[key] == two[key], key


def test_a_second_run_fits_no_teacher(first, second):
    """Nor is anything else made again: `second` has compared the whole cache."""
    cold, warm = first.results["cost"], second.results["cost"]
    assert warm["teacher_fit_s"] < cold["teacher_fit_s"] / 2


@pytest.mark.parametrize("credit", ["shared", "influence"])
def test_credits(inside, tiny_overrides, credit):
    done = inside(*tiny_overrides, *SHORT, f"credit.name={credit}", "agent.joint=continue", "agent.oracle=false")
    assert (done.code, without_progress(done.err)) == (0, [])
    assert_fits(done.results, SCHEMA)
    assert "oracle" not in done.results
    assert f"name: {credit}" in (done.folder / "config.yaml").read_text()


def test_own_files_with_three_string_labels(inside, tmp_path):
    done = inside(*files_task(tmp_path), "teachers=fresh", "student=tiny", small_teachers(20), *SMALL, *SHORT)
    assert (done.code, without_progress(done.err)) == (0, [])
    results = done.results
    assert_fits(results, SCHEMA)
    assert results["data"]["source"] == "files"
    assert results["data"]["labels"] == ["bad", "fine", "great"]
    assert sum(results["data"][role] for role in ("train", "reward", "dev")) == 90
    assert min(t["test"]["accuracy"] for t in results["teachers"]) > 0.9  # a word gives each label away
    saved = json.loads((done.folder / "student" / "config.json").read_text())
    assert saved["id2label"] == {"0": "bad", "1": "fine", "2": "great"}


def test_teachers_command(tiny_overrides, home_of_runs, first, tmp_path):
    done = command(TEACHERS, *tiny_overrides, "threads=1", f"home={home_of_runs}", folder=tmp_path / "run")
    assert done.code == 0, done.err
    for row in (*first.results["teachers"], {"name": "ensemble", **first.results["ensemble"]}):
        numbers = [f"{row[r][m]:.3f}" for r in ("train", "dev", "test") for m in ("accuracy", "loss")]
        line = r"\s+".join(map(re.escape, [row["name"], *numbers]))
        assert re.search(f"^{line}$", done.out, re.MULTILINE), done.out


@pytest.mark.parametrize(("name", "config"), [("reinforce", "config"), ("sb3", "sb3"), ("compare", "compare")])
def test_help_names_every_setting(monkeypatch, capsys, name, config):
    from agents.experiment.help import settings_of
    from agents.experiment.launch import launch
    from distill.settings import SB3_DEFAULTS, CompareSettings, RunSettings

    monkeypatch.setattr(sys, "argv", [f"agents/{name}.py", "--help"])
    launch(lambda config: pytest.fail("--help runs nothing"), config=config)
    out, err = capsys.readouterr()
    assert err == ""
    assert f"agents/{name}.py" in out
    for word in ("data_dir", "hydra.run.dir", "resume=true", "TEACHER_SELECT_DATA"):
        assert word in out
    for group in ("task", "teachers", "student", "agent", "reward", "observation", "experiment"):
        assert re.search(rf"^  {group}: ", out, re.MULTILINE), group
    agents = re.search(r"^  agent: (.*)$", out, re.MULTILINE)
    assert agents is not None
    assert {"reinforce", *SB3_DEFAULTS} == set(agents[1].split(", "))
    shown = [*settings_of(RunSettings), *(settings_of(CompareSettings) if name == "compare" else [])]
    assert len(shown) > 80
    for key, kind, _, text in shown:
        assert text, key
        assert f"  {key}: {kind} = " in out, key
        assert text in out, key
    assert ("agents: list[str]" in out) == (name == "compare")


def test_help_of_the_teachers_command(inside):
    done = inside("--help", script=TEACHERS)
    assert (done.code, done.err) == (0, "")
    for word in ("python -m distill.teachers", "task=mrpc", "teachers.folds", "data_dir", "home", "device", "threads"):
        assert word in done.out


# --- a user's mistakes ------------------------------------------------------------------------------------------------


def wrong_classes(folder: Path) -> str:
    """A fitted teacher with five classes."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, num_labels=5
    )
    BertForSequenceClassification(config).save_pretrained(folder / "five")
    return f"teachers.pool=[{{name: five, path: {folder / 'five'}, kind: checkpoint}}]"


def probabilities(folder: Path, cell: str, header: str = "id,bad,fine,great") -> str:
    """A teacher given as a file, with one cell of the reader's choice."""
    other = ",".join(["0.2"] * (header.count(",") - 1))
    rest = header.count(",") - 1
    rows = [f"train{i},{cell if i == 5 else 1 - 0.2 * rest:},{other}" for i in range(90)]
    (folder / "llm.csv").write_text("\n".join([header, *rows]) + "\n")
    return f"teachers.pool=[{{name: llm, kind: predictions, path: {folder / 'llm.csv'}}}]"


def edited(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


# What is given beside the bundled task, and what the line must name.
SETTINGS = {
    "no such task": (["task=nope"], ["task=nope", "bundled"]),
    "no such teachers": (["teachers=nope"], ["teachers=nope", "minilm"]),
    "unknown key": (["nope.key=1"], ["nope.key"]),
    "misspelt key": (["loss.alhpa=1"], ["loss.alhpa"]),
    "added key": (["+loss.alhpa=1"], ["alhpa", "did you mean alpha"]),
    "no value": (["loss.alpha"], ["loss.alpha"]),
    "bad type": (["loss.alpha=x"], ["loss.alpha", "x"]),
    "bad type of an agent": (["agent.episodes=many"], ["agent.episodes", "many"]),
    "alpha": (["loss.alpha=2"], ["loss.alpha=2", "[0, 1]"]),
    "temperature": (["loss.temperature=0"], ["loss.temperature=0", "positive"]),
    "batch size": (["budget.batch_size=0"], ["budget.batch_size=0", "positive"]),
    "steps": (["budget.steps=-5"], ["budget.steps=-5"]),
    "seed": (["seed=-1"], ["seed=-1"]),
    "credit": (["credit.name=inflence"], ["credit.name=inflence", "did you mean influence"]),
    "a credit that cannot be imported": (["credit.name=no_such:C"], ["credit.name=no_such:C", "cannot be imported"]),
    "a credit of another class": (
        ["credit.name=json:JSONDecoder"],
        ["credit.name=json:JSONDecoder", "envs.credit.Credit"],
    ),
    "name of a reward": (["reward.name=papr1"], ["reward.name=papr1", "did you mean paper1"]),
    "plugin": (["plugins=[no_such]"], ["plugins: no_such", "cannot be imported"]),
    "reward": (["reward.every=0"], ["reward.every=0"]),
    "credit of a reward": (
        ["reward=paper1", "credit.name=counterfactual"],
        ["credit.name=counterfactual", "reward=paper1", "credit.name=shared"],
    ),
    "agent of another script": (["agent=ppo"], ["agent=ppo", "agents/sb3.py"]),
    "observation": (["observation.parts=[encodr]"], ["encodr", "did you mean encoder"]),
    "device": (["device=cuda:9"], ["device=cuda:9"]),
    "kind of device": (["device=tpu"], ["device=tpu", "cuda"]),
    "no teachers": (["teachers=own"], ["teachers.pool", "kind: checkpoint"]),
    "two teachers of one name": (
        ["teachers=own", "teachers.pool=[{name: a, kind: finetune}, {name: a, kind: finetune}]"],
        ["teachers.pool", "a, a"],
    ),
    "no student path": (["student=checkpoint"], ["student.path"]),
    "no such teacher": (["teachers.pool=[{name: a, kind: checkpoint, path: ./gone}]"], ["teacher a", "./gone"]),
    "no files": (["task=files"], ["task.train", "task.test"]),
    "no GLUE folder": (["task=mrpc", "data_dir=/no/such/data"], ["/no/such/data/MRPC/train.tsv"]),
}

# What is done to the user's own files, and what the line must name.
FILES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing column": (lambda p: edited(p, "train.csv", "verdict", "judgement"), ["train.csv", "verdict", "judgement"]),
    "label absent from train": (lambda p: edited(p, "test.csv", ",bad", ",ghastly"), ["test.csv", "ghastly"]),
    "missing file": (lambda p: (p / "test.csv").unlink(), ["test.csv", "No such file"]),
    "no label": (lambda p: edited(p, "train.csv", ",fine", ","), ["train.csv", "row 2", "verdict"]),
    "id twice": (lambda p: edited(p, "train.csv", "train3,", "train4,"), ["train.csv", "train4"]),
    "not UTF-8": (lambda p: (p / "train.csv").write_bytes(b"key,review,verdict\na,\xff,bad\n"), ["train.csv", "UTF-8"]),
    "no rows": (lambda p: (p / "train.csv").write_text("key,review,verdict\n"), ["train.csv", "0"]),
    "wrong number of classes": (wrong_classes, ["teacher five", "5 classes", "3"]),
    "NaN probabilities": (lambda p: probabilities(p, "NaN"), ["teacher llm", "train5", "NaN"]),
    "negative probability": (lambda p: probabilities(p, "-0.1"), ["teacher llm", "train5", "negative"]),
    "probability no number": (lambda p: probabilities(p, "high"), ["teacher llm", "number"]),
    "no column of a label": (lambda p: probabilities(p, "0.6", "id,bad,fine,grand"), ["teacher llm", "great"]),
    "too few columns": (lambda p: probabilities(p, "0.8", "id,bad,fine"), ["teacher llm", "3"]),
}


def assert_one_line(done: Result, words: list[str]) -> None:
    assert done.code == 2, done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.out + done.err
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(("arguments", "words"), SETTINGS.values(), ids=SETTINGS)
def test_wrong_settings(inside, tmp_path, arguments, words):
    (tmp_path / "mine").touch()
    assert_one_line(inside(*arguments), words)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("spoil", "words"), FILES.values(), ids=FILES)
def test_wrong_files(inside, tmp_path, spoil, words):
    arguments = files_task(tmp_path)
    pool = spoil(tmp_path)
    teachers = [pool] if isinstance(pool, str) else [small_teachers()]
    before = tree(tmp_path)
    done = inside(*arguments, "teachers=fresh", *teachers, *SMALL, f"home={tmp_path / 'home'}")
    assert_one_line(done, words)
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["output", "home"])
def test_places_that_cannot_be_written(inside, tmp_path, what, tiny_overrides):
    (tmp_path / "file").write_text("not a folder")
    below = tmp_path / "file" / "below"
    if what == "output":
        done = inside(*tiny_overrides, folder=below)
    else:
        done = inside(*tiny_overrides, f"home={below}")
    assert_one_line(done, [str(below) if what == "output" else str(tmp_path / "file")])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_missing_student_is_found_before_any_teacher_is_trained(inside, tmp_path):
    arguments = [
        *files_task(tmp_path),
        "teachers=fresh",
        small_teachers(),
        "student=checkpoint",
        "student.path=/no/such/folder",
    ]
    assert_one_line(inside(*arguments, f"home={tmp_path / 'home'}"), ["student", "/no/such/folder"])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home" / "teachers").exists()


def test_a_mistake_leaves_the_users_own_folders(inside, tmp_path):
    (tmp_path / "runs").mkdir()
    assert_one_line(inside("loss.alpha=2", folder=tmp_path / "runs" / "deep" / "one"), ["loss.alpha=2"])
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("inner", ["", "kept.txt"])
def test_a_run_folder_that_was_there_stays(inside, tmp_path, inner):
    """A mistake that shows while the run is under way: the run has not made this folder."""
    (tmp_path / "mine").mkdir()
    if inner:
        (tmp_path / "mine" / inner).touch()
    assert_one_line(inside("credit.name=inflence", folder=tmp_path / "mine"), ["credit.name=inflence"])
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == (
        ["mine", f"mine/{inner}"] if inner else ["mine"]
    )


def test_a_bug_keeps_its_traceback(inside, monkeypatch):
    from agents.experiment import runs

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runs, "start", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        inside(*SMALL, "task.corpus={train: 50, reward: 10, dev: 10, test: 10, pool: 20}", small_teachers())


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        (REINFORCE, ["task=nope"], ["task=nope"]),
        (REINFORCE, ["loss.alpha=2"], ["loss.alpha=2"]),
        (TEACHERS, ["teachers=own"], ["teachers.pool"]),
    ],
)
def test_mistakes_from_outside(tmp_path, script, arguments, words):
    done = command(script, *arguments, f"home={tmp_path / 'home'}", folder=tmp_path / "out" / "run")
    assert_one_line(done, words)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place(inside, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert_one_line(inside(folder=locked / "run"), [str(locked / "run")])
