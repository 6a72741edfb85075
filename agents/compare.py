"""Everything against everything, honestly: a grid of rules, learnt selectors and seeds, and the table of differences.

    python agents/compare.py task=mrpc teachers=minilm student=minilm2 agents=[control,best_single,reinforce,ppo] seeds=10

A cell is one agent with one seed: its student starts from the warm start that all agents share at that seed, sees the same
batches and takes the same number of steps. Finished cells are kept by the hash of everything they depend on, so a killed
grid goes on where it was, and grids that share cells share the work; the cells that were under way go on from their
checkpoints. A cell that fails is reported, the others go on.
"""

from __future__ import annotations

import copy
import csv
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
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm

import configs
from agents import reinforce, report, runs, sb3, stats
from agents.checkpoints import OWN_SETTINGS, Checkpoints
from agents.rules import RULES, make_rule
from configs.interrupts import Interrupted, stop
from distill import cache, parallel
from distill.process import prepare
from distill.settings import ProcessSettings, UserError, check, digest, expand, one_of, parse
from distill.tasks import load_task
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
        check(self.seeds > 0, f"seeds={self.seeds} must be positive")
        check(self.jobs is None or self.jobs > 0, f"jobs={self.jobs} must be positive, or null")
        check(bool(self.agents), "agents is empty; name some, for example agents=[control,reinforce]")


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


# --- one cell ---------------------------------------------------------------------------------------------------------


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


# --- the grid ---------------------------------------------------------------------------------------------------------


def plan(settings: CompareSettings, config: dict[str, Any], given: Sequence[str]) -> list[Cell]:
    """All cells, seeds first; `given` are the command line's overrides. `UserError` for an unknown agent or setting."""
    own = {"agents", "seeds", "jobs", "cells", "report", "seed", "threads"}
    base = [o for o in given if o.lstrip("+~").partition("=")[0] not in own and not o.startswith("hydra")]
    for override in base:
        check(
            not override.lstrip("+~").startswith(("agent=", "agent.")),
            f"{override}: give an agent's settings within its entry, agents='[\"reinforce {override}\"]'",
        )
    process = ProcessSettings.from_config(config)
    entries: list[str] = []
    for entry in ["control", *settings.agents]:
        check(bool(entry.split()), "agents holds an empty entry")
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


# --- the table --------------------------------------------------------------------------------------------------------


def summarise(results: Sequence[dict[str, Any]], test: str) -> list[dict[str, Any]]:
    """One row per agent: every seed, IQM with interval, paired differences to the control, calibration, cost."""
    agents = list(dict.fromkeys(r["agent"] for r in results))
    by = {a: {r["seed"]: r for r in results if r["agent"] == a} for a in agents}
    metric = results[0]["metric"]
    control = by.get("control", {})
    rows = []
    for agent in agents:
        cells = by[agent]
        values = np.array([c[test][metric] for c in cells.values()])
        row: dict[str, Any] = {
            "agent": agent,
            "test": test,
            "metric": metric,
            "seeds": list(cells),
            "values": values.tolist(),
            "mean": float(values.mean()),
            "iqm": stats.iqm(values),
            "interval": stats.bootstrap([values]),
        }
        for name in cells[next(iter(cells))][test]:
            row[f"mean_{name}"] = float(np.mean([c[test][name] for c in cells.values()]))
        row["mean_size"] = float(np.mean([c["selection"]["mean_size"] for c in cells.values()]))
        row["rate"] = np.mean([c["selection"]["rate"] for c in cells.values()], 0).tolist()
        row["train_s"] = float(np.mean([c["cost"]["train_s"] for c in cells.values()]))
        row["follow_s"] = float(np.mean([c["cost"]["follow_s"] for c in cells.values()]))
        both = [s for s in cells if s in control]
        if agent != "control" and both:
            ours, theirs = ([group[s][test] for s in both] for group in (cells, control))
            for name in (metric, "loss"):
                pair = stats.paired(np.array([o[name] for o in ours]), np.array([t[name] for t in theirs]))
                row[f"difference_{name}"] = asdict(pair)
            a, b = (np.array([x[metric] for x in group]) for group in (ours, theirs))
            row["improvement"] = stats.improvement(a, b)
        rows.append(row)
    compared = [r for r in rows if f"difference_{metric}" in r]
    corrected = stats.holm([r[f"difference_{metric}"]["p"] for r in compared])
    for row, p in zip(compared, corrected, strict=True):
        row["p_holm"] = p
    return rows


