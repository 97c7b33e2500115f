"""`cers data`: look at a dataset before training, split it, or draw one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cers.cli.console import (
    Cell,
    MaskForeground,
    MaskThreshold,
    counted,
    mask_reading,
    note,
    say,
    say_json,
    say_list,
    say_table,
)
from cers.errors import CersError

if TYPE_CHECKING:
    from cers.data.case import Case
    from cers.data.check import CheckReport
    from cers.data.problems import Problem
    from cers.data.splits import Split

app = typer.Typer(help="Check, split or draw a dataset.", no_args_is_help=True)

_SHOWN = 5
_MEASURES = ("images", "groups", "lesion-free")

DatasetPath = Annotated[Path, typer.Argument(help="Folder or manifest of the dataset.")]
Layout = Annotated[str, typer.Option(help="auto, brisc, mosmed, qata, nnunet, cers, folder or manifest.")]
Negatives = Annotated[bool, typer.Option("--negatives", help="Add the dataset's lesion-free images.")]
GroupPattern = Annotated[
    str | None, typer.Option(help="Regular expression whose first group names the patient, e.g. '^(P\\d+)_'.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]


@app.command()
def check(
    path: DatasetPath,
    layout: Layout = "auto",
    negatives: Negatives = False,
    group_pattern: GroupPattern = None,
    mask_threshold: MaskThreshold = None,
    mask_foreground: MaskForeground = None,
    rationales: Annotated[Path | None, typer.Option(help="CSV image,cot that replaces the dataset's.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file to hold against the dataset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say before training what would go wrong. Exit status 1 where errors are found."""
    from cers.cot.rationale import parse_rationale
    from cers.data.check import check_dataset

    with counted("reading images and masks") as heard:
        report = check_dataset(
            path,
            layout,
            negatives=negatives,
            group_pattern=group_pattern,
            rationales=rationales,
            mask=mask_reading(mask_threshold, mask_foreground),
            split=split,
            parse_rationale=parse_rationale,
            progress=heard,
        )
    if as_json:
        typer.echo(report.to_json())
    else:
        _show_report(report)
    raise typer.Exit(1 if report.errors else 0)


@app.command()
def split(
    path: DatasetPath,
    strategy: Annotated[str, typer.Option(help="grouped (no patient on two sides), paper or official.")] = "grouped",
    labelled: Annotated[str, typer.Option(help="Training masks in use: a share (0.25) or a count (100).")] = "1.0",
    seed: Seed = 0,
    val: Annotated[float, typer.Option(help="Share of annotated images for validation.")] = 0.1,
    test: Annotated[
        float | None, typer.Option(help="Share of annotated images for testing; 0.1 if not given.", show_default=False)
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validation: splits that test another part each: split-1.json …"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only about this many images, in whole groups.")] = None,
    without: Annotated[str | None, typer.Option(help="Use no training mask of this class.")] = None,
    redraw: Annotated[
        Path | None, typer.Option(help="Keep the parts of this split; draw anew, by --seed, which images are labelled.")
    ] = None,
    layout: Layout = "auto",
    negatives: Negatives = False,
    group_pattern: GroupPattern = None,
    out: Annotated[Path, typer.Option(help="Split file to write.")] = Path("split.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the split file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deal a dataset out to training, validation and test, and write the split to a file with a hash."""
    from cers.data.folds import make_folds
    from cers.data.layouts import load_cases
    from cers.data.splits import load_split, make_split, save_split

    share = _share(labelled)
    if folds is not None and (strategy != "grouped" or test is not None):
        raise CersError("--folds deals all groups out to be tested in turn; leave out --test and --strategy")
    if redraw is not None and (strategy, val, test, folds, limit) != ("grouped", 0.1, None, None, None):
        raise CersError("--redraw keeps the parts of a split; leave out --strategy, --val, --test, --folds and --limit")
    files, surplus = _split_files(out, folds, overwrite)
    cases = load_cases(path, layout, negatives=negatives, group_pattern=group_pattern, on_warning=_warn)
    with counted("comparing images") as heard:
        common: dict[str, Any] = {"seed": seed, "labelled": share, "val": val, "limit": limit, "progress": heard}
        if redraw is not None:
            made = [load_split(redraw, cases).redrawn(cases, seed).with_labelled(share)]
        elif folds is None:
            made = [make_split(cases, strategy=strategy, test=0.1 if test is None else test, **common)]
        else:
            made = make_folds(cases, folds, **common)
    if without is not None:
        made = [each.without_class(without, cases) for each in made]
    with counted("reading masks") as heard:
        used = set().union(*(each.ids for each in made))
        found = _lesion_free([case for case in cases if case.id in used], heard)
    rows = [_rows(each, cases, found) for each in made]
    for each, file in zip(made, files, strict=True):
        if each.val and found.issuperset(each.val):
            note(f"{file}: no validation image has a lesion, so that the best checkpoint is one that outlines nothing")
    for each, file in zip(made, files, strict=True):
        save_split(each, file)
    for file in surplus:
        file.unlink()
        note(f"{file} removed: it was of an earlier division into more folds")
    _show_splits(made, rows, files, as_json)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    cases: Annotated[int, typer.Option(min=1, help="How many phantoms.")] = 400,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side of the square images, pixels.")] = 128,
    seed: Seed = 0,
) -> None:
    """Draw a dataset of phantoms with masks, reports and rationales, to try everything on."""
    from cers.data.phantom import write_phantoms

    with counted("drawing phantoms") as heard:
        write_phantoms(out, n=cases, size=size, seed=seed, progress=heard)
    say(f"{cases} phantoms in {out}; next: cers data check {quote(str(out / 'manifest.csv'))}")


