"""`cers annotate audit | review | verdicts | export | import`: judge what was written, and take it elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cers.auditing import Audit

app = typer.Typer()

_SHOWN = 20


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


def _show(found: "Audit") -> None:
    from cers.auditing_page import agreement_rows, flaw_rows, vocabulary_rows
    from cers.cli.console import say, say_table
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
        say_table(head, rows, title=title)
        say("")
    if not found.flaws:
        say("no flaw found")
    lines = [f"{flaw.image} {flaw.role} {flaw}" for flaw in sorted(found.flaws, key=lambda f: f.kind != "malformed")]
    shown = max(_SHOWN, found.malformed)
    for line in lines[:shown]:
        say(line)
    if len(lines) > shown:
        say(f"… and {len(lines) - shown} more (--json lists all)")
