"""The forms an action can have: a subset of the teachers, the number of a subset, or weights of the teachers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from distill.checks import UserError, one_of

FORMS = ("subset", "discrete", "weights")
MOST_TEACHERS = 6  # 2^6 = 64 actions; beyond it a discrete space learns nothing within our budgets


def subset_table(teachers: int) -> np.ndarray:
    """All subsets, int8 `[2^K, K]`; bit k of the row's number says whether teacher k is on."""
    if teachers > MOST_TEACHERS:
        raise UserError(
            f"a discrete action space over {teachers} teachers has 2^{teachers} actions; at most {MOST_TEACHERS} teachers"
        )
    return (np.arange(2**teachers)[:, None] >> np.arange(teachers) & 1).astype(np.int8)


def as_actions(action: Any, shape: tuple[int, ...], weights: bool = False) -> np.ndarray:
    """Subsets as float32 0/1 from int8, bool or float input, or weights as they are.

    Raises:
        ValueError: for another shape, a value other than 0 and 1, or a weight outside [0, 1].
    """
    array = np.asarray(action)
    if array.shape != shape:
        raise ValueError(f"action has shape {array.shape}, expected {shape}: one bit per teacher")
    if weights:
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"action {array.tolist()} holds a weight outside [0, 1]")
        return array.astype(np.float32)
    on = array == 1
    if not (on | (array == 0)).all():
        raise ValueError(f"action {array.tolist()} holds something other than 0 and 1")
    return on.astype(np.float32)


class Actions:
    """The action space of an environment, and what an action in it means for the teachers.

    Args:
        form: `subset` (`MultiBinary(K)`), `discrete` (`Discrete(2^K)`, K <= 6) or `weights` (`Box[0,1]^K`).
        teachers: K.

    Attributes:
        space: of one row.

    Raises:
        UserError: for an unknown form, or too many teachers for `discrete`.
    """

    def __init__(self, form: str, teachers: int) -> None:
        one_of(form, FORMS, "actions")
        self.form, self.teachers = form, teachers
        self.table = subset_table(teachers) if form == "discrete" else np.empty((0, teachers), np.int8)
        self.space: gym.Space[Any] = {
            "subset": lambda: gym.spaces.MultiBinary(teachers),
            "discrete": lambda: gym.spaces.Discrete(len(self.table)),
            "weights": lambda: gym.spaces.Box(0, 1, (teachers,), np.float32),
        }[form]()

    def decode(self, action: Any, rows: tuple[int, ...] = (), weights: bool = False) -> np.ndarray:
        """Subsets or weights, float32 `[*rows, K]`, of one action or of one for each row.

        Args:
            action: in `space`, or an array of such actions.
            rows: `(B,)` of the vector interface, `()` of the single one.
            weights: take weights where the form is `subset`, for a wrapper that offers them.

        Raises:
            ValueError: for an action outside the space.
        """
        if self.form != "discrete":
            return as_actions(action, (*rows, self.teachers), weights or self.form == "weights")
        number = np.asarray(action)
        if number.shape != rows or number.dtype.kind not in "iu":
            raise ValueError(f"action is {number.dtype} {number.shape}, expected whole numbers of shape {rows}")
        if not ((number >= 0) & (number < len(self.table))).all():
            raise ValueError(f"action {number.tolist()} is outside 0 to {len(self.table) - 1}")
        return self.table[number].astype(np.float32)

    def masks(self, answered: np.ndarray) -> np.ndarray:
        """Which actions are allowed, bool `[B,2*K]` (off and on of each teacher) or `[B,2^K]`, from `answered` `[B,K]`.

        Raises:
            UserError: for weights, which cannot be masked.
        """
        if self.form == "weights":
            raise UserError("actions=weights cannot be masked; use actions=subset or actions=discrete")
        if self.form == "discrete":
            return ~((self.table[None] > 0) & ~answered[:, None]).any(2)
        return np.stack([np.ones_like(answered), answered], -1).reshape(len(answered), -1)
