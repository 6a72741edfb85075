"""What every runnable script needs: runs of a fixed rule from the warm start, the floor, results.json and the table."""

from __future__ import annotations

import math
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from agents.experiment.checkpoints import OWN_SETTINGS, Checkpoints, Kept, Stage
from agents.rules import Rule, known_best, make_rule
from distill.cache import whole_folder, write_json, write_whole
from distill.checks import UserError
from distill.losses import label_loss
from distill.process import Distillation
from distill.settings import digest
from envs.teacher_select import Core


@dataclass
class Run:
    """A student trained from the warm start under a fixed rule, at its best point on dev."""

    dev: dict[str, float]
    tests: dict[str, dict[str, float]]
    best_step: int
    selected: Selected
    weights: list[Tensor]
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)  # step and dev metrics at every look


class Selected(Kept):
    """What was chosen: in all, over time, and last for every training instance.

    Attributes:
        last: `[N,K]`, the latest actions of every training instance; -1 where it was never met.
    """

    BINS = 24  # of the curve over time
    KEPT = ("count", "empty", "on", "done", "bins", "filled", "last")

    def __init__(self, process: Distillation) -> None:
        teachers, instances = process.num_teachers, len(process.labels)
        self.count, self.empty, self.on = 0, 0, np.zeros(teachers)
        self.steps, self.done = process.budget, 0
        self.bins, self.filled = np.zeros((self.BINS, teachers)), np.zeros(self.BINS)
        self.last = np.full((instances, teachers), -1, np.float32)

    def add(self, rows: np.ndarray, actions: np.ndarray) -> None:
        """Count the actions `[B,K]` of the training instances `rows` `[B]`, one student step."""
        self.count += len(actions)
        self.empty += int((actions <= 0).all(1).sum())
        self.on += actions.sum(0)
        place = min(self.BINS - 1, self.done * self.BINS // self.steps)
        self.bins[place] += actions.sum(0)
        self.filled[place] += len(actions)
        self.done += 1
        self.last[rows] = actions

    def summary(self) -> dict[str, Any]:
        """As in results.json: `rate` [K] of each teacher, `mean_size` of a subset, `empty`: share without a teacher.

        Weights count as what they are, so a rate is a mean weight there.
        """
        n = max(1, self.count)
        return {"rate": [float(x) for x in self.on / n], "mean_size": float(self.on.sum() / n), "empty": self.empty / n}

    def curve(self) -> list[dict[str, Any]]:
        """The rates `[K]` over time, one entry for every part of the run that was met."""
        edges = [self.steps * (i + 1) // self.BINS for i in range(self.BINS)]
        return [
            {"step": int(edge), "rate": [float(x) for x in on / n]}
            for edge, on, n in zip(edges, self.bins, self.filled, strict=True)
            if n
        ]


class Best(Kept):
    """The student at its best dev value so far; of equals the later one, which has seen more."""

    KEPT = ("value", "step", "dev", "weights", "curve")

    def __init__(self, process: Distillation) -> None:
        self.process, self.metric = process, process.task.metric
        self.value, self.step, self.dev, self.weights = -math.inf, 0, {}, []  # type: ignore[var-annotated]
        self.curve: list[dict[str, Any]] = []
        self.every = max(1, process.budget // process.settings.budget.evals)

    def look(self) -> None:
        """Evaluate on dev if this step is due; keep the student if it is the best."""
        steps = self.process.student.steps
        if steps % self.every and not self.process.done:
            return
        dev = self.process.evaluate("dev")
        self.curve.append({"step": steps, **dev})
        if dev[self.metric] >= self.value:
            self.value, self.step, self.dev = dev[self.metric], steps, dev
            self.weights = self.process.student.weights()


def follow(core: Core, choose: Rule, seed: int, name: str, stage: Stage | None = None) -> Run:
    """Train a student from the warm start for the whole budget under `choose`; keep its best point on dev, test that once.

    A `stage` that had ended gives its run again; one that was under way goes on, unless the rule `remembers`.
    """
    process, stage = core.process, stage or Stage()
    best, selected = Best(process), Selected(process)
    if stage.finished:
        return Run(**stage.restore(selected=selected))
    process.begin(seed)
    spent = stage.restore(process=process, best=best, selected=selected).get("spent", 0.0)
    nothing, started, steps = np.empty(0, np.float32), time.perf_counter() - spent, process.student.steps
    with tqdm(total=process.budget, initial=steps, desc=name, unit="step", disable=None, leave=False) as bar:
        while not process.done:
            if not choose.remembers:
                spent = time.perf_counter() - started
                stage.offer(process.student.steps, process=process, best=best, selected=selected, spent=spent)
            assert process.current is not None
            actions = choose(core.observe() if choose.needs_states else nothing, process.current)
            selected.add(process.current.rows, actions)
            process.step(actions)
            best.look()
            bar.update()
    seconds = time.perf_counter() - started
    process.student.restore(best.weights)
    tests = {t: process.evaluate(t) for t in process.task.tests}
    run = Run(best.dev, tests, best.step, selected, best.weights, seconds, best.curve)
    stage.finish(best.process.budget, **vars(run))
    return run


def floor_examples_per_s(process: Distillation, seed: int, steps: int = 100) -> float:
    """Speed of the bare student loop: labels only, the batches of this run, no teachers, no agent."""
    process.begin(seed)
    stream, tokens = process.stream, process.tokens("train")
    count, started = 0, time.perf_counter()
    for _ in range(min(steps, process.budget)):
        rows = stream.next()
        gold = torch.from_numpy(process.labels[rows]).to(process.device)
        process.student.step(tokens.batch(rows), label_loss(gold))
        count += len(rows)
    if process.device.type == "cuda":
        torch.cuda.synchronize(process.device)
    return count / (time.perf_counter() - started)


def run_folder() -> Path:
    """This run's folder, from Hydra."""
    return Path(HydraConfig.get().runtime.output_dir)


def reproduce_line(script: str) -> str:
    """The command that gives this run again: the script and the overrides it was called with."""
    left_out = ("data_dir", "home", *OWN_SETTINGS)
    overrides = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in left_out]
    return " ".join(["python", script, *(f"'{o}'" if any(c in o for c in " []{}") else o for o in overrides)])


def machine(process: Distillation) -> dict[str, Any]:
    """Where a result was computed, as far as its digits depend on it."""
    return {
        "device": str(process.device),
        "threads": torch.get_num_threads(),
        **process.prepared.engine.told,
    }


def base_results(config: dict[str, Any], process: Distillation, teachers: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of results.json that does not depend on the agent."""
    task, tests = process.task, process.task.tests
    packages = ("torch", "transformers", "gymnasium", "stable-baselines3", "numpy")
    hashed = {k: v for k, v in config.items() if k not in ("seed", "home", "data_dir", *OWN_SETTINGS)}
    return {
        "schema": 1,
        "task": task.name,
        "agent": config["agent"]["name"],
        "seed": config["seed"],
        "config_hash": digest(hashed),
        **machine(process),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "data": {
            **{r: len(s) for r, s in task.splits.items()},
            "source": task.source,
            "sha256": task.fingerprint,
            "labels": list(task.label_names),
        },
        "teachers": teachers[:-1],
        "ensemble": {role: teachers[-1][role] for role in ("train", "dev", *tests)},
    }


def scores_of(run: Run) -> dict[str, Any]:
    """A run as results.json shows it."""
    return {"dev": run.dev, **run.tests, "best_step": run.best_step}


def write_run(folder: Path, config: dict[str, Any], results: dict[str, Any]) -> None:
    """Write results.json and the resolved configuration."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown = {k: v for k, v in config.items() if k not in ("experiment", "resume")}
        write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)).encode())
        write_json(folder / "results.json", results)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); set hydra.run.dir to a writable folder"
        ) from None


