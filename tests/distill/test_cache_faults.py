"""Caches under faults: several builders at once, kills, full and read-only disks, damaged files."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from distill import cache
from distill.checks import UserError
from distill.data.splits import Split
from distill.process import Distillation
from distill.settings import RunSettings, digest
from distill.teachers import finetune, store
from distill.teachers.checkpoint import ModelTeacher
from distill.teachers.encoders import BagEncoder
from distill.teachers.sources import load_teacher
from distill.teachers.store import stored

pytestmark = pytest.mark.faults
FORK = multiprocessing.get_context("fork")
WAY_OUT = "set TEACHER_SELECT_HOME to a writable place"


class Numbered:
    """A source whose outputs are the number in the text. It may be slow, and logs every pass."""

    name, width = "numbered", 2

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds, self.fingerprint = log, seconds, "f"

    def compute(self, split: Split) -> np.ndarray:
        note(self.log, f"{split.texts[0][0]}+{len(split)}")
        time.sleep(self.seconds)
        return np.array([[float(t[0]), -float(t[0])] for t in split.texts], np.float32)

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        return self.compute(split.take(rows))

    def release(self) -> None:
        pass


def note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


def numbers(count: int, start: int = 0) -> Split:
    names = [str(i) for i in range(start, start + count)]
    return Split("train", np.array(names), [(n,) for n in names], np.zeros(count, np.int64))


def read(log: Path, split: Split, home: Path, seconds: float = 0.0) -> list[float]:
    """All values; the entry is built if there is none."""
    array = stored(Numbered(log, seconds), split, home)
    return array[np.arange(len(split))][:, 0].tolist()


def expected(split: Split) -> list[float]:
    return [float(t[0]) for t in split.texts]


def tree(home: Path) -> dict[str, str]:
    """Every file but the locks, with its checksum."""
    files = (p for p in home.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(home)): cache.file_sha256(p) for p in files}


def start(work: Callable[[], Any]) -> Callable[[], tuple[str, Any]]:
    """Run `work` in a fork. The function returned waits for it and gives its result, its error and message, or its signal."""
    ours, theirs = FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            outcome = ("ok", work())
        except Exception as error:
            outcome = (type(error).__name__, str(error))
        theirs.send(outcome)

    child = FORK.Process(target=run)
    child.start()
    theirs.close()

    def wait() -> tuple[str, Any]:
        try:
            assert ours.poll(60), "no result after a minute"
            outcome: tuple[str, Any] = ours.recv()
        except EOFError:
            outcome = ("died", None)
        child.join()
        return outcome if child.exitcode == 0 else ("died", signal.Signals(-(child.exitcode or 0)).name)

    return wait


def counted(name: str, call: Any, log: Path) -> Callable[..., Any]:
    """`call`, which logs its name every time."""

    def work(*args: Any, **kwargs: Any) -> Any:
        note(log, name)
        return call(*args, **kwargs)

    return work


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def built(tiny_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with everything of the tiny run in it, readable by everybody. Copy it before changing anything."""
    home = tmp_path_factory.mktemp("built")
    torch.set_num_threads(1)
    Distillation(settings_of(tiny_config, home))
    return home


def settings_of(tiny_config: Callable[..., dict[str, Any]], home: Path, *more: str) -> RunSettings:
    return RunSettings.from_config(tiny_config(f"home={home}", "threads=1", *more))


def use(settings: RunSettings) -> str:
    """Hash of the student after a step of a run on these settings."""
    distillation = Distillation(settings)
    distillation.begin(0)
    assert distillation.batch is not None
    distillation.step(np.ones(distillation.batch.shape, np.float32))
    return digest([w.double().sum().item() for w in distillation.student.weights()])


# --- several at once --------------------------------------------------------------------------------------------------


def test_four_processes_build_the_same_signals_once(tmp_path: Path) -> None:
    split, log, gate = numbers(300), tmp_path / "log", FORK.Barrier(4)

    def work() -> list[float]:
        gate.wait(30)
        return read(log, split, tmp_path / "home", seconds=0.3)

    waits = [start(work) for _ in range(4)]
    assert [wait() for wait in waits] == [("ok", expected(split))] * 4
    assert log.read_text() == "0+300\n"


