"""`cers data`: look at a dataset before training, split it, or draw one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cers.errors import CersError

if TYPE_CHECKING:
    from rich.console import Console

    from cers.data.case import Case
    from cers.data.check import CheckReport
    from cers.data.splits import Split

app = typer.Typer(help="Check, split or draw a dataset.", no_args_is_help=True)

_SHOWN = 5
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}

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
    mask_threshold: Annotated[int | None, typer.Option(help="Grey value from which on a pixel is lesion.")] = None,
    mask_foreground: Annotated[list[int] | None, typer.Option(help="A grey value that is lesion; repeatable.")] = None,
    rationales: Annotated[Path | None, typer.Option(help="CSV image,cot that replaces the dataset's.")] = None,
    split: Annotated[Path | None, typer.Option(help="Split file to hold against the dataset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say before training what would go wrong. Exit status 1 where errors are found."""
    from cers.config import MaskReading
    from cers.cot.rationale import parse_rationale
    from cers.data.check import check_dataset

    with _progress("reading images and masks") as progress:
        report = check_dataset(
            path,
            layout,
            negatives=negatives,
            group_pattern=group_pattern,
            rationales=rationales,
            mask=MaskReading(threshold=mask_threshold, foreground=tuple(mask_foreground) if mask_foreground else None),
            split=split,
            parse_rationale=parse_rationale,
            progress=progress,
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
    test: Annotated[float, typer.Option(help="Share of annotated images for testing.")] = 0.1,
    layout: Layout = "auto",
    negatives: Negatives = False,
    group_pattern: GroupPattern = None,
    out: Annotated[Path, typer.Option(help="Split file to write.")] = Path("split.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the split file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deal a dataset out to training, validation and test, and write the split to a file with a hash."""
    from cers.data.layouts import load_cases
    from cers.data.splits import default_clusters, make_split, save_split

    share = _share(labelled)
    if out.exists() and not overwrite:
        raise CersError(f"{out} exists; add --overwrite to replace it, or write elsewhere with --out")
    cases = load_cases(path, layout, negatives=negatives, group_pattern=group_pattern)
    clusters: list[list[str]] = []
    if strategy in ("grouped", "official"):
        with _progress("comparing images") as progress:
            clusters = default_clusters(cases, progress)
    made = make_split(cases, strategy=strategy, seed=seed, labelled=share, val=val, test=test, clusters=clusters)
    with _progress("reading masks") as progress:
        rows = _rows(made, cases, progress)
    save_split(made, out)
    _show_split(made, rows, out, as_json)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    cases: Annotated[int, typer.Option(min=1, help="How many phantoms.")] = 400,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side of the square images, pixels.")] = 128,
    seed: Seed = 0,
) -> None:
    """Draw a dataset of phantoms with masks, reports and rationales, to try everything on."""
    from cers.data.phantom import write_phantoms

    with _progress("drawing phantoms") as progress:
        write_phantoms(out, n=cases, size=size, seed=seed, progress=progress)
    typer.echo(f"{cases} phantoms in {out}; next: cers data check {out}")


def _share(text: str) -> float | int:
    """`100` is a count, `0.25` and `1.0` are shares."""
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise CersError(f"--labelled '{text}' is neither a share such as 0.25 nor a count such as 100") from None


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while people look at it, silence in pipes and logs."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _console() -> Console:
    from rich.console import Console

    # Outside a terminal (a pipe, a log) lines keep their length, so that they can be searched.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=400)


def _show_report(report: CheckReport) -> None:
    from rich.table import Table

    console = _console()
    table = Table("", "count", title=f"{report.path} (layout {report.layout})", title_justify="left")
    table.columns[1].justify = "right"
    for name, count in report.counts.items():
        if count:
            table.add_row(name, f"{count:,}")
    console.print(table)
    if report.masks:
        masks = Table("mask values", "read as lesion", "masks", title="masks", title_justify="left")
        masks.columns[2].justify = "right"
        for kind in report.masks:
            masks.add_row(kind.values, kind.lesion or "[red]in doubt[/red]", f"{len(kind.masks):,}")
        console.print(masks)
    _show_problems(report, console)
    warnings = sum(problem.level == "warning" for problem in report.problems)
    verdict = "[red]not ready to train[/red]" if report.errors else "[green]ready to train[/green]"
    console.print(f"{verdict}: {report.errors} errors, {warnings} warnings")


def _show_problems(report: CheckReport, console: Console) -> None:
    from rich.markup import escape

    by_kind: dict[tuple[str, str], list[Any]] = {}
    for problem in report.problems:
        by_kind.setdefault((problem.level, problem.kind), []).append(problem)
    for (level, kind), problems in by_kind.items():
        console.print(f"[{_COLOURS[level]}]{level}[/] [bold]{kind}[/bold] ({len(problems)})")
        for problem in problems[:_SHOWN]:
            where = problem.where.removeprefix(report.path).lstrip("/\\")
            console.print(f"  {escape(where)}: {escape(problem.message)}", soft_wrap=False)
        if len(problems) > _SHOWN:
            console.print(f"  … {len(problems) - _SHOWN} more; --json lists all")


def _rows(split: Split, cases: Sequence[Case], progress: Callable[[int, int], None]) -> dict[str, dict[str, Any]]:
    """Images, groups, lesion-free images and images by class for every part of the split."""
    from collections import Counter

    from cers.data.images import mask_values

    by_id = {case.id: case for case in cases}
    parts = {"labelled": split.labelled, "unlabelled": split.unlabelled, "val": split.val, "test": split.test}
    if split.left_out:
        parts["left out"] = split.left_out
    rows: dict[str, dict[str, Any]] = {}
    done = 0
    for name, ids in parts.items():
        empty = 0
        for case in map(by_id.__getitem__, ids):
            empty += case.negative or (case.mask is not None and not mask_values(case.mask).any())
            done += 1
            progress(done, len(cases))
        classes = Counter(by_id[i].label for i in ids if by_id[i].label)
        groups = {split.groups.get(i, by_id[i].group or i) for i in ids}
        rows[name] = {"images": len(ids), "groups": len(groups), "empty": empty, "classes": dict(classes)}
    return rows


def _show_split(split: Split, rows: dict[str, dict[str, Any]], out: Path, as_json: bool) -> None:
    if as_json:
        import json

        json.dump({"file": str(out), "hash": split.hash, "parts": rows}, sys.stdout, indent=1, ensure_ascii=False)
        typer.echo()
        return
    from rich.table import Table

    console = _console()
    classes = sorted({name for row in rows.values() for name in row["classes"]})
    grouping = "groups" if split.strategy != "paper" else "patients"
    title = f"{split.strategy} split, seed {split.seed}"
    table = Table("part", "images", grouping, "lesion-free", *classes, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in rows.items():
        numbers = (row["images"], row["groups"], row["empty"], *(row["classes"].get(c, 0) for c in classes))
        table.add_row(name, *(f"{n:,}" for n in numbers))
    console.print(table)
    console.print(f"written to {out} (hash {split.hash[:12]})")
