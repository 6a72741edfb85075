"""How far a run is: a bar on a terminal, plain lines elsewhere. Everything that takes long shows itself through `Progress`.

A stage that trains the student also shows how long the whole run still takes. A script says with `expect` how many trainings
follow; without it (an environment alone) only the stage itself is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from tqdm.auto import tqdm

from distill import parallel

T = TypeVar("T")

EVERY = 30.0  # seconds between two plain lines of a stage
FRESH = 0.5  # seconds between two estimates of the whole run on a terminal


@dataclass
class _Whole:
    """The run that this process is in."""

    trainings: float = 0.0  # of the student, which follow the stage at hand
    pace: float | None = None  # seconds a student step, without an agent that learns


_WHOLE = _Whole()


def expect(trainings: int) -> None:
    """From here on the run trains the student so many times more, each for the whole budget. The warm start is none."""
    _WHOLE.trainings = float(trainings)


class Progress:
    """One part of a run, as a context manager: call `update` after every step.

    On a terminal this is a bar of tqdm, which disappears at the end. Elsewhere it prints one line at the end, and one every
    30 seconds until then. A stage that fails prints nothing: the error says what happened.

    Args:
        title: what is done.
        total: number of steps.
        unit: what is counted.
        initial: steps that an earlier process has done.
        budget: for a stage that trains the student: steps of one training. 0: another stage.
        trainings: how many trainings of the run the stage is; 0 for the warm start.
        plain: whether steps of this stage take as long as those of later trainings; not where an agent learns as well.
        brief: print no line at the end unless there was one before: for parts of a stage that are mostly short.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "step",
        *,
        initial: int = 0,
        budget: int = 0,
        trainings: int = 1,
        plain: bool = True,
        brief: bool = False,
    ) -> None:
        self.title, self.total, self.unit, self.initial = title, total, unit, initial
        self.budget, self.plain, self.brief, self.done = budget, plain, brief, initial
        self.started = self.shown = time.perf_counter()
        if budget:
            _WHOLE.trainings = max(0.0, _WHOLE.trainings - trainings)
        terminal = sys.stderr.isatty() and parallel.is_first()
        self._silent = not parallel.is_first()
        self._bar = (
            tqdm(total=total, initial=initial, desc=title, unit=unit, leave=False, dynamic_ncols=True)
            if terminal
            else None
        )

    def update(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self.done += steps
        now = time.perf_counter()
        if self._bar is not None:
            if now - self.shown >= FRESH and (left := self.whole()) is not None:
                self.shown = now
                self._bar.set_postfix_str(f"whole run: {tqdm.format_interval(left)} left", refresh=False)
            self._bar.update(steps)
        elif now - self.shown >= EVERY:
            self.shown, self.brief = now, False
            self._line(finished=False)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, while this stage runs. The loop's body calls `update`."""
        with self:
            yield from items

    def write(self, text: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)

    def left(self) -> float | None:
        """Seconds that the stage still takes; None before its first step."""
        new = self.done - self.initial
        spent = time.perf_counter() - self.started
        return spent / new * max(0, self.total - self.done) if new else None

    def whole(self) -> float | None:
        """Seconds that the whole run still takes, with the trainings that `expect` named; None where that is not known."""
        left = self.left()
        if left is None or not self.budget or not _WHOLE.trainings:
            return None
        pace = (time.perf_counter() - self.started) / (self.done - self.initial)
        if not self.plain and _WHOLE.pace is not None:
            pace = _WHOLE.pace
        return left + _WHOLE.trainings * self.budget * pace

    def _line(self, finished: bool) -> None:
        """Print where the stage is."""
        spent = tqdm.format_interval(time.perf_counter() - self.started)
        units = self.unit if self.done == 1 else f"{self.unit}s"
        text = f"{self.title}: {self.done} {units} in {spent}"
        left, whole = self.left(), self.whole()
        if not finished and left is not None:
            text = f"{self.title}: {self.done} of {self.total} {units} in {spent}, {tqdm.format_interval(left)} left"
        if whole is not None:
            text += f"; whole run: {tqdm.format_interval(whole)} left"
        self.write(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar, or print the last line."""
        new = self.done - self.initial
        if self.budget and self.plain and new:
            _WHOLE.pace = (time.perf_counter() - self.started) / new
        if self._bar is not None:
            self._bar.close()
        elif kind is None and new and not self.brief:
            self._line(finished=True)
