"""Rendering: a status line, or a figure that needs no display."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest
from env_helpers import STEPS, K, subsets

from distill.checks import UserError
from envs import rendering

NAMES = ("film", "food", "hotel", "electronics")


@pytest.fixture(params=["single", "vector"])
def build(request: pytest.FixtureRequest, make: Any, make_vec: Any) -> Any:
    """`build(mode)`: one of the two environments in a render mode, after a reset."""

    def go(mode: str | None, *more: str) -> Any:
        env = (make if request.param == "single" else make_vec)(*more, render_mode=mode)
        env.reset(seed=0)
        return env

    return go


@pytest.fixture(autouse=True)
def _no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a display nor pyplot, which would look for one."""
    for name in ("MPLBACKEND", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


def play(env: Any, actions: np.ndarray) -> None:
    for chosen in actions:
        for action in [chosen] if hasattr(env, "num_envs") else chosen:
            env.step(action)


def test_the_line(build):
    env = build("ansi")
    assert env.render() == f"step 0/{STEPS}"
    chosen = subsets(0, 1)
    play(env, chosen)  # measured at every second step
    rates = "  chosen " + " ".join(f"{n} {r:.2f}" for n, r in zip(NAMES, chosen.mean((0, 1)), strict=True))
    assert env.render() == f"step 1/{STEPS}{rates}"
    chosen = subsets(0, 4)
    play(env, chosen[1:])
    rates = "  chosen " + " ".join(f"{n} {r:.2f}" for n, r in zip(NAMES, chosen.mean((0, 1)), strict=True))
    value, first = env.unwrapped.core.reward.value, env.unwrapped.core.log.values[0][1]
    assert env.render() == f"step 4/{STEPS}  V {value:+.4f}  since first measured {value - first:+.4f}{rates}"
    assert value != first
    env.reset(seed=0)
    assert env.render() == f"step 0/{STEPS}"


def test_the_line_looks_at_the_last_steps(build):
    env = build("ansi", "budget.steps=20")
    play(env, np.concatenate([np.ones_like(subsets(0, 5)), np.zeros_like(subsets(0, rendering.WINDOW))]))
    assert env.render().endswith("chosen " + " ".join(f"{n} 0.00" for n in NAMES))


@pytest.mark.parametrize("more", [[], ["reward=paper2"]], ids=["gain", "paper2"])
def test_the_figure(build, more):
    env = build("rgb_array", *more)
    frames = [env.render()]
    for steps in (1, 3):
        play(env, subsets(0, steps))
        frames.append(env.render())
    for frame in frames:
        assert frame.shape == (240, 480, 3)
        assert frame.dtype == np.uint8
        assert frame.min() < 100 < 250 < frame.max()
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    np.testing.assert_array_equal(env.render(), frames[-1])
    kept = frames[-1].copy()
    env.render()[:] = 0  # a frame is the caller's own
    np.testing.assert_array_equal(env.render(), kept)


def test_rendering_changes_nothing(build):
    env, untouched = build("rgb_array"), build(None)
    for chosen in subsets(0, 3):
        env.render()
        play(env, chosen[None])
        play(untouched, chosen[None])
        assert untouched.render() is None
    mine, its = env.unwrapped.get_state(), untouched.unwrapped.get_state()
    assert mine.keys() == its.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], its[name], err_msg=name)


def test_a_positive_weight_counts_as_chosen(make):
    from envs.wrappers import TeacherWeights

    env = TeacherWeights(make(render_mode="ansi"))
    env.reset(seed=0)
    for _ in range(8):
        env.step(np.array([0.1, 0, 0.9, 0][:K], np.float32))
    assert env.render().endswith("chosen film 1.00 food 0.00 hotel 1.00 electronics 0.00")


def test_a_missing_matplotlib_is_named(build, monkeypatch):
    env = build("rgb_array")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"^[^\n]*matplotlib[^\n]*\[report\][^\n]*$"):
        env.render()
