"""How often a reviewer says right, and how far two reviewers agree beyond chance."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from cers.evaluate.statistics import Interval


def proportion(successes: int, n: int, level: float = 0.95) -> Interval:
    """`successes` of `n` with the score interval of Wilson (1927), which holds near 0 and 1 too; NaN for n = 0."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    ends = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high))


def cohen_kappa(
    first: Sequence[str], second: Sequence[str], units: Sequence[str], n: int = 2000, seed: int = 0
) -> Interval:
    """Cohen's kappa (1960) of two reviewers' verdicts, with a percentile bootstrap interval over `units` (cases).

    NaN where both always gave one and the same verdict: chance then explains everything. Resamples without a kappa
    are left out of the interval.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(first) == len(second) == len(units):
        raise ValueError(f"{len(first)} and {len(second)} verdicts on {len(units)} units")
    names = sorted({*first, *second})
    code = {name: i for i, name in enumerate(names)}
    unit_code = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    tables = np.zeros((len(unit_code), len(names), len(names)))
    for a, b, unit in zip(first, second, units, strict=True):
        tables[unit_code[unit], code[a], code[b]] += 1
    kappa = _kappa(tables.sum(axis=0))
    if len(tables) < 2 or math.isnan(kappa):
        return Interval(kappa, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [_kappa(tables[rng.integers(len(tables), size=len(tables))].sum(axis=0)) for _ in range(n)]
    known = [value for value in drawn if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(kappa, float(low), float(high))


def _kappa(table: np.ndarray) -> float:
    """Kappa of a table (K,K) of verdict pairs."""
    total = table.sum()
    if total == 0:
        return math.nan
    agreed = float(np.trace(table) / total)
    expected = float((table.sum(axis=0) @ table.sum(axis=1)) / total**2)
    return math.nan if expected >= 1 - 1e-12 else (agreed - expected) / (1 - expected)
