"""`cers train`: train a method into a run folder, or resume one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from cers.cli.console import Count, counted, note, say


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, e.g. data.path=brisc2025 train.steps=500 method.name=supervised"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A preset (paper, authors-code, cpu, screen, demo) or a YAML file; default cpu."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder; default runs/<method>-seed<seed>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing run.")] = False,
) -> None:
    """Train a method into a run folder, or resume one. Ctrl-C saves and says how to go on."""
    from cers import run
    from cers.config import load_config
    from cers.errors import CersError
    from cers.methods.registry import METHODS

    if resume is not None:
        if out is not None or overwrite or preset is not None:
            raise CersError(
                "--resume goes on in its own folder with its own settings; leave out --out, --overwrite and --preset"
            )
        with decoding_progress() as on_decode, training_progress() as on_row:
            run.resume(resume, overrides or (), on_row=on_row, on_decode=on_decode)
        say(f"trained: {resume}; next: cers eval {quote(str(resume))}")
        return
    config = load_config("cpu" if preset is None else preset, overrides or (), methods=METHODS)
    folder = out or Path("runs") / f"{config.method.name}-seed{config.seed}"
    with decoding_progress() as on_decode, training_progress() as on_row:
        run.train(config, folder, overwrite=overwrite, on_note=note, on_row=on_row, on_decode=on_decode)
    say(f"trained: {folder}; next: cers eval {quote(str(folder))}")


@contextmanager
def training_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar that follows the rows of the log: loss parts, validation Dice, time left."""
    with counted("training") as count:
        yield _Follower(count)


class _Follower:
    """Turns rows of the log into progress."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.dice = ""

    def __call__(self, row: dict[str, Any]) -> None:
        if row["kind"] == "validation":
            self.dice = f" val Dice {row['declared']:.4f}"
            note(f"step {row['step']}: validation Dice {row['declared']:.4f}{' (best so far)' if row['best'] else ''}")
            return
        skip = {"kind", "step", "steps", "stage", "lr", "seconds"}
        parts = " ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in skip and value is not None)
        self.count(row["step"], row["steps"], f"{row['stage']}: {parts}{self.dice}")


@contextmanager
def decoding_progress() -> Iterator[Callable[[int, int], None]]:
    """Notes on decoding, which takes long only the first time."""
    seen = 0

    def told(done: int, total: int) -> None:
        nonlocal seen
        if done == total or done - seen >= 1000:
            seen = done
            note(f"decoded {done} of {total} files")

    yield told
