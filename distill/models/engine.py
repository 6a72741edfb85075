"""Where and how models compute: the device, the precision and isolated random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from distill import parallel
from distill.checks import UserError


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block; afterwards they are as they were before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Engine:
    """Where and how models compute.

    Attributes:
        device: device of models and batches.
        amp: dtype of autocast; None: full precision.
        fast: whether classifiers use the faster forms of `distill.models.fast.speed_up`.
    """

    device: torch.device
    amp: torch.dtype | None = None
    fast: bool = True

    @classmethod
    def pick(cls, device: str, amp: str, fast: bool) -> Engine:
        """The engine for the settings `device`, `amp` and `fast`.

        Raises:
            UserError: for a device that this machine does not have.
        """
        place = pick_device(device)
        return cls(place, pick_amp(amp, place), fast)

    @property
    def form(self) -> str:
        """Precision and form in one string. It is part of fingerprints, because the last digits depend on it."""
        padded = f", padded to {self.multiple}" if self.multiple > 1 else ""
        return f"{self.amp}, fast{padded}" if self.fast else str(self.amp)

    @property
    def multiple(self) -> int:
        """What the length of a padded batch is a multiple of.

        With bf16, oneDNN compiles and keeps code for every shape of a product. With a shape for every length, a small
        student on short texts took 1 GB more, and no less time.
        """
        return 8 if self.fast and self.amp is not None else 1

    def describe(self) -> dict[str, Any]:
        """Precision and form as JSON values, for results and checkpoints: `amp` (`off` or `bfloat16`) and `fast`."""
        return {"amp": str(self.amp or "off").removeprefix("torch."), "fast": self.fast}

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None)


def pick_device(name: str) -> torch.device:
    """The device of that name. `auto` is CUDA if there is any, else the CPU; each of several processes gets its own GPU.

    Raises:
        UserError: for a device that this machine does not have.
    """
    if parallel.world() > 1 and name in ("auto", "cuda"):
        return parallel.device()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device={name}: no CUDA device found; use device=cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"device={name}: only {torch.cuda.device_count()} CUDA devices found")
    return device


def pick_amp(mode: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None: full precision.

    Args:
        mode: `off`, `bf16`, or `auto`: bf16 if the hardware computes it natively.
        device: where models compute.
    """
    if mode == "bf16":
        return torch.bfloat16
    if mode == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else None
    return None
