"""The order of the packages and their modules, names that must not shadow libraries, complexity, configuration groups."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from configs import compose
from distill.checks import UserError
from distill.settings import RunSettings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "distill", "envs", "agents")  # each may import those before it
LIBRARIES = {  # what a package must not import from outside
    "configs": {"torch", "transformers", "gymnasium", "stable_baselines3", "sb3_contrib"},
    "distill": {"gymnasium", "gym", "stable_baselines3", "sb3_contrib"},
    "envs": {"sb3_contrib"},
    "agents": set(),
}
# The order within each package: a module imports only those above it. A new module is added where it belongs.
ORDER = """
configs.errors configs

distill distill.checks distill.settings distill.state distill.parallel distill.cache
distill.data distill.data.metrics distill.data.splits distill.data.tables distill.data.tokens
distill.data.bundled distill.data.glue distill.data.load
distill.losses
distill.models distill.models.engine distill.models.loading distill.models.fast distill.models.build
distill.student
distill.teachers distill.teachers.signals distill.teachers.live distill.teachers.store distill.teachers.encoders
distill.teachers.checkpoint distill.teachers.predictions distill.teachers.finetune distill.teachers.sources
distill.process
distill.teachers.__main__

envs envs.registry envs.rewards envs.credit envs.observations envs.core envs.rendering envs.teacher_select
envs.wrappers envs.sb3

agents
agents.experiment agents.experiment.interrupts agents.experiment.checkpoints agents.experiment.help agents.experiment.launch
agents.experiment.runs agents.experiment.grid agents.experiment.stats agents.experiment.tables
agents.experiment.report agents.experiment.report.chart agents.experiment.report.charts agents.experiment.report.drawing
agents.experiment.report.page
agents.rules agents.reinforce agents.sb3 agents.cell agents.compare
""".split()  # noqa: SIM905


def module_name(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(f): f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, wherever in it; `a.b` and `a.b.c` for `from a.b import c`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


def own_imports(module: str) -> set[str]:
    """The project's modules that a module imports. A package counts only where it is imported itself."""
    names = imported(MODULES[module])
    found = {n for n in names if n in MODULES} - {module}
    # `from a.b import c` with a module a.b.c runs a.b/__init__.py too, which holds no code here but in `configs`.
    return {n for n in found if not any(other.startswith(f"{n}.") and other in found for other in names)}


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    lines = ["import a.b", "def f():", "    from c.d import e", "import_module('g.h')", "__import__('i')"]
    (tmp_path / "m.py").write_text("\n".join(lines))
    assert imported(tmp_path / "m.py") == {"a.b", "c.d", "c.d.e", "g.h", "i"}
    (tmp_path / "m.py").write_text("from . import x")
    with pytest.raises(AssertionError, match="a relative import"):
        imported(tmp_path / "m.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    allowed = {*PACKAGES[: PACKAGES.index(package) + 1]}
    for name, path in MODULES.items():
        if name.split(".")[0] == package:
            seen = {n.split(".")[0] for n in imported(path)}
            assert not seen & ({*PACKAGES} - allowed), name
            assert not seen & LIBRARIES[package], name
            assert not seen & {"tests", "benchmarks", "docs"}, name


def test_modules_import_only_those_above_them() -> None:
    assert sorted(ORDER) == sorted(MODULES), "ORDER must name every module once"
    place = {name: i for i, name in enumerate(ORDER)}
    upward = [(m, other) for m in MODULES for other in own_imports(m) if place[other] > place[m]]
    assert not upward


def test_what_scripts_share_knows_no_agent() -> None:
    for name in MODULES:
        if name.startswith("agents.experiment"):
            others = {n for n in imported(MODULES[name]) if n.startswith("agents.")}
            assert all(n.startswith("agents.experiment") for n in others), name


def test_there_is_no_import_circle() -> None:
    """The order above implies it; this one does not depend on a list."""
    left = {name: own_imports(name) for name in MODULES}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_too_complex(package: str) -> None:
    """Cyclomatic complexity of at most 20: radon's ranks A, B and C."""
    complexity = pytest.importorskip("radon.complexity", reason="radon is in the extra 'dev'")
    blocks = {
        f"{name}.{block.name}": block.complexity
        for name, path in MODULES.items()
        if name.split(".")[0] == package
        for block in complexity.cc_visit(path.read_text(encoding="utf-8"))
    }
    assert blocks
    assert {name: value for name, value in blocks.items() if complexity.cc_rank(value) not in "ABC"} == {}


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_registration_is_cheap() -> None:
    seen = loaded("import envs")
    assert "gymnasium" in seen
    assert not seen & {"torch", "transformers", "stable_baselines3", "datasets", "distill"}


def test_distill_loads_no_reinforcement_learning() -> None:
    seen = loaded("import distill.process")
    assert "transformers" in seen
    assert not seen & {"gymnasium", "stable_baselines3", "envs", "agents"}


def test_no_agent_is_named_as_a_library() -> None:
    """`python agents/x.py` puts agents/ first on sys.path: a file there would stand in for the library of its name."""
    own = {p.stem for p in (ROOT / "agents").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {
        "__init__"
    }
    ours = {"agents", "configs", "distill", "envs"}
    libraries = {n for n in importlib.metadata.packages_distributions() if n not in ours}
    assert {"torch", "numpy", "gymnasium"} <= libraries
    assert own
    assert not own & (set(sys.stdlib_module_names) | libraries | ours)


# --- configuration groups ---------------------------------------------------------------------------------------------

CONFIGS = ROOT / "configs"
OPTIONS = sorted(str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml") if p.parent != CONFIGS)
# Options that are of no use without something of the user's own, and what they ask for.
INCOMPLETE = {
    "student/checkpoint": "student.path",
    "student/path": "student.path",
    "student/truncate": "student.path",
    "teachers/own": "teachers.pool is empty",
}


def test_the_groups() -> None:
    groups = {o.split("/")[0] for o in OPTIONS}
    assert groups >= {"task", "teachers", "student", "agent", "reward", "observation", "experiment"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str) -> None:
    group, _, name = option.rpartition("/") if option.startswith("hydra/") else option.partition("/")
    config = compose([f"{group}={name}"])
    if group in ("task", "student", "agent", "reward", "teachers"):
        assert config[group]["name"] == name
    if option in INCOMPLETE:
        with pytest.raises(UserError, match=INCOMPLETE[option]):
            RunSettings.from_config(config)
    else:
        settings = RunSettings.from_config(config)
        assert settings.teachers.pool
