"""The command `cers`: finds the verb, imports that verb's module only, and turns failures into one line."""

import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer

from cers import __version__
from cers.errors import CersError, Interrupted, nearest

INTERRUPTED = 130
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class Verb(NamedTuple):
    """A command (a function), or a group of commands (a typer app), and its line in `cers --help`."""

    target: str
    help: str


VERBS = {
    "demo": Verb("cers.cli.demo:demo", "Train and evaluate on generated images in minutes."),
    "doctor": Verb("cers.cli.doctor:doctor", "Say what this installation has and what it lacks."),
    "data": Verb("cers.cli.data:app", "Look at, check and split a dataset."),
    "annotate": Verb("cers.cli.annotate:app", "Have rationales written for a dataset, and audit them."),
    "methods": Verb("cers.cli.methods:methods", "List the methods that can be trained."),
    "train": Verb("cers.cli.train:train", "Train a method into a run folder, or resume one."),
    "eval": Verb("cers.cli.eval:eval", "Evaluate a run, case by case."),
    "predict": Verb("cers.cli.predict:predict", "Outline images that nobody has outlined."),
    "compare": Verb("cers.cli.compare:compare", "Compare evaluated runs, with intervals and tests."),
    "study": Verb("cers.cli.study:study", "Train and compare a grid of runs, or plan it."),
    "pool": Verb("cers.cli.pool:app", "Look into a run's knowledge pool and what it retrieves."),
    "report": Verb("cers.cli.report:report", "Write a run's report as one HTML file."),
    "bench": Verb("cers.cli.bench:bench", "Measure speed and memory on this machine."),
}


def main() -> None:
    """Run the command line. Exit status 2: a mistake the user can mend; 130: interrupted."""
    try:
        _run(sys.argv[1:])
    except CersError as error:
        _fail(_one_line(error))
    except Interrupted as stop:
        _say(str(stop))
        raise SystemExit(INTERRUPTED) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns KeyboardInterrupt into this
            _say("interrupted")
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            place = f" at {error.filename}" if error.filename else ""
            _fail(f"no space left{place}; free some and run the same command again")
        _say("this is a bug in cers: please report it with the command and the traceback below")
        raise


def _run(arguments: Sequence[str]) -> None:
    """Build the app with the one verb that was asked for, and hand over to it."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
    app.callback()(_root)
    asked = next((a for a in arguments if not a.startswith("-")), None)
    if asked is not None and asked not in VERBS:
        raise CersError(f"no command '{asked}'; {nearest(asked, VERBS)}")
    for name, verb in VERBS.items():
        if name != asked:
            app.command(name, help=verb.help)(_not_loaded)
        elif isinstance(target := _imported(verb.target), typer.Typer):
            app.add_typer(target, name=name, help=verb.help)
        else:
            app.command(name)(target)
    typer.main.get_command(app)(args=list(arguments), prog_name="cers")


def _imported(target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    imported: Callable[..., Any] = getattr(import_module(module), attribute)
    return imported


def _not_loaded() -> None:
    """Stands for a verb in the help; never runs."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cers {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Semi-supervised segmentation of medical images that recalls past cases by image and by reasoning."""


def _one_line(error: CersError) -> str:
    """The message; of an error that a data-loading process sent, the last line of the traceback it came with."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _fail(message: str) -> None:
    _say(f"error: {message}")
    raise SystemExit(2) from None


def _say(message: str) -> None:
    typer.echo(f"cers: {message}", err=True)
