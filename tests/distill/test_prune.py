"""`python -m distill.cache list|prune`: what is shown, what is removed, and what never is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from distill import cache, prune

DAY = 86400.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A cache of three entries, last used 40, 20 and 0 days ago, which no process uses, and an interrupted build."""
    parts = {"teachers/bundled-film-0a": 40, "signals/data/film-0b-v2": 20, "warm/bundled-tiny-0c": 0}
    for name, days in parts.items():
        folder = tmp_path / name
        facts = {"name": "film", "count": 7, "steps": 9, "machine": {"device": "cpu"}}
        cache.entry(folder, facts, lambda f: (f / "x.bin").write_bytes(bytes(1000)) and None)
        cache.release(folder)
        os.utime(folder, (time.time() - days * DAY,) * 2)
    left = tmp_path / "warm" / ".bundled-tiny-0d.building"
    left.mkdir()
    os.utime(left, (time.time() - 50 * DAY,) * 2)
    (tmp_path / "notes.txt").write_text("not an entry")
    yield tmp_path
    for name in parts:
        cache.release(tmp_path / name)


def kept(home: Path) -> set[str]:
    return {e.folder.name for e in prune.entries(home)}


ALL = {"bundled-film-0a", "film-0b-v2", "bundled-tiny-0c", ".bundled-tiny-0d.building"}


def test_list_says_what_there_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune.main(["list", "--home", str(home)]) == 0
    out = capsys.readouterr().out
    for text in (
        "teacher bundled-film (teachers/bundled-film-0a)",
        "outputs of film for 7 instances",
        "warm start of bundled-tiny, 9 steps, cpu",
        "interrupted build of bundled-tiny-0d",
        time.strftime("%Y-%m-%d", time.localtime(time.time() - 20 * DAY)),
        "warm starts of students: 1 entry",
    ):
        assert text in out, text


def test_nothing_is_removed_without_yes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune.main(["prune", "--home", str(home), "--older-than", "30d"]) == 0
    assert "prune would remove 2 entries" in capsys.readouterr().out
    assert kept(home) == ALL


def test_by_age_and_by_size(home: Path) -> None:
    assert prune.main(["prune", "--home", str(home), "--older-than", "30d", "--yes"]) == 0
    assert kept(home) == {"film-0b-v2", "bundled-tiny-0c"}
    size = sum(e.size for e in prune.entries(home) if e.kind == "warm") / 1e3
    assert prune.main(["prune", "--home", str(home), "--keep", f"{size + 0.1}KB", "--yes"]) == 0
    assert kept(home) == {"bundled-tiny-0c"}, "the least recently used goes first"
    assert (home / "notes.txt").is_file()
    assert not [p for p in home.rglob(".*") if p.is_dir()]


def test_only_one_kind(home: Path) -> None:
    assert prune.main(["prune", "--home", str(home), "--kind", "signals", "--keep", "0MB", "--yes"]) == 0
    assert kept(home) == ALL - {"film-0b-v2"}


USER = """
import sys, time
from pathlib import Path
from distill import cache
assert cache.keep(Path(sys.argv[1]))
print("kept", flush=True)
sys.stdin.read()
"""


def test_entries_in_use_stay(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry that another process uses stays, until that process has ended, however it ends."""
    folder = home / "teachers" / "bundled-film-0a"
    command = [sys.executable, "-c", USER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"
        assert time.time() - folder.stat().st_mtime < DAY, "it counts as used now"
        assert prune.main(["prune", "--home", str(home), "--keep", "0MB", "--yes"]) == 0
        assert f"left {folder}: a running process uses it" in capsys.readouterr().out
        assert kept(home) == {"bundled-film-0a"}
        process.kill()
    assert prune.main(["prune", "--home", str(home), "--keep", "0MB", "--yes"]) == 0
    assert kept(home) == set()


def test_entries_that_are_being_built_stay(home: Path) -> None:
    left = next(e for e in prune.entries(home) if e.kind == "unfinished")
    with FileLock(home / "warm" / "bundled-tiny-0d.lock"):
        assert prune.remove(left) == "it is being built"
    assert prune.remove(left) == ""
    assert not left.folder.exists()


def test_an_entry_that_was_removed_is_built_again(home: Path) -> None:
    folder, calls = home / "warm" / "bundled-tiny-0c", []

    def build(place: Path) -> None:
        calls.append(place)
        (place / "x.bin").write_bytes(b"again")

    cache.entry(folder, {"steps": 9}, build)
    assert not calls
    entry = next(e for e in prune.entries(home) if e.folder == folder)
    assert prune.remove(entry) == "a running process uses it", "this one"
    cache.release(folder)
    assert prune.remove(entry) == ""
    cache.entry(folder, {"steps": 9}, build)
    assert len(calls) == 1
    assert prune.remove(entry) == "a running process uses it", "a new entry is kept from the start"


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "HELD", 2)
    folders = [tmp_path / str(i) for i in range(4)]
    for folder in folders:
        cache.entry(folder, {}, lambda f: None)
    assert [f for f in folders if f in cache._held] == folders[2:]
    for folder in folders:
        cache.release(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "give --older-than AGE, --keep SIZE or both"),
        (["prune", "--older-than", "30"], "'30' is not a number with a unit (h, d, w), such as 30d"),
        (["prune", "--keep", "2 apples"], "'2 APPLES' is not a number with a unit"),
        (["list", "--home", "/no/such/place"], "no cache at /no/such/place"),
        (["delete"], "invalid choice: 'delete'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_mistakes_end_in_one_line(
    home: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if "--home" in arguments or arguments[:1] not in (["prune"], ["list"]) else ["--home", str(home)]
    assert prune.main([*arguments, *place]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("error: ")


def test_the_command_is_called_by_the_name_of_the_cache(home: Path) -> None:
    command = [sys.executable, "-m", "distill.cache", "list", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "outputs of film for 7 instances" in done.stdout
    assert done.stderr == ""
