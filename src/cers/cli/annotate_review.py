"""`cers annotate audit | review | verdicts | export | import`: judge what was written, and take it elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cers.cli.console import MaskForeground, MaskThreshold
from cers.evaluate.render import interval, number

if TYPE_CHECKING:
    from cers.auditing import Audit
    from cers.cot.exchange import Exchange

app = typer.Typer()


@app.command()
def audit(
    paths: Annotated[list[Path], typer.Argument(help="CSVs with the columns image,cot[,role], or annotation stores.")],
    data: Annotated[
        Path | None, typer.Option(help="Dataset of the images: adds reports, classes, look-alikes and pictures.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Layout of the dataset.")] = "auto",
    negatives: Annotated[bool, typer.Option("--negatives", help="Add the dataset's lesion-free images.")] = False,
    role: Annotated[
        str | None, typer.Option(help="labelled or unlabelled: of rows that do not say; else the file's name tells.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Text encoder: tfidf, minilm, cxr-bert, hf:<model> or a folder.")
    ] = "tfidf",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that was measured as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the worst cases.")] = None,
) -> None:
    """List flaws of rationales, and measure what they say about their own images. Exit status 1: some are malformed."""
    from cers.auditing import audit as measured
    from cers.auditing_page import write_audit_page
    from cers.cli.console import counted, note, say_json
    from cers.cot.texts import read_texts, role_named
    from cers.data.layouts import load_cases

    texts = read_texts(paths, role_named(role))
    cases = load_cases(data, layout, negatives=negatives) if data else []
    with counted("looking for look-alikes") as progress:
        found = measured(texts, cases, encoder=encoder, progress=progress)
    if as_json:
        say_json({"files": [str(path) for path in paths], **found.summary, "found": [vars(f) for f in found.flaws]})
    else:
        _show(found)
    if html:
        write_audit_page(found, cases, html, f"Audit of {', '.join(path.name for path in paths)}")
        note(f"wrote {html}")
    raise typer.Exit(1 if found.malformed else 0)


@app.command()
def review(
    paths: Annotated[list[Path], typer.Argument(help="CSVs with the columns image,cot[,role], or annotation stores.")],
    data: Annotated[Path, typer.Option(help="Dataset of the images.")],
    split: Annotated[
        Path | None, typer.Option(help="Split file: the lesions of its labelled cases, and no others, are outlined.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("review.html"),
    n: Annotated[int, typer.Option("--n", "-n", help="How many texts, each of another image.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Which are drawn: the same for the same seed.")] = 0,
    layout: Annotated[str, typer.Option(help="Layout of the dataset.")] = "auto",
    negatives: Annotated[bool, typer.Option("--negatives", help="Add the dataset's lesion-free images.")] = False,
    role: Annotated[
        str | None, typer.Option(help="Only labelled (mask-informed) or unlabelled (mask-free) ones.")
    ] = None,
    mask_threshold: MaskThreshold = None,
    mask_foreground: MaskForeground = None,
) -> None:
    """Write a page on which an expert judges a random sample of rationales, aspect by aspect."""
    from cers.cli.console import mask_reading, note, say
    from cers.cot.texts import read_texts, role_named
    from cers.data.layouts import load_cases
    from cers.data.splits import load_split
    from cers.reviewing import write_review

    wanted = role_named(role)
    summary = write_review(
        [text for text in read_texts(paths) if wanted in (None, text.role)],
        load_cases(data, layout, negatives=negatives),
        out,
        labelled_ids=set(load_split(split).labelled) if split else (),
        mask_reading=mask_reading(mask_threshold, mask_foreground),
        n=n,
        seed=seed,
    )
    for problem in summary.problems:
        note(problem)
    if summary.reviewed < n:
        note(f"only {summary.reviewed} images have a well-formed rationale")
    say(f"{out}: {summary.reviewed} rationales, {summary.outlined} with their lesion outlined; open it in a browser")
    say("then: cers annotate verdicts FILE… with what the reviewers saved")


@app.command()
def verdicts(
    paths: Annotated[list[Path], typer.Argument(help="Files saved from a review page, one for each reviewer.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Say how accurate reviewers found rationales and, for two or more of them, how far they agree."""
    from cers.cli.console import say_json, say_table
    from cers.reviewing import review_results

    results = review_results(paths)
    if as_json:
        say_json(results)
        return
    judged = ("aspect", "right", "wrong", "unsure", "accuracy", "95 % interval")
    for name, found in results["reviewers"].items():
        title = f"{name} ({results['of']} texts; accuracy leaves out the unsure)"
        say_table(judged, [(aspect, *_accuracy(part)) for aspect, part in found.items()], title=title)
    compared = ("aspect", "N", "same verdict", "kappa", "95 % interval")
    for pair, found in results["agreement"].items():
        say_table(compared, [(aspect, *_agreement(part)) for aspect, part in found.items()], title=pair)


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="Annotation store.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("rationales.csv"),
    model: Annotated[str | None, typer.Option(help="Only what this model wrote.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV.")] = False,
) -> None:
    """Write the good rationales of a store into a CSV that training reads: data.rationales=FILE."""
    from cers.cli.console import say
    from cers.cot.exchange import export_texts

    _tell(export_texts(store, out, model, overwrite=overwrite), "written")
    say(f"train on them with data.rationales={out}")


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="CSVs with the columns image,cot[,role], e.g. the authors'.")],
    store: Annotated[Path, typer.Option(help="Annotation store to make or complete.")],
    model: Annotated[str, typer.Option(help="Who wrote them, e.g. gpt-5.")],
    role: Annotated[
        str | None, typer.Option(help="labelled or unlabelled: of rows that do not say; else the file's name tells.")
    ] = None,
) -> None:
    """Take written rationales over into a store. Exit status 1: some were malformed or doubled, and left out."""
    from cers.cot.exchange import import_texts
    from cers.cot.texts import role_named

    taken = import_texts(paths, store, model=model, role=role_named(role))
    _tell(taken, "taken over")
    raise typer.Exit(1 if taken.problems else 0)


