"""Methods side by side on the same cases: means over seeds, their spread, and what chance alone would explain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cers.errors import CersError, nearest
from cers.evaluate.metrics import METRICS
from cers.evaluate.notes import comparison_notes
from cers.evaluate.scored import Costs, ScoredRun, Trait, read_scored, require_same_cases, require_same_labels
from cers.evaluate.statistics import (
    bootstrap_interval,
    combine_seeds,
    difference_interval,
    group_index,
    holm,
    paired_permutation,
)

Values = NDArray[np.float64]
_NAN = float("nan")


@dataclass(frozen=True)
class Comparison:
    """One method under one metric, over `n` cases in `groups` independent groups and `seeds` runs.

    `mean`, with its 95 % bootstrap interval `low` to `high`, is of the per-case means over seeds; the interval is over
    cases (whole groups) for these trained networks, and `spread`, the standard deviation of the seeds' means, is not in
    it. `difference` to the reference is paired by case and over the `pairs` seeds that both have (by case alone, over
    all seeds, where they have fewer than two in common: `pairs` 0); `difference_low` to `difference_high` covers cases
    and, where either has two seeds or more, seeds. `p` is of the paired permutation test over cases, `p_holm` the same
    adjusted for all comparisons with a reference under this metric in the whole table. NaN: not known.
    """

    section: str
    metric: str
    method: str
    seeds: int
    n: int
    groups: int
    mean: float
    spread: float
    low: float
    high: float
    pairs: int = 0
    difference: float = _NAN
    difference_low: float = _NAN
    difference_high: float = _NAN
    p: float = _NAN
    p_holm: float = _NAN


@dataclass(frozen=True)
class Row:
    """A method in a section of the table: its lines by metric, whether it reads text, what it cost, its label share.

    `share` is the part of the training cases whose masks it saw, None where the split is not known.
    """

    section: str
    method: str
    reads_text: bool
    share: float | None
    costs: Costs
    by_metric: Mapping[str, Comparison]

    @property
    def dice(self) -> Comparison:
        """The line that claims are made on."""
        return self.by_metric["dice"]


@dataclass(frozen=True)
class ComparisonTable:
    """Rows by section, the reference first in each; `notes` name what differs between runs besides the method."""

    reference: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[Comparison, ...]:
        """All lines, by section, metric in the order of METRICS, and method."""
        sections = dict.fromkeys(row.section for row in self.rows)
        return tuple(
            row.by_metric[metric.name]
            for section in sections
            for metric in METRICS
            for row in self.rows
            if row.section == section
        )

    @property
    def comparisons(self) -> int:
        """Size of the family that Holm's procedure adjusts for."""
        return sum(not np.isnan(row.dice.p) for row in self.rows)


def compare(
    runs: Mapping[str, Sequence[Path]], reference: str, only: Mapping[Trait, str] | None = None
) -> ComparisonTable:
    """Compare methods, each given as the run folders of its seeds, with the method named `reference`.

    Reads `eval/cases.csv`, and `split.json`, `config.yaml` and `run.json` where they are, of each folder. The declared
    branch is compared, on the cases alone whose class (`label`) or size of lesion (`size`, of `SIZES`) `only` names.

    Raises:
        CersError: the reference is unknown, no case is of the class or size, a folder holds no table or is named twice
            within a method, or two runs differ in their cases, the cases' masks or groups, or their split.
    """
    if reference not in runs:
        raise CersError(f"no method '{reference}' to compare with; {nearest(reference, runs)}")
    return compare_sections({"": runs}, reference, only)


def compare_sections(
    sections: Mapping[str, Mapping[str, Sequence[Path]]], reference: str, only: Mapping[Trait, str] | None = None
) -> ComparisonTable:
    """As `compare`, in sections such as labelled shares, each with the reference of its own; one family for Holm.

    A section whose reference is not there yet has no differences. All runs of all sections must have been scored on
    the same cases, and those of a section with a title must have seen the same masks.

    Raises:
        CersError: as `compare`.
    """
    loaded = {
        section: {
            name: _load(name, runs[name], only or {}) for name in sorted(runs, key=lambda name: name != reference)
        }
        for section, runs in sections.items()
    }
    everything = [run for runs in loaded.values() for run in chain.from_iterable(runs.values())]
    for run in everything[1:]:
        require_same_cases(everything[0], run)
    for section, runs in loaded.items():
        if section:
            require_same_labels([*chain.from_iterable(runs.values())], section)
    rows = [row for section, runs in loaded.items() for row in _section_rows(section, runs, reference)]
    return ComparisonTable(reference, _adjusted(rows), comparison_notes(loaded, reference, only or {}))


