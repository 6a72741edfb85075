"""A run that was killed or stopped and is resumed ends as an undisturbed one does: to the bit, at one thread."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from resume_helpers import ROOT, play
from stderr_lines import without_progress

from agents import cell as cell_module
from agents import compare
from agents.cell import entry_settings, run_cell
from agents.experiment import checkpoints
from agents.experiment.checkpoints import Checkpoints
from agents.experiment.grid import Cell
from distill.checks import UserError
from distill.settings import CompareSettings, RunSettings
from distill.state import load_into, pack, state_of, unpack

pytestmark = pytest.mark.faults

SHORT = ("agent.start=all_on", "agent.episodes=2", "agent.warmup=2", "checkpoint_every=1")
# Gradient steps and teachers' passes of a run with an empty cache, first to last.
PHASES = {"teachers": (1, 64), "signals": (65, 68), "warm start": (69, 72), "joint": (73, 84), "control": (85, 90)}
LATER = {"student": (91, 96), "oracle": (97, 102), "results": (103, 116)}


def same(folder: Path, other: Path) -> None:
    """Student, policy and results, timings aside, are the same to the bit."""
    for name in ("student/model.safetensors", "policy.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (json.loads((f / "results.json").read_text()) for f in (folder, other))
    ours["cost"], theirs["cost"] = ours["cost"]["student_steps"], theirs["cost"]["student_steps"]
    assert ours == theirs
    ours, theirs = (dict(OmegaConf.load(f / "config.yaml")) for f in (folder, other))
    for config in (ours, theirs):
        assert "resume" not in config
        del config["home"], config["checkpoint_every"]
    assert ours == theirs


def resume_words(line: str) -> list[str]:
    """The arguments of the command that a stopped run prints."""
    found = re.findall(r"^stopped by SIG\w+; to continue: python agents/\w+\.py (.*)$", line, re.MULTILINE)
    assert len(found) == 1, line
    return shlex.split(found[0])


@pytest.fixture(scope="module")
def arguments(tiny_overrides) -> list[str]:
    return [*tiny_overrides, *SHORT]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    """An undisturbed run, `run`, and its caches, `home`."""
    place = tmp_path_factory.mktemp("undisturbed")
    done = play(place / "run", *arguments, f"home={place / 'home'}")
    assert done.code == 0, done.out
    return place


@pytest.fixture
def warm(undisturbed, arguments, tmp_path) -> list[str]:
    """Arguments with caches that hold teachers, signals and warm start: a run starts at once with joint training."""
    shutil.copytree(undisturbed / "home", tmp_path / "home")
    return [*arguments, f"home={tmp_path / 'home'}"]


WARM = {phase: (low - 72, high - 72) for phase, (low, high) in (PHASES | LATER).items() if low > 72}


def killed(folder: Path, *given: str, event: int, delay: float = 0.0, script: str = "reinforce") -> None:
    done = play(folder, *given, script=script, moment=(event, delay, signal.SIGKILL))
    assert done.code == -signal.SIGKILL, done.out
    assert not (folder / "results.json").exists()


def resumed(folder: Path, *given: str, script: str = "reinforce") -> str:
    done = play(folder, *given, "resume=true", script=script)
    assert done.code == 0, done.out
    return done.out


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


def phase_at(run: Path, home: Path) -> str:
    """Where a run was killed, from what it left."""
    made = {kind: len(list((home / kind).rglob("manifest.json"))) for kind in ("teachers", "signals", "warm")}
    if made["teachers"] < 4:
        return "teachers"
    if made["signals"] < 5:
        return "signals"
    if not made["warm"]:
        return "warm start"
    return "control" if (run / "policy.safetensors").exists() else "joint"


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_every_phase(phase, arguments, undisturbed, tmp_path) -> None:
    event = int(np.random.default_rng(len(phase)).integers(PHASES[phase][0] + 1, PHASES[phase][1], endpoint=True))
    given = [*arguments, f"home={tmp_path / 'home'}"]
    killed(tmp_path / "run", *given, event=event)
    assert phase_at(tmp_path / "run", tmp_path / "home") == phase
    said = resumed(tmp_path / "run", *given)
    if phase in ("joint", "control"):
        assert f"{phase} continues at step {event - PHASES[phase][0]}" in said
    else:
        assert "the run starts from its beginning" in said
    same(tmp_path / "run", undisturbed / "run")


def random_moments(count: int) -> list[Any]:
    """Seeded: the phases in turn, within each a random event and a few milliseconds, and how often checkpoints are written."""
    rng = np.random.default_rng(6)
    out = []
    for i in range(count):
        phase = list(PHASES)[i % len(PHASES)]
        low, high = PHASES[phase]
        event, delay = int(rng.integers(low, high, endpoint=True)), float(rng.uniform(0, 0.01))
        every = rng.choice(["1", "4", "null"])
        out.append(pytest.param(event, delay, every, id=f"{i}-{phase}-{event}"))
    return out


def kill_and_resume(event, delay, every, arguments, undisturbed, tmp_path) -> None:
    given = [*arguments, f"home={tmp_path / 'home'}", f"checkpoint_every={every}"]
    killed(tmp_path / "run", *given, event=event, delay=delay)
    resumed(tmp_path / "run", *given)
    same(tmp_path / "run", undisturbed / "run")


@pytest.mark.parametrize(("event", "delay", "every"), random_moments(5))
def test_killed_at_random(event, delay, every, arguments, undisturbed, tmp_path) -> None:
    kill_and_resume(event, delay, every, arguments, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("event", "delay", "every"), random_moments(20))
def test_killed_at_twenty_random_moments(event, delay, every, arguments, undisturbed, tmp_path) -> None:
    kill_and_resume(event, delay, every, arguments, undisturbed, tmp_path)


def test_killed_again_and_again(warm, undisturbed, tmp_path) -> None:
    """In joint training, then in the control, the student, the oracle, and while results are written. Every start counts its own events."""
    run = tmp_path / "run"
    for i, event in enumerate((7, 9, 5, 6, 5, 4)):
        killed(run, *warm, *(["resume=true"] if i else []), event=event)
    files = sorted((run / "checkpoints").iterdir())
    for stage in ("joint", "control", "student", "oracle"):
        assert 1 <= sum(f.name.startswith(stage) for f in files) <= 2
    resumed(run, *warm)
    same(run, undisturbed / "run")
    assert [f.name.partition("-")[0] for f in (run / "checkpoints").iterdir()] == ["finished"]


def test_a_shared_reward_and_a_student_that_continues(warm, tmp_path) -> None:
    """More state: choices without a reward yet, the running baseline, and the student of the last episode."""
    given = [*warm, "credit.name=shared", "agent.joint=continue", "reward.every=3", "agent.episodes=4"]
    assert play(tmp_path / "whole", *given).code == 0
    killed(tmp_path / "run", *given, event=12)
    killed(tmp_path / "run", *given, "resume=true", event=5)
    assert "joint continues at step 15" in resumed(tmp_path / "run", *given)
    same(tmp_path / "run", tmp_path / "whole")
    ours, theirs = (events(tmp_path / name)["policy/entropy"] for name in ("run", "whole"))
    assert len(theirs) == 7  # the first reward has nothing to be compared with
    assert dict(ours) == dict(theirs)  # the last policy too, whichever was kept


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_events_are_not_doubled(warm, undisturbed, tmp_path) -> None:
    killed(tmp_path / "run", *warm, "checkpoint_every=4", event=11)
    assert "joint continues at step 7" in resumed(tmp_path / "run", *warm, "checkpoint_every=4")
    ours, theirs = events(tmp_path / "run"), events(undisturbed / "run")
    assert ours.keys() == theirs.keys()
    for tag, seen in theirs.items():
        assert sorted(set(ours[tag])) == seen
        assert len(ours[tag]) <= len(seen) + 1, tag


# --- SIGTERM and Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "phase"), [("SIGTERM", "joint"), ("SIGINT", "student")])
def test_stopped(name, phase, warm, undisturbed, tmp_path) -> None:
    """The step ends, a checkpoint is written whatever `checkpoint_every` says, and the line that is printed continues the run."""
    number, event = signal.Signals[name], WARM[phase][0] + 2
    done = play(tmp_path / "run", *warm, "checkpoint_every=1000", moment=(event, 0, number))
    assert done.code == 128 + number == {"SIGTERM": 143, "SIGINT": 130}[name]
    (line,) = without_progress(done.out)
    assert line.startswith(f"stopped by {name}; to continue: "), done.out
    words = resume_words(done.out)
    assert words[-2:] == [f"hydra.run.dir={tmp_path / 'run'}", "resume=true"]
    again = play(tmp_path / "run", *words)
    assert again.code == 0, again.out
    assert f"{phase} continues at step 3" in again.out
    same(tmp_path / "run", undisturbed / "run")


@pytest.mark.parametrize("phase", ["teachers", "warm start"])
def test_stopped_where_there_are_no_checkpoints(phase, arguments, undisturbed, tmp_path) -> None:
    home = tmp_path / "home"
    event = PHASES[phase][0] + 2
    done = play(tmp_path / "run", *arguments, f"home={home}", moment=(event, 0, signal.SIGTERM))
    assert done.code == 143
    words = resume_words(done.out)
    assert len(without_progress(done.out)) == 1
    assert not list(home.rglob(".*building"))
    again = play(tmp_path / "run", *words)
    assert again.code == 0, again.out
    same(tmp_path / "run", undisturbed / "run")


@pytest.mark.slow
def test_the_line_works_in_a_shell(undisturbed, arguments, tmp_path) -> None:
    """From outside, as a user sees it: a folder whose name needs quotes, SIGTERM, and the line as it was printed."""
    folder = tmp_path / "my runs, first"
    steps = "budget.steps=2000"  # more than this test waits for
    command = [sys.executable, "agents/reinforce.py", *arguments, steps, "resume=false"]
    command += [f"home={undisturbed / 'home'}", f"hydra.run.dir='{folder}'"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert soon(lambda: list(folder.glob("checkpoints/joint-*")) or run.poll() is not None)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (143, "")
    assert len(without_progress(err)) == 1
    line = err.partition("to continue: ")[2].strip()
    assert line.count("resume=") == 1
    again = subprocess.Popen(
        line, shell=True, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    said = again.stderr.readline()
    os.killpg(again.pid, signal.SIGTERM)
    again.communicate(timeout=60)
    assert re.match(r"joint continues at step \d+", said)


def group(leader: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def soon(condition: Callable[[], Any], seconds: float = 120) -> bool:
    """Whether it comes true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, warm, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    killed(run, *warm, event=WARM["control"][0] + 4)
    newest = max((run / "checkpoints").glob("control-*"))
    damage(newest)
    said = resumed(run, *warm)
    assert [line for line in said.splitlines() if "is damaged" in line] == [
        f"checkpoint {newest} is damaged (wrong checksum); the previous one is used"
    ]
    assert "control continues at step 3" in said
    same(run, undisturbed / "run")


