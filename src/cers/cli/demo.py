"""`cers demo`: the whole way on generated images, in minutes."""

from pathlib import Path
from typing import Annotated

import typer

from cers.cli.compare import show_comparison
from cers.cli.console import counted, note, say
from cers.errors import Interrupted


def demo(
    out: Annotated[Path, typer.Option(help="The demo's folder; an unfinished demo in it is gone on with.")] = Path(
        "cers-demo"
    ),
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Write into a folder of other things; only what bears the demo's names is replaced."
        ),
    ] = False,
) -> None:
    """Train and evaluate on generated images in minutes: every step says what it shows and how to do it alone."""
    note("loading libraries")
    from cers.demo import comparison
    from cers.demo import demo as steps_of

    steps = steps_of(out, overwrite=overwrite)
    try:
        for number, step in enumerate(steps, start=1):
            say(f"\n{number}/{len(steps)} {step.title}: {step.shows}\n      $ {step.command}")
            with counted(step.title.lower()) as progress:
                said = step.run(progress)
            say(f"      {said}")
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"stopped; go on with `cers demo --out {out}`") from None
    say("")
    show_comparison(comparison(out))
    say(
        "\nThis was a tiny run on generated images with a single seed: it shows how the parts work together. "
        "It says nothing about how well any method does on patients."
    )
