"""The one error that means: something the user gave is wrong."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line that names the thing, the value and the way out.

    Text quoted from data stays on that line: unprintable characters are escaped, and the middle of a very long
    message is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(line if len(line) <= 1000 else f"{line[:650]} ... {line[-300:]}")
