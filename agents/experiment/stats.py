"""Statistics of a comparison over seeds: robust means with intervals, paired differences, p-values and their correction.

IQM, stratified bootstrap and probability of improvement as in Agarwal et al. (NeurIPS 2021, arXiv 2108.13264).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def iqm(values: np.ndarray) -> float:
    """Interquartile mean: the mean of the middle half of the values, of any shape."""
    return float(stats.trim_mean(np.ravel(values), 0.25))


def bootstrap(strata: Sequence[np.ndarray], level: float = 0.95, resamples: int = 4000) -> tuple[float, float] | None:
    """Percentile interval of the IQM, by the stratified bootstrap: seeds are resampled within each stratum.

    It uses a generator with a fixed seed, so the same values always give the same interval.

    Args:
        strata: the values of all seeds of each task, `[seeds]` each.
        level: confidence level.
        resamples: number of bootstrap samples.

    Returns:
        The ends of the interval; None if every stratum has a single seed.
    """
    if all(len(s) < 2 for s in strata):
        return None
    rng = np.random.default_rng(0)
    drawn = np.concatenate([np.asarray(s)[rng.integers(len(s), size=(resamples, len(s)))] for s in strata], 1)
    means = stats.trim_mean(drawn, 0.25, axis=1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def with_interval(value: float, interval: Sequence[float] | None, form: str, factor: float = 1.0) -> str:
    """`value [low, high]`, all multiplied by `factor`; the value alone if there is no interval."""
    text = f"{factor * value:{form}}"
    return text if interval is None else f"{text} [{factor * interval[0]:{form}}, {factor * interval[1]:{form}}]"


def is_clear(interval: Sequence[float] | None) -> bool:
    """Whether there is an interval and it does not contain zero."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


@dataclass
class Paired:
    """A paired difference over seeds.

    Attributes:
        mean: over the seeds.
        interval: of the mean, by Student's t; None for a single seed.
        p: two-sided p-value of the paired t-test; None for a single seed.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None


def paired(values: np.ndarray, control: np.ndarray, level: float = 0.95) -> Paired:
    """Paired t-test of `values - control`, both `[seeds]`. Differences that are all equal give an interval of no width."""
    differences = np.asarray(values, float) - np.asarray(control, float)
    mean, n = float(differences.mean()), len(differences)
    if n < 2:
        return Paired(mean, None, None)
    error = float(differences.std(ddof=1) / np.sqrt(n))
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Paired(mean, (mean, mean), 1.0 if abs(mean) <= 1e-12 else 0.0)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Paired(mean, (mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def improvement(values: np.ndarray, control: np.ndarray) -> float:
    """Probability that a run of `values` is better than a run of `control`, over all pairs of seeds; a tie counts half."""
    a, b = np.asarray(values)[:, None], np.asarray(control)[None]
    return float((a > b).mean() + (a == b).mean() / 2)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values after Holm's step-down correction, in the order given. None (unknown) stays None and is not counted."""
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    out: list[float | None] = [None] * len(p)
    worst = 0.0
    for rank, (value, i) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * value))
        out[i] = worst
    return out