@dataclass
class Learnt:
    """What training an agent left behind."""

    rule: Rule  # the policy, fixed
    seconds: float
    episodes: int
    joint: tuple[dict[str, float], list[Tensor]] | None = None  # dev metrics and weights of the student it trained with
    curve: list[dict[str, Any]] = field(default_factory=list)  # of training, one entry an episode


def conclude(
    core: Core, config: dict[str, Any], learnt: Learnt, script: str, with_oracle: bool, checkpoints: Checkpoints
) -> dict[str, Any]:
    """What every learnt policy is judged by, and everything a run leaves behind but the policy itself.

    From the same warm start, on the same batches, for the same number of steps: the control, the student under the
    fixed rule and, where the task knows it, the oracle. Only here is test data read. Then results.json, the student
    and the table; returns the results.
    """
    process, seed, folder = core.process, config["seed"], run_folder()
    rules = {"control": make_rule("control", core, seed), "student": learnt.rule}
    best_known = known_best(process) if with_oracle else None
    if best_known is not None:
        rules["oracle"] = best_known
    done = {name: follow(core, choose, seed, name, checkpoints.stage(name)) for name, choose in rules.items()}
    results = base_results(config, process, process.prepared.teacher_scores())
    process.student.restore(process.warm)
    results["warm_start"] = {role: process.evaluate(role) for role in ("dev", *process.task.tests)}
    if learnt.joint is not None:
        dev, weights = learnt.joint
        process.student.restore(weights)
        results["joint"] = {"dev": dev, **{t: process.evaluate(t) for t in process.task.tests}}
    results |= {name: scores_of(outcome) for name, outcome in done.items()}
    student = done["student"]
    results["selection"] = student.selected.summary()
    steps = learnt.episodes * process.budget
    results["cost"] = {
        "teacher_fit_s": process.prepared.teacher_fit_s,
        "signals_s": process.prepared.signals_s,
        "warm_start_s": process.warm_start_s,
        "train_s": learnt.seconds,
        "student_steps": steps,
        "examples_per_s": steps * core.batch_size / learnt.seconds,
        "floor_examples_per_s": floor_examples_per_s(process, seed),
    }
    results["reproduce"] = reproduce_line(script)
    process.student.restore(student.weights)
    with whole_folder(folder / "student") as place:
        process.student.save(place)
    write_run(folder, config, results)
    checkpoints.finish()
    print_table(results, process, ("joint", "oracle"))
    print(f"written to {folder}")
    return results


