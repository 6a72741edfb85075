"""Several processes on one run. `accelerate launch` starts them, and they share forwards and student steps.

Every process runs the same program. The first process decides what must be the same in all (actions, whether a cache entry
must be built), and it alone writes files. They communicate over NCCL on GPUs and over gloo on CPUs. In a single process
the functions here change nothing.
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

PATIENCE = timedelta(hours=6)  # how long the others wait for a process that computes alone


@lru_cache(maxsize=1)
def world() -> int:
    """The number of processes; 1 without a launcher."""
    launched = all(key in os.environ for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and decides."""
    return rank() == 0


@lru_cache(maxsize=1)
def _state() -> Any:
    from accelerate import PartialState  # slow to import, and not needed in a single process

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    atexit.register(state.destroy_process_group)  # without it gloo's threads abort the process at exit
    return state


def device() -> torch.device:
    """The device of this process."""
    found: torch.device = _state().device
    return found


def wait() -> None:
    """Wait until every process has come to this point."""
    if world() > 1:
        _state().wait_for_everyone()


def from_first(values: np.ndarray) -> np.ndarray:
    """The `values` of the first process, in every process. Shapes must agree."""
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
