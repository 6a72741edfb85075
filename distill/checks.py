"""Errors that end a run in one line, and small checks of what the user gave."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError as UserError
from configs.errors import plain_name as plain_name


class NotFinite(UserError):
    """A loss, a gradient or a reward is NaN or infinite."""


class RoleError(ValueError):
    """Data of one role was given to a function that must not see it, for example test data to training."""


def one_of(value: Any, choices: Sequence[Any], what: str) -> None:
    """Raise `UserError` unless `value` is one of `choices`; the message suggests the nearest one."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{what}={value} is not known; choose from {', '.join(map(str, choices))}{hint}")


def check_rate(value: float, what: str) -> None:
    """Raise `UserError` unless `value` can be a learning rate: positive, and small enough for single precision."""
    if not 0 < value <= 1e30:
        raise UserError(f"{what}={value} must be positive and at most 1e30; 1e-5 to 1e-2 is usual")


def check_seed(value: int, what: str) -> None:
    """Raise `UserError` unless every random generator accepts `value` as a seed."""
    if not 0 <= value < 2**31:
        raise UserError(f"{what}={value} must not be negative, and at most {2**31 - 1}")


def expand(path: str) -> Path:
    """The path with `~` replaced by the home folder. `~user` stays as written when there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
