"""Standard output whose reader leaves early, as in `python agents/reinforce.py --help | head`."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def is_unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    with suppress(AttributeError, OSError, ValueError):  # no polling on this system, or no file behind stdout
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


@contextmanager
def may_be_cut() -> Iterator[None]:
    """Where the reader of standard output leaves early, the program ends without a word, with the exit code of SIGPIPE."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_unread():  # another pipe
            raise
        # Python writes what is left of the output when it ends. That must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
