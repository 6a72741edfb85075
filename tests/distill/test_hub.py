"""Checkpoints and data sets from a hub: a small server on the loopback interface, with the faults that a real one has.

The code under test runs in processes of its own, since the hub's client reads its environment when it is imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Fault, Hub, Repository, data_set

from configs import compose
from distill.models.build import fresh_classifier, word_tokenizer

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parent.parent.parent
NAME, WAIT = "some-lab/tiny-bert-sentiment", 40.0

# Only the loopback interface can be reached; the server of the data sets' viewer is a subdomain of the hub. The pauses
# between two tries are a tenth as long.
GUARD = """
import logging, socket, sys, time
whole, pause = socket.getaddrinfo, time.sleep
time.sleep = lambda seconds: pause(seconds / 10)
def loopback(host, *rest, **more):
    if not str(host).endswith(("localhost", "127.0.0.1")):
        raise socket.gaierror(f"only the loopback interface may be used, not {host}")
    return whole("127.0.0.1", *rest, **more)
socket.getaddrinfo = loopback
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout)
from distill.checks import UserError
def tell(function, *arguments):
    try:
        print("RESULT", function(*arguments))
    except UserError as error:
        print("REFUSED", error)
"""
DOWNLOAD = "from distill import hub; tell(hub.download, {name!r}, 'teacher t')"
HASTY = "from huggingface_hub import constants; constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.4\n"  # seconds
GLUE = """
from distill.data.glue import read_glue
from distill.settings import TaskSettings
def read():
    raw = read_glue(TaskSettings(name="rte", source="hub"), None)
    table = raw.tables["train"]
    return raw.source, len(table), len(raw.tables["test"]), table.ids[1], table.texts[1], table.labels[1]
tell(read)
"""


@dataclass
class Running:
    """A process and what it printed."""

    process: subprocess.Popen[str]
    terminal: int | None = None
    shown: bytes = b""
    started: float = field(default_factory=time.monotonic)

    def lines(self) -> list[str]:
        """The lines on stdout, after the end of the process."""
        if self.terminal is not None:
            reader = threading.Thread(target=self._read)
            reader.start()
        try:
            out, err = self.process.communicate(timeout=WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.seconds = time.monotonic() - self.started
        if self.terminal is not None:
            reader.join(WAIT)
            os.close(self.terminal)
        assert self.process.returncode == 0, err
        self.err = err or ""
        assert "Traceback" not in out + self.err
        return out.splitlines()

    def refusal(self) -> str:
        """The message of the one line that the process printed."""
        (line,) = self.lines()
        assert line.startswith("REFUSED "), line
        assert all(shown.startswith("Fetching") for shown in self.err.split("\n") if shown), self.err  # a bar
        return line.removeprefix("REFUSED ")

    def result(self) -> str:
        """What the function returned, without any warning."""
        (line,) = self.lines()
        assert line.startswith("RESULT "), line
        return line.removeprefix("RESULT ")

    def warned(self) -> tuple[str, str]:
        """The last warning, and what the function returned."""
        *_, warning, line = self.lines()
        assert warning.startswith("WARNING "), warning
        assert line.startswith("RESULT "), line
        return warning, line.removeprefix("RESULT ")

    def _read(self) -> None:
        try:
            while part := os.read(self.terminal or 0, 4096):
                self.shown += part
        except OSError:  # the other end of the terminal is closed
            pass


def start(
    hub: Hub, home: Path, code: str = DOWNLOAD, name: str = NAME, terminal: bool = False, **variables: str
) -> Running:
    """Run `code` in a process that has `hub` for its hub and `home` for its caches."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "TQDM_"))}
    env = own | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
    ours, theirs = pty.openpty() if terminal else (None, subprocess.PIPE)
    if ours is not None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # a bar of no width shows nothing
    script = [sys.executable, "-c", GUARD + code.replace("{name!r}", repr(name))]
    process = subprocess.Popen(script, env=env, cwd=home.parent, stdout=subprocess.PIPE, stderr=theirs, text=True)
    if terminal:
        os.close(theirs)
    return Running(process, ours)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A classifier with random weights and its tokenizer, as a repository holds them."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = word_tokenizer([("the film was awful and boring, friends",)], 32)
    widths = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = fresh_classifier({**widths, "max_position_embeddings": 32}, tokenizer, ("bad", "good"), 0, "x")
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with one whole checkpoint. Some of its files are of no use here."""
    more = {"README.md": b"# a model", "pytorch_model.bin": b"pickled", "code.py": b"raise SystemExit"}
    with Hub({NAME: Repository(files | more)}) as server:
        yield server


def broken_files(home: Path) -> list[Path]:
    """Parts of files that a download left in the cache, and names without a content."""
    return [p for p in home.rglob("*") if ".incomplete" in p.name or p.name.endswith(".tmp") or not p.exists()]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_download(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """A bar on the terminal, the model loads, and no file is read that has no use here."""
    hub.rate = 40_000
    code = """
