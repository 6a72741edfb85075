"""How a program ends: with one line after a mistake, and without a word where the reader of its output leaves early."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from distill.checks import UserError


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


def exit_code(run: Callable[[], int | None], stopped: str = "nothing was written") -> int:
    """Run a command.

    Args:
        run: the command; it may return an exit code of its own.
        stopped: what is true after Ctrl-C.

    Returns:
        0 or the command's own code; 2 after a mistake of the user, which is printed in one line; 130 after Ctrl-C.
    """
    try:
        return run() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
