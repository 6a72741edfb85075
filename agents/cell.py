"""One cell of a comparison: one rule or agent with one seed.

`python -m agents.cell` reads a cell as JSON from standard input (see `agents.experiment.grid.Cell`) and writes its result
to the cell's folder. `agents/compare.py` starts one such process a cell.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import configs
from agents import reinforce
from agents.experiment import advice, details, runs
from agents.experiment.checkpoints import Checkpoints
from agents.experiment.grid import CHOICES, RESULT, Cell, words_of
from agents.experiment.heap import return_large_blocks
from agents.experiment.interrupts import Interrupted, stop
from agents.experiment.ship import STUDENT
from agents.experiment.sizes import sizes
from agents.rules import RULES, find_rule, make_rule
from distill import cache, preflight
from distill.checks import UserError, one_of
from distill.process import Distillation
from distill.settings import SB3_DEFAULTS, CompareSettings, RunSettings
from envs.core import Core
from envs.credit import with_credit

Learn = Callable[[RunSettings, Path, Checkpoints | None], tuple[Core, runs.Learnt]]
LEARNERS = ("reinforce", *SB3_DEFAULTS)
DEFAULT = "reinforce"  # the agent of `leave_one_out` and of `without:TEACHER`
EXPLORED = 400  # training instances kept for the report's explorer


def entry_settings(entry: str, base: Sequence[str]) -> RunSettings:
    """The settings of an entry of `agents=[...]`, over the command line's `base` overrides.

    Raises:
        UserError: before anything runs, for an unknown agent, a wrong setting or a missing package.
    """
    name, *more = words_of(entry)
    kind, _, teacher = name.partition(":")
    if kind == "without":
        return _without(teacher, entry_settings(" ".join([DEFAULT, *more]), base))
    if ":" not in name:  # else one teacher alone, or an import path
        one_of(name, (*RULES, "single", "leave_one_out", *LEARNERS), "agents: entry")
    if name not in LEARNERS:
        settings = _composed([*base, *more])
        find_rule(name, _teachers(settings))  # reports an unknown one
        return with_credit(settings, preferred="influence")
    settings = _composed([*base, *more, f"agent={name}"])
    if name == "reinforce":
        return with_credit(settings, preferred="counterfactual")
    _sb3().algorithm(name)  # reports a missing package
    return with_credit(settings, preferred="influence")


def _without(teacher: str, settings: RunSettings) -> RunSettings:
    """The settings with one teacher of the pool left out; `UserError` for a teacher that the pool does not have."""
    one_of(teacher, _teachers(settings), "without: teacher")
    pool = [spec for spec in settings.teachers.pool if spec.name != teacher]
    if not pool:
        raise UserError(f"without:{teacher} leaves no teacher; the pool needs at least two")
    return replace(settings, teachers=replace(settings.teachers, pool=pool))


def agent_of(entry: str) -> str:
    """The rule or agent of an entry: its first word, or the default agent for `without:TEACHER`."""
    name = words_of(entry)[0]
    return DEFAULT if name.startswith("without:") else name


def _composed(overrides: Sequence[str]) -> RunSettings:
    """The settings of a run after `overrides`; a file of the user's may also hold settings of the grid."""
    config = configs.compose(overrides, name="compare")
    grid = {f.name for f in fields(CompareSettings)}
    return RunSettings.from_config({key: value for key, value in config.items() if key not in grid})


def _sb3() -> ModuleType:
    """`agents.sb3`: imported where it is needed, because Stable-Baselines3 takes seconds that other cells save."""
    from agents import sb3

    return sb3


def identity(entry: str, settings: RunSettings) -> dict[str, Any]:
    """The settings that the result of an entry depends on. Settings that only agents read make no other cell of a rule."""
    name = agent_of(entry)
    if name in LEARNERS:
        return settings.identity("cell")
    return settings.identity("cell", sections=("budget", *find_rule(name, _teachers(settings)).reads))


