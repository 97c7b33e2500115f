"""`cers eval`: evaluate a run, case by case."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from cers.cli.console import MaskForeground, MaskThreshold, counted, mask_reading, note, say, say_json, say_table
from cers.errors import CersError


def eval(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where things are now, e.g. data.path=/new/place/brisc2025")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Another dataset with masks to score instead.")] = None,
    layout: Annotated[str, typer.Option(help="Layout of --data.")] = "auto",
    mask_threshold: MaskThreshold = None,
    mask_foreground: MaskForeground = None,
    part: Annotated[str | None, typer.Option(help="test or val, of the run's own split; test if not given.")] = None,
    pool: Annotated[
        Path | None, typer.Option(help="A knowledge pool to retrieve from instead of the run's own.")
    ] = None,
    retrieval: Annotated[
        str | None, typer.Option(help="Choose references otherwise than in training: none, random, image, …")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Evaluate a run: overlap, borders and false lesions per case, with intervals; the quality of its retrieval."""
    from cers.evaluate.retrieval import strategy_rows
    from cers.evaluation import evaluate, evaluation_folder
    from cers.run import unfinished

    if data is not None and part is not None:
        raise CersError("--part is of the run's own split, --data is another dataset; give one of them")
    if stopped := unfinished(run):
        note(f"{stopped}. These are its best weights so far.")
    part = part or "test"
    with counted("scoring") as on_case:
        summary = evaluate(
            run,
            overrides or (),
            part=part,
            data=data,
            layout=layout,
            mask=mask_reading(mask_threshold, mask_foreground),
            pool=pool,
            retrieval=retrieval,
            on_case=on_case,
        )
    if not summary.get("overlap_checked", True):
        note("the run's own data are not at hand: whether it was trained on some of these cases was not checked")
    if as_json:
        say_json(summary)
        return
    _show(summary)
    if "retrieval" in summary:
        head, *rows = strategy_rows(summary["retrieval"])
        say_table(head, rows, title="Retrieval, by strategy")
    scores = evaluation_folder(run, part, data, pool, retrieval) / "cases.csv"
    say(f"per case: {scores}")
    if data is None and part == "test" and retrieval is None:  # what a report is of
        say(f"next: cers report {quote(str(run))}" + ("" if pool is None else f" --pool {quote(str(pool))}"))


def _show(summary: dict[str, Any]) -> None:
    from cers.evaluate.table import shown_branches

    rows = []
    for branch, parts in shown_branches(summary["branches"]).items():
        for name, part in {"all": parts["all"], **parts["by_class"], **parts["by_size"]}.items():
            metrics = part["metrics"]
            dice = metrics["dice"]
            interval = "–" if dice["low"] is None else f"{dice['low']:.4f} to {dice['high']:.4f}"
            others = [metrics[m]["mean"] for m in ("iou", "hd95", "nsd", "border_dice", "false_lesions")]
            missed = part["missed"]
            rows.append(
                [branch, name, part["n"], dice["mean"], interval, *others, f"{missed['count']} of {missed['of']}"]
            )
    head = ["branch", "cases", "N", "Dice", "95 % interval", "IoU", "HD95", "NSD", "border Dice", "false", "missed"]
    say_table(head, rows, title="Scores (px of the original image; false: outlined regions that touch no lesion)")