def test_four_processes_make_teachers_signals_and_warm_start_once(
    tiny_config: Any, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole tiny run from an empty home; all end with the student of one process alone."""
    log, gate = tmp_path / "log", FORK.Barrier(4)
    for owner, name in (
        (finetune, "fit"),
        (ModelTeacher, "compute"),
        (BagEncoder, "compute"),
        (Distillation, "_make_warm_start"),
    ):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name), log))

    def work() -> str:
        gate.wait(30)
        return use(settings_of(tiny_config, tmp_path / "home"))

    waits = [start(work) for _ in range(4)]
    outcome = [wait() for wait in waits]
    assert sorted(log.read_text().split()) == sorted(["fit"] * 4 + ["compute"] * 5 + ["_make_warm_start"])
    assert outcome == [("ok", use(settings_of(tiny_config, built)))] * 4


# --- kills ------------------------------------------------------------------------------------------------------------


@dataclass
class Killer:
    """Replaces a function; its `at`-th call kills the process."""

    call: Any
    at: int = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.at -= 1
        if not self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.call(*args, **kwargs)


MOMENTS = {
    "before the first value": (store, "checked", 1),
    "between values and checksums": (cache, "npy", 1),
    "between checksums and ids": (cache, "npy", 2),
    "before the manifest": (cache, "write_json", 1),
    "while the manifest is written": (os, "replace", 1),
    "before the folder's rename": (os, "replace", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_build_that_was_killed_is_done_by_the_next_process(moment: str, tmp_path: Path) -> None:
    """A second process waits on the lock meanwhile, a third comes later."""
    split, home, log = numbers(300), tmp_path / "home", tmp_path / "log"
    owner, name, at = MOMENTS[moment]

    def dies() -> None:
        setattr(owner, name, Killer(getattr(owner, name), at))  # in the child alone
        read(log, split, home, seconds=0.5)

    first = start(dies)
    wait_for(log)
    second = start(lambda: read(log, split, home))
    assert first() == ("died", "SIGKILL")
    assert second() == ("ok", expected(split))
    assert read(log, split, home) == expected(split)
    assert log.read_text() == "0+300\n" * 2, "once by the process that was killed, once by the next"
    assert {Path(p).name for p in tree(home)} == {"values.f32", "sums.npy", "ids.npy", "manifest.json"}


def test_kills_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight builders of many shards are killed one after the other. The ninth is right, and no finished shard was lost."""
    monkeypatch.setattr(store, "SHARD", 50)
    split, home, log, rng = numbers(1000), tmp_path / "home", tmp_path / "log", random.Random(0)
    for _ in range(8):
        child = FORK.Process(target=read, args=(log, split, home, 0.02))
        child.start()
        time.sleep(rng.uniform(0.02, 0.1))
        child.kill()
        child.join()
    assert read(log, split, home) == expected(split)
    passes = log.read_text().split()
    assert len(set(passes)) == 20
    assert len(passes) <= 20 + 8, "a kill costs the shard that was being computed, and no other"
    assert {Path(p).name for p in tree(home)} == {"values.f32", "sums.npy", "ids.npy", "manifest.json"}


# --- full disks -------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(place: Path, *how: str) -> Iterator[Path]:
    """A file system at `place`; skips where this process may not mount."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["mount", *how, str(place)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"this process may not mount (needs root): {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all room but `leave` bytes."""
    room = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"0" * max(0, room.f_bavail * room.f_frsize - leave))
    return filler


def assert_refused(outcome: tuple[str, Any], home: Path, fault: str, way_out: str = WAY_OUT) -> None:
    kind, message = outcome
    assert kind == "UserError", outcome
    assert str(message).startswith(f"{home}")
    assert str(message).endswith(f" cannot be written ({fault}); {way_out}")
    assert "\n" not in message


