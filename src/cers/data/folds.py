"""Cross-validation: every annotated image is tested once, by networks that trained on the other folds."""

from collections.abc import Callable, Sequence
from itertools import count, takewhile
from pathlib import Path

from cers.data.case import Case
from cers.data.duplicates import near_duplicates
from cers.data.partition import by_fold, by_group, group_names, sample_groups
from cers.data.splits import Split, assemble, require_labelled
from cers.errors import CersError


def make_folds(
    cases: Sequence[Case],
    folds: int,
    *,
    seed: int = 0,
    labelled: float | int = 1.0,
    val: float = 0.1,
    clusters: Sequence[Sequence[str]] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Split]:
    """A `grouped` split for each of `folds`, whose test parts together are all annotated cases, each of them once.

    Whole groups are dealt out, each class near even over the folds. `val` is the share of all annotated cases that
    every split validates on; the other arguments are those of `make_split`. Images of a group without annotation
    train in every fold; those whose patient is tested or validated are left out of that fold.

    Raises:
        CersError: fewer than two folds, too few groups for them, `val` leaves nothing to train on, or a bad share.
    """
    if folds < 2:
        raise CersError(f"{folds} folds are no cross-validation; give at least 2, e.g. 5")
    if not 0 <= val < 1 - 1 / folds:
        raise CersError(f"val {val} leaves none of {folds} folds' training images; give a share such as 0.1")
    require_labelled(labelled, cases)
    groups = group_names(cases, near_duplicates(cases, progress=progress) if clusters is None else clusters)
    if limit is not None:
        cases = sample_groups(cases, groups, limit, seed)
    fold = by_fold(cases, groups, folds, seed)
    splits = []
    for tested in range(folds):
        rest = [case for case in cases if fold.get(case.id) != tested]
        part = {case.id: "test" for case in cases} | by_group(rest, groups, val / (1 - 1 / folds), 0.0, seed)
        splits.append(assemble(cases, part, groups, "grouped", seed).with_labelled(labelled))
    return splits


def fold_files(path: Path, folds: int) -> list[Path]:
    """The split file of each fold, named after `path`: `split.json` becomes `split-1.json` and so on."""
    return [_fold_file(path, number) for number in range(1, folds + 1)]


def surplus_files(path: Path, folds: int) -> list[Path]:
    """Files that an earlier division into more than `folds` left: beside the new ones, images would be tested twice."""
    return list(takewhile(Path.exists, (_fold_file(path, number) for number in count(folds + 1))))


def _fold_file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
