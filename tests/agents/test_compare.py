"""agents/compare.py: finished cells are found again, one failure stops no other cell, and the table agrees with the cells."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from compare_helpers import AGENTS, ROOT, command

from agents import compare
from agents.experiment import grid as grid_module
from agents.experiment import stats, tables
from agents.experiment.grid import Cell, run_grid
from distill.checks import UserError
from distill.settings import CompareSettings, RunSettings


def result(seed: int, agent: str, accuracy: float, loss: float = 0.5) -> dict:
    scores = {"accuracy": accuracy, "loss": loss, "brier": 0.3, "ece": 0.1}
    return {
        "agent": agent,
        "seed": seed,
        "metric": "accuracy",
        "test": scores,
        "selection": {"mean_size": 2.0, "rate": [1.0, 1.0]},
        "cost": {"train_s": 1.0, "follow_s": 1.0},
    }


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_hold_paired_differences(tmp_path, capsys):
    ours, theirs = [0.8, 0.82, 0.9], [0.7, 0.78, 0.79]
    results = [result(s, "control", v, 0.6) for s, v in enumerate(theirs)]
    results += [result(s, "a", v) for s, v in enumerate(ours)] + [result(0, "late", 0.1)]
    control, a, late = tables.summarise(results, "test")
    pair = stats.paired(np.array(ours), np.array(theirs))
    assert a["difference_accuracy"]["mean"] == pytest.approx(pair.mean)
    assert a["difference_accuracy"]["interval"] == pytest.approx(pair.interval)
    assert a["difference_loss"]["mean"] == pytest.approx(-0.1)
    assert a["improvement"] == 1.0
    assert a["p_holm"] == pytest.approx(pair.p)  # the only one with a p
    assert "difference_accuracy" not in control
    assert late["difference_accuracy"] == {"mean": pytest.approx(-0.6), "interval": None, "p": None}
    tables.print_rows([control, a, late], "a title")
    assert "a title" in capsys.readouterr().out
    tables.write_csv(tmp_path / "t.csv", [control, a, late])
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [line["agent"] for line in lines] == ["control", "a", "late"]
    assert float(lines[1]["difference_accuracy_low"]) == pytest.approx(pair.interval[0])


# --- the plan ---------------------------------------------------------------------------------------------------------


def planned(tiny_config, overrides, *agents: str, seeds: int = 1, cells: str = "cells") -> list[Cell]:
    settings = CompareSettings(agents=list(agents), seeds=seeds, cells=cells)
    return compare.plan(settings, RunSettings.from_config(tiny_config(*overrides)), [*overrides])


def test_control_is_always_there_and_singles_are_spelt_out(tiny_config, tiny_overrides):
    entries = [c.entry for c in planned(tiny_config, tiny_overrides, "single", "labels", "labels")]
    assert entries == ["control", "single:film", "single:food", "single:hotel", "single:electronics", "labels"]


def test_a_cell_is_named_by_all_it_depends_on(tiny_config, tiny_overrides):
    def folders(*more: str, agent: str = "reinforce") -> list[str]:
        return [c.folder for c in planned(tiny_config, [*tiny_overrides, *more], agent)]

    control, learnt = folders()
    assert folders() == [control, learnt]
    for unread in ("reward.every=3", "reward=paper1", "credit.size=3", "observation=student", "policy=mlp"):
        assert folders(unread)[0] == control, unread  # a fixed rule reads neither reward nor state
        assert folders(unread)[1] != learnt, unread
    assert folders("reward.every=3", agent="headroom")[1] != folders(agent="headroom")[1]
    assert folders("observation=student", agent="mtkd_rl")[1] != folders(agent="mtkd_rl")[1]
    assert folders("reward.every=3", agent="mtkd_rl")[1] == folders(agent="mtkd_rl")[1]
    assert folders("student.lr=0.1")[0] != control
    assert folders("budget.steps=7")[0] != control
    assert folders("home=/elsewhere") == folders("data_dir=/elsewhere") == [control, learnt]
    assert folders("threads=2")[0] != control  # threads change the last digits
    assert folders(agent="reinforce agent.lr=0.3")[1] != learnt


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (["reinfroce"], "agents: entry=reinfroce is not known.*did you mean reinforce"),
        (["single:hotels"], "single: teacher=hotels"),
        (["ppo agent.pull=1"], "agent.pull is not a known setting"),
        (["reinforce agent.credit=each"], "agent.credit is not a known setting"),
        (["reinforce credit.name=each"], "credit.name=each"),
        (["my_rules:Mine"], "rule=my_rules:Mine cannot be imported"),
        ([" "], "empty entry"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(tiny_config, tiny_overrides, agents, message):
    with pytest.raises(UserError, match=message):
        planned(tiny_config, tiny_overrides, *agents)


def test_an_agents_settings_belong_into_its_entry(tiny_config, tiny_overrides):
    with pytest.raises(UserError, match=r"agent\.lr=1: give an agent's settings within its entry"):
        planned(tiny_config, [*tiny_overrides, "agent.lr=1"], "reinforce")


# --- whole grids ------------------------------------------------------------------------------------------------------


def table_of(folder: Path) -> dict:
    found = json.loads((folder / "comparison.json").read_text())["tables"]
    for rows in found.values():
        for row in rows:
            row.pop("train_s")
            row.pop("whole_job")
            row.pop("follow_s")
    return found


def test_a_grid_writes_table_and_cells(grid):
    run, cells = grid
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["seeds"] == [0, 1]
    assert [r["agent"] for r in comparison["tables"]["test"]] == [
        "control",
        "best_single",
        "reinforce agent.episodes=1",
    ]
    assert all(len(r["values"]) == 2 for r in comparison["tables"]["test"])
    assert len(list(cells.glob("*/result.json"))) == 6
    one = np.load(next(cells.glob("reinforce*/choices.npz")), allow_pickle=False)
    assert one["before"].shape == one["after"].shape == (len(one["rows"]), 2)
    assert (run / "comparison.csv").is_file()
    for path in cells.glob("*/result.json"):  # every cell keeps the predictions of its own student
        result, told = json.loads(path.read_text()), pd.read_parquet(path.parent / "predictions.parquet")
        assert (told["predicted"] == told["label"]).mean() == pytest.approx(result["test"]["accuracy"])
        assert np.trace(result["details"]["test"]["confusion"]) / len(told) == pytest.approx(result["test"]["accuracy"])


def run_again(cell: dict[str, Any], folder: Path, *more: str) -> dict[str, Any]:
    """The result of a cell's own line, run in a folder of its own."""
    words = shlex.split(cell["reproduce"])
    assert words[:2] == ["python", "agents/compare.py"]
    arguments = [*words[2:], f"cells={folder / 'cells'}", *more]
    subprocess.run(command(*arguments, folder=folder / "run"), check=True, capture_output=True, timeout=500)
    pattern = f"{cell['agent'].split()[0]}-seed{cell['seed']}-*/result.json"
    result: dict[str, Any] = json.loads(next((folder / "cells").glob(pattern)).read_text())
    return result