FULL = ("No space left on device", f"free some space or {WAY_OUT}")


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    """With every number of free pages, from none to enough."""
    new, log = numbers(600, 1000), tmp_path / "log"
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=128k", "tmpfs") as disk:
        home = disk / "home"
        old = numbers(300)
        read(log, old, home)
        ends = []
        for pages in range(16):
            filler = fill(disk, 4096 * pages)
            before = tree(home)
            outcome = start(lambda: read(log, new, home))()
            if outcome[0] != "ok":
                assert_refused(outcome, home, *FULL)
                assert tree(home) == before
            assert start(lambda: read(log, old, home))() == ("ok", expected(old)), "existing entries are usable"
            ends.append(outcome)
            filler.unlink()
            if outcome[0] == "ok":
                break
        assert len(ends) > 3
        assert ends[-1] == ("ok", expected(new)), "with enough room it is built, after all those failures"
        assert read(log, new, home) == expected(new)


def test_a_full_disk_between_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished shards are kept, as after a kill; a half-written one is not."""
    monkeypatch.setattr(store, "SHARD", 1000)
    split, log = numbers(5000), tmp_path / "log"
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        filler = fill(disk, 28 << 10)  # a shard has 8000 bytes, and the values grow beside them
        assert_refused(start(lambda: read(log, split, disk / "home"))(), disk / "home", *FULL)
        kept = tree(disk / "home")
        assert kept
        assert all(p.endswith(".f32") and ".shards/" in p for p in kept)
        filler.unlink()
        assert read(log, split, disk / "home") == expected(split)
        assert len(set(log.read_text().split())) == 5
        assert len(log.read_text().split()) <= 6


def without(built: Path, part: str, home: Path) -> Path:
    """A copy of the built home without one kind of entry."""
    shutil.copytree(built, home, ignore=lambda folder, names: [part] if Path(folder) == built else [])
    return home


@pytest.mark.parametrize("part", ["teachers", "signals", "warm"])
def test_every_kind_of_entry_on_a_full_disk(part: str, tiny_config: Any, built: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        home = without(built, part, disk / "home")
        filler = fill(disk, 8192)
        before = tree(home)
        assert_refused(start(lambda: use(settings_of(tiny_config, home)))(), home, *FULL)
        assert tree(home) == before
        filler.unlink()
        assert start(lambda: use(settings_of(tiny_config, home)))() == ("ok", use(settings_of(tiny_config, built)))


@pytest.mark.parametrize("part", ["teachers", "signals", "warm"])
def test_a_write_that_fails_is_one_line_and_changes_nothing(
    part: str, tiny_config: Any, built: Path, tmp_path: Path
) -> None:
    """The kernel refuses files above a size. This needs no rights, and affects the writers of the libraries too."""
    home = without(built, part, tmp_path / "home")
    before = tree(home)

    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return use(settings_of(tiny_config, home))

    assert_refused(start(limited)(), home, "File too large")
    assert tree(home) == before
    assert start(lambda: use(settings_of(tiny_config, home)))() == ("ok", use(settings_of(tiny_config, built)))


def test_every_write_of_a_build_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the n-th fsync, or files above some size are refused."""
    log, old, new, home = tmp_path / "log", numbers(300), numbers(400, 1000), tmp_path / "home"
    read(log, old, home)
    before = tree(home)
    sync, failed = os.fsync, 0
    for at in range(10):
        calls = iter(range(10))

        def full(fd: int, at: int = at, calls: Iterator[int] = calls) -> None:
            if next(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                read(log, new, home)
                break
            except UserError as error:
                assert_refused(("UserError", str(error)), home, *FULL)
        assert tree(home) == before
        failed += 1
    assert failed == 4, "values, checksums, ids, manifest"
    shutil.rmtree(home / "signals" / new.fingerprint)

    def limited(limit: int) -> list[float]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return read(log, new, home)

    longest = 4 * 4 * 400 + 128  # of ids.npy: four characters of four bytes
    for limit in (0, 1, 100, 127, 128, 150, 500, 3199, 3200, longest - 1):
        assert_refused(start(lambda limit=limit: limited(limit))(), home, "File too large")
        assert tree(home) == before
    assert start(lambda: limited(longest))() == ("ok", expected(new))


def test_other_errors_of_a_build_are_not_changed(tmp_path: Path) -> None:
    def build(error: Exception) -> Callable[[Path], None]:
        def fail(folder: Path) -> None:
            raise error

        return fail

    for error in (FileNotFoundError(2, "gone", "x"), PermissionError(13, "no", "/elsewhere/x"), RuntimeError("os")):
        with pytest.raises(type(error)):
            cache.entry(tmp_path / "e", {}, build(error))
    for failed in (
        RuntimeError("I/O error: quota (os error 122)"),
        PermissionError(13, "no", str(tmp_path / "e" / "x")),
    ):
        with pytest.raises(UserError, match=rf"^{tmp_path} cannot be written \(.*\); .*{WAY_OUT}$"):
            cache.entry(tmp_path / "e", {}, build(failed))
    assert tree(tmp_path) == {}


# --- read-only --------------------------------------------------------------------------------------------------------


@contextmanager
def read_only_mount(home: Path, place: Path) -> Iterator[tuple[Path, Callable[[], None], str]]:
    """The home seen through a mount that cannot be written."""
    with mounted(place, "--bind", str(home)) as seen:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(seen)], check=True)
        yield seen, lambda: None, "Read-only file system"