from distill.models import loading
def go():
    folder = loading.resolve({name!r}, "teacher t")
    loading.load_classifier(folder, None, 0, "teacher t")
    return len(loading.load_tokenizer(folder, "teacher t"))
tell(go)
"""
    done = start(hub, tmp_path / "home", code, terminal=True)
    assert int(done.result()) > 4
    shown = done.shown.decode(errors="replace")
    assert "Downloading bytes" in shown
    assert "%" in shown
    assert hub.count(r"GET .*/resolve/.*safetensors") == 1
    assert hub.count(r"/resolve/.*(\.md|\.bin|\.py)") == 0
    cached = {p.name: p.read_bytes() for p in (tmp_path / "home").rglob("snapshots/*/*")}
    assert cached == {name: content for name, content in files.items() if name in cached}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(cached)


def test_the_cache(hub: Hub, tmp_path: Path) -> None:
    """No file is downloaded twice; the copy is used offline, and when the hub is silent, gone or out of order."""
    home = tmp_path / "home"
    folder = start(hub, home).result()
    first = hub.count(r"GET .*/resolve/")
    assert start(hub, home).result() == folder
    assert hub.count(r"GET .*/resolve/") == first

    before = len(hub.seen)
    assert start(hub, home, HF_HUB_OFFLINE="1").result() == folder
    assert len(hub.seen) == before

    with Hub(faults=[Fault("api/models", status=503)]) as busy, Hub(faults=[Fault(".")]) as silent, Hub() as gone:
        gone.stop()
        runs = [start(server, home, HASTY + DOWNLOAD) for server in (busy, silent, gone)]
        for run in runs:
            warning, again = run.warned()
            assert again == folder
            assert f"WARNING teacher t: {NAME} is taken from the cache, since the hub cannot be read (" in warning
            assert run.seconds < 20


def test_offline_without_a_copy(hub: Hub, tmp_path: Path) -> None:
    line = start(hub, tmp_path / "home", HF_HUB_OFFLINE="1").refusal()
    assert line.startswith(
        f"teacher t: {NAME} is neither a folder nor a complete copy in the hub's cache {tmp_path / 'home'}"
    )
    assert line.endswith("HF_HUB_OFFLINE=1 forbids a download; unset HF_HUB_OFFLINE, or give an existing folder")
    assert hub.seen == []


@pytest.mark.parametrize("status", [401, 403])
def test_gated(hub: Hub, files: dict[str, bytes], tmp_path: Path, status: int) -> None:
    """The hub describes a gated repository to everybody, and refuses its files; some servers refuse both."""
    hub.models = {"open/words": Repository(files, status), "closed/words": Repository(files, status, closed=True)}
    runs = {name: start(hub, tmp_path / name[:4], name=name) for name in hub.models}
    for name, run in runs.items():
        assert run.refusal() == (
            f"teacher t: the model {name} is gated: accept its terms at {hub.url}/{name}, then log in with "
            "`hf auth login` or set HF_TOKEN; or give an existing folder"
        )
    assert hub.count(r"GET .*/resolve/") == 0
    runs = {name: start(hub, tmp_path / name[:4], name=name, HF_TOKEN=TOKEN) for name in hub.models}
    assert all(Path(run.result()).is_dir() for run in runs.values())


def test_no_such_name(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """The nearest name that the hub's search finds is suggested."""
    hub.models |= {"google-bert/bert-base-uncased": Repository(files), "lab/other": Repository(files)}
    near = {
        "some-lab/tiny-bert-sentimant": NAME,
        "tiny-bert-sentiment": NAME,
        "bert-base-uncasd": "google-bert/bert-base-uncased",
        "somelab/tinybert-sentiment": NAME,
        "nobody/nothing": None,
        "bad--name": None,
    }
    runs = {name: start(hub, tmp_path / str(i), name=name) for i, name in enumerate(near)}
    for name, run in runs.items():
        line = run.refusal()
        if name == "bad--name":
            assert line.startswith("teacher t: bad--name is neither")
            continue
        assert line.startswith(f"teacher t: the hub has no model {name} (nor is there a folder {name});")
        assert "`hf auth login` or set HF_TOKEN if it is private, or give an existing folder" in line
        assert (f"did you mean {near[name]}?" if near[name] else "; check the name") in line


