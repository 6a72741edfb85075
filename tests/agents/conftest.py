"""A finished comparison, shared by the tests of the table and those of the report."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from compare_helpers import AGENTS, command


@pytest.fixture(scope="session")
def grid(tiny_overrides, tmp_path_factory) -> tuple[Path, Path]:
    """A finished grid: its run folder and its cells."""
    folder = tmp_path_factory.mktemp("grid")
    arguments = [*tiny_overrides, "threads=1", AGENTS, "seeds=2", "jobs=2", f"cells={folder / 'cells'}"]
    done = subprocess.run(command(*arguments, folder=folder / "run"), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "best_single" in done.stdout
    return folder / "run", folder / "cells"
