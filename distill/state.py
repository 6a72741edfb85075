"""One way to save and restore state: nested dicts and lists of arrays, tensors and JSON values.

`pack` turns such a tree into named arrays without pickles, which `np.savez` writes; `unpack` is its inverse.
`check_state` compares a tree from outside with a template before anything is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, from_numpy

from distill.checks import UserError

TREE = "facts"  # name of the array that holds everything but the arrays, as JSON


class Damaged(UserError):
    """A state or a trajectory that no environment wrote."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this state is damaged: {what}; use another one")


class Stateful:
    """An object whose attributes named in `STATE` (none named: all) are its state."""

    STATE: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """The attributes by name; those that have a state of their own give it."""
        return state_of({name: getattr(self, name) for name in self.STATE or vars(self)})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        vars(self).update(load_into(vars(self), state))


def state_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The state of named objects: their `state_dict()` where they have one, else themselves."""
    return {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}


def load_into(live: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Give each `live` object that has a `load_state_dict` its saved state.

    Returns:
        Everything that was saved by name, with the live objects in place of their states.
    """
    out = dict(saved)
    for name, part in live.items():
        if name in saved and hasattr(part, "load_state_dict"):
            part.load_state_dict(saved[name])
            out[name] = part
    return out


# --- as arrays --------------------------------------------------------------------------------------------------------


def pack(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Named arrays for `np.savez`: each array of the tree under its path, and the rest as JSON under `facts`."""
    arrays: dict[str, np.ndarray] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            arrays[path] = value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else value
            return {"$": path, "tensor": isinstance(value, Tensor)}
        if isinstance(value, Mapping):
            return {str(k): walk(v, f"{path}/{k}" if path else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
        return value

    facts = np.array(json.dumps(walk(tree, "")))
    return {TREE: facts, **arrays}


def unpack(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that `pack` was given; tuples have become lists.

    Raises:
        Damaged: when the arrays are not what `pack` wrote.
    """
    used: set[str] = set()

    def fill(value: dict[str, Any]) -> Any:
        if "$" not in value:  # JSON keys are text; optimisers number their parameters
            return {int(k) if k.isdigit() else k: v for k, v in value.items()}
        name = value["$"]
        found = arrays[name] if isinstance(name, str) and name in arrays else None
        if not isinstance(found, np.ndarray) or found.dtype == object:
            raise Damaged(f"{name!r:.99} is missing")
        used.add(name)
        return from_numpy(found.copy()) if value.get("tensor") else found

    try:
        tree = json.loads(str(arrays[TREE]), object_hook=fill)
    except Damaged:
        raise
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Damaged("its facts cannot be read") from None
    if not isinstance(tree, dict):
        raise Damaged("its facts cannot be read")
    for name in arrays:
        if name != TREE and name not in used:
            raise Damaged(f"it has no place for {name!r:.99}")
    return tree


# --- checking a state from outside ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optional:
    """In a template: the value may be missing (None; where a dict belongs, also an empty one)."""

    template: Any


@dataclass(frozen=True)
class Array:
    """In a template: an array of this type and shape.

    Attributes:
        dtype: numpy's name of the type.
        shape: None stands for any length.
        below: integers must lie in [0, below).
    """

    dtype: str
    shape: tuple[int | None, ...]
    below: int | None = None

    def check(self, value: Any, where: str) -> None:
        """Raise `Damaged` unless `value` fits."""
        if not isinstance(value, np.ndarray):
            raise Damaged(f"{where} is not an array")
        # An empty list of rows has lost its other axes.
        empty = value.shape == (0,) and self.shape[:1] == (None,)
        fits = len(value.shape) == len(self.shape) and all(
            w in (None, s) for s, w in zip(value.shape, self.shape, strict=True)
        )
        if value.dtype != np.dtype(self.dtype) or not (fits or empty):
            raise Damaged(f"{where} is {value.dtype} {list(value.shape)}, which does not fit")
        if self.below is not None and not ((value >= 0) & (value < self.below)).all():
            raise Damaged(f"{where} has values outside 0 to {self.below - 1}")


def check_state(state: Any, template: Any, where: str = "") -> None:
    """Raise `Damaged` unless `state` has the form of `template`: a tree of `Array`, `Optional` and tests of JSON values."""
    if isinstance(template, Optional):
        empty = isinstance(template.template, Mapping) and isinstance(state, Mapping) and not state
        if state is not None and not empty:
            check_state(state, template.template, where)
    elif isinstance(template, Array):
        template.check(state, where)
    elif isinstance(template, Mapping):
        if not isinstance(state, Mapping):
            raise Damaged(f"{where or 'it'} is not a group of values")
        for key in template:
            if key not in state:
                raise Damaged(f"{_join(where, key)} is missing")
        for key in state:
            if key not in template:
                raise Damaged(f"it has no place for {_join(where, key)!r:.99}")
            check_state(state[key], template[key], _join(where, key))
    elif template(state) is not True:  # where a test meets an array, == gives an array, which has no truth value
        raise Damaged(f"{where} has a value that does not fit")


def _join(where: str, key: Any) -> str:
    return f"{where}/{key}" if where else str(key)


# Tests of JSON values, for templates.

Test = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """A whole number from 0 that fits into 53 bits."""
    return type(value) is int and 0 <= value < 2**53


def is_number(value: Any) -> bool:
    """A number of ordinary size, or NaN."""
    return type(value) in (int, float) and (abs(value) < 2.0**1000 or value != value)


def is_flag(value: Any) -> bool:
    """True or false."""
    return type(value) is bool


def is_generator(value: Any) -> bool:
    """The state of a numpy generator."""
    try:
        np.random.default_rng(0).bit_generator.state = value
    except Exception:  # numpy raises many kinds of errors; all mean that this is no such state
        return False
    return True
