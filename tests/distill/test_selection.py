"""The fit of a selector by likelihood: against closed forms, numerical gradients, enumeration and made-up teachers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from distill import selection
from distill.selection import EMPTY, FLOOR, Problem, fit_router, fit_selector, never_empty


def specialists(count: int = 1500, teachers: int = 4, seed: int = 0, home: float = 0.95, away: float = 0.5) -> Problem:
    """Each teacher is right at home, and half of the time elsewhere; the state says whose home an instance is, with noise."""
    rng = np.random.default_rng(seed)
    domain = rng.integers(teachers, size=count)
    states = np.eye(teachers)[domain] * 3 + rng.normal(size=(count, teachers))
    chance = np.where(domain[:, None] == np.arange(teachers), home, away)
    right = rng.random((count, teachers)) < chance
    return Problem(states, np.where(right, 0.9, 0.1), right)


def test_rewards_are_log_likelihoods_of_means() -> None:
    gold = np.array([[0.8, 0.2, 0.5]])
    problem = Problem(np.zeros((1, 1)), gold)
    by_subset = dict(zip(map(tuple, problem.subsets.astype(int)), problem.rewards[0], strict=True))
    assert by_subset[1, 0, 0] == pytest.approx(np.log(0.8 + FLOOR))
    assert by_subset[1, 1, 0] == pytest.approx(np.log(0.5 + FLOOR))
    assert by_subset[1, 1, 1] == pytest.approx(problem.everyone[0]) == pytest.approx(np.log(0.5 + FLOOR))
    assert by_subset[0, 0, 0] == pytest.approx(problem.everyone[0] - EMPTY)
    for subset, reward in by_subset.items():
        assert problem.reward(np.array([subset])) == pytest.approx(reward)


def test_a_silent_teacher_does_not_count() -> None:
    """Its probability is not read, and a subset of silent teachers is the empty one."""
    answered = np.array([[True, False]])
    one, other = (Problem(np.zeros((1, 1)), np.array([[0.6, p]]), answered=answered) for p in (0.0, 1.0))
    assert (one.rewards == other.rewards).all()
    assert one.rewards[0, 3] == pytest.approx(np.log(0.6 + FLOOR))
    assert one.rewards[0, 2] == pytest.approx(one.everyone[0] - EMPTY)


def test_the_gradient_is_that_of_the_expectation() -> None:
    problem = specialists(5)
    logits = np.random.default_rng(1).normal(size=(5, 4))
    _, slope = problem.expected(logits)
    numeric = approx_fprime(logits.ravel(), lambda x: float(problem.expected(x.reshape(5, 4))[0].sum()), 1e-6)
    np.testing.assert_allclose(slope.ravel(), numeric, atol=1e-5)


def test_the_sampled_gradient_agrees_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = specialists(40)
    logits = np.random.default_rng(1).normal(size=(40, 4))
    value, slope = problem.expected(logits)
    monkeypatch.setattr(selection, "EXACT", 0)
    monkeypatch.setattr(selection, "SAMPLES", 20_000)
    sampled_value, sampled = problem.expected(logits)
    np.testing.assert_allclose(sampled_value, value, atol=0.03)
    np.testing.assert_allclose(sampled, slope, atol=0.01)


@pytest.mark.parametrize(("teachers", "share"), [(4, 0.6), (10, 0.4)], ids=["exact", "sampled"])
def test_specialists_are_found(teachers: int, share: float) -> None:
    """From 500 labels, most of what choosing at home gives; with ten teachers enumeration finds half of it as well."""
    problem = specialists(teachers=teachers)
    rows = np.arange(len(problem))
    fit, held = fit_selector(problem.take(rows < 500)), problem.take(rows >= 500)
    assert fit.helps
    gain = held.reward(fit.choose(held.states, held.answered > 0)) - held.everyone
    home = held.reward(np.eye(teachers)[held.states.argmax(1)]) - held.everyone
    assert gain.mean() > share * home.mean() > 0.03


def test_identical_teachers_leave_nothing_to_choose() -> None:
    rng = np.random.default_rng(0)
    gold = np.repeat(rng.uniform(0.1, 0.9, (500, 1)), 4, 1)
    fit = fit_selector(Problem(rng.normal(size=(500, 8)), gold))
    assert not fit.helps


def test_noise_in_the_state_does_not_help() -> None:
    """Teachers that err at random: the cross-validated gain stays within its error."""
    rng = np.random.default_rng(0)
    gold = np.where(rng.random((500, 4)) < 0.75, 0.9, 0.1)
    fit = fit_selector(Problem(rng.normal(size=(500, 30)), gold))
    assert not fit.helps


def test_one_perfect_teacher_is_chosen_everywhere() -> None:
    rng = np.random.default_rng(0)
    gold = np.where(rng.random((500, 3)) < 0.5, 0.9, 0.1)
    gold[:, 1] = 0.99
    problem = Problem(rng.normal(size=(500, 6)), gold)
    fit = fit_selector(problem)
    assert fit.helps
    assert (fit.choose(problem.states, problem.answered > 0) == [0, 1, 0]).all(1).mean() > 0.99


def test_the_fit_repeats_and_ignores_scales() -> None:
    problem = specialists(400)
    one, again = fit_selector(problem), fit_selector(problem)
    assert (one.weights == again.weights).all()
    scaled = fit_selector(Problem(problem.states * 100 + 7, problem.gold, problem.right))
    np.testing.assert_allclose(
        scaled.probabilities(problem.states * 100 + 7), one.probabilities(problem.states), atol=1e-3
    )


def test_a_constant_column_gets_no_weight() -> None:
    problem = specialists(300)
    fit = fit_selector(Problem(np.hstack([problem.states, np.zeros((300, 2))]), problem.gold, problem.right))
    assert (fit.weights[-2:] == 0).all()


def test_it_takes_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(0)
    problem = specialists(500)
    wide = Problem(np.hstack([problem.states, rng.normal(size=(500, 132))]), problem.gold, problem.right)
    started = time.perf_counter()
    fit_selector(wide)
    assert time.perf_counter() - started < 3  # 0.3 s on a quiet machine


def test_the_router_knows_who_is_right() -> None:
    problem = specialists()
    rows = np.arange(len(problem))
    train, held = problem.take(rows < 500), problem.take(rows >= 500)
    fit = fit_router(train.states, train.right)
    chosen = fit.probabilities(held.states).argmax(1)
    assert held.right[np.arange(len(held)), chosen].mean() > held.right.mean() + 0.2


def test_a_teacher_that_is_never_right_is_never_chosen() -> None:
    rng = np.random.default_rng(0)
    right = np.stack([np.zeros(60, bool), rng.random(60) < 0.6], 1)
    fit = fit_router(rng.normal(size=(60, 3)), right)
    assert (fit.probabilities(rng.normal(size=(20, 3))).argmax(1) == 1).all()


def test_rows_are_never_without_a_teacher_that_answers() -> None:
    subsets = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1]], np.float32)
    scores = np.array([[0.1, 0.9, 0.5]] * 3)
    answered = np.array([[True, False, True], [False, True, True], [True, True, True]])
    assert never_empty(subsets, scores, answered).tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert never_empty(subsets[2:], scores[2:], answered[2:]) is not None
