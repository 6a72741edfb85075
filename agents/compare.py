"""Compare rules and learnt selectors over seeds, and print the table of differences.

    python agents/compare.py task=mrpc teachers=minilm student=minilm2 agents=[control,best_single,reinforce,ppo] seeds=10

A cell is one agent with one seed: its student starts from the warm start that all agents share at that seed, sees the same
batches and takes the same number of steps. Finished cells are kept by the fingerprint of everything they depend on. So a
comparison that was killed only runs what is missing, comparisons that share cells share the work, and the cells that were
running continue from their checkpoints. A cell that fails is reported; the others run.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString

from agents.cell import DEFAULT, entry_settings, identity
from agents.experiment import advice, details, runs, ship
from agents.experiment.grid import FORMAT, Cell, cores, run_grid
from agents.experiment.launch import config_dir, job_title, launch, program, reproduce_line, run_folder
from agents.experiment.report import page
from agents.experiment.tables import against_baselines, print_against, print_rows, summarise, write_csv
from agents.experiment.teachers import left_out_teachers, print_left_out, print_teachers
from distill import cache, parallel
from distill.card import Shipped, write_card
from distill.checks import UserError, expand
from distill.data.load import load_task
from distill.models.engine import Engine
from distill.process import Prepared
from distill.settings import CompareSettings, RunSettings, digest, keys_changing, parse

GRID = tuple(f.name for f in fields(CompareSettings))


def plan(settings: CompareSettings, run: RunSettings, given: Sequence[str]) -> list[Cell]:
    """All cells, seeds first; `given` are the command line's overrides.

    Raises:
        UserError: for an unknown agent or setting.
    """
    base = [o for o in given if _key(o) not in (*GRID, "seed", "threads", "ship") and not o.startswith("hydra.")]
    for override in base:
        if _key(override) == "agent" or _key(override).startswith("agent."):
            raise UserError(
                f"{override}: give an agent's settings within its entry, agents='[\"reinforce {override}\"]'"
            )
    threads = run.threads or (max(1, cores() // settings.jobs) if settings.jobs else None)
    engine = Engine.pick(run.device, run.amp, run.fast)
    machine = {"device": engine.device.type, "threads": threads or torch.get_num_threads(), **engine.describe()}
    data = load_task(run.task, run.data_dir).fingerprint
    files = digest([cache.stamp(p) for p in _paths(run)])
    entries = _entries(settings.agents, run)
    kept = ship.candidates(run.ship, entries)
    whole = {entry: replace(entry_settings(entry, base), threads=threads) for entry in entries}
    cells = []
    for seed in range(run.seed, run.seed + settings.seeds):
        for entry in entries:
            own = replace(whole[entry], seed=seed)
            name = entry.split()[0]
            key = digest(FORMAT, name, identity(entry, own), machine, data, files)
            folder = Path(settings.cells) / f"{name.replace(':', '-')}-seed{seed}-{key}"
            cells.append(Cell(entry, seed, own, str(folder), _line(entry, seed, base, threads), entry in kept))
    return cells


def _key(override: str) -> str:
    """The setting that an override names."""
    return override.lstrip("+~").partition("=")[0]


def _line(entry: str, seed: int, base: Sequence[str], threads: int | None) -> str:
    """The command that gives one cell."""
    shown = [o for o in base if _key(o) not in keys_changing("nothing")]
    agents = f"agents=[{QuotedString(entry, Quote.double).with_quotes()}]"
    line = [*program("agents/compare.py"), *config_dir(), *shown, agents, "seeds=1", f"seed={seed}"]
    return shlex.join([*line, *([f"threads={threads}"] if threads else [])])  # threads change the last digits


def _entries(agents: Sequence[str], run: RunSettings) -> list[str]:
    """The entries, `control` first. `single` and `leave_one_out` stand for one entry for each teacher."""
    entries: list[str] = []
    for entry in ["control", *agents]:
        if not entry.split():
            raise UserError("agents holds an empty entry")
        entries += [e for e in _expanded(entry, [t.name for t in run.teachers.pool]) if e not in entries]
    return entries


def _expanded(entry: str, teachers: Sequence[str]) -> list[str]:
    """The entries that `entry` stands for. `leave_one_out` is the default agent, and the same without each teacher."""
    name = entry.split()[0]
    if name == "single":
        return [f"single:{teacher}" for teacher in teachers]
    if name != "leave_one_out":
        return [entry]
    if len(teachers) < 2:
        raise UserError(f"agents: leave_one_out needs at least two teachers, the pool has {len(teachers)}")
    return [entry.replace(name, agent, 1) for agent in (DEFAULT, *(f"without:{teacher}" for teacher in teachers))]


def _paths(run: RunSettings) -> list[str]:
    """The files and folders that the run reads models and predictions from."""
    parts = (*run.teachers.pool, run.student, run.encoder)
    return sorted({str(path) for part in parts if (path := getattr(part, "path", None))})


def run(config: dict[str, Any]) -> None:
    """Run the cells that are missing; print and write the table."""
    if parallel.world() > 1:
        raise UserError("compare.py starts processes of its own (jobs=N); run it without accelerate launch")
    settings = parse(CompareSettings, {k: config.pop(k) for k in GRID}, "compare")
    settings = replace(settings, cells=str(expand(settings.cells).absolute()))
    base = RunSettings.from_config(config)
    cells = plan(settings, base, list(HydraConfig.get().overrides.task))
    threads = cells[0].settings.threads
    jobs = settings.jobs or (1 if base.device.startswith("cuda") or not threads else max(1, cores() // threads))
    results, errors = run_grid(cells, jobs)
    if not results:
        raise UserError("no cell finished: " + "; ".join(f"{k}: {v}" for k, v in errors.items())[:500])
    comparison = compared(cells, results, errors)
    folder = run_folder()
    folder.mkdir(parents=True, exist_ok=True)
    tables = comparison["tables"]
    for test, rows in tables.items():
        seeds = len(comparison["seeds"])
        print_rows(
            rows, f"{comparison['task']}, {test}, {seeds} seeds: paired differences to all teachers{job_title()}"
        )
        print_against(comparison["against"][test], comparison["metric"])
        print_left_out(comparison["leave_one_out"][test], comparison["metric"])
    print_teachers(comparison)
    runs.print_check(comparison["preflight"])
    advice.show(comparison["warnings"])
    cache.write_json(folder / "comparison.json", comparison)
    if base.ship is not None:
        comparison["shipped"] = _ship(base.ship, cells, results, comparison, folder)
        cache.write_json(folder / "comparison.json", comparison)
    write_csv(folder / "comparison.csv", [row for rows in tables.values() for row in rows])
    if settings.report:
        _write_report(folder, comparison, results, cells)
    for label, error in errors.items():
        print(f"failed: {label}: {error}")
    print(f"written to {folder}")
    if errors:
        raise SystemExit(1)


def compared(cells: Sequence[Cell], results: Sequence[dict[str, Any]], errors: dict[str, str]) -> dict[str, Any]:
    """The content of comparison.json."""
    first = max(results, key=lambda result: len(result["teachers"]))  # of the full pool, if one of those has finished
    shared = ("task", "metric", "tests", "data", "teachers", "device", "threads", "amp", "fast")
    left_out = (
        *("preflight", "teacher_scores", "warnings", "tests", "data", "details", ship.STUDENT),
        *("curve", "selection_curve", "joint_curve"),
    )
    return {
        "schema": runs.SCHEMA,
        **{key: first[key] for key in shared},
        "seeds": sorted({c.seed for c in cells}),
        "tables": {test: summarise(results, test) for test in first["tests"]},
        "against": {test: against_baselines(results, test) for test in first["tests"]},
        "leave_one_out": {test: left_out_teachers(results, test) for test in first["tests"]},
        "details": {test: details.pooled(results, test) for test in first["tests"]},
        # Cells of earlier versions do not hold the teachers' scores.
        "teacher_scores": next((r["teacher_scores"] for r in results if r.get("teacher_scores")), None),
        "models": next((r["cost"]["models"] for r in results if "models" in r["cost"]), None),
        "preflight": next((r["preflight"] for r in results if r.get("preflight")), None),
        "warnings": advice.of_cells(results),
        "failed": errors,
        "cells": [{k: r[k] for k in r if k not in left_out} for r in results],
        "reproduce": reproduce_line("agents/compare.py"),
    }


def _ship(
    wanted: str,
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any]],
    comparison: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Leave the student that the comparison recommends in `student/`, with its model card.

    A cell of an earlier comparison may not have kept its student. It is then run again.

    Returns:
        The agent, the seed and the reason, for comparison.json.
    """
    entries = [
        entry for entry in dict.fromkeys(c.entry for c in cells) if any(c.keep for c in cells if c.entry == entry)
    ]
    choice = ship.choose(wanted, entries, results)
    cell = next(c for c in cells if (c.entry, c.seed) == (choice.agent, choice.seed))
    result = next(r for r in results if (r["agent"], r["seed"]) == (choice.agent, choice.seed))
    prepared = Prepared.of(cell.settings).load()
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        source = Path(cell.folder)
        if not ship.kept(source, result):
            source = Path(aside) / "cell"
            again, errors = run_grid([replace(cell, folder=str(source))], 1)
            if errors:
                raise UserError(f"ship={wanted}: the student of {cell.label} was not kept, and {errors[cell.label]}")
            result = again[0]
        control = next((r for r in results if (r["agent"], r["seed"]) == ("control", choice.seed)), None)
        scores = {f"{choice.agent}: this student": result}
        if control is not None and choice.agent != "control":
            scores["all teachers (control)"] = control
        splits = ("dev", *comparison["tests"])
        facts = Shipped(
            choice.agent,
            choice.seed,
            {model: {split: found[split] for split in splits} for model, found in scores.items()},
            result["selection"]["rate"],
            comparison["reproduce"],
            choice.reason,
        )
        with cache.whole_folder(folder / ship.STUDENT) as place:
            shutil.copytree(source / ship.STUDENT, place, dirs_exist_ok=True)
            write_card(place, cell.settings, prepared, facts)
    runs.write_config(folder, cell.settings)  # of the shipped student
    print(f"shipped: {choice.reason}")
    print(f"student: {folder / ship.STUDENT}")
    return asdict(choice)


def _write_report(
    folder: Path, comparison: dict[str, Any], results: Sequence[dict[str, Any]], cells: Sequence[Cell]
) -> None:
    """Write `report/` beside the table, or say which package is missing."""
    missing = [p for p in page.PACKAGES if find_spec(p) is None]
    if missing:
        print(f"no report: {', '.join(missing)} not installed; pip install 'teacher-select[report]', or report=false")
        return
    done = {(r["agent"], r["seed"]) for r in results}
    places = {(c.entry, c.seed): Path(c.folder) for c in cells if (c.entry, c.seed) in done}
    prepared = Prepared.of(cells[0].settings).load()
    with cache.whole_folder(folder / "report") as place:
        written = page.write(place, comparison, results, places, prepared)
    print(f"report: {folder / 'report' / written.name}")


if __name__ == "__main__":
    from agents import compare as script  # the workers of a sweep unpickle what they run, so it needs a module's name

    launch(script.run, config="compare")
