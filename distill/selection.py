"""Choosing teachers by the labels of the reward split: a selector fitted by likelihood, and a router.

A selector is K logistic units on the state of an instance. Each subset `a` of the teachers has a reward on a labelled
instance j: the log-likelihood of its label under the mean of the chosen teachers,

    R_j(a) = log sum_k w_k(a) p_jk(y_j),    w(a) = a / sum(a).

The fit maximises `mean_j E_{a ~ pi(s_j)} R_j(a)` minus a ridge penalty. This is the policy gradient of a one-step problem
whose reward needs no student. Up to `EXACT` teachers the expectation runs over all subsets; beyond, its gradient is
estimated by the Rao-Blackwellised form over sampled subsets. What is used in the end is one choice for each instance: the
most likely subset, or the probabilities as weights. Cross-validation of that choice's reward decides three things: the
penalty, the form, and whether to select at all. `Fit.helps` is false where the gain over all teachers does not exceed its
standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from threadpoolctl import threadpool_limits

EXACT = 8  # teachers up to which all 2^K subsets are enumerated
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FOLDS = 4
EMPTY = 0.5  # nats by which choosing nobody is worse than choosing everybody
FLOOR = 1e-6  # added to probabilities before the logarithm
BIAS_PENALTY = 1e-3
SAMPLES = 8  # subsets drawn for each instance where they are not enumerated


@dataclass(frozen=True)
class Fit:
    """K logistic units, and what cross-validation says about them.

    Attributes:
        weights: `[F,K]`. bias: `[K]`.
        gain: mean held-out reward of `choose` over that of all teachers, nats.
        error: its standard error, nats.
        penalty: the ridge penalty that cross-validation chose.
        form: what `choose` gives, a key of `FORMS`.
        held_out: `[R,K]`, the choice for every instance by the units that cross-validation fitted without it.
    """

    weights: np.ndarray
    bias: np.ndarray
    gain: float
    error: float
    penalty: float
    form: str = "taught"
    held_out: np.ndarray | None = None

    @property
    def helps(self) -> bool:
        """Whether the cross-validated gain exceeds its standard error."""
        return self.gain > self.error

    def probabilities(self, states: np.ndarray) -> np.ndarray:
        """Probability that each teacher is chosen, `[N,K]`, from states `[N,F]`."""
        out: np.ndarray = expit(states @ self.weights + self.bias)
        return out

    def choose(self, states: np.ndarray, answered: np.ndarray) -> np.ndarray:
        """Weights or the most likely subsets, float32 `[N,K]`; no row is empty unless nobody answers it."""
        return FORMS[self.form](self.probabilities(states), answered)


def as_subsets(probabilities: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """The most likely subsets, float32 `[N,K]`, from probabilities `[N,K]`; see `never_empty`."""
    return never_empty((probabilities >= 0.5).astype(np.float32), probabilities, answered)


def never_empty(subsets: np.ndarray, scores: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Subsets `[N,K]` in which every row is taught: where nobody is chosen that answers, the teacher with the best score.

    Args:
        subsets: 0 or 1, float32 `[N,K]`.
        scores: the larger, the rather the teacher is chosen, `[N,K]`.
        answered: bool `[N,K]`: which teachers have an answer.
    """
    empty = ~((subsets > 0) & answered).any(1)
    if not empty.any():
        return subsets
    best = np.where(answered, scores, -np.inf)[empty].argmax(1)
    out = subsets.copy()
    out[empty] = np.eye(subsets.shape[1], dtype=np.float32)[best]
    return out