def test_when_all_are_damaged_the_stage_starts_again(warm, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    killed(run, *warm, event=WARM["control"][0] + 4)
    for path in (run / "checkpoints").glob("*.npz"):
        flip(path)
    said = resumed(run, *warm)
    assert said.count("is damaged") == 4
    assert "continues" not in said
    same(run, undisturbed / "run")


def test_a_half_written_file_is_no_checkpoint(warm, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    killed(run, *warm, event=WARM["joint"][0] + 4)
    half = run / "checkpoints" / ".joint.4711.tmp"
    half.write_bytes(b"PK\x03\x04")
    assert "joint continues at step 4" in resumed(run, *warm)
    assert not half.exists()
    same(run, undisturbed / "run")


def test_no_room_for_a_checkpoint(tiny_config, tmp_path, monkeypatch) -> None:
    kept = Checkpoints(tmp_path, RunSettings(checkpoint_every=1))
    kept.write("joint", 1, {"finished": False, "parts": {}})
    before = sorted(kept.folder.iterdir())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device.; make room .* resume=true"):
        kept.write("joint", 2, {"finished": False, "parts": {}})
    assert sorted(kept.folder.iterdir()) == before


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(done: Any, *words: str) -> None:
    assert done.code == 2, done.out
    (line,) = without_progress(done.out)
    assert line.startswith("error: ")
    for word in words:
        assert re.search(word, done.out), done.out


def content(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def half(undisturbed, arguments, tmp_path_factory) -> Path:
    """A run that was killed in joint training."""
    folder = tmp_path_factory.mktemp("half") / "run"
    killed(folder, *arguments, f"home={undisturbed / 'home'}", event=8)
    return folder


FINGERPRINTS = r"\(settings \w{16} there, \w{16} here\)"
TEACHER = "teachers.pool.2.lr was 0.01 and is 0.02"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["resume=true", "student.lr=0.1"], [FINGERPRINTS, "student.lr was 0.001 and is 0.1"]),
        (["resume=true", "seed=1"], [FINGERPRINTS, "seed was 0 and is 1"]),
        (["resume=true", "teachers.pool.2.lr=0.02"], [FINGERPRINTS, TEACHER]),
        (["resume=true", "task.corpus.seed=1"], [FINGERPRINTS, "task.corpus.seed was 0 and is 1"]),
        (["resume=true", "threads=2"], ["threads=1 there, threads=2 here"]),
        (["resume=true", "checkpoint_every=0"], ["checkpoint_every=0 must be positive"]),
        (["resume=perhaps"], ["resume", "perhaps"]),
        ([], ["holds an unfinished run; add resume=true", "delete .*checkpoints"]),
    ],
    ids=lambda value: value[-1] if value and isinstance(value, list) else "",
)
def test_another_run(change, words, half, undisturbed, arguments) -> None:
    before = content(half)
    refused(play(half, *arguments, f"home={undisturbed / 'home'}", *change), *words)
    assert content(half) == before