def _tell(done: "Exchange", what: str) -> None:
    from cers.cli.console import say_list, say_table

    rows = [("mask-informed (labelled)", done.labelled), ("mask-free (unlabelled)", done.unlabelled)]
    say_table((what, "rationales"), [*rows, ("left out", len(done.problems))])
    say_list(done.problems)


def _accuracy(part: Mapping[str, Any]) -> tuple[int, int, int, str, str]:
    share = part["accuracy"]
    shown = number(share["mean"]), interval(share["low"], share["high"])
    return part["right"], part["wrong"], part["unsure"], *shown


def _agreement(part: Mapping[str, Any]) -> tuple[int, str, str, str]:
    kappa = part["kappa"]
    return part["n"], number(part["same"]), number(kappa["mean"]), interval(kappa["low"], kappa["high"])


def _show(found: "Audit") -> None:
    from cers.auditing_page import agreement_rows, flaw_rows, vocabulary_rows
    from cers.cli.console import say, say_list, say_table
    from cers.evaluate.information import aspect_rows, information_rows

    tables = {"Wording": vocabulary_rows(found)}
    if found.summary["agreement"]:
        tables["Words that the two rationales of an image share"] = agreement_rows(found)
    if information := found.summary.get("information"):
        tables[f"What a mask-free rationale finds by {information['encoder']}"] = information_rows(information)
        tables["By aspect"] = aspect_rows(information)
    if found.flaws:
        tables["Flaws"] = flaw_rows(found)
    for title, (head, *rows) in tables.items():
        if rows:  # no text is well-formed, so there is no wording
            say_table(head, rows, title=title)
            say("")
    if not found.flaws:
        say("no flaw found")
    lines = [f"{flaw.image} {flaw.role} {flaw}" for flaw in sorted(found.flaws, key=lambda f: f.kind != "malformed")]
    say_list(lines, max(20, found.malformed), " (--json lists all)")
