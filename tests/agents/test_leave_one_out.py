"""Which teacher matters: `leave_one_out`, the teachers' own scores, and what is chosen for each class."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agents import compare
from agents.cell import run_cell
from agents.experiment import launch, stats, teachers
from agents.experiment.details import pooled
from agents.experiment.report import page
from distill.checks import UserError
from distill.process import Prepared
from distill.settings import CompareSettings, RunSettings

FAST = "agent.start=all_on agent.episodes=1 agent.warmup=0"


def plan(tiny_config, tiny_overrides, folder, *agents: str, seeds: int = 1):
    settings = CompareSettings(agents=list(agents), seeds=seeds, cells=str(folder))
    return compare.plan(settings, RunSettings.from_config(tiny_config()), [*tiny_overrides, "threads=1"])


@pytest.fixture(scope="module")
def done(tiny_config, tiny_overrides, tmp_path_factory):
    """Cells of a comparison with two of the four teachers left out in turn, run in this process."""
    cells = plan(tiny_config, tiny_overrides, tmp_path_factory.mktemp("cells"), f"leave_one_out {FAST}")
    kept = [c for c in cells if c.name not in ("without:hotel", "without:electronics")]
    results = [json.loads(json.dumps(run_cell(cell))) for cell in kept]
    hydra = SimpleNamespace(overrides=SimpleNamespace(task=[]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "HydraConfig", SimpleNamespace(get=lambda: hydra))
        patch.setattr(launch, "config_dir", list)
        return kept, results, compare.compared(kept, results, {})


def test_one_word_stands_for_all_pools(tiny_config, tiny_overrides, tmp_path):
    cells = plan(tiny_config, tiny_overrides, tmp_path, "leave_one_out agent.lr=0.3", "reinforce agent.lr=0.3")
    names = ("film", "food", "hotel", "electronics")
    assert [c.entry for c in cells] == [
        "control",
        "reinforce agent.lr=0.3",
        *(f"without:{name} agent.lr=0.3" for name in names),
    ]
    for cell, left_out in zip(cells[2:], names, strict=True):
        assert [t.name for t in cell.settings.teachers.pool] == [n for n in names if n != left_out]
        assert cell.settings.agent.lr == 0.3
    assert len({c.folder for c in cells}) == len(cells)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("without:hotels", "without: teacher=hotels is not known.*hotel"),
        ("without:film agent.pull=1", "agent.pull is not a known setting"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(tiny_config, tiny_overrides, tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        plan(tiny_config, tiny_overrides, tmp_path, entry)


def test_a_pool_of_one_teacher_is_refused():
    with pytest.raises(UserError, match="leave_one_out needs at least two teachers, the pool has 1"):
        compare._expanded("leave_one_out", ["only"])


def test_cells_learn_from_the_smaller_pool(done):
    _, results, comparison = done
    by_agent = {r["agent"].split()[0]: r for r in results}
    assert by_agent["without:film"]["teachers"] == ["food", "hotel", "electronics"]
    assert len(by_agent["without:film"]["selection"]["rate"]) == 3
    assert by_agent["without:film"]["test"] != by_agent["reinforce"]["test"]
    assert comparison["teachers"] == ["film", "food", "hotel", "electronics"]


def test_what_a_teacher_adds_is_a_paired_difference(done, capsys):
    _, results, comparison = done
    full, *rest = [dict(r) for r in results if r["agent"].startswith(("reinforce", "without:"))]
    assert [row["teacher"] for row in comparison["leave_one_out"]["test"]] == ["film", "food"]
    for row, left in zip(comparison["leave_one_out"]["test"], rest, strict=True):
        gain = full["test"]["accuracy"] - left["test"]["accuracy"]
        assert row["difference_accuracy"]["mean"] == pytest.approx(gain)
        assert row["difference_accuracy"]["interval"] is None, "one seed"
    # Two seeds: the interval is that of the paired differences.
    more = [{**r, "seed": 1, "test": {k: v + 0.1 * (r is full) for k, v in r["test"].items()}} for r in (full, *rest)]
    first = teachers.left_out_teachers([full, *rest, *more], "test")[0]
    ours, theirs = ([r["test"]["accuracy"] for r in pair] for pair in ((full, more[0]), (rest[0], more[1])))
    assert first["difference_accuracy"]["interval"] == pytest.approx(
        stats.paired(np.array(ours), np.array(theirs)).interval
    )
    teachers.print_left_out([first], "accuracy")
    assert capsys.readouterr().out.startswith("teacher film adds ")


def test_the_teachers_own_scores_are_in_the_comparison(done, prepared, capsys):
    _, _, comparison = done
    expected = prepared.teacher_scores(("dev", "test"))
    assert comparison["teacher_scores"] == json.loads(json.dumps(expected))
    assert [row["name"] for row in expected][-1] == "ensemble"
    teachers.print_teachers(comparison)
    out = capsys.readouterr().out
    assert f"{expected[0]['test']['accuracy']:.4f}" in out
    assert "ensemble" in out


def test_selection_by_class_and_teacher(done):
    cells, _, comparison = done
    row = next(r for r in comparison["tables"]["test"] if r["agent"].startswith("without:film"))
    cell = next(c for c in cells if c.entry == row["agent"])
    labels = Prepared.of(cell.settings).task.splits["train"].labels
    last = np.load(f"{cell.folder}/choices.npz")["last"].astype(float)
    for c, rates in enumerate(row["rate_by_class"].values()):
        assert rates == pytest.approx(last[(labels == c) & (last >= 0).all(1)].mean(0))
    assert row["teachers"] == ["food", "hotel", "electronics"]


def test_errors_of_all_seeds_are_added_up(done):
    _, results, comparison = done
    found: dict[str, Any] = comparison["details"]["test"]["control"]
    assert np.sum(found["confusion"]) == sum(bin["count"] for bin in found["reliability"]) == 80
    twice = [results[0], {**results[0], "seed": 1}]
    both = pooled(twice, "test")["control"]
    assert np.array_equal(both["confusion"], 2 * np.array(found["confusion"]))
    assert both["macro"] == pytest.approx(found["macro"])
    assert [b["accuracy"] for b in both["reliability"]] == pytest.approx([b["accuracy"] for b in found["reliability"]])


def test_the_report_shows_smaller_pools(done, prepared, tmp_path):
    pytest.importorskip("jinja2", reason="needs the extra report")
    pytest.importorskip("matplotlib", reason="needs the extra report")
    cells, results, comparison = done
    places = {(c.entry, c.seed): Path(c.folder) for c in cells}
    key = next(k for k in places if k[0].startswith("without:film"))
    arrays = dict(np.load(places[key] / "choices.npz"))
    arrays["last"][:, 0] = 0  # food is never chosen: else this policy takes all teachers, and has no figure
    places[key] = tmp_path
    np.savez(tmp_path / "choices.npz", **arrays)
    text = page.write(tmp_path / "report", comparison, results, places, prepared).read_text()
    rates = pd.read_csv(tmp_path / "report" / "selection-class.csv")
    left_out = rates[rates["agent"].str.startswith("without:film")]
    assert set(left_out["teacher"]) == {"food", "hotel", "electronics"}
    assert set(left_out[left_out["rate"] == 0]["teacher"]) == {"food"}
    assert "how many" in text, "what a teacher adds is explained"