def test_other_answers(hub: Hub, tmp_path: Path) -> None:
    """A token that is refused, and a server that is out of order; one that is busy for a moment does no harm."""
    hub.faults = [Fault("api/models/a/", status=401), Fault("api/models/b/", status=500), Fault(NAME, 2, 503)]
    refused = start(hub, tmp_path / "a", name="a/model")
    down = start(hub, tmp_path / "b", name="b/model")
    busy = start(hub, tmp_path / "c")
    assert (
        "the hub refuses access to the model a/model (status 401); log in again with `hf auth login`"
        in refused.refusal()
    )
    assert f"the hub at {hub.url} answers with status 500 for the model b/model; try again later" in down.refusal()
    assert Path(busy.result()).is_dir()
    assert hub.count("api/models/a/") == 1
    assert hub.count("api/models/b/") == 3


def test_weights_that_are_not_read(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """Refused by their names, before anything is downloaded."""
    rest = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    inner = {f"onnx/{name}": content for name, content in files.items()}
    hub.models = {
        "lab/pickled": Repository(rest | {"pytorch_model.bin": b"x", "onnx/model.safetensors": b"x"}),
        "lab/none": Repository(rest),
        "lab/inner": Repository(inner),
    }
    runs = {name: start(hub, tmp_path / name[4:], name=name) for name in hub.models}
    assert runs["lab/pickled"].refusal() == (
        "teacher t: lab/pickled on the hub has only pickled weights (pytorch_model.bin), which can run code and are "
        "never read; name a repository with safetensors weights"
    )
    assert "lab/none on the hub has no safetensors weights" in runs["lab/none"].refusal()
    assert "lab/inner on the hub has no config.json" in runs["lab/inner"].refusal()
    assert hub.count("/resolve/") == 0


def test_a_hub_that_hangs_or_breaks_off(files: dict[str, bytes], tmp_path: Path) -> None:
    """At whatever request: tried again, given up within a bounded time in one line, and no part of a file is left."""
    weights = r"GET .*/resolve/.*model\.safetensors"
    faults = {
        "description": Fault("api/models/[^/]+/[^/]+$"),
        "list": Fault("/tree/"),
        "head": Fault("HEAD .*safetensors"),
        "weights": Fault(weights),
        "broken": Fault(weights, cut=1000),
    }
    hubs = {case: Hub({NAME: Repository(files)}, faults=[fault]) for case, fault in faults.items()}
    for hub in hubs.values():
        hub.__enter__()
    try:
        runs = {case: start(hub, tmp_path / case, HASTY + DOWNLOAD) for case, hub in hubs.items()}
        for case, run in runs.items():
            line = run.refusal()
            assert line.startswith(f"teacher t: there is no folder {NAME}, and the model {NAME} could not be read from")
            assert f" the hub at {hubs[case].url} (" in line
            assert line.endswith("try again (files already downloaded are kept), or give an existing folder")
            assert run.seconds < 20
            assert broken_files(tmp_path / case) == []
            assert hubs[case].count(faults[case].where) >= 3
        # The files that were complete are not downloaded again.
        hubs["broken"].faults, before = [], len(hubs["broken"].seen)
        start(hubs["broken"], tmp_path / "broken").result()
        assert [line for line in hubs["broken"].seen[before:] if "GET" in line and "/resolve/" in line] == [
            line for line in hubs["broken"].seen[before:] if line.startswith("GET") and "model.safetensors" in line
        ]
    finally:
        for hub in hubs.values():
            hub.stop()


def test_a_hub_that_breaks_off_once(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """The rest of the file is downloaded, not the whole."""
    hub.faults = [Fault(r"GET .*model\.safetensors", 2, cut=700)]
    # The client keeps what it has read in pieces of this size, of ten megabytes otherwise.
    code = f"from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 100; {DOWNLOAD}"
    folder = start(hub, tmp_path / "home", code).result()
    assert (Path(folder) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.count(r"model\.safetensors from 700") == 1
    assert hub.count(r"model\.safetensors from 1400") == 1


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    run = start(hub, tmp_path / "home")
    line = run.refusal()
    assert f"the model {NAME} could not be read from the hub at {hub.url} (ConnectError: " in line
    assert run.seconds < 15


@pytest.mark.slow
def test_an_update_that_breaks_off(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """The old copy is used, now and offline."""
    home = tmp_path / "home"
    folder = start(hub, home).result()
    hub.models[NAME].files["model.safetensors"] = files["model.safetensors"][:-4] + b"\0\0\0\0"
    hub.faults = [Fault(r"GET .*model\.safetensors", cut=1000)]
    warning, again = start(hub, home, HASTY + DOWNLOAD).warned()
    assert again == folder
    assert "is taken from the cache" in warning
    assert start(hub, home, HF_HUB_OFFLINE="1").result() == folder
    hub.faults = []
    new = start(hub, home).result()
    assert new != folder
    assert start(hub, home, HF_HUB_OFFLINE="1").result() == new


def test_several_processes(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """Processes that need the same checkpoint at the same time download it once."""
    hub.rate = 20_000
    runs = [start(hub, tmp_path / "home") for _ in range(3)]
    folders = {run.result() for run in runs}
    assert len(folders) == 1
    assert (Path(folders.pop()) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.count(r"GET .*/resolve/.*model\.safetensors") == 1
    assert broken_files(tmp_path / "home") == []


def test_the_command_line(hub: Hub, tmp_path: Path) -> None:
    """One line on stderr and exit code 2."""
    code = """
sys.argv = ["reinforce.py", "student=truncate", "student.path=some-lab/tiny-bert-sentimant", "student.layers=1"]
from agents import reinforce
from agents.experiment.launch import launch
launch(reinforce.run)
"""
    assert compose(["student=truncate", f"student.path={NAME}"])
    run = start(hub, tmp_path / "home", code, TEACHER_SELECT_HOME=str(tmp_path / "caches"))
    out, err = run.process.communicate(timeout=WAIT)
    assert run.process.returncode == 2
    assert out == ""
    assert err.startswith("error: student: the hub has no model some-lab/tiny-bert-sentimant")
    assert f"did you mean {NAME}?" in err
    assert err.count("\n") == 1


# --- data sets --------------------------------------------------------------------------------------------------------


def rows(split: str, count: int) -> list[dict[str, Any]]:
    return [{"sentence1": f"{split} {i}", "sentence2": "b", "label": i % 2, "idx": i} for i in range(count)]


@pytest.fixture
def glue() -> Iterator[Hub]:
    """A hub with a small GLUE: RTE, and another task that must not be touched."""
    parts = {"train": rows("train", 40), "validation": rows("validation", 12)}
    repository = data_set({"rte": parts, "cola": parts}, ("entailment", "not_entailment"))
    with Hub(datasets={"nyu-mll/glue": repository}) as server:
        yield server


RTE = str(("hub", 40, 12, "train-1", ("train 1", "b"), "not_entailment"))


def test_glue(glue: Hub, tmp_path: Path) -> None:
    """Downloaded once, then from the cache: online, offline, and when the hub is silent."""
    home = tmp_path / "home"
    assert start(glue, home, GLUE).lines()[-1] == f"RESULT {RTE}"
    assert glue.count(r"GET .*/resolve/.*parquet") == 2
    assert glue.count("cola.*parquet") == 0
    assert start(glue, home, GLUE).lines()[-1] == f"RESULT {RTE}"
    assert glue.count(r"GET .*/resolve/.*parquet") == 2

    before = len(glue.seen)
    assert start(glue, home, GLUE, HF_HUB_OFFLINE="1").lines()[-1] == f"RESULT {RTE}"
    assert len(glue.seen) == before
    glue.faults = [Fault(".")]
    silent = start(glue, home, GLUE, HF_HUB_DOWNLOAD_TIMEOUT="1")
    warning, result = silent.warned()
    assert result == RTE
    assert "task=rte: nyu-mll/glue is taken from the cache, since the hub cannot be read (ReadTimeout" in warning
    assert silent.seconds < 20


@pytest.mark.slow
def test_glue_that_cannot_be_read(glue: Hub, tmp_path: Path) -> None:
    """One line that names the data set and the files to use instead, within a bounded time."""
    way_out = r"set data_dir or TEACHER_SELECT_DATA to a folder holding RTE/train.tsv"
    faults = {
        "description": Fault("api/datasets/[^/]+/[^/]+$"),
        "tree": Fault("/tree/|paths-info"),
        "broken": Fault("GET .*train.*parquet", cut=100),
    }
    hubs = {case: Hub(datasets=glue.datasets, faults=[fault]) for case, fault in faults.items()}
    for hub in hubs.values():
        hub.__enter__()
    try:
        runs = {case: start(hub, tmp_path / case, HASTY + GLUE) for case, hub in hubs.items()}
        runs["offline"] = start(glue, tmp_path / "offline", GLUE, HF_HUB_OFFLINE="1")
        for case, run in runs.items():
            line = run.lines()[-1]
            if case == "offline":
                assert line.startswith("REFUSED task=rte: nyu-mll/glue (rte) could not be read from the hub's cache")
            else:
                assert line.startswith(
                    "REFUSED task=rte: the data set nyu-mll/glue (rte) could not be read from the hub"
                )
            assert line.endswith(way_out)
            assert run.seconds < 30
    finally:
        for hub in hubs.values():
            hub.stop()
    assert glue.seen == []


@pytest.mark.slow
def test_data_sets_that_changed(glue: Hub, tmp_path: Path) -> None:
    """Gated, gone, another column, another label."""
    words = {
        "train": [{"sentence1": "a", "text": "b", "label": 0}] * 3,
        "validation": [{"sentence1": "a", "text": "b", "label": 0}],
    }
    odd = {
        "train": [*rows("train", 4), {"sentence1": "a", "sentence2": "b", "label": -1, "idx": 9}],
        "validation": rows("v", 3),
    }
    cases = {
        "gated": (
            Repository(glue.datasets["nyu-mll/glue"].files, 401, True),
            "nyu-mll/glue is gated: accept its terms at",
        ),
        "gone": (None, "the hub has no data set nyu-mll/glue; check the name"),
        "column": (data_set({"rte": words}, ("a", "b")), "the data set on the hub has no column 'sentence2'; it has "),
        "label": (data_set({"rte": odd}, None), "task=rte: train on the hub: label=-1 is not known"),
    }
    for case, (repository, message) in cases.items():
        glue.datasets = {"nyu-mll/glue": repository} if repository else {}
        line = start(glue, tmp_path / case, GLUE).lines()[-1]
        assert line.startswith("REFUSED task=rte: ")
        assert message in line


def test_afrisenti(tmp_path: Path) -> None:
    """All languages in one go, with classes or with names of classes as labels."""
    code = """
from distill.data.afrisenti import read_afrisenti
from distill.settings import TaskSettings
def read():
    raw = read_afrisenti(TaskSettings(name="afrisenti", languages=["aaa", "bbb"], source="hub"), None)
    return raw.source, {k: len(t) for k, t in (raw.tables | raw.pools).items()}, sorted(set(raw.tables["test"].labels))
tell(read)
"""
    order = ("positive", "neutral", "negative")
    for classes in (order, None):
        parts = {
            language: {
                split: [{"tweet": f"{split} {i}", "label": i % 3 if classes else order[i % 3]} for i in range(count)]
                for split, count in (("train", 30), ("test", 9))
            }
            for language in ("aaa", "bbb")
        }
        name = "shmuhammad/AfriSenti-twitter-sentiment"
        with Hub(datasets={name: data_set(parts, classes)}) as hub:
            line = start(hub, tmp_path / str(classes is None), code).lines()[-1]
        lengths = {"train": 30, "test": 18, "aaa": 15, "bbb": 15}
        assert line == f"RESULT {('hub', lengths, sorted(order))}"
        assert json.dumps(hub.seen).count("GET /api/datasets/" + name + '"') == 1