def as_weights(probabilities: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Weights of the teachers, float32 `[N,K]`: their probabilities of being chosen, over the largest of the row.

    Weights keep what a subset throws away, how sure the selector is. No row is empty unless nobody answers it.

    Args:
        probabilities: `[N,K]`.
        answered: bool `[N,K]`: which teachers have an answer; the others get weight 0.
    """
    heard = np.where(answered, probabilities, 0.0)
    out: np.ndarray = heard / np.maximum(heard.max(1, keepdims=True), 1e-30)
    return out.astype(np.float32)


FORMS = {"taught": as_subsets, "weights": as_weights}


class Problem:
    """Labelled instances as a one-step problem: the reward of every subset of the teachers.

    Args:
        states: `[R,F]`. They must not depend on the labels.
        gold: probability that each teacher gives the gold class, `[R,K]`.
        right: bool `[R,K]`: whether the teacher's most likely class is the gold class. Only routers read it.
        answered: bool `[R,K]`: which teachers answered. None: all.
    """

    def __init__(
        self,
        states: np.ndarray,
        gold: np.ndarray,
        right: np.ndarray | None = None,
        answered: np.ndarray | None = None,
    ) -> None:
        self.states = np.asarray(states, np.float64)
        self.gold = np.asarray(gold, np.float64)
        self.answered = np.ones(self.gold.shape) if answered is None else np.asarray(answered, np.float64)
        self.gold = self.gold * self.answered
        self.right = self.gold > 0.5 if right is None else np.asarray(right, bool)

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def teachers(self) -> int:
        """K."""
        return self.gold.shape[1]

    def take(self, rows: np.ndarray) -> Problem:
        """The instances at `rows`."""
        return Problem(self.states[rows], self.gold[rows], self.right[rows], self.answered[rows])

    @cached_property
    def everyone(self) -> np.ndarray:
        """Reward of choosing all teachers, `[R]`."""
        mass = self.answered.sum(1)
        return np.log(self.gold.sum(1) / np.maximum(mass, 1) + FLOOR)

    def reward(self, actions: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Reward `[...,R]` of subsets or weights `[...,R,K]` on the instances `rows`, by default all of them.

        A choice that nobody answers counts as the empty subset.
        """
        answered, gold, everyone = self.answered[rows], self.gold[rows], self.everyone[rows]
        mass = (actions * answered).sum(-1)
        chosen = np.log((actions * gold).sum(-1) / np.maximum(mass, 1e-12) + FLOOR)
        return np.where(mass > 1e-9, chosen, everyone - EMPTY)

    @cached_property
    def subsets(self) -> np.ndarray:
        """All subsets, `[2^K,K]`; bit k of the row's number says whether teacher k is chosen."""
        k = self.teachers
        return ((np.arange(2**k)[:, None] >> np.arange(k)) & 1).astype(np.float64)

    @cached_property
    def rewards(self) -> np.ndarray:
        """Reward of every subset on every instance, `[R,2^K]`."""
        mass = self.answered @ self.subsets.T
        chosen = np.log(self.gold @ self.subsets.T / np.maximum(mass, 1) + FLOOR)
        return np.where(mass > 0, chosen, self.everyone[:, None] - EMPTY)

    def expected(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected reward `[R]` under units with these logits `[R,K]`, and its gradient `[R,K]` by the logits."""
        if self.teachers > EXACT:
            return self._sampled(logits)
        subsets, p = self.subsets, expit(logits)
        pi = np.exp(log_expit(logits) @ subsets.T + log_expit(-logits) @ (1 - subsets).T)
        paid = pi * self.rewards
        mean = paid.sum(1)
        return mean, paid @ subsets - p * mean[:, None]

    def _sampled(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`expected` over sampled subsets: for each teacher the difference of on and off, the other bits as sampled."""
        p = expit(logits)
        drawn = (np.random.default_rng(0).random((SAMPLES, *p.shape)) < p).astype(np.float64)
        mass, total = (drawn * self.answered).sum(-1, keepdims=True), (drawn * self.gold).sum(-1, keepdims=True)
        empty = self.everyone[:, None] - EMPTY

        def value(total: np.ndarray, mass: np.ndarray) -> np.ndarray:
            return np.where(mass > 0.5, np.log(total / np.maximum(mass, 1) + FLOOR), empty)

        rest, rest_mass = total - drawn * self.gold, mass - drawn * self.answered
        on = value(rest + self.gold, rest_mass + self.answered)
        gradient = (on - value(rest, rest_mass)).mean(0) * p * (1 - p)
        return value(total, mass)[..., 0].mean(0), gradient


def standard_scale(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[F]` of states `[R,F]`; infinite where a column is constant, which gives it weight 0."""
    spread = states.std(0)
    return states.mean(0), np.where(spread < 1e-8, np.inf, spread)


def fit_selector(problem: Problem, seed: int = 0, forms: Sequence[str] = tuple(FORMS)) -> Fit:
    """K logistic units of the largest penalised expected reward.

    The states are standardised for the fit; the returned weights are for the states as they are.

    Args:
        seed: of the folds.
        forms: what the selector may give in the end, keys of `FORMS`; the better one is used.
    """
    mean, spread = standard_scale(problem.states)
    scaled = replace_states(problem, (problem.states - mean) / spread)
    fold = np.random.default_rng(seed).permutation(len(problem)) % FOLDS
    logits = {penalty: np.empty(problem.gold.shape) for penalty in PENALTIES}
    with one_thread():
        for f in range(FOLDS):
            train, held = scaled.take(fold != f), scaled.take(fold == f)
            start = None
            for penalty in sorted(PENALTIES, reverse=True):  # a strong penalty is a good start for a weaker one
                start = _solve(train, penalty, start)
                weights, bias = start
                logits[penalty][fold == f] = held.states @ weights + bias
        answered = problem.answered > 0
        held_out = {(c, form): FORMS[form](expit(logits[c]), answered) for form in forms for c in PENALTIES}
        gains = {key: problem.reward(choice) - problem.everyone for key, choice in held_out.items()}
        best = max(gains, key=lambda key: float(gains[key].mean()))
        penalty, form = best
        weights, bias = _solve(scaled, penalty, None)
    weights = weights / spread[:, None]
    gain, error = float(gains[best].mean()), float(gains[best].std() / np.sqrt(len(problem)))
    return Fit(weights, bias - mean @ weights, gain, error, penalty, form, held_out[best])


def best_linear(problem: Problem) -> Fit:
    """The K logistic units of the largest expected reward on these very instances: an upper bound for linear policies.

    There is no penalty, so on new instances `fit_selector` is better. The penalty falls to zero step by step, because a
    strong one is a good start for a weaker one. `gain` is the mean reward of the most likely subsets over that of all
    teachers; `error` is not measured.
    """
    mean, spread = standard_scale(problem.states)
    scaled = replace_states(problem, (problem.states - mean) / spread)
    start = None
    with one_thread():
        for penalty in (*sorted(PENALTIES, reverse=True), 1e-4, 1e-5, 0.0):
            start = _solve(scaled, penalty, start)
    weights, bias = start[0] / spread[:, None], start[1] - mean @ (start[0] / spread[:, None])  # type: ignore[index]
    found = Fit(weights, bias, np.nan, np.nan, 0.0)
    chosen = found.choose(problem.states, problem.answered > 0)
    return replace(found, gain=float((problem.reward(chosen) - problem.everyone).mean()))


def replace_states(problem: Problem, states: np.ndarray) -> Problem:
    """The same problem with other states `[R,F]`."""
    return Problem(states, problem.gold, problem.right, problem.answered)


def one_thread() -> threadpool_limits:
    """BLAS uses one thread inside: products this small lose by more, and by a factor of 40 beside other work."""
    return threadpool_limits(limits=1, user_api="blas")


def _solve(
    problem: Problem, penalty: float, start: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[F,K]` and bias `[K]` for standardised states."""
    x, k = problem.states, problem.teachers
    shape = (x.shape[1], k)
    weights, bias = start or (np.zeros(shape), np.ones(k))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[:-k].reshape(shape), flat[-k:]
        value, slope = problem.expected(x @ w + b)
        slope = slope / len(problem)
        loss = -value.mean() + penalty * (w**2).sum() + BIAS_PENALTY * (b**2).sum()
        gradient = np.concatenate(((2 * penalty * w - x.T @ slope).ravel(), 2 * BIAS_PENALTY * b - slope.sum(0)))
        return float(loss), gradient

    flat = np.concatenate((weights.ravel(), bias))
    flat = _maximise(objective, flat) if k <= EXACT else _ascend(objective, flat)
    return flat[:-k].reshape(shape), flat[-k:]


Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _maximise(objective: Objective, flat: np.ndarray) -> np.ndarray:
    """Minimise an exact objective."""
    out: np.ndarray = minimize(objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": 80}).x
    return out


def _ascend(objective: Objective, flat: np.ndarray, steps: int = 100, rate: float = 0.3) -> np.ndarray:
    """Minimise a sampled objective, whose value jumps where a bit flips: Adam with a rate that falls to zero."""
    first, second = np.zeros_like(flat), np.zeros_like(flat)
    for t in range(1, steps + 1):
        gradient = objective(flat)[1]
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        scaled = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.99**t)) + 1e-12)
        flat = flat - rate * (1 - (t - 1) / steps) * scaled
    return flat


# --- a router ---------------------------------------------------------------------------------------------------------


RIDGES = tuple(np.logspace(-4, 0, 5))  # inverse strengths of the router's penalty


def fit_router(states: np.ndarray, right: np.ndarray, answered: np.ndarray | None = None, seed: int = 0) -> Fit:
    """For each teacher a logistic regression of being right, by scikit-learn.

    All share one ridge penalty: the one whose cross-validated router most often names a teacher that is right.

    Args:
        states: `[R,F]`.
        right: bool `[R,K]`: whether the teacher's most likely class is the gold class.
        answered: bool `[R,K]`. None: all.
        seed: of the folds.

    Returns:
        The units; `probabilities` is the probability of being right. `gain` and `error` are not measured.
    """
    answered = np.ones(right.shape, bool) if answered is None else answered
    mean, spread = standard_scale(states)
    scaled, rows = (states - mean) / spread, np.arange(len(states))
    fold = np.random.default_rng(seed).permutation(len(states)) % FOLDS

    def routed(ridge: float) -> float:
        """How often the router is right on the instances that it was not fitted on."""
        hits = 0
        for f in range(FOLDS):
            train, held = rows[fold != f], rows[fold == f]
            weights, bias = _logistic(scaled[train], right[train], answered[train], ridge)
            score = np.where(answered[held], scaled[held] @ weights + bias, -np.inf)
            hits += int(right[held, score.argmax(1)].sum())
        return hits / len(rows)

    with one_thread():
        best = max(RIDGES, key=routed)
        weights, bias = _logistic(scaled, right, answered, best)
    weights = weights / spread[:, None]
    return Fit(weights, bias - mean @ weights, np.nan, np.nan, 1 / best)


def _logistic(
    scaled: np.ndarray, right: np.ndarray, answered: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[F,K]` and bias `[K]` of one regression a teacher, on the instances that it answers."""
    from sklearn.linear_model import LogisticRegression

    weights, bias = np.zeros((scaled.shape[1], right.shape[1])), np.zeros(right.shape[1])
    for k in range(right.shape[1]):
        x, y = scaled[answered[:, k]], right[answered[:, k], k]
        if len(np.unique(y)) < 2:  # always or never right, as far as these labels show
            bias[k] = np.log((y.sum() + 1) / ((~y).sum() + 1))
            continue
        model = LogisticRegression(C=ridge, max_iter=500).fit(x, y)
        weights[:, k], bias[k] = model.coef_[0], model.intercept_[0]
    return weights, bias
