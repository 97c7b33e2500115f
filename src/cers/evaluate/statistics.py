"""How sure a mean, or a difference of means, is.

Slices of one patient are not independent. Where groups are known, whole groups are resampled or flipped, never cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Upper bound on the numbers held at once while resampling (8 bytes each).
_BLOCK = 4_000_000


class Interval(NamedTuple):
    """A mean with its interval; `low` and `high` are NaN where fewer than two independent units are known."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """The three by name, None in place of NaN, which JSON does not know."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


@dataclass(frozen=True)
class SeedSummary:
    """Several seeds of one method: `per_case` (N,) mean over seeds, its overall `mean`, and the `spread` of seeds.

    `spread` is the standard deviation (n-1) of the seeds' means, NaN for a single seed.
    """

    per_case: NDArray[np.float64]
    mean: float
    spread: float


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[str | None] | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `values` (N,) with its percentile bootstrap interval (Efron 1979) over cases, or over whole groups.

    A case whose group is None is a group of its own. With few groups, say under 20, the interval is too narrow.

    Raises:
        ValueError: `values` and `groups` differ in length.
    """
    data = np.asarray(values, dtype=np.float64)
    sums, sizes = _group_sums(data, groups)
    units = len(sums)
    if units < 2:
        return Interval(float(data.mean()) if data.size else float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.empty(n)
    for block in _blocks(n, units):
        drawn = rng.integers(units, size=(len(block), units))
        means[block.start : block.stop] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high))


def paired_permutation(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str | None] | None = None,
    n: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p of the mean difference of paired `a` and `b` (N,), by flipping its sign per case or per group.

    `p = (count + 1) / (n + 1)` over `n` random sign patterns (Phipson and Smyth 2010), so it is never 0.

    Raises:
        ValueError: lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values differ in shape: {first.shape} and {second.shape}")
    sums, _ = _group_sums(first - second, groups)
    # Patterns as extreme as the observed one must count despite rounding in the order of summation.
    observed = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    rng = np.random.default_rng(seed)
    count = 0
    for block in _blocks(n, len(sums)):
        signs = 2.0 * rng.integers(2, size=(len(block), len(sums)), dtype=np.int8) - 1.0
        count += int((np.abs(signs @ sums) >= observed).sum())
    return (count + 1) / (n + 1)


def holm(pvalues: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down procedure (1979), in the order given."""
    raw = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    factors = np.arange(len(raw), 0, -1)
    adjusted = np.empty(len(raw))
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * factors), 1.0)
    return [float(p) for p in adjusted]


def combine_seeds(values: ArrayLike) -> SeedSummary:
    """Summary of `values` (S,N): S seeds of one method on the same N cases."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    means = table.mean(axis=1)
    spread = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    return SeedSummary(table.mean(axis=0), float(means.mean()), spread)


def group_index(groups: Sequence[str | None]) -> NDArray[np.intp]:
    """(N,) number of each case's group, from 0; a case whose group is None is a group of its own."""
    keys = [("case", str(i)) if group is None else ("group", group) for i, group in enumerate(groups)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.intp)


def _group_sums(
    values: NDArray[np.float64], groups: Sequence[str | None] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each independent unit."""
    if groups is None:
        return values, np.ones(len(values))
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    index = group_index(groups)
    sums: NDArray[np.float64] = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def _blocks(n: int, width: int) -> list[range]:
    """`n` rows in blocks small enough that a (rows, width) table fits into memory."""
    rows = max(1, _BLOCK // max(width, 1))
    return [range(start, min(start + rows, n)) for start in range(0, n, rows)]
