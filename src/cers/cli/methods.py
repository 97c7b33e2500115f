"""`cers methods`: what `method.name` may be."""

from dataclasses import asdict
from typing import Annotated

import typer

from cers.cli.console import say, say_json, say_table


def methods(
    encoder: Annotated[str, typer.Option(help="Encoder on which parameters are counted.")] = "convnext_tiny",
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the methods: what they compute with, whether they read text at test time, and where they come from."""
    from cers.methods.overview import overview

    found = overview(encoder)
    if as_json:
        say_json([asdict(row) for row in found])
        return
    rows = [
        [
            row.name,
            row.networks,
            ", ".join(f"{name} {share:.0%}" for name, share in row.stages.items()),
            row.optimiser_steps,
            "yes" if row.reads_text else "no",
            f"{row.parameters / 1e6:.2f} M",
        ]
        for row in found
    ]
    head = ["method.name", "networks", "stages", "optimiser steps a batch", "text at test time", "trained parameters"]
    say_table(head, rows, title=f"Methods on {encoder}, with default settings and 768-wide texts")
    say("")
    for row in found:
        say(f"{row.name}: {row.paper}")
    say("")
    say("train one with: cers train --preset cpu method.name=NAME data.path=FOLDER --out RUN")
