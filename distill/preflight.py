"""Whether choosing teachers can help, before any student is trained: by cross-validation on the labelled reward split.

Five ways to make one soft label of the teachers' are compared by the log-likelihood and the accuracy of that soft label: the
mean of all teachers, the best single teacher, fixed weights, the most confident teacher, and the selector that the agents
start from. What must be fitted is fitted on a part of the instances and judged on the others. Intervals are bootstrap
intervals over the instances, 95 %, of the difference to the mean of all teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax

from distill.process import Prepared
from distill.selection import FLOOR, Problem, fit_selector
from distill.teachers.calibrate import fit_temperature

FOLDS = 5
RESAMPLES = 2000
FEWEST = 20  # labelled instances below which nothing is said
ALIKE = 0.95  # agreement of two teachers from which there is little to choose
SURE = 1.25  # temperature from which a teacher is over-confident
LEAST = 0.005  # nats a label that choosing must gain over fixed weights, so that rounding in a fit decides nothing


@dataclass(frozen=True)
class Choice:
    """One way to make a soft label, on the labelled instances.

    Attributes:
        loglik: mean log-likelihood of the label, nats. accuracy: of the soft label's most likely class.
        gain_loglik, gain_accuracy: over the mean of all teachers: the mean and the ends of its interval.
    """

    name: str
    loglik: float
    accuracy: float
    gain_loglik: tuple[float, float, float]
    gain_accuracy: tuple[float, float, float]


@dataclass(frozen=True)
class Preflight:
    """What the labels say about a pool of teachers.

    Attributes:
        instances: how many labels there were.
        choices: `average`, `best single`, `fixed weights`, `most confident` and `selector`.
        agreement: how often two teachers give the same class, mean over the pairs.
        any_right, all_right: how often at least one teacher is right, and how often all are.
        over_confident: the teachers whose labels are clearly more likely at a higher temperature.
        sentence: what to do.
    """

    instances: int
    choices: list[Choice]
    agreement: float
    any_right: float
    all_right: float
    over_confident: list[str]
    sentence: str


def preflight(
    probs: np.ndarray,
    labels: np.ndarray,
    states: np.ndarray,
    names: Sequence[str],
    answered: np.ndarray | None = None,
    seed: int = 0,
) -> Preflight:
    """Compare the ways to use these teachers.

    Args:
        probs: of the teachers, `[R,K,C]`.
        labels: gold classes, `[R]`.
        states: what a selector may look at, `[R,S]`; it must not depend on the labels.
        names: of the teachers, K.
        answered: bool `[R,K]`: which teachers have an answer; None: all.
        seed: of the folds and the bootstrap.
    """
    heard = np.ones(probs.shape[:2], bool) if answered is None else answered
    count, rows = len(labels), np.arange(len(labels))
    rng = np.random.default_rng(seed)
    soft = {name: mixed(weights, probs) for name, weights in _weights(probs, labels, states, heard, rng).items()}
    loglik = {name: np.log(q[rows, labels] + FLOOR) for name, q in soft.items()}
    right = {name: (q.argmax(1) == labels).astype(float) for name, q in soft.items()}
    draws = rng.integers(count, size=(RESAMPLES, count))

    def gain(values: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
        difference = values - base
        low, high = np.quantile(difference[draws].mean(1), (0.025, 0.975))
        return float(difference.mean()), float(low), float(high)

    choices = [
        Choice(
            name,
            float(loglik[name].mean()),
            float(right[name].mean()),
            gain(loglik[name], loglik["average"]),
            gain(right[name], right["average"]),
        )
        for name in soft
    ]
    agreement, any_right, all_right = in_common(probs.argmax(2), labels, heard)
    sure = [name for k, name in enumerate(names) if _over_confident(probs[heard[:, k], k], labels[heard[:, k]], rng)]
    # Over the fixed weights, choosing per instance must show a gain of its own.
    beyond = gain(loglik["selector"], loglik["fixed weights"])
    sentence = _sentence({c.name: c for c in choices}, beyond, agreement, sure, count)
    return Preflight(count, choices, agreement, any_right, all_right, sure, sentence)


def in_common(classes: np.ndarray, labels: np.ndarray, heard: np.ndarray) -> tuple[float, float, float]:
    """How often two teachers give the same class (mean over the pairs), at least one teacher is right, and all are.

    Args:
        classes: what each teacher says, `[R,K]`.
        labels: gold classes, `[R]`.
        heard: bool `[R,K]`: which teachers have an answer. Each statement is about those alone.
    """
    hits = (classes == labels[:, None]) & heard
    pairs = [
        float((classes[both, a] == classes[both, b]).mean())
        for a, b in combinations(range(classes.shape[1]), 2)
        if (both := heard[:, a] & heard[:, b]).any()
    ]
    agreement = float(np.mean(pairs)) if pairs else 1.0
    return agreement, float(hits.any(1).mean()), float((hits | ~heard).all(1).mean())


def mixed(weights: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The weighted mean `[R,C]` of the teachers' probabilities `[R,K,C]` under weights `[R,K]`."""
    total = weights.sum(1, keepdims=True)
    share = np.where(total > 0, weights / np.maximum(total, 1e-30), 1 / weights.shape[1])
    out: np.ndarray = (share[:, :, None] * probs).sum(1)
    return out


