"""Several processes as one: `accelerate launch` starts them, and they share forwards and student steps. Alone, nothing here does anything.

Every process runs the same program. What one of them decides for all (actions, whether a cache entry must be built) is the
first one's word, and only the first one writes. Processes meet over NCCL on GPUs and over gloo on processors.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATIENCE = timedelta(hours=6)  # for a process that still computes alone, before the others give up


@lru_cache(maxsize=1)
def world() -> int:
    """How many processes there are; 1 unless a launcher said otherwise."""
    launched = all(key in os.environ for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def rank() -> int:
    """This process's number, from 0; the first one writes and decides."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and decides."""
    return rank() == 0


@lru_cache(maxsize=1)
def _state() -> Any:
    from accelerate import PartialState  # slow to import, and of no use to a process alone

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    atexit.register(state.destroy_process_group)  # gloo's threads abort a process that leaves without
    return state


def device() -> torch.device:
    """The device of this process among its peers."""
    found: torch.device = _state().device
    return found


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        _state().wait_for_everyone()


def from_first(values: np.ndarray) -> np.ndarray:
    """The first process's `values`, in every process; shapes must agree."""
    if world() == 1:
        return values
    from accelerate.utils import broadcast

    there: Tensor = broadcast(torch.as_tensor(np.ascontiguousarray(values)).to(device()))
    return there.cpu().numpy()


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in every process."""
    if world() == 1:
        return values
    from accelerate.utils import reduce

    _state()
    summed: Tensor = reduce(values, "sum")
    return summed


def share(count: int) -> slice:
    """This process's rows of a batch of `count`."""
    edges = [count * i // world() for i in range(world() + 1)]
    return slice(edges[rank()], edges[rank() + 1])


def join(own: Tensor, count: int) -> Tensor:
    """All `count` rows `[count, ...]` from every process's own; only the own ones carry gradients."""
    mine = share(count)
    everyones = own.new_zeros(count, *own.shape[1:])
    everyones[mine] = own.detach()
    everyones = total(everyones)
    return torch.cat((everyones[: mine.start], own, everyones[mine.stop :]))


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up the gradients of all processes, in place."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = total(torch.cat([g.flatten() for g in grads]))
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