def _split_files(out: Path, folds: int | None, overwrite: bool) -> tuple[list[Path], list[Path]]:
    """The split files to write, and those that an earlier division into more folds left; only splits are replaced."""
    from cers.data.folds import fold_files, surplus_files
    from cers.data.splits import is_split_file

    files, surplus = ([out], []) if folds is None else (fold_files(out, folds), surplus_files(out, folds))
    there = [file for file in [*files, *surplus] if file.exists()]
    if other := [file for file in there if not is_split_file(file)]:
        raise CersError(f"{other[0]} exists and is no split file; delete it, or write elsewhere with --out")
    if there and not overwrite:
        raise CersError(f"{there[0]} exists; add --overwrite to replace it, or write elsewhere with --out")
    return files, surplus


def _warn(line: str) -> None:
    note(f"warning: {line}")


def _share(text: str) -> float | int:
    """`100` is a count, `0.25` and `1.0` are shares."""
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise CersError(f"--labelled '{text}' is neither a share such as 0.25 nor a count such as 100") from None


def _show_report(report: CheckReport) -> None:
    say(f"{report.path} (layout {report.layout})\n")
    counts: list[list[Cell]] = [[name, count] for name, count in report.counts.items() if count]
    say_table(["found", "count"], counts)
    if report.masks:
        say("")
        masks: list[list[Cell]] = [[k.values, k.lesion or "in doubt", len(k.masks), k.share] for k in report.masks]
        say_table(["mask values", "read as lesion", "masks", "mean lesion share"], masks)
    _show_problems(report)
    warnings = sum(problem.level == "warning" for problem in report.problems)
    say(f"\n{'not ready' if report.errors else 'ready'} to train: {report.errors} errors, {warnings} warnings")


def _show_problems(report: CheckReport) -> None:
    by_kind: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        by_kind.setdefault((problem.level, problem.kind), []).append(problem)
    for (level, kind), problems in by_kind.items():
        say(f"\n{level} {kind} ({len(problems)})")
        lines = [f"  {problem.where.removeprefix(f'{report.path}/')}: {problem.message}" for problem in problems]
        say_list(lines, _SHOWN, " (--json lists all)")


def _lesion_free(cases: Sequence[Case], heard: Callable[[int, int], None]) -> set[str]:
    """Ids of the cases known to have no lesion, by declaration or by an empty mask."""
    from cers.data.images import mask_values

    found = set()
    for done, case in enumerate(cases, start=1):
        if case.negative or (case.mask is not None and not mask_values(case.mask).any()):
            found.add(case.id)
        heard(done, len(cases))
    return found


def _rows(split: Split, cases: Sequence[Case], lesion_free: set[str]) -> dict[str, dict[str, Any]]:
    """Images, groups, lesion-free images and images by class for every part of the split."""
    by_id = {case.id: case for case in cases}
    parts = {"labelled": split.labelled, "unlabelled": split.unlabelled, "val": split.val, "test": split.test}
    if split.left_out:
        parts["left out"] = split.left_out
    return {
        name: {
            "images": len(ids),
            "groups": len({split.groups.get(i, by_id[i].group or i) for i in ids}),
            "lesion-free": len(lesion_free.intersection(ids)),
            "classes": dict(Counter(by_id[i].label for i in ids if by_id[i].label)),
        }
        for name, ids in parts.items()
    }


def _show_splits(
    splits: Sequence[Split], rows: Sequence[dict[str, dict[str, Any]]], files: Sequence[Path], as_json: bool
) -> None:
    """A table of the split, or of each fold; as JSON an object, or a list of them."""
    if as_json:
        said = [
            {"file": str(file), "hash": split.hash, "parts": parts}
            for file, split, parts in zip(files, splits, rows, strict=True)
        ]
        say_json(said if len(said) > 1 else said[0])
        return
    for number, (file, split, parts) in enumerate(zip(files, splits, rows, strict=True), start=1):
        fold = f", fold {number} of {len(splits)}" if len(splits) > 1 else ""
        lines: list[list[Cell]] = [[name, *(part[name] for part in parts.values())] for name in _MEASURES]
        for name in sorted({name for part in parts.values() for name in part["classes"]}):
            lines.append([f"class {name}", *(part["classes"].get(name, 0) for part in parts.values())])
        say(f"{split.strategy} split, seed {split.seed}{fold}\n")
        say_table(["part", *parts], lines)
        if split.left_out:
            say("left out: nobody annotated these, and their patient is validated or tested")
        say(f"\nwritten to {file} (hash {split.hash[:12]})")
