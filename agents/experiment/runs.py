"""What every runnable script needs: running a fixed rule from the warm start, results.json and the table at the end."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.experiment import advice, details, ship
from agents.experiment.checkpoints import Checkpoints, Stage, report
from agents.experiment.launch import job_title, reproduce_line, run_folder
from agents.experiment.sizes import sizes
from distill import preflight
from distill.cache import whole_folder, write_json, write_whole
from distill.card import Shipped, write_card
from distill.losses import label_loss
from distill.process import Distillation, TrainingBatch
from distill.progress import Progress, expect
from distill.selection import Fit, fit_selector
from distill.settings import RunSettings, SB3Settings, TeachersSettings
from distill.state import Stateful
from envs.core import Core
from envs.labels import label_problem

SCHEMA = 1  # of results.json


class Rule(Protocol):
    """What chooses teachers: `agents.rules.Rule` and its subclasses."""

    @property
    def needs_states(self) -> bool:
        """Whether it looks at states."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether its choices depend on earlier ones."""
        ...

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        """Actions `[B,K]` for states `[B,S]`."""
        ...


def fitted_start(core: Core, start: str) -> Fit | None:
    """The fit that a selector or policy starts from with `agent.start=likelihood`; prints what cross-validation says.

    Returns:
        None where it starts at all teachers: with `start=all_on`, and where selecting shows no gain over all teachers on
        the labels of the reward split.
    """
    if start == "all_on":
        return None
    fit = fit_selector(label_problem(core))
    shown = f"{fit.gain:+.3f} nats a label, standard error {fit.error:.3f}, cross-validated on the reward split"
    if fit.helps:
        report(f"start: selector fitted by likelihood ({shown}; {'weights' if fit.form == 'weights' else 'subsets'})")
        return fit
    report(f"start: all teachers; selecting shows no gain over them ({shown})")
    return None


def always_taught(core: Core, fit: Fit | None) -> bool:
    """Whether every row must have a teacher: from a fitted start, and where train has unlabelled rows."""
    return fit is not None or not core.process.train_split.labelled.all()


def final_form(core: Core, fit: Fit | None) -> str:
    """What a policy of Bernoulli units gives when it is fixed.

    `subsets`: the most likely ones, as in the paper; an empty one leaves the row its label alone. Where every row must be
    taught, `taught`: the same, with the most likely teacher instead of none, or `weights`: the probabilities as weights of
    the teachers. Of these two, a fitted start has the one that cross-validation preferred.
    """
    if fit is not None:
        return fit.form
    return "weights" if always_taught(core, fit) else "subsets"


def start(config: Mapping[str, Any]) -> RunSettings:
    """Parse a script's configuration, once, and give torch the number of threads that it asks for."""
    settings = RunSettings.from_config(config)
    ship.of_a_run(settings.ship, settings.agent.name)  # reported before the run starts
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return settings


def event_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """A TensorBoard writer in `folder/tensorboard`.

    Raises:
        OSError: where the folder cannot be written. TensorBoard's own thread would only print its traceback.
    """
    place = folder / "tensorboard"
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "probe", bytes(4096))
    (place / "probe").unlink()
    return SummaryWriter(str(place), purge_step=purge_step)


@dataclass
class Run:
    """A student trained from the warm start under a fixed rule: the checkpoint with the best dev score."""

    dev: dict[str, float]
    tests: dict[str, dict[str, float]]
    best_step: int
    selected: Selected
    weights: list[Tensor]
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)  # step and dev metrics of every evaluation
    logits: dict[str, np.ndarray] = field(default_factory=dict)  # [N,C] on each test split, float32

    @property
    def choices(self) -> np.ndarray:
        """The latest actions `[N,K]` for the training instances; -1 where an instance was never seen."""
        return self.selected.last


