"""The documentation agrees with the code: tables, generated pages, links, names of tests, keys of results."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import yaml

from distill import __version__
from distill.settings import PARTS, ObservationSettings, RunSettings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


PAGE = read("docs/env.md")


def rows(heading: str, page: str = PAGE) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- the environment's page -------------------------------------------------------------------------------------------


def test_observation_table(prepared, tiny_config) -> None:
    from distill.process import Distillation
    from envs.observations import Observation, parts_of

    process = Distillation(RunSettings.from_config(tiny_config()))
    table = {cells[0].strip("`"): cells for cells in rows("Observation")}
    assert tuple(table) == PARTS
    default = parts_of(ObservationSettings(), process)
    assert [p for p in PARTS if table[p][4] == "yes"] == default
    observation = Observation(ObservationSettings(parts=list(PARTS)), process)
    sizes = {"K": process.num_teachers, "C": process.task.num_classes, "D": process.signals.width, "1": 1}
    for part, (_, width, low, high, *_rest) in table.items():
        where = observation.layout[part]
        assert where.stop - where.start == np.prod([sizes[f] for f in width.split("*")]), part
        assert (observation.space.low[where] == float(low)).all(), part
        assert (observation.space.high[where] == float(high)).all(), part


def test_reward_table() -> None:
    from envs.rewards import REWARDS

    assert tuple(re.match(r"`(\w+)`", cells[0]).group(1) for cells in rows("Reward")) == tuple(REWARDS)


def test_credit_tables() -> None:
    from envs.credit import CREDITS

    for page in (PAGE, read("docs/credit.md").replace("# Credit\n", "\n## Credit\n", 1)):
        named = {cells[0].strip("`").removesuffix("` (default)") for cells in rows("Credit", page)} - {"auto"}
        assert named == set(CREDITS)


def test_info_table(tiny_overrides) -> None:
    import gymnasium as gym

    import envs  # noqa: F401

    named = {name for cells in rows("Info") for name in re.findall(r"`(\w+)`", cells[0])}
    seen: set[str] = set()
    for credit in ("shared", "influence", "counterfactual"):
        for make, batch in ((gym.make, None), (gym.make_vec, 8)):
            more = {} if batch is None else {"num_envs": batch}
            env = make("TeacherSelect-v0", overrides=[*tiny_overrides, f"credit.name={credit}"], **more)
            env.reset(seed=0)
            done = False
            while not done:
                _, _, terminated, _, info = env.step(env.action_space.sample())
                seen |= {key for key in info if not key.startswith("_")}
                done = bool(np.all(terminated))
    assert seen <= named
    assert named - seen == {"failure"}  # tests/test_numbers.py


def test_argument_table() -> None:
    from envs.teacher_select import TeacherSelectEnv, TeacherSelectVectorEnv

    named = [name for cells in rows("Arguments") for name in re.findall(r"`(\w+)`", cells[0])]
    single, vector = (
        set(inspect.signature(c.__init__).parameters) - {"self"} for c in (TeacherSelectEnv, TeacherSelectVectorEnv)
    )
    assert set(named) == single | vector
    only_vector = {re.findall(r"`(\w+)`", c[0])[0] for c in rows("Arguments") if c[2].startswith("vector form only")}
    assert only_vector == vector - single


def test_noise_table() -> None:
    measured = json.loads((RESULTS / "noise.json").read_text())
    for cells, name in zip(rows("Noise"), ("return", "dev_accuracy"), strict=True):
        row = measured[name]
        shown = [row["mean"], row["std"], row["detectable"]["5"], row["detectable"]["10"]]
        assert cells[1:] == [f"{value:.4f}" for value in shown]


# --- generated pages --------------------------------------------------------------------------------------------------


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_result_tables_are_those_of_the_committed_files() -> None:
    assert run("benchmarks/tables.py", "--check").returncode == 0, "a page is out of date: python benchmarks/tables.py"
    pages = read("docs/results-appendix.md") + read("docs/performance.md")
    named = set(re.findall(r"<!-- (?:table|selector): (\S+) -->", pages))
    comparisons = [p for p in RESULTS.glob("*.json") if "tables" in json.loads(p.read_text())]
    assert named == {p.name for p in comparisons}


def test_the_results_page_is_one_page() -> None:
    """A reader finishes it: few words, few tables, and every table is generated or is the summary of claims."""
    page = read("docs/results.md")
    assert len(page.split()) < 1700
    assert page.count("<!-- end -->") == 6
    assert not re.search(r"reproduce|```", page)


def test_the_configuration_page_is_generated() -> None:
    assert run("docs/generate.py", "--check").returncode == 0, "docs/configuration.md is out of date: docs/generate.py"


def settings_of(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """Full names of all settings with a section of their own type."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_the_configuration_page_names_every_setting() -> None:
    page = read("docs/configuration.md")
    missing = [name for name in settings_of(RunSettings) if f"| `{name}` |" not in page]
    assert not missing


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed (extra dev)")
def test_the_site_builds(tmp_path: Path) -> None:
    """No page is missing from the menu, and no link or anchor leads nowhere."""
    done = run("-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    assert not list((tmp_path / "site").rglob("*.py"))


# --- names in the pages -----------------------------------------------------------------------------------------------


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_promise_names_a_test() -> None:
    promises = [
        line
        for line in read("docs/reliability.md").partition("## Architectures")[0].splitlines()
        if line.startswith("| ") and not line.startswith("| Promise")
    ]
    assert len(promises) > 30
    for row in promises:
        named = re.findall(r"`((?:tests/\S+)?)::(test_\w+)`", row.split("|")[2])
        assert named, row
        path = ""
        for given, test in named:
            path = given or path
            assert test in functions(ROOT / path), f"{path}::{test}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/how-to/extend.md"])
