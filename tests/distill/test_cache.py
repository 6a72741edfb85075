"""Cache entries appear whole or not at all, are checked when read, and are built once."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from distill.cache import entry, file_sha256, folder_fingerprint, write_json
from distill.checks import UserError

FACTS = {"split": "abc", "count": 3}


class Builder:
    def __init__(self, fail: Exception | None = None) -> None:
        self.calls, self.fail = 0, fail

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "values.txt").write_text("one two")
        if self.fail:
            raise self.fail
        (folder / "ids.txt").write_text("a b")
        return {"width": 2}


def test_built_once(tmp_path: Path) -> None:
    build, folder = Builder(), tmp_path / "deep" / "er" / "e"
    first = entry(folder, FACTS, build)
    assert entry(folder, FACTS, build) == first
    assert build.calls == 1
    assert first["width"] == 2
    assert first["split"] == "abc"
    assert first["files"] == {n: file_sha256(folder / n) for n in ("ids.txt", "values.txt")}
    assert sorted(p.name for p in folder.iterdir()) == ["ids.txt", "manifest.json", "values.txt"]


def spoil_bytes(folder: Path) -> None:
    (folder / "values.txt").write_text("one twO")


def spoil_file(folder: Path) -> None:
    (folder / "ids.txt").unlink()


def spoil_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:40])


def spoil_keys(folder: Path) -> None:
    write_json(folder / "manifest.json", FACTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_bytes, r"values\.txt has checksum \w{16}, its manifest says \w{16}"),
        (spoil_file, r"ids\.txt has checksum no file"),
        (spoil_manifest, r"unreadable manifest\.json \(JSONDecodeError\)"),
        (spoil_keys, r"its list of files is damaged"),
    ],
)
def test_damage_is_named_and_never_built_over(tmp_path: Path, spoil: Any, message: str) -> None:
    build, folder = Builder(), tmp_path / "e"
    entry(folder, FACTS, build)
    spoil(folder)
    with pytest.raises(UserError, match=rf"cache entry {folder}: {message}.*; delete {folder} to build it again"):
        entry(folder, FACTS, build)
    assert build.calls == 1


def test_other_facts_are_named_on_both_sides(tmp_path: Path) -> None:
    build = Builder()
    entry(tmp_path / "e", FACTS, build)
    with pytest.raises(UserError, match=rf"{tmp_path}/e: split is 'abc' there but 'xyz' here; delete it"):
        entry(tmp_path / "e", FACTS | {"split": "xyz"}, build)
    with pytest.raises(UserError, match=r"new is None there but 1 here"):
        entry(tmp_path / "e", FACTS | {"new": 1}, build)


def test_a_killed_builder_leaves_no_obstacle(tmp_path: Path) -> None:
    """What a kill at the worst moments leaves: a lock file, a half-built temporary, a folder without a manifest."""
    (tmp_path / "e.lock").touch()
    for half in (tmp_path / ".e.building", tmp_path / "e"):
        half.mkdir()
        (half / "old.txt").write_text("half")
    entry(tmp_path / "e", FACTS, Builder())
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["ids.txt", "manifest.json", "values.txt"]
    assert not (tmp_path / ".e.building").exists()


@pytest.mark.parametrize("error", [UserError("bad"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        entry(tmp_path / "e", FACTS, Builder(error))
    assert {p.name for p in tmp_path.iterdir()} <= {"e.lock"}
    entry(tmp_path / "e", FACTS, Builder())


def test_facts_that_are_not_numbers_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        entry(tmp_path / "e", {"loss": float("nan")}, Builder())
    assert {p.name for p in tmp_path.iterdir()} <= {"e.lock"}


def test_an_unwritable_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    build = Builder()
    for place in (tmp_path / "file" / "e", tmp_path / "file" / "deeper" / "e"):
        with pytest.raises(UserError, match=r"cannot be made \(.*\); set TEACHER_SELECT_HOME"):
            entry(place, FACTS, build)
    assert build.calls == 0


def _slow(folder: Path) -> dict[str, Any]:
    with (folder.parent / "calls").open("a") as file:
        file.write("x")
    time.sleep(0.3)
    (folder / "v.txt").write_text("done")
    return {}


def test_one_process_builds_while_others_wait(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(entry, [(tmp_path / "e", FACTS, _slow)] * 3)
    assert (tmp_path / "calls").read_text() == "x"
    assert found[0] == found[1] == found[2]


def test_fingerprint_of_a_folder(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / name).write_text(name)
    first = folder_fingerprint(tmp_path)
    for ignored in ("README.md", "manifest.json"):
        (tmp_path / ignored).write_text("x")
    assert folder_fingerprint(tmp_path) == first
    (tmp_path / "vocab.txt").write_text("other")
    second = folder_fingerprint(tmp_path)
    (tmp_path / "vocab.txt").rename(tmp_path / "merges.txt")
    assert len({first, second, folder_fingerprint(tmp_path)}) == 3


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"fine": 1, "bad": float("inf")})
    assert json.loads(path.read_text()) == {"old": 1}