def _weights(
    probs: np.ndarray, labels: np.ndarray, states: np.ndarray, heard: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Weights `[R,K]` of every way; the fitted ones from the other folds."""
    count, teachers = heard.shape
    rows, everyone = np.arange(count), heard.astype(float)
    gold = probs[rows, :, labels]
    out = {"average": everyone, **{name: np.zeros(heard.shape) for name in ("best single", "fixed weights")}}
    out["most confident"] = np.eye(teachers)[np.where(heard, probs.max(2), -1).argmax(1)]
    # The fit has judged every instance without it. Only its penalty and its form were chosen on all of them.
    fit = fit_selector(Problem(states, gold, answered=heard))
    out["selector"] = everyone  # where selecting shows no gain, the agents start at all teachers
    if fit.helps and fit.held_out is not None:
        out["selector"] = fit.held_out.astype(float)
    fold = rng.permutation(count) % FOLDS
    for f in range(FOLDS):
        train, held = fold != f, fold == f
        alone = np.where(heard[train], np.log(gold[train] + FLOOR), np.nan)
        missed = np.isnan(alone).all(0)  # a teacher that answers none of them cannot be judged
        single = np.where(missed, -np.inf, np.nanmean(np.where(missed, 0.0, alone), 0)).argmax()
        out["best single"][held, single] = 1.0
        out["fixed weights"][held] = fixed_weights(gold[train], heard[train]) * heard[held]
    # Where the single best teacher is silent, all that answer are used.
    silent = out["best single"] * heard
    out["best single"] = np.where(silent.any(1, keepdims=True), silent, everyone)
    return out


def fixed_weights(gold: np.ndarray, heard: np.ndarray, steps: int = 200) -> np.ndarray:
    """Weights `[K]` of the teachers with the largest likelihood of the labels, the same for all instances, by EM.

    Args:
        gold: probability that each teacher gives the gold class, `[R,K]`.
        heard: bool `[R,K]`: which teachers have an answer.
    """
    weights = np.full(gold.shape[1], 1 / gold.shape[1])
    given = np.where(heard, gold, 0.0) + FLOOR * heard
    for _ in range(steps):
        share = weights * given
        weights = (share / np.maximum(share.sum(1, keepdims=True), 1e-30)).mean(0)
        weights = weights / weights.sum()
    return weights


def _over_confident(probs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether a temperature well above 1, fitted on one half, clearly raises the log-likelihood of the other."""
    if len(labels) < FEWEST:
        return False
    logits = np.log(probs + FLOOR)
    half = rng.permutation(len(labels)) % 2
    gains, temperatures = np.empty(len(labels)), []
    for f in (0, 1):
        held = half == f
        temperature = fit_temperature(logits[~held], labels[~held])
        scaled = log_softmax(logits[held] / temperature, 1)
        rows = np.arange(len(scaled))
        gains[held] = scaled[rows, labels[held]] - logits[held][rows, labels[held]]
        temperatures.append(temperature)
    error = gains.std() / np.sqrt(len(gains))
    return bool(min(temperatures) > SURE and gains.mean() > 2 * error)


def _sentence(
    choices: Mapping[str, Choice],
    beyond: tuple[float, float, float],
    agreement: float,
    sure: Sequence[str],
    count: int,
) -> str:
    """What to do, in one line."""
    selector, weights, single = (choices[name] for name in ("selector", "fixed weights", "best single"))
    if selector.gain_loglik[1] > 0 and beyond[1] > 0 and beyond[0] >= LEAST:
        mean, low, high = selector.gain_accuracy
        what = "help" if low > 0 else "help the probabilities, not the accuracy"
        text = f"Selecting per instance is expected to {what}: {mean:+.3f} accuracy of the soft labels [{low:.3f}, {high:.3f}]"
        return f"{text}, {selector.gain_loglik[0]:+.3f} nats."
    if weights.gain_loglik[1] > 0:
        mean, low, high = weights.gain_loglik
        better = single.loglik >= weights.loglik
        way = "The best single teacher is enough" if better else "Fixed weights are enough"
        return f"{way}: {mean:+.3f} nats a label [{low:.3f}, {high:.3f}]; choosing per instance adds nothing that {count} labels show."
    if agreement >= ALIKE:
        return f"Nothing to choose: two teachers agree on {agreement:.0%} of the instances. Use all of them."
    if sure:
        what = f"One teacher, {sure[0]}, is" if len(sure) == 1 else f"{len(sure)} teachers ({', '.join(sure)}) are"
        return f"{what} over-confident: try teachers.calibrate=auto. Choosing shows no gain over all teachers on {count} labels."
    return f"Choosing shows no gain over all teachers on {count} labels. Use all of them."


def of_pool(prepared: Prepared) -> Preflight | None:
    """The check on the reward split of a pool; None where there are too few labels to say anything.

    The signals of that split are read from the store; the teachers run only if they are not there yet.
    """
    split = prepared.task.splits["reward"]
    rows = np.flatnonzero(split.labelled)
    if len(rows) < FEWEST or len(prepared.teachers) < 2:
        return None
    signals = prepared.signals("reward")
    logits = signals.logits(rows).astype(np.float64)
    probs = softmax(logits, 2)
    answered = signals.answered(rows)
    states = [signals.vectors(rows).astype(np.float64), probs.reshape(len(rows), -1)]
    if not signals.complete:
        states.append(answered.astype(np.float64))
    return preflight(probs, split.labels[rows], np.concatenate(states, 1), signals.names, answered)


def facts_of(prepared: Prepared) -> dict[str, Any] | None:
    """`of_pool` as JSON values, for results."""
    check = of_pool(prepared)
    return None if check is None else asdict(check)


def lines(check: Preflight) -> list[str]:
    """The check as text: a table, what the teachers have in common, and the sentence."""
    out = [
        f"\nbefore any student is trained, by cross-validation on {check.instances} labels [95 % intervals, over the average]",
        f"{'soft label':16s} {'accuracy':>9s} {'gain':>26s} {'log-likelihood':>15s} {'gain, nats':>26s}",
    ]
    for choice in check.choices:
        gains = ["", ""]
        if choice.name != "average":
            gains = [
                f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
                for mean, low, high in (choice.gain_accuracy, choice.gain_loglik)
            ]
        out.append(f"{choice.name:16s} {choice.accuracy:9.3f} {gains[0]:>26s} {choice.loglik:15.3f} {gains[1]:>26s}")
    shares = f"two teachers agree: {check.agreement:.1%}; at least one is right: {check.any_right:.1%}; all are: {check.all_right:.1%}"
    return [*out, shares, check.sentence]
