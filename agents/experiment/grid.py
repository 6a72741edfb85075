"""A grid of cells: one agent with one seed each, run as processes of their own and kept when finished."""

from __future__ import annotations

import copy
import io
import os
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import configs
from agents import reinforce, sb3
from agents.experiment import runs
from agents.experiment.checkpoints import OWN_SETTINGS, Checkpoints
from agents.experiment.interrupts import Interrupted, stop
from agents.rules import RULES, make_rule
from distill import cache
from distill.checks import UserError, check, expand, one_of
from distill.data.load import load_task
from distill.settings import ProcessSettings, digest, parse
from envs.teacher_select import Core

FORMAT = 2  # of a cell; raised whenever what it would hold changes


LEARNT = ("reinforce", *sb3.NAMES)


SHOWN = 400  # training instances kept for the report


RESULT, CHOICES = "result.json", "choices.npz"  # a cell is finished when its result is there


@dataclass
class CompareSettings:
    """The grid."""

    agents: list[str] = field(default_factory=lambda: ["control"])
    seeds: int = 3
    jobs: int | None = None
    cells: str = "cells"
    report: bool = True

    def __post_init__(self) -> None:
        if self.seeds <= 0:
            raise UserError(f"seeds={self.seeds} must be positive")
        if self.jobs is not None and self.jobs <= 0:
            raise UserError(f"jobs={self.jobs} must be positive, or null")
        if not self.agents:
            raise UserError("agents is empty; name some, for example agents=[control,reinforce]")


