"""The direction of travel between the packages, names that must not shadow libraries, and the configuration groups."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from configs import compose
from distill.checks import UserError
from distill.settings import ProcessSettings

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "distill": {"envs", "agents", "gymnasium", "gym", "stable_baselines3", "sb3_contrib"},
    "envs": {"agents"},
    "configs": {"envs", "agents"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of every absolute import in a file, wherever in it they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}: a relative import leaves its package"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {str(a.value).split(".")[0] for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_directions(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): sorted(imported(f) & FORBIDDEN[package]) for f in files}
    assert {f: w for f, w in wrong.items() if w} == {}


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    lines = [
        "import a.b",
        "def f():",
        "    from c.d import e",
        "from . import x",
        "import_module('g.h')",
        "__import__('i')",
    ]
    (tmp_path / "m.py").write_text("\n".join(lines))
    assert imported(tmp_path / "m.py") == {"a", "c", "g", "i"}


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
            ProcessSettings.from_config(config)
    else:
        settings = ProcessSettings.from_config(config)
        assert settings.teachers.pool