def print_table(results: dict[str, Any], process: Distillation, extra: tuple[str, ...] = ()) -> None:
    """The one table at the end: teachers, control, student, on dev and test."""
    metric, tests = process.task.metric, process.task.tests
    columns = [metric] if metric == "accuracy" else [metric, "accuracy"]
    table = Table(title=f"{results['task']}: {results['agent']}, seed {results['seed']}", title_justify="left")
    table.add_column("model")
    for role in ("dev", *tests):
        for column in (*columns, "loss"):
            table.add_column(f"{role} {column}", justify="right")
    table.add_column("chosen", justify="right")

    def add(name: str, scores: dict[str, Any], chosen: float | None = None, style: str | None = None) -> None:
        cells = [f"{scores[r][c]:.4f}" if r in scores else "" for r in ("dev", *tests) for c in (*columns, "loss")]
        table.add_row(name, *cells, "" if chosen is None else f"{chosen:.2f}", style=style)

    rates = results["selection"]["rate"]
    for row, rate in zip(results["teachers"], rates, strict=True):
        add(f"teacher {row['name']}", row, rate)
    add("teachers averaged", results["ensemble"])
    table.add_section()
    add("student: warm start", results["warm_start"])
    add("student: all teachers (control)", results["control"])
    for name in extra:
        if name in results:
            add(f"student: {name.replace('_', ' ')}", results[name])
    add(f"student: {results['agent']}", results["student"], style="bold")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for test in tests:
        difference = results["student"][test][metric] - results["control"][test][metric]
        console.print(
            f"{results['agent']} - control, {test} {metric}: {difference:+.4f} (one seed; the interval over seeds is what counts)"
        )
    cost = results["cost"]
    console.print(
        f"{cost['examples_per_s']:.0f} examples/s in joint training, {cost['floor_examples_per_s']:.0f} in the bare student loop"
    )