@contextmanager
def forbidden(home: Path, _: Path) -> Iterator[tuple[Path, Callable[[], None], str]]:
    """A home that the user of the child may read but not write; root could write it."""
    with tempfile.TemporaryDirectory() as temporary:  # tmp_path lies in a folder of root's own
        os.chmod(temporary, 0o755)
        seen = Path(shutil.copytree(home, Path(temporary) / "home"))
        for path in (seen, *seen.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

        def become() -> None:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)

        try:
            yield seen, become, "Permission denied"
        finally:
            for path in (seen, *seen.rglob("*")):
                path.chmod(0o755)


@pytest.mark.parametrize("locked", [True, False], ids=["with its locks", "without locks"])
@pytest.mark.parametrize("way", [read_only_mount, forbidden])
def test_a_read_only_cache(way: Any, locked: bool, tiny_config: Any, built: Path, tmp_path: Path) -> None:
    """Existing entries are used and need no lock; a missing one is an error in one line."""
    home = Path(shutil.copytree(built, tmp_path / "home"))
    if not locked:
        for path in home.rglob("*.lock"):
            path.unlink()
    wanted = use(settings_of(tiny_config, built))
    before = tree(home)
    with way(home, tmp_path / "seen") as (seen, become, fault):

        def work(*more: str) -> str:
            become()
            with pytest.raises(OSError, match=fault):
                (seen / "warm" / "x").touch()
            return use(settings_of(tiny_config, seen, *more))

        assert start(work)() == ("ok", wanted)
        for more in ("student.lr=0.123", "encoder.dim=9", "task.corpus.seed=9"):  # a warm start, signals, teachers
            assert_refused(start(lambda more=more: work(more))(), seen, fault)
    assert tree(home) == before


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGE = st.tuples(st.booleans(), st.integers(0, 10**9), st.integers(1, 255))


def damaged(data: bytes, how: tuple[bool, int, int]) -> bytes:
    """`data` cut short, or with one byte changed."""
    cut, place, mask = how
    place %= len(data)
    return data[:place] if cut else data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


@contextmanager
def spoilt(path: Path, how: tuple[bool, int, int]) -> Iterator[None]:
    good = path.read_bytes()
    path.write_bytes(damaged(good, how))
    try:
        yield
    finally:
        path.write_bytes(good)


@dataclass
class Kept:
    """A kind of entry: its folder, and a function that uses it."""

    folder: Path
    use: Callable[[], Any]


