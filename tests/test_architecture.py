"""The direction of travel between the packages, names that must not shadow libraries, and the configuration groups."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from configs import compose
from distill.checks import UserError
from distill.settings import RunSettings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "distill", "envs", "agents")  # each may import those before it, and no other
LIBRARIES = {
    "distill": {"gymnasium", "gym", "stable_baselines3", "sb3_contrib"},
    "configs": {"gymnasium", "stable_baselines3", "torch", "transformers"},
}
# The order inside each package: a module imports only from its own group (without a circle) and from those before it.
ORDER = {
    "configs": (("configs.errors",), ("configs",)),
    "distill": (
        ("distill", "distill.checks"),
        ("distill.settings", "distill.parallel", "distill.progress"),
        ("distill.state", "distill.cache", "distill.hub"),
        ("distill.prune",),
        ("distill.data",),
        ("distill.losses", "distill.models"),
        ("distill.student",),
        ("distill.teachers",),
        ("distill.selection",),
        ("distill.process",),
        ("distill.preflight", "distill.card"),
        ("distill.predict",),
        ("distill.export",),
        ("distill.teachers.__main__",),
    ),
    "envs": (
        ("envs", "envs.family", "envs.registry", "envs.actions"),
        ("envs.rewards", "envs.observations"),
        ("envs.credit",),
        ("envs.core",),
        ("envs.rendering", "envs.arguments", "envs.wrappers", "envs.sb3"),
        ("envs.labels",),
        ("envs.teacher_select",),
        ("envs.leaderboard",),
    ),
    "agents": (
        ("agents", "agents.experiment"),
        ("agents.rules",),
        ("agents.evaluate", "agents.reinforce", "agents.sb3"),
        ("agents.cell",),
        ("agents.compare",),
    ),
}


def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    out = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in it the imports are; `from a import b` gives `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


def arrows() -> dict[str, set[str]]:
    """The product's modules that each module imports."""
    known = modules()
    return {name: {i for i in imported(path) if i in known and i != name} for name, path in known.items()}


def rank(module: str) -> int:
    """The place of a module in the order of its package."""
    groups = ORDER[module.partition(".")[0]]
    best = max(
        ((len(name), i) for i, group in enumerate(groups) for name in group if f"{module}.".startswith(f"{name}.")),
        default=None,
    )
    assert best is not None, f"{module} has no place in ORDER"
    return best[1]


def test_packages_import_in_one_direction() -> None:
    wrong = [
        (name, other)
        for name, others in arrows().items()
        for other in others
        if PACKAGES.index(other.partition(".")[0]) > PACKAGES.index(name.partition(".")[0])
    ]
    assert wrong == []
    assert not [
        m for m, others in arrows().items() if m.startswith("configs") for o in others if not o.startswith("configs")
    ]


@pytest.mark.parametrize("package", LIBRARIES)
def test_packages_leave_libraries_alone(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = {str(f): sorted({i.partition(".")[0] for i in imported(f)} & LIBRARIES[package]) for f in files}
    assert files
    assert {f: w for f, w in wrong.items() if w} == {}


def test_modules_import_in_one_direction() -> None:
    wrong = [
        (name, other)
        for name, others in arrows().items()
        for other in others
        if other.partition(".")[0] == name.partition(".")[0] and rank(other) > rank(name)
    ]
    assert wrong == []
    inside = [i for m, p in modules().items() if m.startswith("agents.experiment") for i in imported(p)]
    assert not [i for i in inside if i.startswith("agents.") and not i.startswith("agents.experiment")]


def test_there_is_no_circle() -> None:
    graph = arrows()
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(graph)


def test_no_block_is_too_complex() -> None:
    """Radon's grade D and worse means more than 20 paths through a function."""
    from radon.complexity import cc_rank, cc_visit

    blocks = [(m, b) for m, p in modules().items() for b in cc_visit(p.read_text(encoding="utf-8"))]
    assert len(blocks) > 300
    assert [f"{m}.{b.name}: {b.complexity}" for m, b in blocks if cc_rank(b.complexity) > "C"] == []


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    lines = ["import a.b", "def f():", "    from c.d import e", "import_module('g.h')", "__import__('i')"]
    (tmp_path / "m.py").write_text("\n".join(lines))
    assert imported(tmp_path / "m.py") == {"a.b", "c.d", "c.d.e", "g.h", "i"}


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
    """`python agents/x.py` puts agents/ first on sys.path: a file there would shadow the library of its name."""
    own = {p.stem for p in (ROOT / "agents").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {
        "__init__"
    }
    ours = {"agents", "configs", "distill", "envs", "teacher_select"}
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
