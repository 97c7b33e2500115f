"""Who trains, who validates, who is tested: a split is made once, saved with its hash, and read ever after."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

from cers.data.case import Case
from cers.data.duplicates import near_duplicates
from cers.data.partition import by_group, by_image, by_official, group_names, sample_groups, stratified_order
from cers.errors import CersError, nearest
from cers.files import write_atomic

STRATEGIES = ("grouped", "paper", "official")


@dataclass(frozen=True)
class Split:
    """Ids by part. `labelled` and `unlabelled` together are the training set.

    `order` holds the annotated training ids such that every prefix is stratified by class: a smaller labelled share is
    a prefix of a larger one. `left_out` are images without annotation whose patient is validated or tested: they are
    used nowhere. `groups` names the group of every id that shares one; `dataset` hashes the ids it was made from.
    """

    strategy: str
    seed: int
    labelled: list[str]
    unlabelled: list[str]
    val: list[str]
    test: list[str]
    order: list[str]
    dataset: str
    left_out: list[str]
    groups: dict[str, str]

    @property
    def parts(self) -> dict[str, list[str]]:
        """Training, validation and test ids by name; no group may occur in two of them."""
        return {"train": [*self.labelled, *self.unlabelled], "val": self.val, "test": self.test}

    @property
    def ids(self) -> set[str]:
        """All ids that it knows, those left out as well."""
        return {*self.labelled, *self.unlabelled, *self.val, *self.test, *self.left_out}

    @property
    def hash(self) -> str:
        """SHA-256 of everything the split says."""
        return _sha256(json.dumps(asdict(self), sort_keys=True, ensure_ascii=False))

    def with_labelled(self, share: float | int) -> Self:
        """The same split with the masks of only a share (float up to 1.0) or a count (int) of `order` in use.

        In a `grouped` split `order` runs group by group, so that at most one group has images on both sides: the
        unlabelled images are then no easier than those of new patients, and the count stays exact.

        Raises:
            CersError: not in (0, 1.0], or a count below 1 or beyond the annotated training cases.
        """
        chosen = self.order[: labelled_count(share, len(self.order))]
        rest = set(self.order[len(chosen) :]) | (set(self.unlabelled) - set(self.order))
        return replace(self, labelled=chosen, unlabelled=sorted(rest))

    def redrawn(self, cases: Sequence[Case], seed: int) -> Self:
        """The same parts with as many training images labelled, drawn anew by `seed`.

        A class that training has no mask of (`without_class`) still has none.
        """
        training = set(self.order)
        groups = {case_id: self.groups.get(case_id, case_id) for case_id in training}
        order = stratified_order([case for case in cases if case.id in training], groups, seed)
        return replace(self, order=order).with_labelled(len(self.labelled))

    def without_class(self, name: str, cases: Sequence[Case]) -> Self:
        """The same split with no mask of class `name` in use: its training images are unlabelled, at every share.

        What it is to meet a kind of lesion that nobody has outlined yet; validation and test keep theirs.

        Raises:
            CersError: no labelled case is of this class, or every one is.
        """
        label = {case.id: case.label for case in cases}
        known = {label[case_id] for case_id in self.labelled} - {None}
        if name not in known:
            raise CersError(f"no labelled case is of class '{name}'; {nearest(name, sorted(map(str, known)))}")
        unseen = {case_id for case_id in self.order if label[case_id] == name}
        labelled = [case_id for case_id in self.labelled if case_id not in unseen]
        if not labelled:
            raise CersError(f"every labelled case is of class '{name}'; nothing is left to learn from")
        return replace(
            self,
            labelled=labelled,
            unlabelled=sorted({*self.unlabelled, *unseen}),
            order=[case_id for case_id in self.order if case_id not in unseen],
        )


def make_split(
    cases: Sequence[Case],
    *,
    strategy: str = "grouped",
    seed: int = 0,
    labelled: float | int = 1.0,
    val: float = 0.1,
    test: float = 0.1,
    clusters: Sequence[Sequence[str]] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Deal `cases` out to training, validation and test; a pure function of its arguments.

    `grouped` keeps a patient, and a cluster of near-duplicate images, on one side; `paper` cuts 8:1:1 by image as the
    CERS paper does; `official` takes the dataset's own parts, and groups only to carve out what is missing. `clusters`
    of images that belong together default to `near_duplicates(cases)`, which reads the images, as `progress` hears;
    `paper` uses none.
    `limit` keeps only about that many cases, in whole groups, for protocols that must be quick. `labelled` is the
    share or the count of masks in use. Cases nobody annotated are never validated or tested.

    Raises:
        CersError: unknown strategy, impossible shares, or too few groups for the parts.
    """
    if strategy not in STRATEGIES:
        raise CersError(f"unknown split strategy '{strategy}'; {nearest(strategy, STRATEGIES)}")
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise CersError(f"val {val} and test {test} must be shares that leave some for training, e.g. 0.1 and 0.1")
    require_labelled(labelled, cases)
    groups = {case.id: case.id for case in cases}
    if strategy != "paper":
        if clusters is None:
            clusters = near_duplicates(cases, progress=progress)
        groups = group_names(cases, clusters)
    if limit is not None:
        cases = sample_groups(cases, groups, limit, seed)
    if strategy == "paper":
        part = by_image(cases, val, test, seed)
    elif strategy == "grouped":
        part = by_group(cases, groups, val, test, seed)
    else:
        part = by_official(cases, groups, val, test, seed)
    return assemble(cases, part, groups, strategy, seed).with_labelled(labelled)


