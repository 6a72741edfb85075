"""What a finished run warns of, and what to do about each: one line a warning.

Every check looks at numbers that the run has anyway. None of them changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distill.process import Distillation
from distill.settings import CheckpointTeacher, FinetuneTeacher, PredictionsTeacher, TeacherSettings

NEAR_CHANCE = 0.9  # share of chance's loss from which a student has learnt little
FALLING = 0.01  # share of chance's loss that the last evaluations must have gained for a student that still improves
LAST = 3  # evaluations that must each have a lower loss than the one before
BEHIND = 0.1  # distance to the best teacher, in the task's metric, on dev and on every test
SEEN = 0.05  # of a teacher, accuracy on dev minus accuracy on test
ERRORS = 2.5  # standard errors that this difference must exceed
ALIKE = 0.01  # largest difference of a teacher's weight from that of all teachers
NEARLY_ALL = 0.99  # share of instances with all teachers from which the choice did nothing


def chance_loss(labels: np.ndarray) -> float:
    """Loss of always answering the shares of the classes: the entropy of labels `[N]`, nats."""
    shares = np.unique(labels[labels >= 0], return_counts=True)[1] / max(1, int((labels >= 0).sum()))
    return float(-(shares * np.log(shares)).sum())


def still_improving(curve: Sequence[Mapping[str, Any]], best_step: int, chance: float) -> str | None:
    """A warning when the best evaluation on dev is the last one, and the dev loss was falling until then.

    With a constant learning rate, the best of a few evaluations is often the last by luck. The loss tells these apart.

    Args:
        curve: `step` and dev metrics of every evaluation.
        best_step: step of the best one.
        chance: loss of chance, nats.
    """
    if len(curve) < 2 or best_step != curve[-1]["step"]:
        return None
    losses = [float(point["loss"]) for point in curve[-LAST - 1 :]]
    if any(after >= before for before, after in pairwise(losses)):
        return None
    if losses[0] - losses[-1] < FALLING * chance:
        return None
    return (
        f"the best dev score is that of the last step, {best_step}, and the dev loss was still falling "
        f"({losses[0]:.3f} to {losses[-1]:.3f} in the last {len(losses) - 1} evaluations): train longer, "
        f"budget.steps={2 * best_step}"
    )


def near_chance(dev: Mapping[str, float], labels: np.ndarray, lr: float, steps: int) -> str | None:
    """A warning when the student's dev loss is hardly below that of chance, or above it.

    Args:
        dev: the student's metrics on dev.
        labels: of dev, `[N]`.
        lr, steps: learning rate and student steps of the run.
    """
    chance = chance_loss(labels)
    if dev["loss"] < NEAR_CHANCE * chance:
        return None
    return (
        f"the student's dev loss {dev['loss']:.3f} is near chance, {chance:.3f} (always answering the shares of the "
        f"classes); its dev accuracy is {dev['accuracy']:.3f}: raise student.lr (now {lr:g}) or budget.steps (now "
        f"{steps}), or take a larger student"
    )


def behind_teachers(
    student: Mapping[str, Mapping[str, float]], teachers: Iterable[Mapping[str, Any]], roles: Sequence[str], metric: str
) -> str | None:
    """A warning when a teacher, or their average, is far better than the student on dev and on every test.

    Args:
        student: metrics by split.
        teachers: `Distillation.prepared.teacher_scores()`.
        roles: dev and the tests.
        metric: of the task.
    """
    gaps = [
        (min(t[r][metric] - student[r][metric] for r in roles), t) for t in teachers if all(t.get(r) for r in roles)
    ]
    if not gaps:
        return None
    gap, best = max(gaps, key=lambda pair: pair[0])
    if gap < BEHIND:
        return None
    who = "the average of all teachers" if best["name"] == "ensemble" else f"teacher {best['name']}"
    numbers = ", ".join(f"{r} {metric} {best[r][metric]:.3f} against {student[r][metric]:.3f}" for r in roles)
    return (
        f"{who} is far better than the student ({numbers}): train longer (budget.steps, budget.warm_steps), "
        "raise student.lr, or take a larger student"
    )


def share_of_all(last: np.ndarray, answered: np.ndarray) -> float | None:
    """Share of the instances for which a policy chose all teachers that answer, with equal weights.

    Args:
        last: latest actions, `[N,K]`; -1 where an instance was never seen.
        answered: bool `[N,K]`.

    Returns:
        None where there is nothing to choose: a single teacher, or no instance that was seen.
    """
    seen = (last[:, 0] >= 0) & (answered.sum(1) > 1)
    if not seen.any():
        return None
    chosen, heard = last[seen] * answered[seen], answered[seen].astype(float)
    weights = chosen / np.maximum(chosen.sum(1, keepdims=True), 1e-12)
    equal = heard / heard.sum(1, keepdims=True)
    return float((np.abs(weights - equal).max(1) < ALIKE).mean())


def chose_all(share: float | None) -> str | None:
    """A warning when the learnt policy gives all teachers to (nearly) every instance.

    Args:
        share: see `share_of_all`.
    """
    if share is None or share < NEARLY_ALL:
        return None
    shown = math.floor(1000 * share) / 10
    return (
        f"the learnt policy equals all teachers on {shown:g} % of the instances: use the student of the control, "
        "or give the policy something to choose from: teachers that differ, or more labels to fit on (task.reward_size)"
    )


def saw_dev(
    pool: Sequence[TeacherSettings],
    teachers: Iterable[Mapping[str, Any]],
    sizes: Mapping[str, int],
    tests: Sequence[str],
) -> list[str]:
    """Warnings for teachers that were fitted elsewhere and are far better on dev, which was cut from train, than on test.

    Teachers that are fine-tuned here from random weights cannot have seen dev.

    Args:
        pool: settings of the teachers.
        teachers: `Distillation.prepared.teacher_scores()`.
        sizes: instances by split.
        tests: names of the test splits.
    """
    scores = {row["name"]: row for row in teachers}
    out = []
    for spec in pool:
        elsewhere = isinstance(spec, CheckpointTeacher | PredictionsTeacher)
        if not elsewhere and not (isinstance(spec, FinetuneTeacher) and spec.path is not None):
            continue
        row = scores[spec.name]
        if not row.get("dev") or not all(row.get(test) for test in tests):
            continue
        test = max(tests, key=lambda name: row[name]["accuracy"])
        dev, there = row["dev"]["accuracy"], row[test]["accuracy"]
        error = math.sqrt(dev * (1 - dev) / sizes["dev"] + there * (1 - there) / sizes[test])
        if dev - there > max(SEEN, ERRORS * error):
            out.append(
                f"teacher {spec.name} is far better on dev (accuracy {dev:.3f}), which was cut from train, than on "
                f"{test} ({there:.3f}): it may have been fitted on these instances, and dev and reward then misjudge "
                "it; give dev data that no teacher was fitted on, task.dev=FILE"
            )
    return out


def of_student(process: Distillation, dev: Mapping[str, float], best_step: int, curve: Sequence[Any]) -> list[str]:
    """Warnings for one trained student, from its dev metrics alone."""
    labels = process.task.splits["dev"].labels
    found = [
        still_improving(curve, best_step, chance_loss(labels)),
        near_chance(dev, labels, process.settings.student.lr, process.budget),
    ]
    return [line for line in found if line]


def of_teachers(process: Distillation, student: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings that compare the teachers with the student, and dev with test.

    Args:
        student: its metrics by split.
        teachers: `process.prepared.teacher_scores()`.
    """
    task = process.task
    behind = behind_teachers(student, teachers, ("dev", *task.tests), task.metric)
    out = [behind] if behind else []
    if "dev" in task.cut:
        sizes = {role: len(split) for role, split in task.splits.items()}
        out += saw_dev(process.settings.teachers.pool, teachers, sizes, task.tests)
    return out


def equals_all(process: Distillation, last: np.ndarray) -> float | None:
    """`share_of_all` of the actions `last` `[N,K]` on the training instances."""
    return share_of_all(last, process.signals.answered(np.arange(len(last))))


def of_cells(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """The warnings of a comparison: of each agent those of its first seed that has any, and how many seeds have some."""
    by_agent: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_agent.setdefault(cell["agent"], []).append(cell)
    out = []
    for agent, group in by_agent.items():
        warned = [cell for cell in group if cell.get("warnings")]  # cells of earlier versions have none
        for line in warned[0]["warnings"] if warned else []:
            out.append(f"{agent}, seed {warned[0]['seed']} ({len(warned)} of {len(group)} seeds have warnings): {line}")
    return out


def show(warnings: Iterable[str]) -> None:
    """Print warnings under the table, one line each."""
    for line in warnings:
        print(f"warning: {line}")
