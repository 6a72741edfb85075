"""Where and how models compute: device, precision and isolated random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from distill import parallel
from distill.checks import check


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Torch's global generators seeded with `seed` inside, and as they were afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Engine:
    """Where and how models compute.

    Attributes:
        device: on which they and their batches lie.
        amp: autocast type; None: full precision.
        fast: whether classifiers compute in the forms of `speed_up`.
    """

    device: torch.device
    amp: torch.dtype | None = None
    fast: bool = True

    @classmethod
    def pick(cls, device: str, amp: str, fast: bool) -> Engine:
        """From the settings of a run."""
        place = pick_device(device)
        return cls(place, pick_amp(amp, place), fast)

    @property
    def form(self) -> str:
        """What the last digits depend on beside the device: part of fingerprints."""
        return f"{self.amp}, fast" if self.fast else str(self.amp)

    @property
    def told(self) -> dict[str, Any]:
        """The form in words, for results and checkpoints."""
        return {"amp": str(self.amp or "off").removeprefix("torch."), "fast": self.fast}

    def autocast(self) -> torch.autocast:
        """A context in which forwards run."""
        return torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one, each of several processes its own. Raises `UserError` for a device that is not there."""
    if parallel.world() > 1 and name in ("auto", "cuda"):
        return parallel.device()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device={name}: no CUDA device found; use device=cpu")
        if device.index or 0 >= torch.cuda.device_count():
            raise UserError(f"device={name}: only {torch.cuda.device_count()} CUDA devices found")
    return device


def pick_amp(mode: str, device: torch.device) -> torch.dtype | None:
    """Autocast type: bf16 where asked for, or (`auto`) where the hardware computes it natively; none: full precision."""
    if mode == "bf16":
        return torch.bfloat16
    if mode == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else None
    return None
