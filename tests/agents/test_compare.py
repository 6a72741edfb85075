"""agents/compare.py: cells are found again, failures stay alone, and the table says what the cells hold."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_helpers import AGENTS, ROOT, command

from agents import compare
from agents.experiment import stats
from distill.checks import UserError


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
    control, a, late = compare.summarise(results, "test")
    pair = stats.paired(np.array(ours), np.array(theirs))
    assert a["difference_accuracy"]["mean"] == pytest.approx(pair.mean)
    assert a["difference_accuracy"]["interval"] == pytest.approx(pair.interval)
    assert a["difference_loss"]["mean"] == pytest.approx(-0.1)
    assert a["improvement"] == 1.0
    assert a["p_holm"] == pytest.approx(pair.p)  # the only one with a p
    assert "difference_accuracy" not in control
    assert late["difference_accuracy"] == {"mean": pytest.approx(-0.6), "interval": None, "p": None}
    compare.print_rows([control, a, late], "a title")
    assert "a title" in capsys.readouterr().out
    compare.write_csv(tmp_path / "t.csv", [control, a, late])
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [line["agent"] for line in lines] == ["control", "a", "late"]
    assert float(lines[1]["difference_accuracy_low"]) == pytest.approx(pair.interval[0])


# --- the plan ---------------------------------------------------------------------------------------------------------


def planned(tiny_config, overrides, *agents: str, seeds: int = 1, cells: str = "cells") -> list[compare.Cell]:
    settings = compare.CompareSettings(agents=list(agents), seeds=seeds, cells=cells)
    return compare.plan(settings, tiny_config(*overrides), [*overrides])


def test_control_is_always_there_and_singles_are_spelt_out(tiny_config, tiny_overrides):
    entries = [c.entry for c in planned(tiny_config, tiny_overrides, "single", "labels", "labels")]
    assert entries == ["control", "single:film", "single:food", "single:hotel", "single:electronics", "labels"]


def test_a_cell_is_named_by_all_it_depends_on(tiny_config, tiny_overrides):
    def folders(*more: str, agent: str = "reinforce") -> list[str]:
        return [c.folder for c in planned(tiny_config, [*tiny_overrides, *more], agent)]

    control, learnt = folders()
    assert folders() == [control, learnt]
    assert folders("reward.every=3")[0] == control  # a fixed rule earns no reward
    assert folders("reward.every=3")[1] != learnt
    assert folders("student.lr=0.1")[0] != control
    assert folders("home=/elsewhere") == [control, learnt]
    assert folders(agent="reinforce agent.lr=0.3")[1] != learnt


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (["reinfroce"], "agents: entry=reinfroce is not known.*did you mean reinforce"),
        (["single:hotels"], "single: teacher=hotels"),
        (["ppo agent.pull=1"], "agent.pull is not a known setting"),
        (["reinforce agent.credit=each"], "agent.credit=each"),
        ([" "], "empty entry"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tiny_config, tiny_overrides, agents, message):
    with pytest.raises(UserError, match=message):
        planned(tiny_config, tiny_overrides, *agents)


def test_an_agents_settings_belong_into_its_entry(tiny_config, tiny_overrides):
    with pytest.raises(UserError, match=r"agent\.lr=1: give an agent's settings within its entry"):
        planned(tiny_config, [*tiny_overrides, "agent.lr=1"], "reinforce")


# --- whole grids ------------------------------------------------------------------------------------------------------


def tables(folder: Path) -> dict:
    found = json.loads((folder / "comparison.json").read_text())["tables"]
    for rows in found.values():
        for row in rows:
            row.pop("train_s")
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


def run_again(cell: dict[str, Any], folder: Path, *more: str) -> dict[str, Any]:
    """The result of a cell's own line, run in a folder of its own."""
    words = shlex.split(cell["reproduce"])
    assert words[:2] == ["python", "agents/compare.py"]
    arguments = [*words[2:], f"cells={folder / 'cells'}", *more]
    subprocess.run(command(*arguments, folder=folder / "run"), check=True, capture_output=True, timeout=500)
    pattern = f"{cell['agent'].split()[0]}-seed{cell['seed']}-*/result.json"
    result: dict[str, Any] = json.loads(next((folder / "cells").glob(pattern)).read_text())
    return result


def test_a_cells_line_gives_the_cell_again(grid, tiny_overrides, tmp_path):
    _, cells = grid
    first = json.loads(next(cells.glob("reinforce-seed1-*/result.json")).read_text())
    again = run_again(first, tmp_path, "threads=1")
    for key in ("dev", "test", "selection", "curve", "selection_curve"):
        assert again[key] == first[key]


def test_a_committed_cell_comes_out_again(tmp_path):
    """From an empty cache by its own line. To the digit on the kind of processor it was measured on; others round otherwise."""
    study = json.loads((ROOT / "benchmarks/results/study-bundled.json").read_text(encoding="utf-8"))
    first = next(c for c in study["cells"] if c["agent"] == "labels" and c["seed"] == 1)
    again = run_again(first, tmp_path, f"home={tmp_path / 'home'}", "report=false")
    assert again["selection"] == first["selection"]
    assert again["test"]["loss"] == pytest.approx(first["test"]["loss"], abs=0.03)
    assert again["test"]["accuracy"] == pytest.approx(first["test"]["accuracy"], abs=0.02)


def test_a_killed_grid_goes_on_and_ends_alike(grid, tiny_overrides, tmp_path):
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
    assert tables(tmp_path / "run") == tables(grid[0])


SWEEP = ("threads=1", "agents=[labels]")


@pytest.fixture(scope="module")
def local(tiny_overrides, tmp_path_factory):
    """The tables of a run that did everything itself: two seeds of one rule."""
    folder = tmp_path_factory.mktemp("local")
    arguments = [*tiny_overrides, *SWEEP, "seeds=2", f"cells={folder / 'cells'}"]
    subprocess.run(command(*arguments, folder=folder / "run"), check=True, capture_output=True, timeout=500)
    return tables(folder / "run")


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
    assert tables(tmp_path / "read") == local


def test_one_failing_cell_does_not_stop_the_rest(tiny_overrides, tmp_path):
    """No specialist for film, so the oracle knows nobody there; the others run."""
    plain = [o for o in tiny_overrides if not o.startswith("teachers.pool")]
    pool = next(o for o in tiny_overrides if o.startswith("teachers.pool")).replace("pool: film", "pool: food")
    arguments = [*plain, pool, "threads=1", "agents=[oracle,labels]", "seeds=1", f"cells={tmp_path / 'cells'}"]
    done = subprocess.run(command(*arguments, folder=tmp_path / "run"), capture_output=True, text=True, timeout=500)
    assert done.returncode == 1
    assert "failed: oracle, seed 0: oracle: task=bundled" in done.stdout
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())["tables"]["test"]
    assert [r["agent"] for r in rows] == ["control", "labels"]


def test_a_worker_that_dies_takes_only_its_cell(tmp_path, monkeypatch):
    cells = [compare.Cell(name, 0, {}, str(tmp_path / name), "") for name in ("dies", "lives")]
    monkeypatch.setattr(compare, "_attempt", _stand_in)
    results, errors = compare.run_grid(cells, 1)
    assert [r["agent"] for r in results] == ["lives"]
    assert "its process died" in errors["dies, seed 0"]


def _stand_in(cell: compare.Cell) -> dict:
    if cell.entry == "dies":
        import os

        os.kill(os.getpid(), signal.SIGKILL)
    return {"agent": cell.entry}
