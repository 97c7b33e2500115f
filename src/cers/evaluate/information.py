"""How much a text says about its own image: whom it finds among texts written with the mask in sight.

Every case has two texts. The mask-free one asks, and all mask-informed ones answer by similarity. A text that could
stand under any image finds nobody; one that describes its image finds the partner that describes the same image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.evaluate.render import interval, number
from cers.evaluate.statistics import bootstrap_interval, group_index

NEAREST = 5
AMONG = 50
"""`first_of_50` compares datasets of different size: it is what `first` would be among so many cases."""

TITLES = {
    "first": "own partner first",
    "first_of_50": f"own partner first of {AMONG}",
    "outranks": "others that the partner outranks",
    "class": f"own class among the nearest {NEAREST}",
    "look_alike": "look-alike first, partner left out",
}
EQUAL_REPORTS = "own partner first of equal reports"

_BLOCK = 256
_EQUAL = 1e-6  # cosines closer than this are ties: rounding must not decide who is first
Values = NDArray[np.float64]


def outcomes(
    queries: NDArray[np.float32],
    answers: NDArray[np.float32],
    labels: Sequence[str | None],
    groups: Sequence[str | None],
) -> tuple[dict[str, Values], dict[str, Values]]:
    """What each of N queries finds, and exactly what chance would find, by measure; NaN where it cannot be said.

    `queries` and `answers` (N,D), row by row of the same case, have unit length. `groups` names look-alikes: cases of
    one patient or near-duplicate images. Ties are broken by chance, of which the expectation is taken.

    - `first`: own partner ranks first; `first_of_50`: the same against 49 others drawn at random.
    - `outranks`: share of the others' texts that the partner outranks.
    - `class`: share of the five nearest, without own partner and look-alikes, that have the query's class.
    - `look_alike`: the nearest without the own partner is a look-alike; only cases that have one.
    """
    n = len(queries)
    label, group = _numbers(labels), group_index(groups)
    found = {name: np.full(n, np.nan) for name in ("first", "first_of_50", "outranks", "class", "look_alike")}
    chance = {name: np.full(n, np.nan) for name in found}
    expected = _first_among(n, min(AMONG, n))
    for start in range(0, n, _BLOCK):
        similarities = queries[start : start + _BLOCK] @ answers.T
        for i, row in enumerate(similarities, start):
            better, tied = _beaten(row, i)
            found["first"][i] = (better == 0) / (tied + 1)
            found["first_of_50"][i] = expected[better : better + tied + 1].mean()
            found["outranks"][i] = 1 - (better + tied / 2) / max(n - 1, 1)
            others = group != group[i]
            if label[i] >= 0 and (known := others & (label >= 0)).any():
                found["class"][i] = _share_of_nearest(row[known], label[known] == label[i], NEAREST)
                chance["class"][i] = (label[known] == label[i]).mean()
            others = np.arange(n) != i
            if (alike := group[others] == group[i]).any():
                found["look_alike"][i] = _share_of_nearest(row[others], alike, 1)
                chance["look_alike"][i] = alike.mean()
    chance["first"][:], chance["first_of_50"][:], chance["outranks"][:] = 1 / max(n, 1), 1 / max(min(AMONG, n), 1), 0.5
    return found, chance


def first_within(
    queries: NDArray[np.float32], answers: NDArray[np.float32], classes: Sequence[str | None]
) -> tuple[Values, Values]:
    """Own partner first among the cases of the same class only, and the chance of that; NaN for a class of one.

    With reports as `classes` it is what the text knows beyond its report.
    """
    found, chance = np.full(len(queries), np.nan), np.full(len(queries), np.nan)
    label = _numbers(classes)
    for value in np.unique(label[label >= 0]):
        members = np.flatnonzero(label == value)
        if len(members) > 1:
            for position, row in enumerate(queries[members] @ answers[members].T):
                better, tied = _beaten(row, position)
                found[members[position]] = (better == 0) / (tied + 1)
                chance[members[position]] = 1 / len(members)
    return found, chance


def summarised(found: Values, chance: Values, groups: Sequence[str | None]) -> dict[str, Any]:
    """`{mean, low, high, n, chance}` and the paired difference to chance as `{lift: {mean, low, high}}`, for JSON."""
    known = np.isfinite(found) & np.isfinite(chance)
    units = [group for group, keep in zip(groups, known, strict=True) if keep]
    if not known.any():
        return {"n": 0}
    return {
        **bootstrap_interval(found[known], units).as_json(),
        "n": int(known.sum()),
        "chance": float(chance[known].mean()),
        "lift": bootstrap_interval((found - chance)[known], units).as_json(),
    }


def differences(
    ours: Mapping[str, Values], theirs: Mapping[str, Values], groups: Sequence[str | None]
) -> dict[str, Any]:
    """Paired differences `ours` - `theirs` of each measure, `{mean, low, high, n}`."""
    result: dict[str, Any] = {}
    for name, values in ours.items():
        gap = values - theirs[name]
        known = np.isfinite(gap)
        units = [group for group, keep in zip(groups, known, strict=True) if keep]
        result[name] = {**bootstrap_interval(gap[known], units).as_json(), "n": int(known.sum())}
    return result


def information_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A table, head first, of an audit's `information`: rationales beside chance and beside reports alone."""
    reports, gaps = summary.get("report", {}), summary.get("beyond_report", {})
    rows = [["measure", "rationale", "95 % interval", "chance", "report alone", "rationale − report", "N"]]
    measures = [(title, summary["rationale"][name], name) for name, title in TITLES.items()]
    if equal := summary.get("first_among_equal_reports"):
        measures.append((EQUAL_REPORTS, equal, ""))
    for title, found, name in measures:
        if found["n"]:
            gap = gaps.get(name) or {"n": 0}
            beside = f"{number(gap['mean'])} {interval(gap['low'], gap['high'])}" if gap["n"] else "–"
            row = [title, number(found["mean"]), interval(found["low"], found["high"]), number(found["chance"])]
            rows.append([*row, number(reports.get(name, {}).get("mean")), beside, str(found["n"])])
    return rows


