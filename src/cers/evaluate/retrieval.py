"""Whether retrieved cases resemble their query more than cases drawn at random would."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import MultiLabelBinarizer

from cers.data.case import Case
from cers.errors import CersError, nearest
from cers.evaluate.render import interval, number
from cers.evaluate.statistics import bootstrap_interval, group_index

_MEASURES = {"class": "class_precision", "report": "report_agreement"}


def retrieval_quality(
    queries: Sequence[Case], references: Mapping[str, Sequence[str]], pool: Mapping[str, Case]
) -> dict[str, Any]:
    """How good the `references` (query id → retrieved pool ids) are, fit for JSON.

    `class_precision` is the share of a query's references that have its label, `report_agreement` the mean Jaccard
    index of the set of words of its report and theirs. `class_chance` and `report_chance` are the same for references
    drawn at random from the pool without the query itself and its group; `class_lift` and `report_lift` are the paired
    differences. All six are `{mean, low, high, n}`: means over the n queries that have a reference with the label or
    report in question, with 95 % bootstrap intervals over groups. `self_rate` and `same_group_rate`, shares of all
    references, must be 0. `coverage` `{count, of}` counts distinct cases that were retrieved; `n` queries with any.

    Raises:
        CersError: a query has no entry in `references`, or a reference is not in the pool.
    """
    row_of = {name: row for row, name in enumerate(pool)}
    retrieved = {query.id: _rows(query.id, references, row_of) for query in queries}
    answered = [query for query in queries if retrieved[query.id].size]
    cases = list(pool.values())
    groups = np.array([case.group for case in cases], dtype=object)
    values: dict[str, list[float]] = {f"{kind}_{part}": [] for kind in _MEASURES for part in ("found", "chance")}
    for query, likeness in zip(answered, _likeness(answered, cases), strict=True):
        allowed = _allowed(query, row_of, groups)
        for kind, like in likeness.items():
            values[f"{kind}_found"].append(_known_mean(like[retrieved[query.id]]))
            values[f"{kind}_chance"].append(_known_mean(like[allowed]))
    used = [(query, cases[row]) for query in answered for row in retrieved[query.id]]
    return {
        "n": len(answered),
        "groups": len(np.unique(group_index([query.group for query in answered]))),
        **_against_chance(values, [query.group for query in answered]),
        "self_rate": _rate([query.id == case.id for query, case in used]),
        "same_group_rate": _rate([query.group is not None and query.group == case.group for query, case in used]),
        "coverage": {"count": len({case.id for _, case in used}), "of": len(pool)},
    }


def strategy_rows(qualities: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A table, head first, of the qualities of several strategies by name."""
    head = ["strategy", "N", "class precision@k", "95 % interval", "chance", "N with class"]
    head += ["report agreement", "95 % interval", "chance", "N with report", "pool used", "self", "same group"]
    rows = [head]
    for name, quality in qualities.items():
        row = [name, str(quality["n"])]
        for kind, measure in _MEASURES.items():
            found, chance = quality[measure], quality[f"{kind}_chance"]
            row += [number(found["mean"]), interval(found["low"], found["high"]), number(chance["mean"])]
            row.append(str(found["n"]))
        coverage = quality["coverage"]
        row.append(f"{coverage['count']} of {coverage['of']}")
        rows.append([*row, number(quality["self_rate"]), number(quality["same_group_rate"])])
    return rows


def _rows(query: str, references: Mapping[str, Sequence[str]], row_of: Mapping[str, int]) -> NDArray[np.intp]:
    if query not in references:
        raise CersError(f"no references for query '{query}'; {nearest(query, references)}")
    unknown = [name for name in references[query] if name not in row_of]
    if unknown:
        raise CersError(f"query '{query}': '{unknown[0]}' is not in the pool; {nearest(unknown[0], row_of)}")
    return np.array([row_of[name] for name in references[query]], dtype=np.intp)


def _allowed(query: Case, row_of: Mapping[str, int], groups: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(P,) True for the pool cases that may be retrieved: neither the query itself nor its group."""
    allowed = np.ones(len(groups), dtype=bool) if query.group is None else groups != query.group
    if query.id in row_of:
        allowed[row_of[query.id]] = False
    return allowed


def _likeness(queries: Sequence[Case], cases: Sequence[Case]) -> Iterator[dict[str, NDArray[np.float64]]]:
    """For each query its likeness (P,) to each pool case, by class and by report; NaN where either lacks it."""
    words = MultiLabelBinarizer(sparse_output=True).fit_transform([_words(case) for case in [*queries, *cases]])
    counts = np.asarray(words.sum(axis=1)).ravel()
    labels = np.array([case.label for case in cases], dtype=object)
    labelled = np.array([case.label is not None for case in cases], dtype=bool)
    theirs, their_counts = words[len(queries) :], counts[len(queries) :]
    for i, query in enumerate(queries):
        common = (theirs @ words[i].T).toarray().ravel()
        both = (counts[i] > 0) & (their_counts > 0)
        union = np.where(both, counts[i] + their_counts - common, 1)
        yield {
            "class": np.where(labelled & (query.label is not None), (labels == query.label).astype(float), np.nan),
            "report": np.where(both, common / union, np.nan),
        }


def _words(case: Case) -> set[str]:
    return set(re.findall(r"\w+", (case.report or "").lower()))


def _against_chance(values: Mapping[str, Sequence[float]], groups: Sequence[str | None]) -> dict[str, Any]:
    summaries: dict[str, Any] = {}
    for kind, measure in _MEASURES.items():
        found, chance = np.array(values[f"{kind}_found"]), np.array(values[f"{kind}_chance"])
        known = np.isfinite(found) & np.isfinite(chance)
        units = [group for group, keep in zip(groups, known, strict=True) if keep]
        for name, data in ((measure, found), (f"{kind}_chance", chance), (f"{kind}_lift", found - chance)):
            summaries[name] = {**bootstrap_interval(data[known], units).as_json(), "n": len(units)}
    return summaries


def _known_mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _rate(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
