"""docs/env.md says what the code does: its tables are compared with the spaces, the rewards and the signatures."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from envs.observations import PARTS, Observation, ObservationSettings
from envs.rewards import REWARDS
from envs.teacher_select import TeacherSelectEnv, TeacherSelectVectorEnv

PAGE = (Path(__file__).parents[1] / "docs" / "env.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_observation_table(prepared, tiny_config) -> None:
    from distill.process import Distillation
    from distill.settings import ProcessSettings

    process = Distillation(ProcessSettings.from_config(tiny_config()))
    table = {cells[0].strip("`"): cells for cells in rows("Observation")}
    assert tuple(table) == PARTS
    default = ObservationSettings().parts
    assert [p for p in PARTS if table[p][4] == "yes"] == default
    observation = Observation(ObservationSettings(parts=list(PARTS)), process)
    sizes = {"K": process.num_teachers, "C": process.task.num_classes, "D": process.signals.width, "1": 1}
    for part, (_, width, low, high, *_rest) in table.items():
        where = observation.layout[part]
        assert where.stop - where.start == np.prod([sizes[f] for f in width.split("*")]), part
        assert (observation.space.low[where] == float(low)).all(), part
        assert (observation.space.high[where] == float(high)).all(), part


def test_reward_table() -> None:
    assert tuple(re.match(r"`(\w+)`", cells[0]).group(1) for cells in rows("Reward")) == REWARDS


def test_argument_table() -> None:
    named = [name for cells in rows("Arguments") for name in re.findall(r"`(\w+)`", cells[0])]
    single, vector = (
        set(inspect.signature(c.__init__).parameters) - {"self"} for c in (TeacherSelectEnv, TeacherSelectVectorEnv)
    )
    assert set(named) == single | vector
    only_vector = {re.findall(r"`(\w+)`", c[0])[0] for c in rows("Arguments") if c[2].startswith("vector form only")}
    assert only_vector == vector - single


def test_noise_table() -> None:
    measured = json.loads((Path(__file__).parents[1] / "benchmarks/results/noise.json").read_text())
    for cells, name in zip(rows("Noise"), ("return", "dev_accuracy"), strict=True):
        row = measured[name]
        shown = [row["mean"], row["std"], row["detectable"]["5"], row["detectable"]["10"]]
        assert cells[1:] == [f"{value:.4f}" for value in shown]


def test_result_tables_are_those_of_the_committed_files() -> None:
    root = Path(__file__).parents[1]
    checked = subprocess.run([sys.executable, str(root / "benchmarks/tables.py"), "--check"], check=False)
    assert checked.returncode == 0, "docs/results.md is out of date: python benchmarks/tables.py"
    pages = "".join((root / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("results", "performance"))
    named = set(re.findall(r"<!-- table: (\S+) -->", pages))
    comparisons = [p for p in (root / "benchmarks/results").glob("*.json") if "tables" in json.loads(p.read_text())]
    assert named == {p.name for p in comparisons}


def test_every_promise_names_a_test() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs/reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| Promise")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`((?:tests/\S+)?)::(test_\w+)`", row.split("|")[2])
        assert named, row
        path = ""
        for given, test in named:
            path = given or path
            assert f"def {test}(" in (root / path).read_text(encoding="utf-8"), f"{path}::{test}"