def require_labelled(share: float | int, cases: Sequence[Case]) -> None:
    """Refuse, before images are compared, a share or count of masks in use that `cases` can never have.

    Raises:
        CersError: as `labelled_count`, of all annotated cases.
    """
    labelled_count(share, sum(case.annotated for case in cases))


def labelled_count(share: float | int, total: int) -> int:
    """How many of `total` a share (float, rounded down as in the paper, at least 1) or a count (int) means."""
    if isinstance(share, int) and 1 <= share <= total:
        return share
    if isinstance(share, float) and 0 < share <= 1:
        return min(total, max(1, math.floor(share * total + 1e-9)))
    raise CersError(f"labelled {share} is neither a share such as 0.25 nor a count from 1 to {total}")


def dataset_hash(ids: Sequence[str]) -> str:
    """SHA-256 of the sorted ids."""
    return _sha256("\n".join(sorted(ids)))


def save_split(split: Split, path: Path) -> None:
    """Write the split as JSON, with its hash."""
    text = json.dumps({**asdict(split), "hash": split.hash}, indent=1, ensure_ascii=False)
    write_atomic(path, text + "\n")


def load_split(path: Path, cases: Sequence[Case] | None = None) -> Split:
    """Read a split file. With `cases`, the split must also fit the dataset.

    Raises:
        CersError: not a split file, changed since it was written, an id in two parts; with `cases`, an unknown id, a
            training or test case without annotation, or (strategy `grouped`) a group on two sides.
    """
    split = read_split(path)
    wrong = overlaps(split)
    if cases is not None:
        wrong += unfit(split, cases) + (straddling(split, cases) if split.strategy == "grouped" else [])
    if wrong:
        more = f" (and {len(wrong) - 1} more; see `cers data check --split`)" if len(wrong) > 1 else ""
        raise CersError(f"{path}: {wrong[0]}{more}; make a new one with `cers data split`")
    return split


