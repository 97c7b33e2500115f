"""`cers pool`: build a knowledge pool for a trained run, and look into one."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from cers.cli.console import Cell, MaskForeground, MaskThreshold, counted, mask_reading, say, say_json, say_table

if TYPE_CHECKING:
    from cers.predict.pools import Neighbour, PoolFacts

app = typer.Typer(no_args_is_help=True, help="Build a knowledge pool for a trained run, and look into one.")


@app.command()
def build(
    run: Annotated[Path, typer.Argument(help="The trained run whose encoder fills the pool.")],
    out: Annotated[Path, typer.Option(help="Folder of the new pool.")],
    data: Annotated[Path | None, typer.Option(help="Annotated dataset to fill it with, not the run's own.")] = None,
    layout: Annotated[str, typer.Option(help="Layout of --data.")] = "auto",
    mask_threshold: MaskThreshold = None,
    mask_foreground: MaskForeground = None,
    keep_own: Annotated[bool, typer.Option("--keep-own", help="Beside --data keep the run's labelled cases.")] = False,
    split: Annotated[Path | None, typer.Option(help="Fill it with the labelled cases of this split instead.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pool in --out.")] = False,
) -> None:
    """Fill a pool with annotated cases: new knowledge without training."""
    from cers.predict.pools import build_pool

    with counted("decoding") as on_decode:
        pool = build_pool(
            run,
            out,
            data=data,
            layout=layout,
            mask=mask_reading(mask_threshold, mask_foreground),
            keep_own=keep_own,
            split=split,
            overwrite=overwrite,
            on_decode=on_decode,
        )
    say(f"pool of {len(pool)} cases: {out}; next: cers eval {quote(str(run))} --pool {quote(str(out))}")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a pool, or of a run.")],
    case: Annotated[str | None, typer.Option(help="Show the entries nearest to this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Say what a pool holds, and what lies near one of its cases."""
    from dataclasses import asdict

    from cers.predict.pools import inspect_pool, neighbours

    facts = inspect_pool(folder)
    near = {} if case is None else neighbours(folder, case)
    if as_json:
        listed = {name: [asdict(neighbour) for neighbour in found] for name, found in near.items()}
        say_json(asdict(facts) | ({"nearest": {case: listed}} if near else {}))
        return
    _show(facts)
    for name, found in near.items():
        _show_near(f"\nNearest to {case} by {name}", found)


def _show(facts: PoolFacts) -> None:
    of = f"of {facts.entries}"
    rows: list[tuple[Cell, Cell]] = [
        ("entries", facts.entries),
        ("filled", f"{facts.filled} {of}"),
        *((f"class {name}", count) for name, count in facts.classes.items()),
        ("groups", f"{facts.groups}, and {facts.without_group} cases of no known group"),
        ("with rationale", f"{facts.cot_known} {of}"),
        ("with report", f"{facts.report_known} {of}"),
        ("nearest other case by image, mean cosine", facts.nearest_image),
        ("nearest other case by rationale, mean cosine", facts.nearest_cot),
        ("size", f"{facts.bytes_per_case / 1024:.1f} KiB per case"),
        ("encoder", facts.encoder),
    ]
    say(facts.folder)
    say_table(("pool", ""), rows)


def _show_near(title: str, found: list[Neighbour]) -> None:
    say(title)
    if not found:
        say("nothing: the case has no such embedding, or is alone")
        return
    say_table(("case", "class", "group", "cosine"), [(n.id, n.label, n.group, n.similarity) for n in found])
