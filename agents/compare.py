"""Everything against everything, honestly: a grid of rules, learnt selectors and seeds, and the table of differences.

    python agents/compare.py task=mrpc teachers=minilm student=minilm2 agents=[control,best_single,reinforce,ppo] seeds=10

A cell is one agent with one seed: its student starts from the warm start that all agents share at that seed, sees the same
batches and takes the same number of steps. Finished cells are kept by the hash of everything they depend on, so a killed
grid goes on where it was, and grids that share cells share the work; the cells that were under way go on from their
checkpoints. A cell that fails is reported, the others go on.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

import configs
from agents import report
from agents.experiment import runs
from agents.experiment.grid import CompareSettings, _cores, plan, run_grid
from agents.experiment.tables import print_rows, summarise, write_csv
from distill import cache, parallel
from distill.checks import check, expand
from distill.process import prepare
from distill.settings import ProcessSettings, parse


def run(config: dict[str, Any]) -> None:
    """Run what is missing of the grid; print and write the table."""
    if parallel.world() != 1:
        raise UserError("compare.py starts processes of its own (jobs=N); run it without accelerate launch")
    grid = {k: config.pop(k) for k in ("agents", "seeds", "jobs", "cells", "report")}
    settings = parse(CompareSettings, grid, "compare")
    settings.cells = str(expand(settings.cells).absolute())
    cells = plan(settings, config, list(HydraConfig.get().overrides.task))
    on_gpu, threads = str(config["device"]).startswith("cuda"), cells[0].config["threads"]
    jobs = settings.jobs or (1 if on_gpu or not threads else max(1, _cores() // threads))
    results, errors = run_grid(cells, jobs)
    folder = runs.run_folder()
    if not results:
        raise UserError("no cell finished: " + "; ".join(f"{k}: {v}" for k, v in errors.items())[:500])
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
    from agents import compare as script

    configs.launch(script.run, config="compare")
