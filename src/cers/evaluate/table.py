"""The per-case table of a run, and its summary with the number of cases beside every mean."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.data.case import Case
from cers.data.prediction import CasePrediction
from cers.errors import CersError
from cers.evaluate.metrics import METRICS, Metrics, score
from cers.evaluate.statistics import bootstrap_interval, group_index
from cers.files import write_atomic

DECLARED = "declared"
SIZES = ("none", "small", "medium", "large")


@dataclass(frozen=True)
class CaseRow:
    """One branch of one case. `size` is one of SIZES, see `size_group`."""

    id: str
    branch: str
    label: str | None
    group: str | None
    size: str
    metrics: Metrics


_TEXTS = tuple(f.name for f in fields(CaseRow) if f.name != "metrics")
_NUMBERS = tuple(f.name for f in fields(Metrics))


def size_group(mask: NDArray[np.bool_]) -> str:
    """`none` for an empty mask (H,W), `small` under 0.5 % of the image, `large` above 5 %, else `medium`."""
    share = float(mask.mean())
    if share == 0:
        return "none"
    return "small" if share < 0.005 else "large" if share > 0.05 else "medium"


def build_rows(scored: Iterable[tuple[Case, CasePrediction, NDArray[np.bool_]]]) -> list[CaseRow]:
    """Rows of all cases: the declared branch of each first, then what else it predicted.

    A branch is left out where it is the only one, being the declared branch itself; a prediction without evidence is
    the branch `without_evidence`.

    Raises:
        CersError: two cases have one id, or a prediction does not fit its case or mask.
    """
    rows: list[CaseRow] = []
    seen: set[str] = set()
    for case, prediction, mask in scored:
        if prediction.id != case.id or case.id in seen:
            trouble = "appears twice" if case.id in seen else f"was given the prediction of '{prediction.id}'"
            raise CersError(f"case '{case.id}' {trouble}; score each case of the split once")
        seen.add(case.id)
        for branch, probability in _branches(prediction).items():
            try:
                metrics = score(probability, mask)
            except CersError as error:
                raise CersError(f"case '{case.id}', branch '{branch}': {error}") from None
            rows.append(CaseRow(case.id, branch, case.label, case.group, size_group(mask), metrics))
    return rows


def write_cases_csv(rows: Sequence[CaseRow], path: Path) -> None:
    """Write one line per case and branch, every number in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(_TEXTS + _NUMBERS)
    for row in rows:
        values = [getattr(row, name) for name in _TEXTS]
        writer.writerow([*("" if v is None else v for v in values), *asdict(row.metrics).values()])
    write_atomic(path, text.getvalue())


def read_cases_csv(path: Path) -> list[CaseRow]:
    """The rows that `write_cases_csv` wrote.

    Raises:
        CersError: the file is missing, or is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != _TEXTS + _NUMBERS:
                raise ValueError("other columns")
            return [_parse(line) for line in reader]
    except FileNotFoundError:
        raise CersError(f"no per-case table at {path}; run `cers eval`") from None
    except (ValueError, TypeError, OSError, csv.Error) as error:
        raise CersError(f"{path} is not a per-case table ({error}); run `cers eval` again") from None


def declared_rows(rows: Iterable[CaseRow]) -> list[CaseRow]:
    """The rows of the declared branch: one per case."""
    return [row for row in rows if row.branch == DECLARED]


def summarise(rows: Sequence[CaseRow]) -> dict[str, Any]:
    """A summary fit for JSON: `{"branches": {branch: {"all": …, "by_class": {…}, "by_size": {…}}}}`, declared first.

    Each part holds `n` cases in `groups` independent groups, `{metric: {mean, low, high}}` with the 95 % bootstrap
    interval, and `missed` and `false_positives` as `{count, of}`: images with a lesion of which no pixel was found,
    and lesion-free images where some was. Numbers that cannot be had are null.
    """
    names = dict.fromkeys(row.branch for row in rows)
    branches = {name: [row for row in rows if row.branch == name] for name in names}
    return {
        "branches": {
            name: {
                "all": _summary(part),
                "by_class": _by(part, lambda row: row.label, sorted({row.label for row in part if row.label})),
                "by_size": _by(part, lambda row: row.size, SIZES),
            }
            for name, part in branches.items()
        }
    }


def shown_branches(branches: Mapping[str, Any]) -> dict[str, Any]:
    """The branches of a summary for readers: the declared one goes by its own name where one other branch equals it."""
    same = [name for name, part in branches.items() if name != DECLARED and part == branches.get(DECLARED)]
    if len(same) != 1:
        return dict(branches)
    titles = {DECLARED: f"{same[0]} (declared)"}
    return {titles.get(name, name): part for name, part in branches.items() if name not in same}


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write a summary as JSON."""
    write_atomic(path, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _branches(prediction: CasePrediction) -> dict[str, NDArray[np.float32]]:
    branches = {DECLARED: prediction.probability}
    if len(prediction.branches) > 1:
        branches.update(prediction.branches)
    if prediction.without_evidence is not None:
        branches["without_evidence"] = prediction.without_evidence
    return branches


def _parse(line: dict[str, str]) -> CaseRow:
    metrics = Metrics(**{name: float(line[name]) for name in _NUMBERS})
    label, group = line["label"] or None, line["group"] or None
    return CaseRow(line["id"], line["branch"], label, group, line["size"], metrics)


def _by(rows: Sequence[CaseRow], key: Callable[[CaseRow], str | None], values: Sequence[str]) -> dict[str, Any]:
    parts = {value: [row for row in rows if key(row) == value] for value in values}
    return {value: _summary(part) for value, part in parts.items() if part}


def _summary(rows: Sequence[CaseRow]) -> dict[str, Any]:
    groups = [row.group for row in rows]
    intervals = {
        metric.name: bootstrap_interval([getattr(row.metrics, metric.name) for row in rows], groups)
        for metric in METRICS
    }
    lesions = [row.metrics for row in rows if row.metrics.true_area > 0]
    free = [row.metrics for row in rows if row.metrics.true_area == 0]
    return {
        "n": len(rows),
        "groups": len(np.unique(group_index(groups))),
        "metrics": {name: interval.as_json() for name, interval in intervals.items()},
        "missed": {"count": sum(m.dice == 0 for m in lesions), "of": len(lesions)},
        "false_positives": {"count": sum(m.predicted_area > 0 for m in free), "of": len(free)},
    }