def print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    """The table on the terminal; a difference whose interval does not hold zero is bold."""
    metric = rows[0]["metric"]
    table = Table(title=title, title_justify="left")
    table.add_column("agent")
    columns = (metric, "IQM [95 %]", "- control [95 %]", "P(better)", "p (Holm)", "loss", "- control", "ece", "on")
    for column in (*columns, "train s"):
        table.add_column(column.replace("[", "\\["), justify="right")

    for row in rows:
        difference, loss, p = row.get(f"difference_{metric}"), row.get("difference_loss"), row.get("p_holm")
        text, interval = "", None
        if difference is not None:
            interval = difference["interval"]
            text = stats.with_interval(difference["mean"], interval, "+.4f")
        table.add_row(
            Text(row["agent"]),
            f"{row['mean']:.4f}",
            Text(stats.with_interval(row["iqm"], row["interval"], ".4f")),
            Text(text, style="bold" if stats.is_clear(interval) else ""),
            f"{row['improvement']:.2f}" if "improvement" in row else "",
            "" if p is None else f"{p:.3f}",
            f"{row['mean_loss']:.4f}",
            "" if loss is None else f"{loss['mean']:+.4f}",
            f"{row['mean_ece']:.3f}",
            f"{row['mean_size']:.2f}",
            f"{row['train_s']:.0f}",
        )
    Console(width=None if os.isatty(1) else 160).print(table)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The table as CSV, one line per agent and test."""
    flat = []
    for row in rows:
        line = {k: v for k, v in row.items() if not isinstance(v, dict | list | tuple)}
        for name in ("interval", f"difference_{row['metric']}", "difference_loss"):
            value = row.get(name)
            if isinstance(value, dict):
                line[name] = value["mean"]
                value = value["interval"]
            if value is not None:
                line |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        line["seeds"] = len(row["seeds"])
        flat.append(line)
    columns = list(dict.fromkeys(k for line in flat for k in line))
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, columns)
    writer.writeheader()
    writer.writerows(flat)
    cache.write_whole(path, content.getvalue().encode())


def run(config: dict[str, Any]) -> None:
    """Run what is missing of the grid; print and write the table."""
    check(parallel.world() == 1, "compare.py starts processes of its own (jobs=N); run it without accelerate launch")
    grid = {k: config.pop(k) for k in ("agents", "seeds", "jobs", "cells", "report")}
    settings = parse(CompareSettings, grid, "compare")
    settings.cells = str(expand(settings.cells).absolute())
    cells = plan(settings, config, list(HydraConfig.get().overrides.task))
    on_gpu, threads = str(config["device"]).startswith("cuda"), cells[0].config["threads"]
    jobs = settings.jobs or (1 if on_gpu or not threads else max(1, _cores() // threads))
    results, errors = run_grid(cells, jobs)
    folder = runs.run_folder()
    check(bool(results), "no cell finished: " + "; ".join(f"{k}: {v}" for k, v in errors.items())[:500])
    tests = results[0]["tests"]
    tables = {test: summarise(results, test) for test in tests}
    folder.mkdir(parents=True, exist_ok=True)
    seeds = sorted({c.seed for c in cells})
    for test, rows in tables.items():
        print_rows(
            rows,
            f"{results[0]['task']}, {test}, {len(seeds)} seeds: paired differences to all teachers, same warm start",
        )
    comparison = {
        "schema": 1,
        "task": results[0]["task"],
        "metric": results[0]["metric"],
        "tests": tests,
        "seeds": seeds,
        "tables": tables,
        "data": results[0]["data"],
        "teachers": results[0]["teachers"],
        "device": results[0]["device"],
        "threads": results[0]["threads"],
        "amp": results[0]["amp"],
        "fast": results[0]["fast"],
        "failed": errors,
        "cells": [{k: r[k] for k in r if k not in ("tests", "teachers", "data") and "curve" not in k} for r in results],
        "reproduce": runs.reproduce_line("agents/compare.py"),
    }
    cache.write_json(folder / "comparison.json", comparison)
    write_csv(folder / "comparison.csv", [row for rows in tables.values() for row in rows])
    if settings.report:
        missing = [p for p in report.PACKAGES if find_spec(p) is None]
        if missing:
            print(
                f"no report: {', '.join(missing)} not installed; pip install 'teacher-select[report]', or report=false"
            )
        else:
            done = {(r["agent"], r["seed"]) for r in results}
            places = {(c.entry, c.seed): Path(c.folder) for c in cells if (c.entry, c.seed) in done}
            prepared = prepare(ProcessSettings.from_config(cells[0].config))
            with cache.whole_folder(folder / "report") as place:
                page = report.write(place, comparison, results, places, prepared)
            print(f"report: {folder / 'report' / page.name}")
    for label, error in errors.items():
        print(f"failed: {label}: {error}")
    print(f"written to {folder}")
    if errors:
        raise SystemExit(1)


if __name__ == "__main__":
    from agents import compare as script  # a sweep's workers unpickle what they run, so it needs an importable home

    configs.launch(script.run, config="compare")
