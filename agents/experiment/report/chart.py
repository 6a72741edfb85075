"""A figure as a tidy table, and how figures name agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass
class Chart:
    """A figure as a tidy table: one row per point or bar.

    Attributes:
        name: file name without ending.
        title: heading.
        note: one or two sentences on how to read it.
        kind: `forest` (the columns `mean`, `low` and `high` for each `y`), `lines`, `bars`, `stack` (horizontal bars
            that are added up), or `matrix` (the column `share` for each `x` and `y`, and the `count` behind it).
        frame: the table.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        group: column whose values get a colour each; None: one colour.
        facet: column of agents, when each agent has a picture of its own; None: one picture.
        x_title: label of the horizontal axis.
        y_title: label of the vertical axis.
        shown: groups that the page draws at first, the others after a click on the legend; None: all.
        diagonal: whether a line is drawn where both axes are equal, over the whole range from 0 to 1.
        section: part of the page that it belongs to.
    """

    name: str
    title: str
    note: str
    kind: str
    frame: pd.DataFrame
    x: str
    y: str
    group: str | None = None
    facet: str | None = None
    x_title: str = ""
    y_title: str = ""
    shown: frozenset[str] | None = None
    diagonal: bool = False
    section: str = "figures"

    def parts(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The pictures: the whole table under the name `""`, or each agent's part of it under the agent's name."""
        if self.facet is None:
            yield "", self.frame
            return
        for agent in dict.fromkeys(self.frame[self.facet]):
            yield str(agent), self.frame[self.frame[self.facet] == agent]

    def series(self, frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
        """The groups of one picture, in the order of the whole table, so that a group has the same place in all pictures."""
        if self.group is None:
            yield "", frame
            return
        for name in dict.fromkeys(self.frame[self.group]):
            part = frame[frame[self.group] == name]
            if len(part):
                yield str(name), part

    @property
    def group_count(self) -> int:
        """Number of groups in the whole table; 0 without groups."""
        return 0 if self.group is None else int(self.frame[self.group].nunique())


def short(agent: str) -> str:
    """An entry of `agents=` as figures name it: without its number of episodes, other settings by their last word.

    A name is called by its group: `credit.name=shared` is `credit=shared`.
    """
    words = [w.partition("=") for w in agent.split() if "episodes=" not in w]
    return " ".join(f"{key.removesuffix('.name').rpartition('.')[2]}{sign}{value}" for key, sign, value in words)


def is_learnt(entry: Mapping[str, Any]) -> bool:
    """Whether a row of the table, or the result of a cell, belongs to a learnt policy.

    Comparisons of version 0.1 do not say so. There, only learnt policies have training time and a curve of training.
    """
    if "learnt" in entry:
        return bool(entry["learnt"])
    return entry.get("train_s", 0.0) > 0 or bool(entry.get("joint_curve"))
