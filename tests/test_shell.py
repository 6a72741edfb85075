"""What shells do to programs: a reader that leaves early, and environment variables that are set to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import compose
from distill import output
from distill.settings import RunSettings

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "arguments",
    [
        ["agents/reinforce.py", "--help"],
        ["agents/compare.py", "--cfg", "job"],
        ["-m", "distill.teachers", "--help"],
    ],
    ids=" ".join,
)
def test_a_reader_that_leaves_early(tmp_path, arguments):
    """As in `--help | head`: the program ends without a word."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        program.stdout.close()
        assert program.stderr is not None
        assert program.stderr.read() == ""
    assert program.returncode == 141


def test_another_pipe_that_breaks_is_still_an_error(capfd):
    with pytest.raises(BrokenPipeError), output.may_be_cut():
        raise BrokenPipeError
    assert not output.is_unread()


def test_errors_and_exit_codes_pass(capfd):
    @output.may_be_cut()
    def program():
        print("read")
        raise SystemExit(2)

    with pytest.raises(SystemExit) as stop:
        program()
    assert stop.value.code == 2
    assert capfd.readouterr().out == "read\n"


@pytest.mark.parametrize("value", ["", "  "], ids=["empty", "blanks"])
def test_a_home_of_nothing_is_the_default(monkeypatch, tmp_path, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_SELECT_HOME", value)
    default = Path("~/.cache/teacher-select").expanduser()
    assert RunSettings.from_config(compose([])).home_dir == default
    monkeypatch.delenv("TEACHER_SELECT_HOME")
    assert RunSettings.from_config(compose([])).home_dir == default
    assert RunSettings.from_config(compose([f"home='{value}'"])).home_dir == default
    assert not list(tmp_path.iterdir())


def test_a_home_that_is_named_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("TEACHER_SELECT_HOME", str(tmp_path))
    assert RunSettings.from_config(compose([])).home_dir == tmp_path
    assert RunSettings.from_config(compose(["home=caches"])).home_dir == Path("caches")


def test_data_of_nothing_is_no_folder(monkeypatch):
    monkeypatch.setenv("TEACHER_SELECT_DATA", "")
    assert not RunSettings.from_config(compose(["task=rte", "task.source=files"])).data_dir
    assert os.environ["TEACHER_SELECT_DATA"] == ""
