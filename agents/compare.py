"""Compare rules and learnt selectors over seeds, and print the table of differences.

    python agents/compare.py task=mrpc teachers=minilm student=minilm2 agents=[control,best_single,reinforce,ppo] seeds=10

A cell is one agent with one seed: its student starts from the warm start that all agents share at that seed, sees the same
batches and takes the same number of steps. Finished cells are kept by the fingerprint of everything they depend on. So a
comparison that was killed only runs what is missing, comparisons that share cells share the work, and the cells that were
running continue from their checkpoints. A cell that fails is reported; the others run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString

from agents.cell import entry_settings, identity
from agents.experiment import runs
from agents.experiment.grid import FORMAT, Cell, cores, run_grid
from agents.experiment.launch import config_dir, launch, program, reproduce_line, run_folder
from agents.experiment.report import page
from agents.experiment.tables import against_baselines, print_against, print_rows, summarise, write_csv
from distill import cache, parallel
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
    base = [o for o in given if _key(o) not in (*GRID, "seed", "threads") and not o.startswith("hydra.")]
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
    whole = {entry: replace(entry_settings(entry, base), threads=threads) for entry in entries}
    cells = []
    for seed in range(run.seed, run.seed + settings.seeds):
        for entry in entries:
            own = replace(whole[entry], seed=seed)
            name = entry.split()[0]
            key = digest(FORMAT, name, identity(entry, own), machine, data, files)
            folder = Path(settings.cells) / f"{name.replace(':', '-')}-seed{seed}-{key}"
            cells.append(Cell(entry, seed, own, str(folder), _line(entry, seed, base, threads)))
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
    """The entries, `control` first, with `single` as one entry for each teacher."""
    entries: list[str] = []
    for entry in ["control", *agents]:
        if not entry.split():
            raise UserError("agents holds an empty entry")
        single = [f"single:{t.name}" for t in run.teachers.pool] if entry.split()[0] == "single" else [entry]
        entries += [e for e in single if e not in entries]
    return entries


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
        print_rows(rows, f"{comparison['task']}, {test}, {seeds} seeds: paired differences to all teachers")
        print_against(comparison["against"][test], comparison["metric"])
    runs.print_check(comparison["preflight"])
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
    first = results[0]
    shared = ("task", "metric", "tests", "data", "teachers", "device", "threads", "amp", "fast")
    left_out = ("preflight", "tests", "teachers", "data", "curve", "selection_curve", "joint_curve")
    return {
        "schema": runs.SCHEMA,
        **{key: first[key] for key in shared},
        "seeds": sorted({c.seed for c in cells}),
        "tables": {test: summarise(results, test) for test in first["tests"]},
        "against": {test: against_baselines(results, test) for test in first["tests"]},
        "preflight": next((r["preflight"] for r in results if r.get("preflight")), None),
        "failed": errors,
        "cells": [{k: r[k] for k in r if k not in left_out} for r in results],
        "reproduce": reproduce_line("agents/compare.py", keys_changing("nothing")),
    }


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