class Selected(Stateful):
    """What was chosen: overall, over time, and the latest choice for every training instance.

    Attributes:
        last: `[N,K]`, the latest actions of every training instance; -1 where it was never seen.
    """

    BINS = 24  # of the curve over time
    STATE = ("count", "empty", "on", "done", "bins", "filled", "last")

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
        """The rates `[K]` over time, one entry for every part of the run that was reached."""
        edges = [self.steps * (i + 1) // self.BINS for i in range(self.BINS)]
        return [
            {"step": int(edge), "rate": [float(x) for x in on / n]}
            for edge, on, n in zip(edges, self.bins, self.filled, strict=True)
            if n
        ]


def tested(process: Distillation, best: Best, selected: Selected, seconds: float) -> Run:
    """The best student of a training as a run: evaluated once on test. The student has its weights afterwards."""
    process.student.restore(best.weights)
    return last(process, best, selected, seconds)


def last(process: Distillation, best: Best, selected: Selected, seconds: float) -> Run:
    """The student as it is as a run: evaluated once on test."""
    logits = {t: process.predict(t) for t in process.task.tests}
    tests = {t: process.task.scores(values, process.task.splits[t].labels) for t, values in logits.items()}
    return Run(best.dev, tests, best.step, selected, process.student.weights(), seconds, best.curve, logits)


class Best(Stateful):
    """The student with the best dev score so far. Of equal ones the later, which has seen more data."""

    STATE = ("value", "step", "dev", "weights", "curve")

    def __init__(self, process: Distillation) -> None:
        self.process, self.metric = process, process.task.metric
        self.value, self.step, self.dev, self.weights = -math.inf, 0, {}, []  # type: ignore[var-annotated]
        self.curve: list[dict[str, Any]] = []
        self.every = max(1, process.budget // process.settings.budget.evals)

    def update(self) -> None:
        """Evaluate on dev if this step is due; keep the student if it is the best."""
        steps = self.process.student.steps
        if steps % self.every and not self.process.done:
            return
        dev = self.process.evaluate("dev")
        self.curve.append({"step": steps, **dev})
        if dev[self.metric] >= self.value:
            self.value, self.step, self.dev = dev[self.metric], steps, dev
            self.weights = self.process.student.weights()

    @property
    def ends(self) -> bool:
        """Whether the run ends here: the last `budget.patience` evaluations have brought no better score."""
        patience = self.process.settings.budget.patience
        if patience is None or not self.curve:
            return False
        scores = [point[self.metric] for point in self.curve]
        return len(scores) - 1 - scores.index(max(scores)) >= patience


def follow(core: Core, choose: Rule, seed: int, name: str, stage: Stage | None = None) -> Run:
    """Train a student from the warm start under `choose` for the whole budget, or until `budget.patience` ends it.

    Keep the checkpoint with the best dev score; evaluate it once on test. A stage that had finished returns its run
    again. An unfinished one continues, unless the rule `remembers`.
    """
    process, stage = core.process, stage or Stage()
    best, selected = Best(process), Selected(process)
    if stage.finished:
        return Run(**stage.restore(selected=selected))
    train = getattr(choose, "train", None)
    if train is not None:  # a control that trains a student in its own way
        run: Run = train(seed, name)
        stage.finish(process.budget, **vars(run))
        return run
    process.begin(seed)
    spent = stage.restore(process=process, best=best, selected=selected).get("spent", 0.0)
    nothing, started, steps = np.empty(0, np.float32), time.perf_counter() - spent, process.student.steps
    with Progress(name, process.budget, initial=steps, budget=process.budget) as shown:
        while not process.done and not best.ends:
            if not choose.remembers:
                spent = time.perf_counter() - started
                stage.offer(process.student.steps, process=process, best=best, selected=selected, spent=spent)
            assert process.batch is not None
            actions = choose(core.observe() if choose.needs_states else nothing, process.batch)
            selected.add(process.batch.rows, actions)
            process.step(actions)
            best.update()
            shown.update()
    run = tested(process, best, selected, time.perf_counter() - started)
    stage.finish(best.process.budget, **vars(run))
    return run


def floor_examples_per_s(process: Distillation, seed: int, steps: int = 100) -> float:
    """Examples per second of the student's training loop alone: a label each, the batches of this run, no teachers, no agent.

    Unlabelled instances count as of class 0: only the time matters, the student is thrown away.
    """
    process.begin(seed)
    stream, tokens = process.stream, process.tokens("train")
    count, started = 0, time.perf_counter()
    for _ in range(min(steps, process.budget)):
        rows = stream.next()
        gold = torch.from_numpy(process.labels[rows]).clamp_min(0).to(process.device)
        process.student.step(tokens.batch(rows), label_loss(gold))
        count += len(rows)
    if process.device.type == "cuda":
        torch.cuda.synchronize(process.device)
    return count / (time.perf_counter() - started)


def base_results(settings: RunSettings, process: Distillation, teachers: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of results.json that does not depend on the agent."""
    task, tests = process.task, process.task.tests
    packages = ("torch", "transformers", "gymnasium", "stable-baselines3", "numpy")
    return {
        "schema": SCHEMA,
        "task": task.name,
        "agent": settings.agent.name,
        "seed": settings.seed,
        "config_hash": settings.fingerprint("run"),
        **process.machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "data": {
            **{r: len(s) for r, s in task.splits.items()},
            "source": task.source,
            "sha256": task.fingerprint,
            "labels": list(task.label_names),
        },
        "teachers": teachers[:-1],
        "ensemble": {role: teachers[-1][role] for role in ("train", "dev", *tests) if teachers[-1][role] is not None},
    }


def scores_of(run: Run) -> dict[str, Any]:
    """A run as results.json shows it."""
    return {"dev": run.dev, **run.tests, "best_step": run.best_step}


def write_run(folder: Path, settings: RunSettings, results: dict[str, Any]) -> None:
    """Write results.json and the resolved configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, settings)
    write_json(folder / "results.json", results)


def write_config(folder: Path, settings: RunSettings) -> None:
    """Write the resolved configuration, config.yaml."""
    shown = {k: v for k, v in settings.to_config().items() if k != "resume"}
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)).encode())