@pytest.mark.slow
def test_a_cells_line_gives_the_cell_again_from_empty_caches(grid, tmp_path):
    """Teachers, signals and warm start are made anew, and the result is the same to the bit."""
    first = json.loads(next(grid[1].glob("reinforce-seed1-*/result.json")).read_text())
    again = run_again(first, tmp_path, "threads=1", f"home={tmp_path / 'home'}", "report=false")
    assert list((tmp_path / "home" / "teachers").glob("*/manifest.json"))
    assert again.keys() == first.keys()
    for key in first.keys() - {"cost", "reproduce", "files", "seal"}:
        assert again[key] == first[key], key


@pytest.mark.slow
def test_a_killed_grid_continues_and_ends_the_same(grid, tiny_overrides, tmp_path):
    """SIGKILL twice, each time after a further cell; then the same table as undisturbed, finished cells untouched."""
    arguments = [*tiny_overrides, "threads=1", AGENTS, "seeds=2", "jobs=1", f"cells={tmp_path / 'cells'}"]
    line = command(*arguments, folder=tmp_path / "run")
    for count in (1, 2):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "cells").glob("*/result.json"))) < count:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").glob("*/result.json")}
    subprocess.run(line, check=True, capture_output=True, timeout=500)
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    assert table_of(tmp_path / "run") == table_of(grid[0])


SWEEP = ("threads=1", "agents=[labels]")


@pytest.fixture(scope="module")
def local(tiny_overrides, tmp_path_factory):
    """The tables of a run that did everything itself: two seeds of one rule."""
    folder = tmp_path_factory.mktemp("local")
    arguments = [*tiny_overrides, *SWEEP, "seeds=2", f"cells={folder / 'cells'}"]
    subprocess.run(command(*arguments, folder=folder / "run"), check=True, capture_output=True, timeout=500)
    return table_of(folder / "run")


