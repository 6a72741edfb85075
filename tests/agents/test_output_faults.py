"""Cells of a grid and outputs of a run under faults: damaged files, full disks, writes that fail."""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from compare_helpers import ROOT
from hypothesis import strategies as st
from stderr_lines import without_progress

from agents import compare
from agents.cell import main as cell_main
from agents.cell import run_cell
from agents.experiment.checkpoints import Checkpoints
from agents.experiment.grid import Cell, finished, run_grid
from distill.cache import SEAL
from distill.checks import UserError
from distill.settings import CompareSettings, RunSettings

pytestmark = pytest.mark.faults
REFUSED = "set hydra.run.dir to a writable folder"
RESUME = "make room and continue with resume=true"


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cell(
    tiny_config: Callable[..., dict[str, Any]], tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Cell:
    """A finished cell."""
    cells = str(tmp_path_factory.mktemp("cells"))
    settings = CompareSettings(agents=["control"], seeds=1, cells=cells)
    (cell,) = compare.plan(settings, RunSettings.from_config(tiny_config("threads=1")), [*tiny_overrides, "threads=1"])
    run_cell(cell)
    return cell


def test_a_cell_is_found_as_it_was_written(cell: Cell) -> None:
    folder = Path(cell.folder)
    assert sorted(p.name for p in folder.iterdir()) == ["choices.npz", "predictions.parquet", "result.json"]
    written = json.loads((folder / "result.json").read_text())
    found = finished(cell)
    assert found is not None
    assert found == {key: written[key] for key in written if key not in (SEAL, "files")}


@pytest.mark.parametrize("name", ["result.json", "choices.npz", "predictions.parquet"])
@hypothesis.given(cut=st.booleans(), place=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_a_damaged_cell_is_never_used(cell: Cell, name: str, cut: bool, place: int, mask: int) -> None:
    """After a flipped byte or a cut: an error before anything runs, unless (white space, the seal's name) no fact changed."""
    path, good = Path(cell.folder) / name, finished(cell)
    data = path.read_bytes()
    place %= len(data)
    assert good is not None
    try:
        path.write_bytes(data[:place] if cut else data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        found, _ = run_grid([cell], 1)
    except UserError as error:
        told = str(error)
        assert told.startswith(f"cache entry {cell.folder}: ")
        assert told.endswith(f"; delete {cell.folder} to build it again")
        assert "\n" not in told
    else:
        assert name == "result.json", "used as if nothing were"
        assert {key: found[0][key] for key in good} == good
    finally:
        path.write_bytes(data)


def test_cells_of_before_seals_are_used(cell: Cell, tmp_path: Path) -> None:
    old = replace(cell, folder=str(tmp_path / "old"))
    shutil.copytree(cell.folder, old.folder)
    result = json.loads((tmp_path / "old" / "result.json").read_text())
    (tmp_path / "old" / "result.json").write_text(
        json.dumps({k: result[k] for k in result if k not in (SEAL, "files")})
    )
    assert finished(old) == finished(cell)
    (tmp_path / "old" / "result.json").unlink()
    assert finished(old) is None, "never finished"


def test_a_changed_number_stops_the_grid(cell: Cell, tmp_path: Path) -> None:
    """An edited result is reported before anything runs; the way out is to delete the cell."""
    spoilt, todo = (replace(cell, folder=str(tmp_path / name)) for name in ("spoilt", "todo"))
    shutil.copytree(cell.folder, spoilt.folder)
    path = tmp_path / "spoilt" / "result.json"
    result = json.loads(path.read_text())
    result["test"]["accuracy"] = 1.0
    path.write_text(json.dumps(result))
    with pytest.raises(
        UserError, match=rf"^cache entry {path.parent}: result\.json is damaged; delete {path.parent} to"
    ):
        run_grid([todo, spoilt], 1)
    assert not (tmp_path / "todo").exists()


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _cell_process(text: str, what: str, error_file: str) -> None:
    """`python -m agents.cell` without the imports: no file may grow above 2000 bytes."""
    sys.argv, sys.stdin = ["cell"], io.StringIO(text)
    sys.stderr = open(error_file, "w")  # noqa: SIM115  its process ends
    if what == "result":
        Checkpoints.write = lambda *_: None  # type: ignore[method-assign]  they are larger than anything written later
    _limit(2000)
    raise SystemExit(cell_main())


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("what", ["checkpoint", "result"])
def test_a_cell_that_cannot_be_written_is_one_line(cell: Cell, what: str, tmp_path: Path) -> None:
    """It does not count as finished, and no file is there in part."""
    todo = replace(cell, folder=str(tmp_path / "cells" / "todo"))
    error_file = tmp_path / "error"
    process = multiprocessing.get_context("fork").Process(
        target=_cell_process, args=(todo.to_json(), what, str(error_file))
    )
    process.start()
    process.join(300)
    checkpoint = f"checkpoint in {todo.folder}/checkpoints cannot be written (File too large); {RESUME}"
    result = f"{tmp_path / 'cells'} cannot be written (File too large); set cells to a writable folder"
    assert without_progress(error_file.read_text()) == [f"error: {checkpoint if what == 'checkpoint' else result}"]
    assert process.exitcode == 2
    assert not [p for p in (tmp_path / "cells").rglob("*") if p.is_file()]
    assert finished(todo) is None


# --- outputs ----------------------------------------------------------------------------------------------------------


def run(script: str, *arguments: str, limit: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
    """A script on the tiny run; no file may grow above `limit` bytes."""

    line = [sys.executable, str(ROOT / "agents" / script), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=500, preexec_fn=partial(_limit, limit))


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("limit", [100, 8000], ids=["TensorBoard", "checkpoint"])
def test_an_output_that_cannot_be_written_is_one_line(limit: int, tiny_overrides: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(
        "reinforce.py",
        *tiny_overrides,
        "threads=1",
        "agent.start=all_on",
        "agent.episodes=1",
        f"hydra.run.dir={folder}",
        limit=limit,
    )
    place, way_out = (folder, REFUSED) if limit == 100 else (f"checkpoint in {folder}/checkpoints", RESUME)
    assert without_progress(done.stderr) == [f"error: {place} cannot be written (File too large); {way_out}"]
    assert done.returncode == 2
    assert not (folder / "results.json").exists()
    assert not list(folder.glob("*student*"))
    assert not list(folder.rglob("*.tmp"))


def test_a_full_disk_under_a_grids_outputs(cell: Cell, tiny_overrides: list[str], tmp_path: Path) -> None:
    """The cells stay, and the report does not appear in part."""
    disk = tmp_path / "disk"
    disk.mkdir()
    cells = shutil.copytree(Path(cell.folder).parent, tmp_path / "cells")
    try:
        mounting = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounting.returncode:
        pytest.skip(f"this process may not mount a small disk (needs root): {mounting.stderr.strip()}")
    grid = [*tiny_overrides, "threads=1", "agents=[control]", "seeds=1", f"cells={cells}"]
    try:
        done = run("compare.py", *grid, f"hydra.run.dir={disk / 'run'}")
        fault = f"{disk / 'run'} cannot be written (No space left on device); free some space or {REFUSED}"
        assert without_progress(done.stderr) == [f"error: {fault}"]
        assert done.returncode == 2
        assert not list((disk / "run").glob("*report*"))
        assert not list((disk / "run").rglob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    again = finished(replace(cell, folder=str(Path(cells) / Path(cell.folder).name)))
    assert again == finished(cell)
