"""SIGTERM and Ctrl-C: a run stops between two steps, with a checkpoint, and not in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The process was told to stop by the signal `number`. Only the launcher should catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """Whether the process was told to stop.

    Attributes:
        number: of the signal that was received; 0: none.
        waits: whether the running code will call `check` soon, after it has written a checkpoint. If not, a signal
            raises `Interrupted` at once.
    """

    def __init__(self) -> None:
        self.number, self.waits = 0, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C ends the process at once."""
        if self.number:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.number = number
        if not self.waits:
            raise Interrupted(number)

    def check(self) -> None:
        """Raise `Interrupted` if the process was told to stop."""
        if self.number:
            raise Interrupted(self.number)

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Within it SIGTERM and Ctrl-C raise `Interrupted`. Handlers that somebody else has set (a cluster's) are kept."""
        replaced = {}
        if threading.current_thread() is threading.main_thread():
            for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) == default:
                    replaced[number] = signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)
            self.number, self.waits = 0, False


stop = Stop()  # signals belong to the process, so there is one
