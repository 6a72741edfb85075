"""The one error that means: something the user gave is wrong."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line that names the thing, the value and the way out.

    Text quoted from data stays on that line: unprintable characters are escaped, and the middle of a very long
    message is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(line if len(line) <= 1000 else f"{line[:650]} ... {line[-300:]}")


def plain_name(value: str, what: str) -> None:
    """Raise `UserError` unless `value` is safe as the name of a file or folder."""
    if NAME.fullmatch(value) is None:
        raise UserError(f"{what}={value!r} cannot name a folder: use up to 64 letters, digits, '.', '_' or '-'")
