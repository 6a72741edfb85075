"""Statistics against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from agents.experiment.stats import bootstrap, holm, improvement, iqm, paired


def test_the_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(np.mean([2, 3, 4, 5]))
    values = np.random.default_rng(0).normal(size=20)
    assert iqm(values) == pytest.approx(np.sort(values)[5:15].mean())


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).normal(3, 1, 30)
    low, high = bootstrap([values], resamples=20000)
    known = scipy_stats.bootstrap(
        (values,),
        lambda x, axis: scipy_stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=20000,
        method="percentile",
        rng=2,
    ).confidence_interval
    assert (low, high) == pytest.approx((known.low, known.high), abs=0.02)
    assert bootstrap([values]) == bootstrap([values])


def test_the_bootstrap_draws_within_tasks():
    """Two tasks whose values do not differ within the task: resampling cannot change the middle, however far apart they are."""
    assert bootstrap([np.zeros(5), np.ones(5)]) == pytest.approx((0.5, 0.5))
    low, high = bootstrap([np.array([0.0] * 5 + [1.0] * 5)])
    assert low < 0.5 < high


def test_one_seed_has_no_interval():
    assert bootstrap([np.array([1.0])]) is None
    single = paired(np.array([2.0]), np.array([1.5]))
    assert (single.mean, single.interval, single.p) == (0.5, None, None)


def test_paired_differences_agree_with_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 8), rng.normal(0, 1, 8)
    ours, known = paired(a, b), scipy_stats.ttest_rel(a, b)
    assert ours.mean == pytest.approx((a - b).mean())
    assert ours.p == pytest.approx(known.pvalue)
    assert ours.interval == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_equal_differences_have_an_interval_of_no_width():
    same = paired(np.array([0.7, 0.8]), np.array([0.7, 0.8]))
    assert (same.mean, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)
    shifted = paired(np.array([0.5, 1.5]), np.array([0.0, 1.0]))
    assert shifted.interval == (0.5, 0.5)
    assert shifted.p == 0.0


def test_the_probability_of_improvement_is_mann_whitneys():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 5, 9).astype(float), rng.integers(0, 5, 7).astype(float)
    assert improvement(a, b) == pytest.approx(scipy_stats.mannwhitneyu(a, b).statistic / (9 * 7))
    assert improvement(np.ones(3), np.ones(3)) == 0.5


def test_holm_steps_down():
    """0.01*4, then 0.02*3, then 0.03*2 but never below the value before it, then 0.9."""
    assert holm([0.9, 0.01, None, 0.03, 0.02]) == pytest.approx([0.9, 0.04, None, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