@pytest.fixture(scope="module")
def kept(
    built: Path, tiny_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Kept]:
    """One entry of each kind. Using it must build nothing: a damaged entry is not overwritten."""
    place = tmp_path_factory.mktemp("damage")
    home = Path(shutil.copytree(built, place / "home"))
    settings = settings_of(tiny_config, home)
    distillation, spec = Distillation(settings), settings.teachers.pool[0]
    task, engine = distillation.task, distillation.prepared.engine
    split = numbers(300)
    array = stored(Numbered(place / "log"), split, home)

    def never(*args: Any) -> Any:
        raise AssertionError("built again")

    def used(call: Callable[[], Any]) -> Callable[[], Any]:
        def work() -> Any:
            with pytest.MonkeyPatch.context() as patch:
                for owner, name in ((Numbered, "compute"), (finetune, "fit"), (Distillation, "_make_warm_start")):
                    patch.setattr(owner, name, never)
                return call()

        return work

    def of(kind: str, pattern: str) -> Path:
        return next(p for p in (home / kind).glob(pattern) if p.is_dir())

    return {
        "signals": Kept(array.folder, used(lambda: read(place / "log", split, home))),
        "teacher": Kept(
            of("teachers", f"*-{spec.name}-*"),
            used(lambda: load_teacher(spec, task, home, engine).fingerprint),
        ),
        "warm": Kept(of("warm", "*"), used(lambda: [w.tolist() for w in Distillation(settings).warm])),
    }


FILES = [
    *[("signals", name) for name in ("values.f32", "sums.npy", "ids.npy", "manifest.json")],
    *[("teacher", n) for n in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")],
    ("teacher", "manifest.json"),
    *[("warm", name) for name in ("student.safetensors", "manifest.json")],
]


def test_the_tests_of_damage_cover_all_files(kept: dict[str, Kept]) -> None:
    assert sorted(FILES) == sorted((kind, p.name) for kind, entry in kept.items() for p in entry.folder.iterdir())


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[f"{kind}-{name}" for kind, name in FILES])
@hypothesis.given(how=DAMAGE)
def test_a_damaged_file_is_never_used(kept: dict[str, Kept], kind: str, name: str, how: tuple[bool, int, int]) -> None:
    """A changed byte or a cut is an error in one line. In a manifest it may be one that changes no fact (white space, the name of the seal)."""
    entry = kept[kind]
    good, facts = entry.use(), json.loads((entry.folder / "manifest.json").read_text())
    del facts[cache.SEAL]
    with spoilt(entry.folder / name, how):
        try:
            got = entry.use()
        except UserError as error:
            message = str(error)
            assert message.startswith(f"cache entry {entry.folder}: ")
            assert message.endswith(f"; delete {entry.folder} to build it again")
            assert "\n" not in message
        else:
            assert name == "manifest.json", "a damaged file was used"
            assert got == good
            now = cache.read_manifest(entry.folder)
            assert {key: now[key] for key in facts} == facts


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    store._shard(Numbered(folder / "log"), numbers(100), folder, 0)
    return next(folder.glob("0-*.f32"))


@hypothesis.given(how=DAMAGE)
def test_a_damaged_shard_is_made_again(shard: Path, how: tuple[bool, int, int]) -> None:
    good, log = shard.read_bytes(), shard.parent / "log"
    try:
        shard.write_bytes(damaged(good, how))
        asked = len(log.read_text())
        values = store._shard(Numbered(log), numbers(100), shard.parent, 0)
        assert values[:, 0].tolist() == expected(numbers(100))
        assert len(log.read_text()) > asked
        assert shard.read_bytes() == good, "the shard was not replaced"
    finally:
        shard.write_bytes(good)


def test_entries_without_a_seal_are_used(kept: dict[str, Kept]) -> None:
    for entry in kept.values():
        path = entry.folder / "manifest.json"
        good = path.read_bytes()
        facts = json.loads(good)
        del facts[cache.SEAL]
        try:
            path.write_text(json.dumps(facts))
            assert entry.use()
        finally:
            path.write_bytes(good)


def test_files_that_may_not_be_read_are_named(kept: dict[str, Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad sectors, or files of another user."""
    opened = open

    def failing(name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path).endswith(name):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return opened(path, *args, **kwargs)

        return call

    for name, fault in (
        ("sums.npy", r"sums\.npy cannot be read \(Input/output error\)"),
        ("values.f32", "cannot be read"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", failing(name))
            with pytest.raises(
                UserError, match=rf"^cache entry {kept['signals'].folder}: {fault}.*; delete .* to build it again$"
            ):
                kept["signals"].use()
