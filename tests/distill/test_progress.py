"""Progress: bars on a terminal, plain lines elsewhere, and the time that the stage and the whole run still take."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest

import distill.progress
import distill.settings
import envs  # noqa: F401  registers TeacherSelect-v0
from distill.progress import Progress, expect


class Clock:
    """Seconds that pass only when a test says it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(distill.progress, "time", made)
    monkeypatch.setattr(distill.progress, "_WHOLE", distill.progress._Whole())
    return made


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The new lines on stderr, which is no terminal."""
    return lambda: capsys.readouterr().err.splitlines()


def walk(clock: Clock, shown: Progress, steps: int, seconds: float = 1.0) -> None:
    for _ in range(steps):
        clock.now += seconds
        shown.update()


def test_without_a_terminal_a_line_every_30_seconds_and_one_at_the_end(
    clock: Clock, said: Callable[[], list[str]]
) -> None:
    with Progress("warm start", 100) as shown:
        walk(clock, shown, 100)
    assert said() == [
        "warm start: 30 of 100 steps in 00:30, 01:10 left",
        "warm start: 60 of 100 steps in 01:00, 00:40 left",
        "warm start: 90 of 100 steps in 01:30, 00:10 left",
        "warm start: 100 steps in 01:40",
    ]


def test_short_parts_and_parts_without_steps_are_silent(clock: Clock, said: Callable[[], list[str]]) -> None:
    with Progress("teacher a on dev", 5, "text", brief=True) as shown:
        walk(clock, shown, 5)
    with Progress("joint training", 0, budget=10, trainings=0):
        pass
    with Progress("control", 7, initial=7, budget=7):
        pass
    assert not said()
    with Progress("teacher a on train", 2, "text", brief=True) as shown:
        walk(clock, shown, 2, 20)
    assert said() == ["teacher a on train: 2 of 2 texts in 00:40, 00:00 left", "teacher a on train: 2 texts in 00:40"]


def test_a_stage_that_fails_prints_nothing(clock: Clock, said: Callable[[], list[str]]) -> None:
    def fail() -> None:
        with Progress("control", 3) as shown:
            shown.update()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert not said()


def test_the_whole_run(clock: Clock, said: Callable[[], list[str]]) -> None:
    """Two joint episodes, the control and the student, 100 steps each, at a second a step and two with the agent."""
    expect(4)
    with Progress("warm start", 50, budget=100, trainings=0) as shown:
        walk(clock, shown, 40)
        assert (shown.left(), shown.whole()) == (10, 10 + 4 * 100)
        walk(clock, shown, 10)
    with Progress("joint training", 200, budget=100, trainings=2, plain=False) as shown:
        assert shown.left() is shown.whole() is None  # before its first step
        walk(clock, shown, 50, 2)
        assert (shown.left(), shown.whole()) == (300, 300 + 2 * 100)
        walk(clock, shown, 150, 2)
    expect(2)
    with Progress("control", 100, budget=100) as shown:
        walk(clock, shown, 60)
        assert shown.whole() == 40 + 100
        walk(clock, shown, 40)
    with Progress("student", 100, initial=50, budget=100) as shown:  # continues
        walk(clock, shown, 25)
        assert (shown.left(), shown.whole()) == (25, None)  # nothing follows
    assert "joint training: 105 of 200 steps in 03:30, 03:10 left; whole run: 06:30 left" in said()


def test_a_loop(clock: Clock, said: Callable[[], list[str]]) -> None:
    shown = Progress("joint training", 4)
    for _ in shown.over(range(2)):
        walk(clock, shown, 2)
    assert said() == ["joint training: 4 steps in 00:04"]


def test_on_a_terminal_there_is_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    expect(3)
    with Progress("control", 10, budget=10) as shown:
        walk(clock, shown, 5)
        shown.write("a cell failed")
        assert shown._bar is not None
        shown._bar.refresh()
    text = stream.getvalue()
    assert "control:" in text
    assert "5/10" in text
    assert "whole run: 00:25 left" in text
    assert "a cell failed" in text
    assert "steps in" not in text


def test_other_processes_say_nothing(
    clock: Clock, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill.progress, "parallel", SimpleNamespace(is_first=lambda: False))
    with Progress("control", 2) as shown:
        walk(clock, shown, 2, 40)
    assert not said()


def test_the_first_environment_says_what_it_does(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a cold cache, `gym.make` fits the teachers and makes the warm start; the next one has nothing to say."""
    monkeypatch.setattr(distill.settings, "_NOTICES", set())
    monkeypatch.setattr(distill.progress, "_WHOLE", distill.progress._Whole())
    for expected in (
        [
            f"note: teachers are fitted now, which takes a while, and kept in {tmp_path}; the next run finds them there",
            *(f"fine-tuning teacher {name}: 16 steps" for name in ("film", "food", "hotel", "electronics")),
            "warm start: 4 steps",
        ],
        [],
    ):
        gym.make("TeacherSelect-v0", overrides=[*tiny_overrides, f"home={tmp_path}"])
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(" in 00:")[0] for line in lines] == expected
