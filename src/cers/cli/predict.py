"""`cers predict`: outline images that nobody has outlined."""

from pathlib import Path
from typing import Annotated

import typer

from cers.cli.console import counted, note, say


def predict(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    data: Annotated[Path, typer.Argument(help="Folder of images, dataset, or table of images with reports.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where the run's own data are now, e.g. data.path=/new/place/brisc2025")
    ] = None,
    layout: Annotated[str, typer.Option(help="Layout of the images.")] = "auto",
    rationales: Annotated[Path | None, typer.Option(help="CSV of their rationales, as in training.")] = None,
    pool: Annotated[
        Path | None, typer.Option(help="A knowledge pool to retrieve from instead of the run's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default: in the run.")] = None,
) -> None:
    """Outline images: a mask as PNG for each, and the cases that were recalled for it."""
    from cers.predict.outlines import predict
    from cers.run import unfinished

    if stopped := unfinished(run):
        note(f"{stopped}. These are its best weights so far.")
    with counted("outlining") as on_case:
        written = predict(
            run,
            data,
            overrides or (),
            layout=layout,
            rationales=rationales,
            pool=pool,
            out=out,
            on_case=on_case,
            on_note=note,
        )
    say(f"masks: {written / 'masks'}")
    say(f"recalled cases: {written / 'evidence.jsonl'}")
