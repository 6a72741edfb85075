"""What a state must look like before an environment goes on from it: all of it is checked before anything is moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from distill.checks import UserError
from distill.process import Distillation


class Damaged(UserError):
    """A state or trajectory that no environment gave."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this state is damaged: {what}; take another one")


def facts_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a state or a trajectory, from their JSON; `Damaged` when there are none."""
    try:
        facts = json.loads(str(arrays["facts"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or "fingerprint" not in facts:
        raise Damaged("it has no readable facts")
    return facts


# --- arrays -----------------------------------------------------------------------------------------------------------


def check_arrays(arrays: Mapping[str, Any], process: Distillation) -> None:
    """Raise `Damaged` unless the arrays have the names, types, shapes and ranges that an environment over `process` gives."""
    b, k, n = process.stream.batch_size, process.num_teachers, len(process.labels)
    needed: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "process/stream/carry": ("int64", (None,)),
        "process/stream/queue": ("int64", (None, b)),
        "process/rng/torch": ("uint8", (None,)),
        "log/actions": ("float32", (None, b, k)),
        "log/rewards": ("float64", (None, b)),
    }
    known = {
        **needed,
        "process/rows": ("int64", (b,)),
        "process/rng/cuda": ("uint8", (None,)),
        "pending": ("float32", (None, k)),
    }
    adam = process.settings.student.optimizer == "adamw"
    together: list[set[str]] = []  # all of them or none
    for name, p in process.student.named.items():
        whole = ("float32", tuple(p.shape))
        needed[f"process/student/{name}"] = whole
        moments = {f"process/optimizer/{key}/{name}": whole for key in ("exp_avg", "exp_avg_sq") if adam}
        moments |= {f"process/optimizer/step/{name}": ("float32", ()) for _ in range(adam)}
        together.append(set(moments))
        known |= moments
    for part in ("direction", "total"):
        group = {f"reward/{part}/{name}": ("float32", tuple(p.shape)) for name, p in process.student.named.items()}
        together.append(set(group))
        known |= group
    known |= needed
    for name, value in arrays.items():
        if name == "facts":
            continue
        if name not in known or not isinstance(value, np.ndarray):
            raise Damaged(f"it has no place for {name!r}")
        dtype, shape = known[name]
        if value.dtype != np.dtype(dtype) or not _fits(value.shape, shape):
            raise Damaged(f"{name} is {value.dtype} {list(value.shape)}, not as it was written")
        if dtype == "int64" and not ((value >= 0) & (value < n)).all():
            raise Damaged(f"{name} names instances outside 0 to {n - 1}")
    for group_of in (set(needed), *(g for g in together if g & arrays.keys())):
        for name in sorted(group_of - arrays.keys()):
            raise Damaged(f"{name} is missing")
    if len(arrays["log/actions"]) != len(arrays["log/rewards"]):
        raise Damaged("its log has more actions than rewards, or fewer")
    pending = arrays.get("pending", np.empty(0))
    if len(pending) >= b or not ((pending >= 0) & (pending <= 1)).all():
        raise Damaged("pending holds what cannot be waiting")
    try:
        torch.Generator().set_state(torch.from_numpy(arrays["process/rng/torch"].copy()))
    except (RuntimeError, TypeError):
        raise Damaged("process/rng/torch is no state of a generator") from None


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the wanted one, None standing for any length; no rows at all come without the other axes."""
    if shape == (0,) and wanted[:1] == (None,):
        return True
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


# --- facts ------------------------------------------------------------------------------------------------------------


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _number(value: Any) -> bool:
    return (type(value) in (int, float) and abs(value) < 2.0**1000) or value != value


def _flag(value: Any) -> bool:
    return type(value) is bool


def _generator(value: Any) -> bool:
    try:
        np.random.default_rng(0).bit_generator.state = value
    except Exception:  # numpy raises many kinds, all meaning: no such state
        return False
    return True


def _measured(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _count(pair[0]) and _number(pair[1]) for pair in value
    )


FACTS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "process": {"steps": _count, "budget": lambda v: _count(v) and v > 0, "seed": _count, "stream": _generator},
    "reward": {"value": _number, "steps": _count, "weight": _number, "rng": _generator},
    "log": {"seed": _count, "restart": _flag, "values": _measured},
    "": {"failure": lambda v: v is None or isinstance(v, str), "running": _flag, "env_rng": _generator},
}


def check_facts(facts: dict[str, Any], arrays: Mapping[str, Any]) -> None:
    """Raise `Damaged` unless the facts beside the arrays are of the right kinds."""
    for part, keys in FACTS.items():
        group = facts if not part else facts.get(part)
        for key, good in keys.items():
            if not isinstance(group, dict) or key not in group or not good(group[key]):
                raise Damaged(f"{f'{part}.{key}'.lstrip('.')} is not as it was written")
    if "pending" not in arrays and not _flag(facts.get("restart")):
        raise Damaged("restart is not as it was written")
    if facts["running"] and "process/rows" not in arrays:
        raise Damaged("process/rows is missing")
