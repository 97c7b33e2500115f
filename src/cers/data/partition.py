"""How cases are dealt out to training, validation and test, and in which order their masks are put to use."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cers.data.case import Case
from cers.errors import CersError

PARTS = ("train", "val", "test")


def group_names(cases: Sequence[Case], clusters: Iterable[Sequence[str]]) -> dict[str, str]:
    """A group for every case: who shares `Case.group` or a cluster, also by way of others, is in one.

    A group is named after its smallest `Case.group`, else after its smallest id.
    """
    index = {case.id: i for i, case in enumerate(cases)}
    linked: dict[str, list[int]] = {}
    for case in cases:
        if case.group is not None:
            linked.setdefault(case.group, []).append(index[case.id])
    chains = [*linked.values(), *([index[i] for i in cluster if i in index] for cluster in clusters)]
    pairs = np.array([pair for chain in chains for pair in pairwise(chain)]).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(cases), len(cases)))
    _, component = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    for own, c in sorted(
        ((case.group is None, case.group or case.id), c) for case, c in zip(cases, component.tolist(), strict=True)
    ):
        names.setdefault(c, own[1])
    return {case.id: names[c] for case, c in zip(cases, component.tolist(), strict=True)}


def sample_groups(cases: Sequence[Case], groups: Mapping[str, str], limit: int, seed: int) -> list[Case]:
    """Whole groups drawn at random until they hold `limit` cases: a smaller dataset with the same structure.

    Raises:
        CersError: `limit` is below 3, which no split can be made of.
    """
    if limit < 3:
        raise CersError(f"a limit of {limit} cases leaves nothing to split; give at least 3, e.g. 1200")
    names = np.random.default_rng(seed).permutation(sorted({groups[case.id] for case in cases})).tolist()
    sizes = Counter(groups[case.id] for case in cases)
    chosen: set[str] = set()
    held = 0
    for name in names:
        if held >= limit:
            break
        chosen.add(name)
        held += sizes[name]
    return [case for case in cases if groups[case.id] in chosen]


def by_image(cases: Sequence[Case], val: float, test: float, seed: int) -> dict[str, str]:
    """The part of every id, the paper's way: annotated cases shuffled and cut; floor for training and validation."""
    ids = np.random.default_rng(seed).permutation(sorted(case.id for case in cases if case.annotated)).tolist()
    train = _floor((1 - val - test) * len(ids))
    middle = train + _floor(val * len(ids)) if test else len(ids)
    part = dict.fromkeys((case.id for case in cases), "train")
    part |= dict.fromkeys(ids[train:middle], "val") | dict.fromkeys(ids[middle:], "test")
    return part


def by_group(cases: Sequence[Case], groups: Mapping[str, str], val: float, test: float, seed: int) -> dict[str, str]:
    """The part of every id such that no group is in two parts, and each class near its share in every part."""
    place = _dealt(_units(cases, groups), np.array([1 - val - test, val, test]), seed)
    return {case.id: PARTS[place.get(groups[case.id], 0)] for case in cases}


