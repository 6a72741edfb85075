"""Checkpoints of a run. A resumed run ends as an undisturbed one does, to the bit.

A run has stages (joint training, control, ...). Each keeps its last two checkpoints as
`<run>/checkpoints/<stage>-<steps>-<checksum>.npz`: arrays and JSON, no pickle. A file appears whole or not at all.
Damaged checkpoints are reported, and the previous one is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents.experiment.interrupts import stop
from distill import parallel
from distill.cache import file_sha256
from distill.checks import UserError
from distill.process import Distillation
from distill.settings import RunSettings, digest
from distill.state import load_into, pack, state_of, unpack

FORMAT = 2  # raised whenever what a checkpoint holds, or how it is used, changes
KEEP = 2
PAUSE = 5.0  # seconds between two checkpoints at least, without `checkpoint_every`
SHARE = 0.01  # of the time that checkpoints may take, without `checkpoint_every`
FILE = re.compile(r"(\w+)-(\d+)-([0-9a-f]{16})\.npz")


class Checkpoints:
    """All checkpoints of one run. Without a folder nothing is kept.

    With `resume=true` the run continues from what the folder holds. Without it, a folder with an unfinished run is
    refused.

    Raises:
        UserError: when the folder holds another run; the message names what differs.
    """

    def __init__(self, run: Path | None = None, settings: RunSettings | None = None, resume: bool = False) -> None:
        self.run, self.folder = run, None if run is None else run / "checkpoints"
        self.resume = resume or (settings is not None and settings.resume)
        self.every = None if settings is None else settings.checkpoint_every
        if self.resume and parallel.world() > 1:
            raise UserError("resume=true continues a run of one process; start it without accelerate launch")
        self.facts: dict[str, Any] = {"format": FORMAT}
        if settings is not None:
            self.facts["settings"] = json.loads(json.dumps(settings.identity("run")))
        self._intact: set[Path] = set()
        self.written, self.cost, self.offers = time.perf_counter(), 0.0, 0
        self.before: dict[str, Any] | None = None  # facts of the run that is continued
        if self.resume:
            newest = self.newest("")
            if newest is not None:
                with np.load(newest, allow_pickle=False) as file:
                    self.before = json.loads(str(file["run"]))
                self._compare()
        elif any(stage != "finished" for stage in self._stages()):
            raise UserError(
                f"{run} holds an unfinished run; add resume=true to continue it, or delete {self.folder} to start again"
            )

    def attach(self, process: Distillation) -> None:
        """Add what the run runs on to its identity, once that is known. From here on checkpoints can be written."""
        prepared = process.prepared
        self.facts |= {
            "data": prepared.task.fingerprint,
            "teachers": digest([t.fingerprint for t in prepared.teachers], prepared.encoder.fingerprint),
            **process.machine(),
        }
        self._compare()
        if self.before is None:
            self.remove()  # of an earlier run that has finished
        for left in [] if self.folder is None else self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)  # of a run that was killed while it wrote

    def already_finished(self) -> bool:
        """Whether a resumed run had ended. Prints that, or that the run starts from its beginning."""
        if not self.resume or self.run is None:
            return False
        done = "finished" in self._stages() and (self.run / "results.json").is_file()
        if done:
            print(f"{self.run} is finished already")
        elif self.before is None:
            report(f"no checkpoint in {self.folder}: the run starts from its beginning")
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
        """The newest intact checkpoint of a stage, or of all. Damaged ones are reported and deleted."""
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
            report(f"checkpoint {path} is damaged (wrong checksum); the previous one is used")
            path.unlink(missing_ok=True)
        return None

    def write(self, stage: str, steps: int, tree: Mapping[str, Any]) -> None:
        """Write one checkpoint, then delete the oldest of its stage; `UserError` when there is no room."""
        if self.folder is None:
            return
        started = time.perf_counter()
        temporary = self.folder / f".{stage}.{os.getpid()}.tmp"
        content: dict[str, Any] = {"run": np.array(json.dumps(self.facts)), **pack(tree)}
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
                f"checkpoint in {self.folder} cannot be written ({error.strerror}); "
                "make room and continue with resume=true"
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
        if self.every:
            return self.offers % self.every == 0
        return time.perf_counter() - self.written >= max(PAUSE, self.cost / SHARE)

    def _compare(self) -> None:
        """Raise `UserError` when the folder's run is not this one."""
        there = self.before or {}
        for key, here in self.facts.items():
            if key not in there or there[key] == here:
                continue
            what = f"{key}={there[key]} there, {key}={here} here"
            if key == "settings":
                name, a, b = _first_difference("", there[key], here)
                what = (
                    f"{name} was {a!r:.99} and is {b!r:.99} (settings {digest(there[key])} there, {digest(here)} here)"
                )
            raise UserError(
                f"checkpoints in {self.folder} are of another run: {what}; "
                "give the settings it was started with, or start again in another folder"
            )


class Stage:
    """One part of a run: `restore` before its loop, `offer` before every step, `finish` behind it.

    Attributes:
        finished: whether it had ended before; `restore` then gives what it ended with.
        steps: where it continues; 0: at its beginning.
        purge_step: for `SummaryWriter`: events from this step on are of the earlier attempt. None: there was none.
    """

    def __init__(self, run: Checkpoints | None = None, name: str = "") -> None:
        self.run, self.name = run or Checkpoints(), name
        self.finished, self.steps = False, 0
        self._saved: dict[str, Any] | None = None
        self.purge_step = 0 if self.run.resume else None
        path = self.run.newest(name) if self.run.resume else None
        if path is None:
            return
        with np.load(path, allow_pickle=False) as file:
            self._saved = unpack({k: file[k] for k in file.files if k != "run"})
        self.finished, self.steps = self._saved["finished"], int(path.name.split("-")[1])
        self.purge_step = self.steps + 1
        if not self.finished:
            report(f"{name} continues at step {self.steps}")

    def restore(self, **live: Any) -> dict[str, Any]:
        """Restore the state of everything `live`. Returns that and whatever else was saved; {} if nothing was."""
        saved, self._saved = self._saved, None
        return {} if saved is None else load_into(live, saved["parts"])

    def offer(self, steps: int, **parts: Any) -> None:
        """Write a checkpoint if it is time for one. If the process was told to stop, write one and raise `Interrupted`."""
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
        self.run.write(self.name, steps, {"finished": finished, "parts": state_of(parts)})


def _first_difference(name: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """The full name of the first value in which two settings `a` and `b`, called `name`, differ, and both values."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return name, a, b
    key = next(k for k in (*a, *b) if a.get(k) != b.get(k))
    return _first_difference(f"{name}.{key}" if name else str(key), a.get(key), b.get(key))


def report(message: str) -> None:
    """Print one line on stderr."""
    print(message, file=sys.stderr)