def _teachers(settings: RunSettings) -> tuple[str, ...]:
    """The names of the pool's teachers."""
    return tuple(t.name for t in settings.teachers.pool)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run one cell; writes and returns its result. Test data is read here, once, at the end."""
    settings, folder = cell.settings, Path(cell.folder)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    checkpoints = Checkpoints(folder, settings, resume=True)
    learnt, rule_labels, agent = None, "", agent_of(cell.entry)
    if agent in LEARNERS:
        learn: Learn = reinforce.learn if agent == "reinforce" else _sb3().learn
        core, learnt = learn(settings, folder, checkpoints)
        rule: runs.Rule = learnt.rule
    else:
        core = Core(settings)
        checkpoints.attach(core.process)
        own = make_rule(agent, core, cell.seed)
        rule, rule_labels = own, own.labels
    process = core.process
    final = None if learnt is None else learnt.final
    done = final or runs.follow(core, rule, cell.seed, cell.label, checkpoints.stage("student"))
    result: dict[str, Any] = {
        "schema": runs.SCHEMA,
        "task": process.task.name,
        "metric": process.task.metric,
        "tests": list(process.task.tests),
        "agent": cell.entry,
        "learnt": learnt is not None,
        "labels": runs.labels_used("reward" if learnt is not None else rule_labels, settings.teachers),
        "seed": cell.seed,
        **runs.scores_of(done),
        "selection": done.selected.summary() | {"by_class": details.selection_by_class(process, done)},
        "details": details.by_test(process, done),
        "curve": done.curve,
        "selection_curve": done.selected.curve(),
        "joint_curve": [] if learnt is None else learnt.curve,
        "teachers": list(process.signals.names),
        **process.machine(),
        "data": {role: len(split) for role, split in process.task.splits.items()},
        "cost": {
            "train_s": 0.0 if learnt is None else learnt.seconds,
            "follow_s": 0.0 if final else done.seconds,
            "whole_s": time.perf_counter() - started,
            "student_steps": _last_step(done, process) + (0 if learnt is None else learnt.steps),
        },
        "reproduce": cell.reproduce,
    }
    result["warnings"] = advice.of_student(process, done.dev, done.best_step, done.curve)
    if cell.name == "control":  # once a seed is enough
        result["preflight"] = preflight.facts_of(process.prepared)
        result["cost"]["models"] = sizes(process)
        result["teacher_scores"] = process.prepared.teacher_scores(("dev", *process.task.tests))
        result["warnings"] += advice.of_teachers(process, result, result["teacher_scores"])
    if learnt is not None and (line := advice.chose_all(advice.equals_all(process, done.selected.last))):
        result["warnings"].append(line)
    details.write_predictions(folder, process, done)
    _write_choices(core, done, folder)
    if cell.keep:
        process.student.restore(done.weights)
        with cache.whole_folder(folder / STUDENT) as place:
            process.student.save(place)
        result[STUDENT] = cache.folder_fingerprint(folder / STUDENT)
    files = {name: cache.file_sha256(folder / name) for name in (CHOICES, details.PREDICTIONS)}
    cache.write_json(folder / RESULT, cache.sealed(result | {"files": files}))
    checkpoints.remove()
    return result


def _last_step(done: runs.Run, process: Distillation) -> int:
    """Student steps of the cell's own run: the whole budget, or fewer with `budget.patience`."""
    return int(done.curve[-1]["step"]) if done.curve else process.budget


def _write_choices(core: Core, done: runs.Run, folder: Path) -> None:
    """Last choices of all training instances, and the student before and after on a few of them, for the report."""
    process = core.process
    rows = np.sort(np.random.default_rng(0).permutation(len(process.labels))[:EXPLORED])
    tokens = process.student.tokenize([process.train_split.texts[i] for i in rows])

    def probs(weights: list[torch.Tensor]) -> np.ndarray:
        process.student.restore(weights)
        return torch.softmax(process.student.predict(tokens), -1).numpy()

    before, after = probs(process.warm), probs(done.weights)
    content = io.BytesIO()
    np.savez_compressed(content, last=done.selected.last.astype(np.float16), rows=rows, before=before, after=after)
    cache.write_whole(folder / CHOICES, content.getvalue())


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: a comparison that was killed leaves nothing running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run the cell on standard input. Exit code 0: finished, 2: `error: ...` on stderr, 130 or 143: told to stop."""
    if len(sys.argv) > 1:  # the process id of the comparison that started this one
        _end_with(int(sys.argv[1]))
    return_large_blocks()
    cell = Cell.from_json(sys.stdin.read())
    try:
        with stop.obeyed(), cache.writing(Path(cell.folder).parent, "set cells to a writable folder"):
            run_cell(cell)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as signalled:
        return 128 + signalled.number
    return 0


if __name__ == "__main__":
    sys.exit(main())