@dataclass
class Learnt:
    """What training an agent left behind."""

    rule: Rule  # the policy, fixed
    seconds: float  # of training, from stored signals and warm start
    steps: int  # student steps of training
    joint: tuple[dict[str, float], list[Tensor]] | None = None  # dev metrics and weights of the student it trained with
    curve: list[dict[str, Any]] = field(default_factory=list)  # of training, one entry an episode
    final: Run | None = None  # the student to ship, where training left it; else the fixed policy trains one
    step_seconds: float = 0.0  # of the joint steps alone, without evaluations
    # where it was trained on the labels alone: mean rewards and regret, nats a label (`agents.sb3.label_scores`)
    on_labels: dict[str, float] | None = None


def conclude(
    core: Core,
    settings: RunSettings,
    learnt: Learnt,
    references: Mapping[str, Rule],
    script: str,
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """Judge a learnt policy, and write everything a run leaves behind but the policy itself.

    The reference rules and the fixed policy each train a student: from the same warm start, on the same batches, for the
    same number of steps. Test data is read only here. Then results.json, the student and the table are written.

    Args:
        references: rules by name: `control`, and `oracle` where the task knows it.
        script: as it is named in the `reproduce` line.

    Returns:
        The content of results.json.
    """
    process, seed, folder = core.process, settings.seed, run_folder()
    rules = {"control": references["control"], "student": learnt.rule, **references}
    done = _follow_all(core, rules, learnt.final, seed, checkpoints)
    teachers = process.prepared.teacher_scores()
    results = base_results(settings, process, teachers)
    process.student.restore(process.warm)
    results["warm_start"] = {role: process.evaluate(role) for role in ("dev", *process.task.tests)}
    if learnt.joint is not None:
        dev, weights = learnt.joint
        process.student.restore(weights)
        results["joint"] = {"dev": dev, **{t: process.evaluate(t) for t in process.task.tests}}
    if learnt.on_labels is not None:
        results["on_labels"] = learnt.on_labels
    results |= {name: scores_of(outcome) for name, outcome in done.items()}
    student = done["student"]
    share = advice.equals_all(process, student.selected.last)
    results["selection"] = student.selected.summary() | {
        "equals_all": share,
        "by_class": details.selection_by_class(process, student),
    }
    results["details"] = {name: details.by_test(process, done[name]) for name in ("student", "control")}
    whole = learnt.seconds + (0.0 if learnt.final else student.seconds)
    results["cost"] = {
        "teacher_fit_s": process.prepared.teacher_fit_s,
        "signals_s": process.prepared.signals_s,
        "warm_start_s": process.warm_start_s,
        "train_s": learnt.seconds,
        "student_steps": learnt.steps,
        "whole_job_s": whole,
        "whole_job": whole / done["control"].seconds,
        "examples_per_s": learnt.steps * core.batch_size / learnt.step_seconds if learnt.step_seconds else None,
        "floor_examples_per_s": floor_examples_per_s(process, seed),
        "models": sizes(process),
    }
    results["preflight"] = preflight.facts_of(process.prepared)
    policy = advice.chose_all(share)
    results["warnings"] = [
        *advice.of_student(process, student.dev, student.best_step, student.curve),
        *advice.of_teachers(process, results["student"], teachers),
        *([policy] if policy else []),
    ]
    results["reproduce"] = reproduce_line(script)
    results["shipped"] = ship.of_a_run(settings.ship, settings.agent.name)
    _ship(process, settings, results, done["control" if results["shipped"] == "control" else "student"], folder)
    details.write_predictions(folder, process, student, done["control"])
    write_run(folder, settings, results)
    checkpoints.finish()
    print_table(results, process, ("joint", "oracle"))
    print_check(results["preflight"])
    advice.show(results["warnings"])
    print(f"written to {folder}")
    return results


def labels_used(own: str, teachers: TeachersSettings) -> str:
    """Whose labels a row of a table has used: those of its agent, and those of the reward split if teachers are calibrated."""
    if teachers.calibrate == "none" or own == "" or "reward" in own:
        return own
    return "reward" if own == "none" else f"reward, {own}"


def _follow_all(
    core: Core, rules: Mapping[str, Rule], final: Run | None, seed: int, checkpoints: Checkpoints
) -> dict[str, Run]:
    """The run of every rule; that of `student` is `final`, if there is one."""
    done = {}
    todo = [name for name in rules if name != "student" or final is None]
    for name, choose in rules.items():
        if final is not None and name == "student":
            done[name] = final
            continue
        expect(len(todo) - todo.index(name))
        done[name] = follow(core, choose, seed, name, checkpoints.stage(name))
    return done


def trainings_of(settings: RunSettings) -> int:
    """How often a run trains a student for the whole budget: joint episodes, the control, the fixed policy, an oracle."""
    task, agent = settings.task, settings.agent
    oracle = agent.oracle and (task.name != "files" or task.owner is not None)
    joint = 0 if isinstance(agent, SB3Settings) and agent.on_labels else agent.joint_episodes
    return joint + 2 + oracle


def _ship(process: Distillation, settings: RunSettings, results: dict[str, Any], run: Run, folder: Path) -> None:
    """Write the student of a run, with its model card."""
    own = "control" if results["shipped"] == "control" else "student"
    tests = process.task.tests
    others = {"control": "all teachers (control)", "student": f"student of {settings.agent.name}"}
    models = {f"{others[own]}: this student": results[own]}
    models |= {shown: results[key] for key, shown in others.items() if key != own}
    models["warm start"] = results["warm_start"]
    scores = {model: {split: found[split] for split in ("dev", *tests)} for model, found in models.items()}
    teachers = [*results["teachers"], {"name": "ensemble", **results["ensemble"]}]
    facts = Shipped(results["shipped"], settings.seed, scores, run.selected.summary()["rate"], results["reproduce"])
    process.student.restore(run.weights)
    with whole_folder(folder / ship.STUDENT) as place:
        process.student.save(place)
        write_card(place, settings, process.prepared, replace(facts, teachers=teachers))


def print_check(facts: Mapping[str, Any] | None) -> None:
    """Print the sentence of the check before training, if there was one."""
    if facts:
        print(f"before training, the labels said: {facts['sentence']}")


def print_table(results: dict[str, Any], process: Distillation, extra: tuple[str, ...] = ()) -> None:
    """The one table at the end: teachers, control, student, on dev and test."""
    metric, tests = process.task.metric, process.task.tests
    columns = [metric] if metric == "accuracy" else [metric, "accuracy"]
    title = f"{results['task']}: {results['agent']}, seed {results['seed']}{job_title()}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("model")
    for role in ("dev", *tests):
        for column in (*columns, "loss"):
            table.add_column(f"{role} {column}", justify="right")
    table.add_column("chosen", justify="right")
    # Whose labels say which teachers are used. The best checkpoint of every student is chosen on dev.
    table.add_column("labels")

    def add(
        name: str, scores: dict[str, Any], chosen: float | None = None, style: str | None = None, labels: str = ""
    ) -> None:
        cells = [f"{scores[r][c]:.4f}" if r in scores else "" for r in ("dev", *tests) for c in (*columns, "loss")]
        table.add_row(name, *cells, "" if chosen is None else f"{chosen:.2f}", labels, style=style)

    rates = results["selection"]["rate"]
    for row, rate in zip(results["teachers"], rates, strict=True):
        add(f"teacher {row['name']}", row, rate)
    add("teachers averaged", results["ensemble"])
    table.add_section()
    add("student: warm start", results["warm_start"])
    add("student: all teachers (control)", results["control"], labels=labels_used("none", process.settings.teachers))
    for name in extra:
        if name in results:
            add(f"student: {name}", results[name], labels="reward" if name == "joint" else "right teacher")
    reward = f"reward ({len(process.task.splits['reward'])})"
    add(f"student: {results['agent']}", results["student"], style="bold", labels=reward)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for test in tests:
        difference = results["student"][test][metric] - results["control"][test][metric]
        console.print(
            f"{results['agent']} - control, {test} {metric}: {difference:+.4f} (one seed: judge by the interval over several seeds)"
        )
    cost = results["cost"]
    joint = "" if cost["examples_per_s"] is None else f"{cost['examples_per_s']:.0f} examples/s in joint training, "
    console.print(f"{joint}{cost['floor_examples_per_s']:.0f} examples/s in the student's training loop alone")
    console.print(
        f"whole job (from stored signals and warm start to the final student): {cost['whole_job']:.2f} times the control's"
    )