def test_other_teachers_or_data_behind_the_same_names(undisturbed, arguments, tmp_path) -> None:
    """The settings stay as they were: the contents of the files are compared."""
    from safetensors.torch import load_file, save_file

    from distill.data import bundled
    from distill.settings import CorpusSettings

    made = bundled.corpus(CorpusSettings(train=60, reward=10, dev=10, test=20, pool=20))[0]
    for role in ("train", "test"):
        rows = [f'"{role} {text[0]}",{label}' for text, label in zip(made[role].texts, made[role].labels, strict=True)]
        (tmp_path / f"{role}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    fitted = next((undisturbed / "home" / "teachers").glob("bundled-food-*/config.json")).parent
    shutil.copytree(fitted, tmp_path / "food")
    pool = f"teachers.pool=[{{name: food, kind: checkpoint, path: {tmp_path / 'food'}, labels: ['0', '1'], max_length: 32}}]"
    files = ["task=files", *(f"task.{r}={tmp_path / f'{r}.csv'}" for r in ("train", "test")), "task.text=[text]"]
    kept = [a for a in arguments if not a.startswith(("task.", "teachers."))]
    given = [
        *kept,
        *files,
        "task.reward_size=10",
        "task.dev_size=10",
        "teachers=own",
        pool,
        f"home={tmp_path / 'home'}",
    ]
    given += ["threads=1", "reward.size=10", "credit.size=8"]
    killed(tmp_path / "run", *given, event=12)
    assert list((tmp_path / "run" / "checkpoints").glob("joint-*"))

    weights = tmp_path / "food" / "model.safetensors"
    intact = weights.read_bytes()
    tensors = load_file(weights)
    tensors["classifier.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    refused(play(tmp_path / "run", *given, "resume=true"), r"teachers=\w{16} there, teachers=\w{16} here")
    weights.write_bytes(intact)

    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace('\n"', '\n"well, ', 1))
    refused(play(tmp_path / "run", *given, "resume=true"), r"data=\w+ there, data=\w+ here")


def test_the_folder_must_be_named(tmp_path, monkeypatch, capsys) -> None:
    from agents import reinforce
    from agents.experiment.launch import launch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reinforce.py", "resume=true"])
    with pytest.raises(SystemExit) as stop:
        launch(reinforce.run)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: resume=true needs the folder of the run to continue: add hydra.run.dir=FOLDER\n"
    assert not any(tmp_path.iterdir())


def test_a_finished_run_is_left_as_it_is(undisturbed, arguments) -> None:
    before = content(undisturbed)
    done = play(undisturbed / "run", *arguments, f"home={undisturbed / 'home'}", "resume=true")
    assert (done.code, done.out) == (0, f"{undisturbed / 'run'} is finished already\n")
    after = content(undisturbed)
    for same_but_for_its_log in (before, after):
        same_but_for_its_log.pop(str(undisturbed / "run.log"))
    assert after == before


# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------

OFF_POLICY = ("dqn", "qrdqn", "sac", "td3")
SLOW = ("a2c", "trpo", "qrdqn", "td3", "sac with gSDE")
TRAINED = 3 * 6  # gradient steps of the student in training


def algorithm(name: str, warm: list[str]) -> list[str]:
    """Arguments of a small run of an algorithm that learns within its three episodes."""
    options = ["agent.params.learning_starts=16"] if name.split()[0] in OFF_POLICY else ["agent.params.n_steps=2"]
    options += ["agent.params.batch_size=16"] if name != "a2c" else []
    if name == "dqn":  # a target network that counts
        options += ["agent.params.gamma=0.9", "agent.params.target_update_interval=32"]
    if name == "sac with gSDE":
        options += ["+agent.params.use_sde=true"]
    kept = [w for w in warm if "warmup" not in w and "episodes" not in w]
    return [*kept, f"agent={name.split()[0]}", "agent.episodes=3", "policy=mlp", *options]


@pytest.mark.parametrize("name", ["ppo", "dqn", "sac", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_algorithms_repeat_their_training_unless_it_had_finished(name, warm, tmp_path) -> None:
    """Killed in training, which then starts again, and in the control, after which training is not repeated."""
    given, run = algorithm(name, warm), tmp_path / "run"
    whole = play(tmp_path / "whole", *given, script="sb3")
    assert whole.code == 0, whole.out
    killed(run, *given, event=10, script="sb3")
    assert not list(run.glob("checkpoints/*"))
    killed(run, *given, "resume=true", event=TRAINED + 4, script="sb3")
    said = (tmp_path / "run.log").read_text()
    assert "the run starts from its beginning" in said
    assert "continues" not in said
    model = (run / "model.zip").read_bytes()
    said = resumed(run, *given, script="sb3")
    assert said.startswith("control continues at step 3\n")
    assert (run / "model.zip").read_bytes() == model
    same(run, tmp_path / "whole")
    ours, theirs = (json.loads((tmp_path / n / "results.json").read_text())["cost"] for n in ("run", "whole"))
    assert ours["student_steps"] == theirs["student_steps"] == TRAINED


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_algorithms_are_stopped(name, warm, tmp_path) -> None:
    """At once: there is nothing that a checkpoint could keep. The printed line starts the training again."""
    given = algorithm(name, warm)
    whole = play(tmp_path / "whole", *given, script="sb3")
    stopped = play(tmp_path / "run", *given, script="sb3", moment=(5, 0, signal.SIGINT))
    assert (whole.code, stopped.code) == (0, 130)
    assert len(without_progress(stopped.out)) == 1
    again = play(tmp_path / "run", *resume_words(stopped.out), script="sb3")
    assert again.code == 0, again.out
    assert "the run starts from its beginning" in again.out
    same(tmp_path / "run", tmp_path / "whole")


# --- the grid ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def cell_of(entry: str, arguments: list[str], folder: Path) -> Cell:
    return Cell(entry, 0, entry_settings(entry, arguments), str(folder), "")


PPO = "ppo agent.episodes=2 agent.params.n_steps=2 agent.params.batch_size=16"


@pytest.mark.parametrize(
    ("entry", "event", "said"),
    [
        ("control", 5, "student continues at step 4"),
        ("mtkd_rl", 5, None),
        ("reinforce agent.episodes=2 agent.warmup=2", 5, "joint continues at step 4"),
        (PPO, 5, None),
        (PPO, 17, "student continues at step 4"),
    ],
    ids=["control", "a rule that learns", "reinforce", "ppo in training", "ppo after training"],
)
def test_a_cell_continues(entry, event, said, tiny_overrides, tmp_path, monkeypatch, capsys) -> None:
    """A rule that learns on the way, such as MTKD-RL, starts again, and so does the training of an SB3 agent."""
    from distill.student import Student

    given = [*tiny_overrides, "checkpoint_every=1"]
    whole = run_cell(cell_of(entry, given, tmp_path / "whole"))
    step, count = Student.apply_gradients, 0

    def dies(self: Student) -> Any:
        nonlocal count
        count += 1
        if count == event:
            raise Killed
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "apply_gradients", dies)
        with pytest.raises(Killed):
            run_cell(cell_of(entry, given, tmp_path / "cell"))
    capsys.readouterr()
    again = run_cell(cell_of(entry, given, tmp_path / "cell"))
    printed = capsys.readouterr().err
    assert "continues" not in printed if said is None else said in printed
    for result in (whole, again):
        del result["cost"]
    assert again == whole
    ours, theirs = (np.load(tmp_path / name / "choices.npz") for name in ("cell", "whole"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ("last", "before", "after"))
    assert not (tmp_path / "cell" / "checkpoints").exists()


def test_the_process_of_a_cell_is_stopped(tiny_overrides, tmp_path, monkeypatch, request) -> None:
    from distill.student import Student

    step = Student.apply_gradients

    def signalled(self: Student) -> Any:
        clip = step(self)
        if self.steps == 3 and self.budget == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return clip

    monkeypatch.setattr(Student, "apply_gradients", signalled)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever a launcher put there in an earlier test
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    cell = cell_of("control", [*tiny_overrides, "checkpoint_every=1000"], tmp_path / "cell")
    monkeypatch.setattr(sys, "argv", ["cell"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(cell.to_json()))
    assert cell_module.main() == 143
    (written,) = (tmp_path / "cell" / "checkpoints").iterdir()
    assert written.name.startswith("student-000000003-")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_grid_is_stopped(name, tiny_overrides, undisturbed, tmp_path) -> None:
    """A terminal's Ctrl-C reaches the processes of cells too. Each writes a checkpoint and ends."""
    command = [sys.executable, "agents/compare.py", *tiny_overrides, "budget.steps=3000", "checkpoint_every=50"]
    command += ["threads=1", "seeds=1", "jobs=1"]
    command += ["agents=[control]", f"home={undisturbed / 'home'}", f"cells={tmp_path / 'cells'}", "report=false"]
    command += [f"hydra.run.dir={tmp_path / 'run'}"]

    def awake() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    run = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, preexec_fn=awake,
    )  # fmt: skip

    def taken() -> list[Path]:
        return list((tmp_path / "cells").glob("control-*/checkpoints/student-*.npz"))

    assert soon(lambda: taken() or run.poll() is not None)
    number = signal.Signals[name]
    if name == "SIGINT":
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"stopped by {name}; to continue: ")
    assert taken()
    words = shlex.split(err.partition("to continue: ")[2])
    assert words[:2] == [sys.executable, "agents/compare.py"]
    assert words[-1] == "resume=true"
    assert soon(lambda: not group(run.pid))  # no process of the session is left


def test_a_killed_comparison_leaves_no_process(tiny_overrides, undisturbed, tmp_path) -> None:
    """A cell's process ends with the comparison that started it, even when that cannot say so."""
    command = [sys.executable, "agents/compare.py", *tiny_overrides, "budget.steps=3000", "checkpoint_every=50"]
    command += ["threads=1", "seeds=1", "agents=[control]", f"home={undisturbed / 'home'}"]
    command += [f"cells={tmp_path / 'cells'}", f"hydra.run.dir={tmp_path / 'run'}"]
    run = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert soon(lambda: list(tmp_path.glob("cells/control-*/checkpoints/student-*.npz")) or run.poll() is not None)
    run.kill()
    run.wait()
    assert soon(lambda: not group(run.pid), 20)


def test_neither_setting_names_another_cell(tiny_overrides, tiny_config) -> None:
    """Nor another result: the cells of earlier comparisons are found again."""
    settings = CompareSettings(agents=["reinforce"], seeds=1)
    plain, other = (
        [
            c.folder
            for c in compare.plan(settings, RunSettings.from_config(tiny_config(*more)), [*tiny_overrides, *more])
        ]
        for more in ((), ("resume=true", "checkpoint_every=3"))
    )
    assert plain == other


# --- the files --------------------------------------------------------------------------------------------------------


def test_state_goes_through_a_file(tmp_path) -> None:
    """Modules, optimisers and plain values: what is read back behaves as the original does."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(module.parameters(), lr=0.1, betas=(0.8, 0.9))
    module(torch.ones(3)).sum().backward()
    adam.step()
    rng = torch.Generator().manual_seed(3)
    rest = [1, 0.1, None, True, -float("inf"), "x", np.arange(3)]
    parts = {"module": module, "adam": adam, "rng": rng.get_state(), "rest": rest}
    np.savez(tmp_path / "file.npz", **pack(state_of(parts)))
    other = torch.nn.Linear(3, 2)
    its_adam = torch.optim.Adam(other.parameters(), lr=7.0)
    with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
        read = load_into({"module": other, "adam": its_adam}, unpack(file))
    assert (read["module"], read["adam"]) == (other, its_adam)
    assert read["rest"][:6] == rest[:6]
    assert read["rest"][6].tolist() == [0, 1, 2]
    its_rng = torch.Generator()
    its_rng.set_state(read["rng"])
    assert torch.equal(torch.rand(4, generator=its_rng), torch.rand(4, generator=rng))
    for each, its in ((module, adam), (other, its_adam)):
        its.zero_grad()
        each(torch.ones(3)).pow(2).sum().backward()
        its.step()
    assert torch.equal(other.weight, module.weight)
    assert its_adam.param_groups[0]["lr"] == 0.1
    with pytest.raises(TypeError, match="object is not JSON"):
        pack({"x": object()})


@given(st.integers(0, 10**9), st.integers(1, 255))
def test_no_flipped_byte_is_used(place, change) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpoints(Path(folder), RunSettings())
        kept.write("joint", 1, {"finished": False, "parts": {"a": np.arange(50.0)}})
        (path,) = kept.folder.iterdir()
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= change
        path.write_bytes(content)
        assert Checkpoints(Path(folder), RunSettings(resume=True)).stage("joint").restore() == {}
        assert not path.exists()


def test_the_last_two_are_kept_and_hold_no_pickle(warm, tmp_path) -> None:
    killed(tmp_path / "run", *warm, event=WARM["student"][0] + 3)
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [f.name.rpartition("-")[0] for f in files] == [
        *("control-000000005", "control-000000006", "joint-000000011", "joint-000000012"),
        *("student-000000002", "student-000000003"),
    ]
    for path in files:
        with np.load(path, allow_pickle=False) as file:
            assert all(file[name].dtype != object for name in file.files)


def test_checkpoints_cost_a_hundredth(tmp_path, monkeypatch) -> None:
    """By default, however long one takes. The clock of this test says that a step takes 1 s, and a checkpoint 3 s."""
    now = 0.0
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: now)
    kept = Checkpoints(tmp_path, RunSettings())
    fsync = os.fsync

    def slow(file: int) -> None:
        nonlocal now
        now += 3.0
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    stage = kept.stage("joint")
    written = []
    try:
        for step in range(2000):
            before = now
            stage.offer(step, x=1)
            written += [step] if now > before else []
            now += 1.0
    finally:
        runs_on = checkpoints.stop
        runs_on.waits = False
    assert written[0] <= 6
    assert len(written) == 1 + (2000 - written[0]) // 300
    assert 3 * (len(written) - 1) <= 0.01 * now