def aspect_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A table, head first, of what each aspect alone finds."""
    shown = [name for name in TITLES if summary["rationale"][name]["n"]]
    rows = [["aspect", *(TITLES[name] for name in shown)]]
    parts = {"whole rationale": summary["rationale"], **summary["by_aspect"]}
    return rows + [[aspect, *(number(part[name].get("mean")) for name in shown)] for aspect, part in parts.items()]


def _beaten(row: NDArray[np.float32], own: int) -> tuple[int, int]:
    """How many others are more similar than `own`, and how many as similar."""
    return int((row > row[own] + _EQUAL).sum()), int((np.abs(row - row[own]) <= _EQUAL).sum()) - 1


def _share_of_nearest(row: NDArray[np.float32], hit: NDArray[np.bool_], k: int) -> float:
    """Expected share of `hit` among the `k` most similar, ties broken by chance."""
    k = min(k, len(row))
    last = np.partition(row, len(row) - k)[len(row) - k]
    above, tied = row > last + _EQUAL, np.abs(row - last) <= _EQUAL
    return float((hit[above].sum() + (k - above.sum()) * hit[tied].mean()) / k)


def _first_among(n: int, m: int) -> Values:
    """(n,) chance that a partner outranked by b of n-1 others is first against m-1 of these drawn at random."""
    chance = np.zeros(n)
    chance[0] = 1.0
    for b in range(1, n - m + 1):  # C(n-1-b, m-1) / C(n-1, m-1), from one b to the next
        chance[b] = chance[b - 1] * (n - b - m + 1) / (n - b)
    return chance


def _numbers(names: Sequence[str | None]) -> NDArray[np.intp]:
    """(N,) a number for each name, -1 for None."""
    code = {name: i for i, name in enumerate(dict.fromkeys(name for name in names if name is not None))}
    return np.array([-1 if name is None else code[name] for name in names], dtype=np.intp)