def _section_rows(section: str, runs: Mapping[str, Sequence[ScoredRun]], reference: str) -> list[Row]:
    baseline = runs.get(reference)
    return [
        Row(
            section,
            name,
            any(run.reads_text for run in mine),
            mine[0].share,
            Costs.mean([Costs.of(facts) for run in mine for facts in run.facts]),
            {m.name: _line(section, name, m.name, mine, None if name == reference else baseline) for m in METRICS},
        )
        for name, mine in runs.items()
    ]


def _line(
    section: str, name: str, metric: str, runs: Sequence[ScoredRun], baseline: Sequence[ScoredRun] | None
) -> Comparison:
    summary = combine_seeds(_values(runs, metric))
    groups = [row.group for _, row in sorted(runs[0].rows.items())]
    found = bootstrap_interval(summary.per_case, groups)
    line = Comparison(
        section=section,
        metric=metric,
        method=name,
        seeds=len(runs),
        n=len(groups),
        groups=len(np.unique(group_index(groups))),
        mean=found.mean,
        spread=summary.spread,
        low=found.low,
        high=found.high,
    )
    if baseline is None:
        return line
    mine, theirs = _paired(runs, baseline)
    pairs = 0 if mine is runs else len(mine)
    a, b = _values(mine, metric), _values(theirs, metric)
    difference = difference_interval(a, b, groups, paired_seeds=pairs > 0)
    return replace(
        line,
        pairs=pairs,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        p=paired_permutation(a.mean(axis=0), b.mean(axis=0), groups),
    )


def _paired(runs: Sequence[ScoredRun], baseline: Sequence[ScoredRun]) -> tuple[Sequence[ScoredRun], ...]:
    """The runs of the seeds that both have, in the same order; all runs as they are where that is one seed or none."""
    mine, theirs = ({run.seed: run for run in those if run.seed is not None} for those in (runs, baseline))
    common = sorted(mine.keys() & theirs.keys())
    return ([mine[seed] for seed in common], [theirs[seed] for seed in common]) if len(common) > 1 else (runs, baseline)


def _adjusted(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with Holm's adjustment, by metric over every comparison of the table."""
    changed = [dict(row.by_metric) for row in rows]
    for metric in METRICS:
        tested = [lines for lines in changed if not np.isnan(lines[metric.name].p)]
        for lines, p in zip(tested, holm([lines[metric.name].p for lines in tested]), strict=True):
            lines[metric.name] = replace(lines[metric.name], p_holm=p)
    return tuple(replace(row, by_metric=lines) for row, lines in zip(rows, changed, strict=True))


def _values(runs: Sequence[ScoredRun], metric: str) -> Values:
    """The metric of each case, by id, in each run: (S,N)."""
    return np.array([[getattr(row.metrics, metric) for _, row in sorted(run.rows.items())] for run in runs], np.float64)


def _load(name: str, folders: Sequence[Path], only: Mapping[Trait, str]) -> list[ScoredRun]:
    if not folders:
        raise CersError(f"method '{name}' has no run folder; give at least one")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise CersError(f"method '{name}' names a run folder twice; a run is one seed, give each once")
    runs = _pooled(name, [read_scored(folder) for folder in folders])
    for trait, value in only.items():
        runs = [run.only(trait, value) for run in runs]
    return runs


def _pooled(name: str, runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Runs of one seed that share no case are the folds of a cross-validation, and become one run."""
    by_seed: dict[int | None, list[ScoredRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    alone = by_seed.pop(None, [])
    for seed, folds in by_seed.items():
        if len({case_id for fold in folds for case_id in fold.rows}) < sum(len(fold.rows) for fold in folds):
            raise CersError(
                f"two runs of '{name}' have seed {seed} and cases in common; give each seed once, or name them apart"
            )
    return [*alone, *map(ScoredRun.pooled, by_seed.values())]
