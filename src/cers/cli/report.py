"""`cers report`: write a run's report as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from cers.cli.console import note, say


def report(
    run: Annotated[Path, typer.Argument(help="The folder of an evaluated run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where things are now, e.g. data.path=/new/place/brisc2025")
    ] = None,
    pool: Annotated[Path | None, typer.Option(help="Report the run's evaluation with this knowledge pool.")] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Show this case, by id, before the others; repeatable.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="How many best, median and worst cases to show, each.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Where to write it; default report.html in the run.")] = None,
) -> None:
    """Write a run's report as one HTML file that opens anywhere."""
    from cers import reporting
    from cers.run import unfinished

    if stopped := unfinished(run):
        note(f"{stopped}. The report is of its best weights so far.")
    say(f"written: {reporting.report(run, overrides or (), pool=pool, chosen=case or (), n_each=cases, out=out)}")
