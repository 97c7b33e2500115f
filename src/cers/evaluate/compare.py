"""Methods side by side on the same cases: means over seeds, their spread, and what chance alone would explain."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cers.data.splits import Split, read_split
from cers.errors import CersError, nearest
from cers.evaluate.metrics import METRICS
from cers.evaluate.render import interval, markdown, number
from cers.evaluate.statistics import bootstrap_interval, combine_seeds, group_index, holm, paired_permutation
from cers.evaluate.table import CaseRow, declared_rows, read_cases_csv


@dataclass(frozen=True)
class Comparison:
    """One method under one metric, over `n` cases in `groups` independent groups and `seeds` runs.

    `mean`, with its 95 % bootstrap interval `low` to `high`, is of the per-case means over seeds; `spread` is the
    standard deviation of the seeds' means, which the interval, being over cases, does not contain. `difference` is to
    the mean of the reference, `p` of the paired permutation test against it, `p_holm` the same adjusted for the number
    of methods compared under this metric. NaN: not known.
    """

    metric: str
    method: str
    seeds: int
    n: int
    groups: int
    mean: float
    spread: float
    low: float
    high: float
    difference: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class ComparisonTable:
    """Lines by metric, in the order of METRICS, and then by method; the reference comes first."""

    reference: str
    lines: tuple[Comparison, ...]

    def to_rows(self) -> list[list[str]]:
        """Rows of text for a reader, head first."""
        head = ["metric", "method", "seeds", "N", "groups", "mean", "spread of seeds", "95 % interval"]
        rows = [[*head, f"difference to {self.reference}", "p", "p (Holm)"]]
        for line in self.lines:
            row = [_TITLES[line.metric], line.method, str(line.seeds), str(line.n), str(line.groups)]
            row += [number(line.mean), number(line.spread), interval(line.low, line.high)]
            rows.append([*row, number(line.difference), number(line.p, 4), number(line.p_holm, 4)])
        return rows

    def to_markdown(self) -> str:
        """The rows as a Markdown table."""
        return markdown(self.to_rows())

    def to_csv(self) -> str:
        """The lines as CSV, every number in full."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Comparison)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in self.lines)
        return text.getvalue()


_NAN = float("nan")
_TITLES = {metric.name: f"{metric.title} {'↑' if metric.higher_is_better else '↓'}" for metric in METRICS}


@dataclass(frozen=True)
class _Run:
    """The declared rows of one run folder by case id, and its split where it has one."""

    folder: Path
    rows: dict[str, CaseRow]
    split: Split | None


def compare(runs: Mapping[str, Sequence[Path]], reference: str) -> ComparisonTable:
    """Compare methods, each given as the run folders of its seeds, with the method named `reference`.

    Reads `eval/cases.csv`, and `split.json` where it is there, of each folder. The declared branch is compared.

    Raises:
        CersError: the reference is unknown, a folder holds no table or is named twice within a method, or two runs
            differ in their cases, the cases' masks or groups, or their split.
    """
    if reference not in runs:
        raise CersError(f"no method '{reference}' to compare with; {nearest(reference, runs)}")
    order = [reference, *(name for name in runs if name != reference)]
    loaded = {name: _load(name, runs[name]) for name in order}
    everything = [run for name in order for run in loaded[name]]
    for run in everything[1:]:
        _require_same_cases(everything[0], run)
    lines: list[Comparison] = []
    for metric in METRICS:
        lines += _compare_metric(metric.name, loaded)
    return ComparisonTable(reference, tuple(lines))


def _compare_metric(metric: str, loaded: Mapping[str, Sequence[_Run]]) -> list[Comparison]:
    """One line per method; the first method is the reference."""
    summaries = {name: combine_seeds([_values(run, metric) for run in runs]) for name, runs in loaded.items()}
    reference, *others = summaries
    baseline = summaries[reference]
    rows = next(iter(loaded.values()))[0].rows
    groups = [row.group for _, row in sorted(rows.items())]
    units = len(np.unique(group_index(groups)))
    raw = [paired_permutation(summaries[name].per_case, baseline.per_case, groups) for name in others]
    p, p_holm = dict(zip(others, raw, strict=True)), dict(zip(others, holm(raw), strict=True))
    lines = []
    for name, summary in summaries.items():
        found = bootstrap_interval(summary.per_case, groups)
        lines.append(
            Comparison(
                metric=metric,
                method=name,
                seeds=len(loaded[name]),
                n=len(rows),
                groups=units,
                mean=found.mean,
                spread=summary.spread,
                low=found.low,
                high=found.high,
                difference=found.mean - baseline.mean if name in p else _NAN,
                p=p.get(name, _NAN),
                p_holm=p_holm.get(name, _NAN),
            )
        )
    return lines


def _values(run: _Run, metric: str) -> NDArray[np.float64]:
    """The metric of each case, by id."""
    return np.array([getattr(row.metrics, metric) for _, row in sorted(run.rows.items())], dtype=np.float64)


def _load(name: str, folders: Sequence[Path]) -> list[_Run]:
    if not folders:
        raise CersError(f"method '{name}' has no run folder; give at least one")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise CersError(f"method '{name}' names a run folder twice; a run is one seed, give each once")
    return [_read_run(folder) for folder in folders]


def _read_run(folder: Path) -> _Run:
    rows = declared_rows(read_cases_csv(folder / "eval" / "cases.csv"))
    if not rows:
        raise CersError(f"{folder / 'eval' / 'cases.csv'} holds no case; run 'cers evaluate' on a split with cases")
    split = folder / "split.json"
    return _Run(folder, {row.id: row for row in rows}, read_split(split) if split.is_file() else None)


def _require_same_cases(first: _Run, other: _Run) -> None:
    only = sorted(first.rows.keys() ^ other.rows.keys())
    both = f"{first.folder} and {other.folder}"
    if only:
        raise CersError(f"{both} were scored on different cases ('{only[0]}' and {len(only) - 1} more); {_AGAIN}")
    for case_id, row in first.rows.items():
        there = other.rows[case_id]
        if (row.metrics.true_area, row.group) != (there.metrics.true_area, there.group):
            raise CersError(f"{both} know case '{case_id}' with different masks or groups; {_AGAIN}")
    if first.split and other.split and _parts(first.split) != _parts(other.split):
        raise CersError(f"{both} were trained on different splits; train both on one split file")


_AGAIN = "run 'cers evaluate' on the same split for both"


def _parts(split: Split) -> dict[str, set[str]]:
    """Ids by part. How many of the training masks were used may differ: that is what runs are compared for."""
    return {name: set(ids) for name, ids in split.parts.items()}
