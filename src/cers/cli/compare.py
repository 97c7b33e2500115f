"""`cers compare`: methods side by side on the same cases."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cers.cli.console import note, say, say_table
from cers.errors import CersError

if TYPE_CHECKING:
    from cers.evaluate.compare import ComparisonTable
    from cers.evaluate.scored import Trait


class Format(StrEnum):
    """How the table is written."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    HTML = "html"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="run folders, or evaluations in them, or name=folder; those of one name are seeds and folds"
        ),
    ],
    reference: Annotated[str | None, typer.Option(help="method to compare with; the first one if not given")] = None,
    label: Annotated[str | None, typer.Option(help="compare on the test cases of this class alone")] = None,
    size: Annotated[
        str | None, typer.Option(help="compare on the test cases alone whose lesion is none, small, medium or large")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="how the table is written")] = Format.TABLE,
) -> None:
    """Compare evaluated runs: mean over seeds, intervals, paired permutation test against a reference, and costs."""
    from cers.evaluate import comparison_table
    from cers.evaluate.compare import compare as compare_runs
    from cers.evaluate.scored import run_folder
    from cers.run import unfinished

    methods = group_runs(runs)
    for folder in (run_folder(folder) for folders in methods.values() for folder in folders):
        if stopped := unfinished(folder):
            raise CersError(stopped)
    only: dict[Trait, str] = {}
    if label is not None:
        only["label"] = label
    if size is not None:
        only["size"] = size
    table = compare_runs(methods, reference or next(iter(methods)), only)
    if form is Format.TABLE:
        show_comparison(table)
    elif form is Format.HTML:
        from cers.report.comparison import render_comparison

        typer.echo(render_comparison("Comparison", table, comparison_table.legend(table)), nl=False)
    else:
        write = {
            Format.CSV: comparison_table.to_csv,
            Format.MARKDOWN: comparison_table.to_markdown,
            Format.LATEX: comparison_table.to_latex,
        }[form]
        typer.echo(write(table), nl=False)


def show_comparison(table: "ComparisonTable") -> None:
    """Scores, costs and what they mean, for a terminal."""
    from cers.evaluate.comparison_table import legend, parts

    for title, (head, *body) in parts(table).items():
        say_table(head, body, title=title)
        say("")
    for line in legend(table):
        note(line)


def group_runs(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Run folders by method, from `name=folder` or a bare folder, which goes by the method of its run's `config.yaml`.

    A bare evaluation other than `eval` goes by its own name as well, e.g. `cers/eval-random`.

    Raises:
        CersError: two bare folders of one method differ in more than their seed, or a folder is not there.
    """
    runs: dict[str, list[Path]] = {}
    for argument in arguments:
        name, _, rest = argument.partition("=")
        bare = Path(argument).is_dir()
        folder = Path(argument if bare or not rest else rest)
        if not folder.is_dir():
            raise CersError(f"no run folder '{folder}'; give folders that 'cers train' made, or name=folder")
        runs.setdefault(_method_name(folder, runs) if bare else name, []).append(folder)
    return runs


def _method_name(folder: Path, runs: Mapping[str, Sequence[Path]]) -> str:
    from cers.evaluate.scored import run_folder

    run = run_folder(folder)
    mine = _common_settings(run)
    if not mine:
        return folder.name
    method = str(mine["method.name"])
    name = method if folder == run or folder.name == "eval" else f"{method}/{folder.name}"
    for other in runs.get(name, ()):
        theirs = _common_settings(run_folder(other)) or mine
        if differing := [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]:
            key = differing[0]
            raise CersError(
                f"{folder} and {other} differ in more than their seed: {key} is {mine.get(key)} and {theirs.get(key)}; "
                f"name them, e.g. first={folder}"
            )
    return name


def _common_settings(run: Path) -> dict[str, Any]:
    """What the runs of a method have in common, those of its folds as well; nothing where it is not known."""
    from cers.config import FREE, load_config

    if not (config := run / "config.yaml").is_file():
        return {}
    apart = FREE | {"seed", "data.split"}
    return {key: value for key, value in load_config(config).flat().items() if key not in apart}
