"""The labelled reward instances as a one-step problem, in the environment's own states: what a selector's start is fitted on."""

from __future__ import annotations

import numpy as np

from distill.selection import Problem
from envs.core import Core
from envs.observations import View


def label_problem(core: Core, role: str = "reward") -> Problem:
    """Every instance of a labelled split, with the reward of each choice of teachers: the log-likelihood of its label.

    The states `[R,S]` have the environment's layout, so what is fitted on them acts in it. Parts that read the label or
    the student are left at zero: a selector that had seen the label here would miss it where it is unknown or wrong.

    Args:
        core: of the environment.
        role: `reward`, or `dev` to compare selectors.
    """
    process = core.process
    split = process.task.splits[role].require("reward", "dev")
    batch = process.labelled_batch(role)
    view = View(process, batch)
    states = np.zeros((len(split), core.observe.space.shape[0]))
    for name, part in core.observe.parts.items():
        if part.label_free:
            states[:, core.observe.layout[name]] = np.clip(part.values(view), part.low, part.high)
    gold = batch.probs[np.arange(len(split)), :, split.labels]
    return Problem(states, gold, batch.probs.argmax(2) == split.labels[:, None], batch.answered)
