"""Checkpoints of a run, so exact that a resumed run ends as an undisturbed one does, to the bit.

A run has stages (joint training, control, ...). Each keeps its last two checkpoints as
`<run>/checkpoints/<stage>-<steps>-<checksum>.npz`: arrays and JSON, no pickle. A file appears whole or not at all; one
whose content does not fit the checksum in its name is not used, but the one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.experiment.interrupts import stop
from distill import parallel
from distill.cache import file_sha256
from distill.checks import UserError, check
from distill.process import Distillation
from distill.settings import digest, parse

FORMAT = 1  # raised whenever what a checkpoint holds, or how it is used, changes
KEEP = 2
PAUSE, SHARE = 5.0, 0.01  # without `checkpoint_every`: seconds between two at least, and their share of a run's time
FILE = re.compile(r"(\w+)-(\d+)-([0-9a-f]{16})\.npz")
OWN_SETTINGS = ("resume", "checkpoint_every")  # no result depends on them
# These may differ when a run goes on: what they lead to is compared instead, or nothing depends on them.
FREE = (*OWN_SETTINGS, "home", "data_dir", "experiment", "hints", "device", "threads", "amp", "fast")


@dataclass
class CheckpointSettings:
    """Options of all scripts that train."""

    resume: bool = False
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        every = self.checkpoint_every
        if every is not None and every <= 0:
            raise UserError(f"checkpoint_every={every} must be positive, or null")


# --- state as arrays and JSON -----------------------------------------------------------------------------------------


class Kept:
    """Something whose attributes named in `KEPT` (none named: all) are its state."""

    KEPT: ClassVar[tuple[str, ...]] = ()

    def get_state(self) -> dict[str, Any]:
        """The attributes by name."""
        return {name: getattr(self, name) for name in self.KEPT or vars(self)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Set them from `get_state()`."""
        vars(self).update(put_back(vars(self), state))


