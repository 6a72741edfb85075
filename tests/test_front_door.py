"""`import teacher_select`, the console script, and the metadata of the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_string
from importlib import util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Python in a folder, which it searches before the project's, as a user's own project is."""
    place = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=place, capture_output=True, text=True, check=check, timeout=300
    )


def test_importing_it_registers_and_loads_nothing_heavy(tmp_path) -> None:
    code = (
        "import sys, teacher_select, gymnasium; gymnasium.spec('TeacherSelect/Labels-v0');"
        "print(*{m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'stable_baselines3', 'distill'})"
    )
    assert python(tmp_path, "-c", code).stdout.split() == []


@pytest.mark.parametrize("name", ["envs", "agents", "distill", "configs"])
def test_a_folder_of_the_same_name_is_named(name, tmp_path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = python(tmp_path, "-c", "import teacher_select", check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / name} is imported as '{name}', in the place of TeacherSelect's ")
    assert last.endswith("rename that folder, start Python in another folder, or use a virtual environment without it")


def test_a_module_that_was_imported_before_is_seen_too(tmp_path) -> None:
    (tmp_path / "envs.py").write_text("mine = 1")
    done = python(tmp_path, "-c", "import envs; assert envs.mine; import teacher_select", check=False)
    assert f"ImportError: {tmp_path / 'envs.py'} is imported as 'envs'" in done.stderr


def test_it_makes_environments(home) -> None:
    import teacher_select
    from agents.evaluate import evaluate
    from envs.teacher_select import TeacherSelectEnv, TeacherSelectVectorEnv

    assert isinstance(teacher_select.make("TeacherSelect/Tiny-v0").unwrapped, TeacherSelectEnv)
    env = teacher_select.make_vec("TeacherSelect/Tiny-v0", num_envs=4)
    assert isinstance(env, TeacherSelectVectorEnv)
    assert env.num_envs == 4
    assert teacher_select.evaluate is evaluate
    with pytest.raises(AttributeError, match="no attribute 'evaluation'"):
        teacher_select.evaluation  # noqa: B018


# --- the console script -----------------------------------------------------------------------------------------------


def test_the_commands(capsys, monkeypatch) -> None:
    import teacher_select

    monkeypatch.setattr(sys, "argv", ["teacher-select"])
    assert teacher_select.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (module, _) in teacher_select.COMMANDS.items():
        assert f"  {name} " in shown
        assert util.find_spec(module) is not None
    assert teacher_select.main(["compair"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: command=compair is not known; choose from reinforce, sb3, compare"
    )


@pytest.mark.parametrize("name", ["reinforce", "compare"])
def test_a_command_shows_its_settings(name, capsys, monkeypatch) -> None:
    import teacher_select

    monkeypatch.setattr(sys, "argv", ["teacher-select", name, "--help"])
    assert teacher_select.main() == 0
    assert f"usage: teacher-select {name} [group=option]" in capsys.readouterr().out


def test_a_command_runs_anywhere(tmp_path) -> None:
    """As the installed console script does, in a folder that is not the repository."""
    words = ["reinforce", "experiment=tiny", "budget.steps=6", "agent.episodes=0", "hydra.run.dir=run"]
    code = "import sys, teacher_select; raise SystemExit(teacher_select.main())"
    done = python(tmp_path, "-c", code, *words)
    assert "reinforce - control" in done.stdout
    text = (tmp_path / "run" / "results.json").read_text()
    assert '"reproduce": "teacher-select reinforce experiment=tiny budget.steps=6 agent.episodes=0' in text


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata(tmp_path_factory) -> Any:
    """The wheel's METADATA, made by setuptools from a copy of the files that it reads."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "teacher_select.py"):
        shutil.copy(ROOT / name, folder)
    for package in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]:
        place = folder / package.replace(".", "/")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / package.replace(".", "/") / "__init__.py", place)
    code = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('out'))"
    (folder / "out").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return next((folder / "out").rglob("METADATA")).parent


def test_the_metadata_is_complete(metadata) -> None:
    facts = message_from_string((metadata / "METADATA").read_text(encoding="utf-8"))
    for key in ("Summary", "Author", "License-Expression", "Keywords", "Requires-Python"):
        assert facts[key], key
    urls = {line.partition(",")[0] for line in facts.get_all("Project-URL")}
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} <= urls
    kinds = facts.get_all("Classifier")
    for kind in ("Development Status", "Intended Audience", "Operating System", "Programming Language", "Topic"):
        assert any(c.startswith(f"{kind} ::") for c in kinds), kind
    assert facts["Description-Content-Type"] == "text/markdown"
    text = facts.get_payload()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
    assert "/raw/main/docs/figures/bundled-accuracy.png" in text


def test_the_console_script_and_the_module_are_in_the_wheel(metadata) -> None:
    assert "teacher-select = teacher_select:main" in (metadata / "entry_points.txt").read_text()
    assert set((metadata / "top_level.txt").read_text().split()) == {
        "agents", "configs", "distill", "envs", "teacher_select",
    }  # fmt: skip


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for top in ("agents", "configs", "distill", "envs")
        for p in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == found
