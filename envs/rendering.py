"""Rendering of an episode: one status line, or a small figure drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distill.checks import UserError

if TYPE_CHECKING:
    from envs.core import Core

MODES = ("ansi", "rgb_array")
WINDOW = 10  # student steps that the shown rates are averaged over


def render(mode: str | None, core: Core) -> str | np.ndarray | None:
    """Render in `mode`: a status line, a figure `[H,W,3]` uint8, or None when no mode was asked for."""
    if mode == "ansi":
        return status(core)
    return figure(core) if mode == "rgb_array" else None


def status(core: Core) -> str:
    """`step 12/372  V -0.5512  gain +0.0031  chosen film 0.81 ...` of the episode so far."""
    log, process = core.log, core.process
    parts = [f"step {process.student.steps}/{process.student.budget}"]
    if log.values:
        first = log.values[0][1]
        parts += [f"V {log.values[-1][1]:+.4f}", f"since first measured {log.values[-1][1] - first:+.4f}"]
    if log.actions:
        rates = np.mean([a > 0 for a in log.actions[-WINDOW:]], (0, 1))
        parts.append("chosen " + " ".join(f"{n} {r:.2f}" for n, r in zip(process.signals.names, rates, strict=True)))
    return "  ".join(parts)


def figure(core: Core) -> np.ndarray:
    """V over student steps, and how often each teacher was chosen: uint8 `[240, 480, 3]`."""
    log = core.shown
    rates = np.array([(a > 0).mean(0) for a in log.actions])
    return panels(log.values, "V on the reward split", rates, core.process.signals.names, "student step")


def panels(
    values: Sequence[tuple[float, float]], title: str, rates: np.ndarray, names: Sequence[str], steps: str
) -> np.ndarray:
    """A curve of `values` (step, value) beside how often each teacher was chosen: uint8 `[240, 480, 3]`.

    Args:
        title: of the curve.
        rates: share of the rows in which each teacher was chosen, `[T,K]`; drawn as means over `WINDOW` steps.
        names: of the K teachers.
        steps: what a step is called.

    Raises:
        UserError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("render_mode=rgb_array needs matplotlib: pip install 'teacher-select[report]'") from None
    drawing = Figure(figsize=(4.8, 2.4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(drawing)
    left, right = drawing.subplots(1, 2)
    if values:
        left.plot(*zip(*values, strict=True), lw=1)
    left.set_title(title, fontsize=8)
    if len(rates):
        kernel = np.ones(min(WINDOW, len(rates)))
        for name, rate in zip(names, rates.T, strict=True):
            smooth = np.convolve(rate, kernel, "full")[: len(rate)] / np.minimum(
                np.arange(1, len(rate) + 1), len(kernel)
            )
            right.plot(np.arange(1, len(rate) + 1), smooth, lw=1, label=name)
        right.legend(fontsize=6)
    right.set_ylim(0, 1)
    right.set_title("teachers chosen", fontsize=8)
    for axes in (left, right):
        axes.set_xlabel(steps, fontsize=7)
        axes.tick_params(labelsize=6)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