def test_every_way_to_extend_names_a_test(page: str) -> None:
    named = re.findall(r"`(test_add_\w+)`", read(page))
    assert len(named) == len(set(named)) == 9
    assert set(named) <= functions(ROOT / "tests" / "test_extend.py")


def keys_of(value: Any, skip: tuple[str, ...] = ()) -> set[str]:
    """All keys of nested groups, and of the first entry of lists."""
    if isinstance(value, dict):
        return set(value) | {k for name, v in value.items() if name not in skip for k in keys_of(v, skip)}
    return keys_of(value[0], skip) if isinstance(value, list) and value else set()


@pytest.mark.parametrize("name", ["mrpc-cpu", "study-bundled"])
def test_every_key_of_a_result_is_explained(name: str) -> None:
    page = read("docs/results-json.md")
    missing = {key for key in keys_of(json.loads((RESULTS / f"{name}.json").read_text())) if f"`{key}`" not in page}
    assert not missing


def markdown() -> list[str]:
    pages = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
    return pages + sorted(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", markdown())
def test_links_lead_to_files(page: str) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(page)):
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link


OLD = re.compile(
    r"\b(agent\.credit|agent\.pull|reward\.(credit|center|method|horizon|direction_\w+)|experiment=paper/|fitted: true|probs:)"
)
HISTORY = ("CHANGELOG.md", "docs/results-appendix.md")  # they say what the old names were


@pytest.mark.parametrize("page", [p for p in markdown() if p not in HISTORY])
def test_no_old_name_is_used(page: str) -> None:
    text = re.sub(r"<!-- \w+: [^\n]+ -->\n.*?<!-- end -->", "", read(page), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if OLD.search(line)]
    renamed = [line for line in lines if "is now called" not in line and "0.1" not in line]
    assert not renamed


# --- the project's own facts ------------------------------------------------------------------------------------------


def test_the_version_is_written_once() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version", "readme"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "distill.__version__"}
    base = re.match(r"\d+\.\d+\.\d+", __version__)
    assert base is not None
    assert f"## {base[0]} (" in read("CHANGELOG.md")
    assert "version:" not in read("CITATION.cff").replace("cff-version:", "")


def test_the_outward_files_can_be_read() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2012.06048"
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))
    assert {"run": "make test"} in workflow["jobs"]["test"]["steps"]
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text(encoding="utf-8"))