@pytest.fixture
def launcher(request):
    """Overrides that send a sweep's jobs elsewhere: submitit's local executor, or a Ray cluster of two nodes with a core each."""
    if request.param == "submitit":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
        yield ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
        return
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={cluster.address}"]
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit", "ray"], indirect=True)
def test_a_sweep_of_jobs_fills_the_cells_that_a_local_run_reads(launcher, local, tiny_overrides, tmp_path):
    """A job a seed; the table is that of a local run that did everything itself."""
    arguments = [*tiny_overrides, *SWEEP, f"cells={tmp_path / 'cells'}"]
    line = [sys.executable, str(ROOT / "agents/compare.py"), "-m", *launcher, *arguments, "seeds=1", "seed=0,1"]
    done = subprocess.run(
        [*line, f"hydra.sweep.dir={tmp_path / 'sweep'}"], capture_output=True, text=True, timeout=500, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").glob("*/result.json")}
    assert len(kept) == 4
    read = command(*arguments, "seeds=2", folder=tmp_path / "read")
    subprocess.run(read, check=True, capture_output=True, timeout=500)
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    assert table_of(tmp_path / "read") == local


@pytest.mark.slow
def test_one_failing_cell_does_not_stop_the_rest(tiny_overrides, tmp_path):
    """No teacher is film's specialist, so there is no oracle; the other cells run."""
    plain = [o for o in tiny_overrides if not o.startswith("teachers.pool")]
    pool = next(o for o in tiny_overrides if o.startswith("teachers.pool")).replace("pool: film", "pool: food")
    arguments = [*plain, pool, "threads=1", "agents=[oracle,labels]", "seeds=1", f"cells={tmp_path / 'cells'}"]
    done = subprocess.run(command(*arguments, folder=tmp_path / "run"), capture_output=True, text=True, timeout=500)
    assert done.returncode == 1
    assert "failed: oracle, seed 0: oracle: task=bundled" in done.stdout
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())["tables"]["test"]
    assert [r["agent"] for r in rows] == ["control", "labels"]


CELL = """
import os, signal, sys
from agents.experiment.grid import Cell
from distill.cache import sealed, write_json
from pathlib import Path
cell = Cell.from_json(sys.stdin.read())
if cell.entry == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if cell.entry == "stops":
    sys.exit(143)
if cell.entry == "breaks":
    raise ZeroDivisionError("a bug")
if cell.entry == "mistakes":
    print("a warning", "error: this and that", sep="\\n", file=sys.stderr)
    sys.exit(2)
Path(cell.folder).mkdir()
write_json(Path(cell.folder) / "result.json", sealed({"agent": cell.entry}))
"""


def test_a_process_that_fails_fails_only_its_cell(tiny_config, tmp_path, monkeypatch):
    """Killed, stopped, a bug, a user's mistake: each is reported in one line, and the other cells run."""
    settings = RunSettings.from_config(tiny_config())
    names = ("dies", "stops", "breaks", "mistakes", "lives")
    cells = [Cell(name, 0, settings, str(tmp_path / name), "") for name in names]
    (tmp_path / "stand_in.py").write_text(CELL)
    started = subprocess.Popen

    def stand_in(command: list[str], **options: Any) -> Any:
        assert command[1:] == ["-m", "agents.cell", str(os.getpid())]
        return started([sys.executable, str(tmp_path / "stand_in.py")], **options)

    monkeypatch.setattr(grid_module.subprocess, "Popen", stand_in)
    results, errors = run_grid(cells, 1)
    assert [r["agent"] for r in results] == ["lives"]
    assert errors == {
        "dies, seed 0": "its process died (signal 9; killed, or out of memory)",
        "stops, seed 0": "its process was told to stop; start the comparison again to continue",
        "breaks, seed 0": f"ZeroDivisionError: a bug (traceback in {tmp_path / 'breaks' / 'error.txt'})",
        "mistakes, seed 0": "this and that",
    }
    assert "Traceback" in (tmp_path / "breaks" / "error.txt").read_text()


def test_cells_run_at_the_same_time(tiny_config, tmp_path, monkeypatch):
    """Never more than `jobs`."""
    settings = RunSettings.from_config(tiny_config())
    cells = [Cell(f"c{i}", 0, settings, str(tmp_path / f"c{i}"), "") for i in range(5)]
    (tmp_path / "stand_in.py").write_text(CELL)
    started, counts = subprocess.Popen, []
    running: list[Any] = []

    def stand_in(command: list[str], **options: Any) -> Any:
        running.append(started([sys.executable, str(tmp_path / "stand_in.py")], **options))
        counts.append(sum(p.returncode is None for p in running))
        return running[-1]

    monkeypatch.setattr(grid_module.subprocess, "Popen", stand_in)
    results, errors = run_grid(cells, 2)
    assert [r["agent"] for r in results] == [c.entry for c in cells]
    assert not errors
    assert max(counts) == 2


def test_a_cell_goes_through_its_text_unchanged(tiny_config, tiny_overrides):
    for cell in planned(tiny_config, tiny_overrides, "reinforce agent.lr=0.3", "ppo", "single"):
        assert Cell.from_json(cell.to_json()) == cell