def read_split(path: Path) -> Split:
    """The split in a file, of which only the form and the hash are verified.

    Raises:
        CersError: unreadable, not a split file, or changed since it was written.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CersError(f"no split file {path}; make one with `cers data split`") from None
    except (OSError, ValueError) as error:
        raise CersError(f"{path} is not a split file ({error}); make one with `cers data split`") from None
    split, stored = _parse(values, path)
    if split.hash != stored:
        raise CersError(f"{path} was changed since it was written; make a new one with `cers data split`")
    return split


def is_split_file(path: Path) -> bool:
    """Whether the file has the form of a split; what it says may have been changed since it was written."""
    try:
        return _has_form(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def check_split(split: Split, cases: Sequence[Case]) -> list[str]:
    """All that is wrong between a split and a dataset, a line each: overlaps, strangers, straddling groups, leftovers.

    Straddling groups are listed for every strategy; by-image strategies have them by design.
    """
    return overlaps(split) + unfit(split, cases) + straddling(split, cases) + unplaced(split, cases)


def overlaps(split: Split) -> list[str]:
    """Ids that stand in more than one place."""
    places = {"labelled": split.labelled, "unlabelled": split.unlabelled, "val": split.val, "test": split.test}
    places["left_out"] = split.left_out
    counts = Counter(case_id for ids in places.values() for case_id in ids)
    return [
        f"'{case_id}' occurs {n} times, in {' and '.join(name for name, ids in places.items() if case_id in ids)}"
        for case_id, n in counts.items()
        if n > 1
    ]


def unfit(split: Split, cases: Sequence[Case]) -> list[str]:
    """Ids that the dataset does not have, and ids whose mask is needed but not there."""
    annotated = {case.id: case.annotated for case in cases}
    used = [*split.parts["train"], *split.val, *split.test, *split.left_out]
    unknown = [case_id for case_id in used if case_id not in annotated]
    bare = [i for i in [*split.order, *split.val, *split.test] if not annotated.get(i, True)]
    wrong = [f"{len(unknown)} ids are not in the dataset, e.g. '{unknown[0]}'"] if unknown else []
    return wrong + ([f"{len(bare)} cases have lost their mask, e.g. '{bare[0]}'"] if bare else [])


def straddling(split: Split, cases: Sequence[Case]) -> list[str]:
    """Groups (those of the split and those of the cases) with images in more than one of train, val and test."""
    part = {case_id: name for name, ids in split.parts.items() for case_id in ids}
    own = {case.id: case.group for case in cases if case.group is not None}
    where: dict[str, set[str]] = {}
    for case_id, group in chain(split.groups.items(), own.items()):
        if case_id in part:
            where.setdefault(group, set()).add(part[case_id])
    return [f"group '{group}' is in {' and '.join(sorted(names))}" for group, names in where.items() if len(names) > 1]


def unplaced(split: Split, cases: Sequence[Case]) -> list[str]:
    """One line when the dataset has ids that the split does not know."""
    known = split.ids
    new = [case.id for case in cases if case.id not in known]
    return [f"{len(new)} cases of the dataset are in no part, e.g. '{new[0]}'"] if new else []


def assemble(
    cases: Sequence[Case],
    part: Mapping[str, str],
    groups: Mapping[str, str],
    strategy: str,
    seed: int,
) -> Split:
    """The split with every annotated training case labelled.

    Raises:
        CersError: there is none.
    """
    ids: dict[str, list[str]] = {name: [] for name in ("train", "val", "test")}
    bare: dict[str, list[str]] = {name: [] for name in ids}
    for case in sorted(cases, key=lambda c: c.id):
        (ids if case.annotated else bare)[part[case.id]].append(case.id)
    train = set(ids["train"])
    if not train:
        raise CersError("no annotated case is left for training; annotate some, or make --val and --test smaller")
    order = stratified_order([case for case in cases if case.id in train], groups, seed)
    shared = Counter(groups.values())
    return Split(
        strategy=strategy,
        seed=seed,
        labelled=order,
        unlabelled=bare["train"],
        val=ids["val"],
        test=ids["test"],
        order=order,
        dataset=dataset_hash([case.id for case in cases]),
        left_out=sorted(bare["val"] + bare["test"]),
        groups={case_id: group for case_id, group in sorted(groups.items()) if shared[group] > 1},
    )


def _has_form(values: Any) -> bool:
    return isinstance(values, dict) and set(values) == {*Split.__dataclass_fields__, "hash"}


def _parse(values: Any, path: Path) -> tuple[Split, str]:
    wanted = Split.__dataclass_fields__
    if not _has_form(values):
        raise CersError(f"{path} is not a split file; make one with `cers data split`")
    lists = [n for n, f in wanted.items() if f.type == list[str] and not _strings(values[n])]
    if lists or not isinstance(values["groups"], Mapping):
        raise CersError(f"{path}: {', '.join(lists) or 'groups'} must hold ids; make a new one with `cers data split`")
    stored = str(values.pop("hash"))
    return Split(**values), stored


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