def by_fold(cases: Sequence[Case], groups: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """The fold, from 0 to `folds` - 1, of every id whose group has an annotated case; each class near even over them.

    Raises:
        CersError: fewer such groups than folds.
    """
    place = _dealt(_units(cases, groups), np.full(folds, 1 / folds), seed, even=True)
    return {case.id: place[groups[case.id]] for case in cases if groups[case.id] in place}


def by_official(cases: Sequence[Case], groups: Mapping[str, str], val: float, test: float, seed: int) -> dict[str, str]:
    """The part of every id as published. A missing validation part is carved out of training, by group.

    Raises:
        CersError: the dataset has no official parts, no official test part, or annotated cases outside them.
    """
    part = {case.id: case.part or "train" for case in cases}
    found = {case.part for case in cases if case.part}
    stray = [case.id for case in cases if case.annotated and case.part not in PARTS]
    advice = "choose --strategy grouped"
    if not found:
        raise CersError(f"this dataset has no official parts; {advice}")
    if stray:
        raise CersError(f"{len(stray)} annotated cases are in no official part, e.g. '{stray[0]}'; {advice}")
    if test and "test" not in found:
        raise CersError(f"this copy has no official test part; add it, give --test 0, or {advice}")
    if "val" not in found and val:
        part |= by_group([case for case in cases if part[case.id] == "train"], groups, val, 0.0, seed)
    return part


def stratified_order(cases: Sequence[Case], groups: Mapping[str, str], seed: int) -> list[str]:
    """Ids in an order whose every prefix has the classes in proportion, group after group.

    Within its class (the commonest of its cases) each group has a random place between 0 and 1, evenly spaced by the
    number of cases; sorting by place interleaves the classes.
    """
    units = _units(cases, groups)
    shuffled = np.random.default_rng([seed, 1]).permutation(sorted(units)).tolist()
    by_class: dict[str, list[str]] = {}
    for name in shuffled:
        by_class.setdefault(Counter(map(stratum, units[name])).most_common(1)[0][0], []).append(name)
    place: dict[str, float] = {}
    for names in by_class.values():
        sizes = np.array([len(units[name]) for name in names])
        place |= dict(zip(names, ((sizes.cumsum() - sizes / 2) / sizes.sum()).tolist(), strict=True))
    return [case.id for name in sorted(shuffled, key=place.__getitem__) for case in units[name]]


def stratum(case: Case) -> str:
    """What a split is stratified by: the class, and whether the case is known to have no lesion."""
    return f"{case.label or ''}{' (negative)' if case.negative else ''}"


def _floor(count: float) -> int:
    return math.floor(count + 1e-9)


def _units(cases: Sequence[Case], groups: Mapping[str, str]) -> dict[str, list[Case]]:
    units: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: c.id):
        units.setdefault(groups[case.id], []).append(case)
    return units


def _dealt(
    units: Mapping[str, list[Case]],
    share: NDArray[np.float64],
    seed: int,
    even: bool = False,
) -> dict[str, int]:
    """The part, by its place in `share`, of every group that has an annotated case.

    Groups are dealt out from the largest, each to the part where it lowers the squared deviation from the wanted
    counts of annotated cases by class the most; with `even` also of all classes together, without which a class that
    is one group is as welcome in any part.
    """
    names = [name for name in _shuffled_by_size(units, seed) if _annotated(units[name])]
    counts = _class_counts(units, names)
    if even:
        counts = np.column_stack([counts, counts.sum(axis=1)])
    total = counts.sum(axis=0)
    have = np.zeros((len(share), counts.shape[1]))
    place: dict[str, int] = {}
    for name, count in zip(names, counts, strict=True):
        change = count * (2 * (have - share[:, None] * total) + count)
        cost = np.divide(change.sum(axis=1), share, out=np.full(len(share), np.inf), where=share > 0)
        place[name] = int(cost.argmin())
        have[place[name]] += count
    _fill_empty(place, {name: _annotated(units[name]) for name in names}, share)
    return place


def _shuffled_by_size(units: Mapping[str, list[Case]], seed: int) -> list[str]:
    names: list[str] = np.random.default_rng(seed).permutation(sorted(units)).tolist()
    return sorted(names, key=lambda name: -_annotated(units[name]))


def _annotated(unit: Sequence[Case]) -> int:
    return sum(case.annotated for case in unit)


def _class_counts(units: Mapping[str, list[Case]], names: Sequence[str]) -> NDArray[np.float64]:
    """Annotated cases by group (rows) and class (columns)."""
    classes = {s: i for i, s in enumerate(sorted({stratum(case) for unit in units.values() for case in unit}))}
    counts = np.zeros((len(names), len(classes)))
    for row, name in enumerate(names):
        for case in units[name]:
            counts[row, classes[stratum(case)]] += case.annotated
    return counts


def _fill_empty(place: dict[str, int], size: Mapping[str, int], share: NDArray[np.float64]) -> None:
    """Give every wanted part at least one group: the smallest of the part that has most groups to spare."""
    for part in range(len(share)):
        while share[part] > 0 and part not in place.values():
            spare = Counter(place.values())
            movable = [name for name in size if spare[place[name]] > 1]
            if not movable:
                raise CersError(
                    f"{len(place)} groups of annotated images cannot fill {np.count_nonzero(share)} parts; check "
                    "--group-pattern, annotate more patients, ask for fewer --folds, or set --val or --test to 0"
                )
            place[min(movable, key=lambda n: (-spare[place[n]], size[n], n))] = part