def put_back(live: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Give what is `live` and has state its `saved` one, in place; returns it with everything else that was saved."""
    out = dict(saved)
    for name, part in live.items():
        if name not in saved:
            continue
        if hasattr(part, "load_state_dict"):
            part.load_state_dict(saved[name])
        elif hasattr(part, "set_state"):
            part.set_state(*saved[name] if isinstance(part, Distillation) else (saved[name],))
        else:
            continue
        out[name] = part
    return out


def pack(tree: Any) -> dict[str, np.ndarray]:
    """Arrays alone, from nested dicts and lists of arrays, tensors, JSON values and whatever tells its state."""
    arrays: dict[str, np.ndarray] = {}

    def flat(value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            name = f"array{len(arrays)}"
            arrays[name] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            return {"$": name, "tensor": isinstance(value, Tensor)}
        for tell in ("state_dict", "get_state", "state"):
            if hasattr(value, tell):
                return getattr(value, tell)()
        raise TypeError(f"{type(value).__name__} cannot go into a checkpoint")

    text = json.dumps(tree, default=flat)
    return {"tree": np.array(text), **arrays}


def unpack(arrays: Any) -> Any:
    """What `pack` was given, from its arrays; tuples are lists now, and what told its state is that state."""

    def full(value: dict[str, Any]) -> Any:
        if "$" in value:
            array = arrays[value["$"]]
            return torch.from_numpy(array) if value["tensor"] else array
        return {int(k) if k.isdigit() else k: v for k, v in value.items()}  # JSON has no numbers as keys; optimisers do

    return json.loads(str(arrays["tree"]), object_hook=full)


# --- a run's checkpoints ----------------------------------------------------------------------------------------------


class Checkpoints:
    """All checkpoints of one run. Without a folder nothing is kept.

    With `resume=true` the run goes on from what the folder holds; without, one that holds an unfinished run is refused.

    Raises:
        UserError: when the folder's run is another one, naming what differs.
    """

    def __init__(self, run: Path | None = None, config: dict[str, Any] | None = None) -> None:
        self.run, self.folder = run, None if run is None else run / "checkpoints"
        given = config or {}
        self.settings = parse(CheckpointSettings, {k: given[k] for k in OWN_SETTINGS if k in given}, "config")
        if parallel.world() != 1 and self.settings.resume:
            raise UserError("resume=true goes on with a run of one process; start it without accelerate launch")
        plain = json.loads(json.dumps({k: v for k, v in given.items() if k not in FREE}, default=str))
        self.facts: dict[str, Any] = {"format": FORMAT, "config": plain}
        self._intact: set[Path] = set()
        self.written, self.cost, self.offers = time.perf_counter(), 0.0, 0
        self.before: dict[str, Any] | None = None  # facts of the run that goes on
        if self.settings.resume:
            newest = self.newest("")
            if newest is not None:
                with np.load(newest, allow_pickle=False) as file:
                    self.before = json.loads(str(file["facts"]))
                self._compare()
        elif any(stage != "finished" for stage in self._stages()):
            raise UserError(
                f"{run} holds an unfinished run; add resume=true to go on with it, or delete {self.folder} to start anew"
            )

    def attach(self, process: Distillation) -> None:
        """Say what the run runs on, once that is known; from here on checkpoints can be taken."""
        prepared = process.prepared
        self.facts |= {
            "data": prepared.task.fingerprint,
            "teachers": digest([t.fingerprint for t in prepared.teachers], prepared.encoder.fingerprint),
            "device": process.device.type,
            "threads": torch.get_num_threads(),
            **prepared.engine.told,
        }
        self._compare()
        if self.before is None:
            self.remove()  # of an earlier run that is finished
        for left in [] if self.folder is None else self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)  # by a run that was killed while it wrote

    def already_finished(self) -> bool:
        """Whether a resumed run had ended; says so, or that it begins anew."""
        if not self.settings.resume or self.run is None:
            return False
        done = "finished" in self._stages() and (self.run / "results.json").is_file()
        if done:
            print(f"{self.run} is finished already")
        elif self.before is None:
            tell(f"no checkpoint in {self.folder}: the run begins anew")
        return done

    def stage(self, name: str) -> Stage:
        """The part of the run called `name` (letters)."""
        return Stage(self, name)

    def finish(self) -> None:
        """The run has ended: keep a note of that, and no state."""
        self.write("finished", 0, {})
        for path in self._files():
            if not path.name.startswith("finished-"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- files ------------------------------------------------------------------------------------------------------

    def _files(self, stage: str = "") -> list[Path]:
        """Checkpoints of one stage, the newest last, or of all."""
        if self.folder is None:
            return []
        found = [m for p in self.folder.glob("*.npz") if (m := FILE.fullmatch(p.name)) and stage in ("", m[1])]
        return [self.folder / m[0] for m in sorted(found, key=lambda m: int(m[2]))]

    def _stages(self) -> set[str]:
        return {p.name.partition("-")[0] for p in self._files()}

    def newest(self, stage: str) -> Path | None:
        """The newest checkpoint of a stage (any, of all) that is as it was written; damaged ones are told of and deleted."""
        for path in reversed(self._files(stage)):
            try:
                intact = path in self._intact or file_sha256(path).startswith(path.stem.rpartition("-")[2])
            except OSError as error:
                raise UserError(
                    f"checkpoint {path} cannot be read ({error.strerror}); make it readable, or delete it"
                ) from None
            if intact:
                self._intact.add(path)
                return path
            tell(f"checkpoint {path} is damaged (its checksum is another one); going on from the one before")
            path.unlink(missing_ok=True)
        return None

    def write(self, stage: str, steps: int, tree: dict[str, Any]) -> None:
        """Write one checkpoint, then delete the oldest of its stage; `UserError` when there is no room."""
        if self.folder is None:
            return
        started = time.perf_counter()
        temporary = self.folder / f".{stage}.{os.getpid()}.tmp"
        content: dict[str, Any] = {"facts": np.array(json.dumps(self.facts)), **pack(tree)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez(file, **content)
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"{stage}-{steps:09}-{file_sha256(temporary)[:16]}.npz"
            temporary.replace(path)
        except FileNotFoundError:  # a cell that another grid has finished meanwhile
            return
        except OSError as error:
            raise UserError(
                f"checkpoint in {self.folder} cannot be written ({error.strerror}); make room and go on with resume=true"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)
        self._intact.add(path)
        for old in self._files(stage)[:-KEEP]:
            old.unlink(missing_ok=True)
        self.written = time.perf_counter()
        self.cost = self.written - started

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        self.offers += 1
        if self.settings.checkpoint_every:
            return self.offers % self.settings.checkpoint_every == 0
        return time.perf_counter() - self.written >= max(PAUSE, self.cost / SHARE)

    def _compare(self) -> None:
        """Raise `UserError` when the folder's run is not this one."""
        there = self.before or {}
        for key, here in self.facts.items():
            if key not in there or there[key] == here:
                continue
            what = f"{key}={there[key]} there, {key}={here} here"
            if key == "config":
                where, a, b = difference(there[key], here)
                what = f"config={digest(there[key])} there, config={digest(here)} here: {where} was {a!r:.99} and is {b!r:.99}"
            raise UserError(
                f"checkpoints in {self.folder} are of another run: {what}; give what it was begun with, or start anew in another folder"
            )


class Stage:
    """One part of a run. `restore` before its loop, `offer` before every step, `finish` behind it.

    Attributes:
        finished: whether it had ended before; `restore` gives what it ended with.
        steps: where it goes on; 0: at its beginning.
        purge_step: for `SummaryWriter`: events from here on are of the try before. None: there was none.
    """

    def __init__(self, run: Checkpoints | None = None, name: str = "") -> None:
        self.run, self.name = run or Checkpoints(), name
        self.finished, self.steps, self._saved = False, 0, None
        self.purge_step = 0 if self.run.settings.resume else None
        path = self.run.newest(name) if self.run.settings.resume else None
        if path is None:
            return
        with np.load(path, allow_pickle=False) as file:
            self._saved = unpack(file)
        self.finished, self.steps = self._saved["finished"], int(path.name.split("-")[1])
        self.purge_step = self.steps + 1
        if not self.finished:
            tell(f"{name} goes on at step {self.steps}")

    def restore(self, **live: Any) -> dict[str, Any]:
        """Put everything `live` that has state back to where it was; returns that and whatever else was kept, {} for nothing."""
        saved, self._saved = self._saved, None
        return {} if saved is None else put_back(live, saved["parts"])

    def offer(self, steps: int, **parts: Any) -> None:
        """Take a checkpoint if it is time for one, or if the run was told to stop: then it ends here (`Interrupted`)."""
        if self.run.folder is None:
            return
        stop.waits = True
        if stop.number or self.run.due():
            self._write(steps, False, parts)
        stop.check()

    def finish(self, steps: int, **parts: Any) -> None:
        """The stage has ended: keep what the run still needs of it."""
        if not self.finished:
            self._write(steps, True, parts)
        stop.waits = False
        stop.check()

    def _write(self, steps: int, finished: bool, parts: dict[str, Any]) -> None:
        self.run.write(self.name, steps, {"finished": finished, "parts": parts})


def difference(there: Any, here: Any, where: str = "") -> tuple[str, Any, Any]:
    """The first place where two configurations differ, and what stands there in each."""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict):
        for key in (*there, *here):
            if there.get(key) != here.get(key):
                return difference(there.get(key), here.get(key), f"{where}.{key}" if where else key)
    return where, there, here


def tell(message: str) -> None:
    """One line for whoever watches."""
    print(message, file=sys.stderr)
