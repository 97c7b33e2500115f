"""`cers annotate`: have rationales written, and look for flaws in written ones."""

from pathlib import Path
from typing import Annotated

import typer

from cers.cli.annotate_llm import plan, prices, run, show, status
from cers.cli.annotate_review import app as review_app
from cers.cli.console import MaskForeground, MaskThreshold

app = typer.Typer(no_args_is_help=True, help="Have rationales written for a dataset, and audit them.")
for command in (plan, run, status, show, prices):
    app.command()(command)
app.add_typer(review_app)


@app.command()
def offline(
    path: Annotated[Path, typer.Argument(help="Folder or manifest of the dataset.")],
    split: Annotated[
        Path | None,
        typer.Option(help="Split file; only masks of its labelled cases are opened, without one no mask at all."),
    ] = None,
    out: Annotated[Path, typer.Option(help="CSV to write, or to complete: texts in it are kept.")] = Path(
        "rationales.csv"
    ),
    layout: Annotated[str, typer.Option(help="Layout of the dataset.")] = "auto",
    negatives: Annotated[bool, typer.Option("--negatives", help="Add the dataset's lesion-free images.")] = False,
    modality: Annotated[str | None, typer.Option(help="For example MR, CT or X-ray; else the report decides.")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not use the words of the reports.")] = False,
    mask_threshold: MaskThreshold = None,
    mask_foreground: MaskForeground = None,
) -> None:
    """Write rationales from measurements: no network, no key. Train on them with data.rationales=FILE."""
    from cers.cli.console import counted, mask_reading, note, say, say_list, say_table
    from cers.cot.offline import annotate_offline
    from cers.data.layouts import load_cases
    from cers.data.splits import load_split

    labelled = set(load_split(split).labelled) if split is not None else set[str]()
    cases = load_cases(path, layout, negatives=negatives)
    with counted("rationales") as progress:
        summary = annotate_offline(
            cases,
            labelled,
            out,
            mask_reading=mask_reading(mask_threshold, mask_foreground),
            use_report=not no_report,
            modality=modality,
            progress=progress,
        )
    rows = [("cases", len(cases)), ("of them labelled", len(labelled))]
    rows += [("rationales written", summary.written), ("kept from before", summary.kept)]
    say_table(("", "count"), [*rows, ("problems", len(summary.problems))])
    say_list(summary.problems)
    if no_report and summary.kept:
        note(f"the {summary.kept} kept may hold words of the reports; delete {out} to have all written without")
    say(f"train on them with data.rationales={out}")