@dataclass
class Cell:
    """One agent with one seed: what a worker needs to know."""

    entry: str  # as in `agents`
    seed: int
    config: dict[str, Any]  # the whole one, the entry's own settings included
    folder: str
    reproduce: str

    @property
    def name(self) -> str:
        """Of the rule or agent."""
        return self.entry.split()[0]

    @property
    def label(self) -> str:
        """For bars and messages."""
        return f"{self.entry}, seed {self.seed}"


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run one cell; writes and returns its result. What tests measure is read here, once, at the end."""
    config, folder = copy.deepcopy(cell.config), Path(cell.folder)  # agents write into theirs
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    checkpoints = Checkpoints(folder, config | {"resume": True})
    learnt = None
    if cell.name in LEARNT:
        core, learnt = (reinforce if cell.name == "reinforce" else sb3).learn(config, folder, checkpoints)
        rule = learnt.rule
    else:
        core = Core(config)
        checkpoints.attach(core.process)
        rule = make_rule(cell.name, core, cell.seed)
    process = core.process
    done = runs.follow(core, rule, cell.seed, cell.label, checkpoints.stage("student"))
    metrics = {"dev": done.dev, **done.tests}
    result: dict[str, Any] = {
        "schema": 1,
        "task": process.task.name,
        "metric": process.task.metric,
        "tests": list(process.task.tests),
        "agent": cell.entry,
        "seed": cell.seed,
        **metrics,
        "best_step": done.best_step,
        "selection": done.selected.summary(),
        "curve": done.curve,
        "selection_curve": done.selected.curve(),
        "joint_curve": [] if learnt is None else learnt.curve,
        "teachers": list(process.signals.names),
        **runs.machine(process),
        "data": {role: len(split) for role, split in process.task.splits.items()},
        "cost": {
            "train_s": 0.0 if learnt is None else learnt.seconds,
            "follow_s": done.seconds,
            "whole_s": time.perf_counter() - started,
            "student_steps": process.budget * (1 + (0 if learnt is None else learnt.episodes)),
        },
        "reproduce": cell.reproduce,
    }
    _keep_choices(core, done, folder)
    files = {CHOICES: cache.file_sha256(folder / CHOICES)}
    cache.write_json(folder / RESULT, cache.sealed(result | {"files": files}))
    checkpoints.remove()
    return result


def _keep_choices(core: Core, done: runs.Run, folder: Path) -> None:
    """Last choices of all training instances, and the student before and after on a few of them, for the report."""
    process = core.process
    rows = np.sort(np.random.default_rng(0).permutation(len(process.labels))[:SHOWN])
    tokens = process.student.tokenize([process.train_split.texts[i] for i in rows])

    def probs(weights: list[torch.Tensor]) -> np.ndarray:
        process.student.restore(weights)
        return torch.softmax(process.student.predict(tokens), -1).numpy()

    before, after = probs(process.warm), probs(done.weights)
    content = io.BytesIO()
    np.savez_compressed(content, last=done.selected.last.astype(np.float16), rows=rows, before=before, after=after)
    cache.write_whole(folder / CHOICES, content.getvalue())


def _attempt(cell: Cell) -> dict[str, Any]:
    """In a worker: the result, or the error in one line with its traceback kept beside the cell."""
    place = Path(cell.folder) / "error.txt"
    try:
        with stop.obeyed(), cache.writing(place.parent.parent, "set cells to a writable folder"):
            return run_cell(cell)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        with suppress(OSError):  # the line itself must get through
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(traceback.format_exc(), encoding="utf-8")
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]} (traceback in {place})"}


def _start_worker() -> None:
    """A worker shows no bars of its own, and does not outlive a parent that was killed."""
    os.environ["TQDM_DISABLE"] = "1"
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def plan(settings: CompareSettings, config: dict[str, Any], given: Sequence[str]) -> list[Cell]:
    """All cells, seeds first; `given` are the command line's overrides. `UserError` for an unknown agent or setting."""
    own = {"agents", "seeds", "jobs", "cells", "report", "seed", "threads"}
    base = [o for o in given if o.lstrip("+~").partition("=")[0] not in own and not o.startswith("hydra")]
    for override in base:
        if override.lstrip("+~").startswith(("agent=", "agent.")):
            raise UserError(
                f"{override}: give an agent's settings within its entry, agents='[\"reinforce {override}\"]'"
            )
    process = ProcessSettings.from_config(config)
    entries: list[str] = []
    for entry in ["control", *settings.agents]:
        if not entry.split():
            raise UserError("agents holds an empty entry")
        name = entry.split()[0]
        single = [f"single:{t.name}" for t in process.teachers.pool] if name == "single" else [entry]
        entries += [e for e in single if e not in entries]
    threads = process.threads or (max(1, _cores() // settings.jobs) if settings.jobs else None)
    whole = {entry: entry_config(entry, base, process) | {"threads": threads} for entry in entries}
    task = load_task(process.task, process.data_dir)
    files = digest([_stamp(p) for p in _paths(process)])
    shown = [o for o in base if o.partition("=")[0] not in ("data_dir", "home", *OWN_SETTINGS)]
    cells = []
    for seed in range(process.seed, process.seed + settings.seeds):
        for entry in entries:
            name, own_config = entry.split()[0], whole[entry] | {"seed": seed}
            line = ["python", "agents/compare.py", *shown, f'agents=["{entry}"]', "seeds=1", f"seed={seed}"]
            line += [f"threads={threads}"] if threads else []  # results depend on it in the last digits
            aside = ("home", "data_dir", "hints", "experiment", *OWN_SETTINGS)
            facts = {k: v for k, v in own_config.items() if k not in aside}
            if name not in LEARNT:  # what only agents read must not make another cell of a rule
                facts = {k: v for k, v in facts.items() if k not in ("agent", "policy")}
                facts |= {"reward": facts["reward"] if name == "headroom" else None}
                facts |= {"observation": facts["observation"] if name == "mtkd_rl" else None}
            key = digest(FORMAT, name, facts, task.fingerprint, files)
            folder = Path(settings.cells) / f"{name.replace(':', '-')}-seed{seed}-{key}"
            cells.append(Cell(entry, seed, own_config, str(folder), shlex.join(line)))
    return cells


def entry_config(entry: str, base: Sequence[str], process: ProcessSettings) -> dict[str, Any]:
    """The entry's whole configuration; `UserError` before anything runs for an unknown agent, a wrong setting, a missing package."""
    name, *more = entry.split()
    if name.partition(":")[0] == "single":
        one_of(name.partition(":")[2], [t.name for t in process.teachers.pool], "single: teacher")
    else:
        one_of(name, (*RULES, "single", *LEARNT), "agents: entry")
    if name not in LEARNT:
        return configs.compose([*base, *more])
    config = configs.compose([*base, *more, f"agent={name}"])
    parse(reinforce.ReinforceSettings if name == "reinforce" else sb3.SB3Settings, config["agent"], "agent")
    if name != "reinforce":
        sb3.algorithm(name)
    return config


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _paths(process: ProcessSettings) -> list[str]:
    pool = [p for t in process.teachers.pool for p in (t.path, t.probs)]
    return sorted({p for p in (*pool, process.student.path, process.encoder.path) if p})


def _stamp(path: str) -> list[Any]:
    """What tells that local files behind a name have changed: sizes and times; hub ids and packages are their name."""
    place = expand(path)
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place] * place.is_file()
    return [path, *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def finished(cell: Cell) -> dict[str, Any] | None:
    """The kept result of a cell, or None; `UserError` naming its folder when it is not what was written."""
    folder = Path(cell.folder)
    if not (folder / RESULT).is_file():
        return None
    result = cache.read_sealed(folder / RESULT)
    cache.check_files(folder, result.pop("files", {}))  # none in cells of earlier versions
    # Another grid may have run it under another name for the same settings.
    return result | {"agent": cell.entry, "seed": cell.seed, "reproduce": cell.reproduce}


def run_grid(cells: Sequence[Cell], jobs: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Results of all cells that finished, in their order, and the errors of the others by label."""
    results: dict[int, dict[str, Any]] = {i: r for i, c in enumerate(cells) if (r := finished(c)) is not None}
    errors: dict[str, str] = {}
    todo = [i for i in range(len(cells)) if i not in results]
    lock = threading.Lock()
    with tqdm(total=len(cells), initial=len(results), desc="cells", unit="cell", disable=None) as bar:

        def slot() -> None:
            """One worker process after another: a worker that dies takes only its cell with it."""
            # A terminal sends Ctrl-C to the workers too, which inherit this: they stop when we tell them to.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            pool = None
            while True:
                with lock:
                    if not todo or stop.number:
                        break
                    i = todo.pop(0)
                pool = pool or ProcessPoolExecutor(1, get_context("spawn"), _start_worker)
                try:
                    result = pool.submit(_attempt, cells[i]).result()
                except BrokenProcessPool:
                    result, pool = {"error": "its process died (killed, or out of memory)"}, None
                except Interrupted as told:
                    result = {"error": f"its process was told to stop ({told.number}); start the grid again to go on"}
                if stop.number:
                    break
                with lock:
                    if "error" in result:
                        errors[cells[i].label] = result["error"]
                        bar.write(f"failed: {cells[i].label}: {result['error']}")
                    else:
                        results[i] = result
                    bar.update()
            if pool is not None:
                pool.shutdown()

        count = max(1, min(jobs, len(todo)))
        with ThreadPoolExecutor(count) as slots:
            running = [slots.submit(slot) for _ in range(count)]
            try:
                wait(running)
            except Interrupted:  # every worker takes a checkpoint and ends
                while wait(running, timeout=0.5).not_done:
                    for worker in active_children():
                        worker.terminate()
                raise
            for each in running:
                each.result()
    return [results[i] for i in sorted(results)], errors
