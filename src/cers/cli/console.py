"""How every command talks: results to stdout, notes and progress to stderr; and options that several have."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from cers.config import MaskReading

PIPE_WIDTH = 200  # a table that is not for a terminal is not cut to one
PLAIN_SECONDS = 10.0  # between lines of progress where there is no terminal

Cell = str | int | float | None

MaskThreshold = Annotated[
    int | None, typer.Option("--mask-threshold", help="Grey value from which on a pixel is lesion.")
]
MaskForeground = Annotated[
    list[int] | None, typer.Option("--mask-foreground", help="A grey value that is lesion; repeatable.")
]


def mask_reading(threshold: int | None, foreground: list[int] | None) -> "MaskReading":
    """How masks are read after the options `MaskThreshold` and `MaskForeground`."""
    from cers.config import MaskReading

    return MaskReading(threshold=threshold, foreground=tuple(foreground) if foreground else None)


def say(text: str) -> None:
    """One line of result on stdout."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line on stderr that is not a result: what goes on, or a warning."""
    _console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True, style="dim")


def say_list(lines: Sequence[str], shown: int = 20, more: str = "") -> None:
    """The first `shown` of `lines` on stdout, and how many are left; `more` says where they are."""
    for line in lines[:shown]:
        say(line)
    if len(lines) > shown:
        say(f"… and {len(lines) - shown} more{more}")


def say_json(value: Any) -> None:
    """`value` as indented JSON on stdout; NaN is refused."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], title: str | None = None) -> None:
    """A table on stdout: numbers to the right, floats with four digits, None as a dash."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(cell) for cell in row))
    _console().print(table, markup=False, highlight=False)


class Advance(Protocol):
    """Called as work gets done."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside the bar."""
        ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Progress of `total` units of `what` on stderr: a bar on a terminal, else a line every few seconds."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield _plain(console, what, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(count: int = 1, note: str = "") -> None:
            bar.update(task, advance=count, note=note)

        yield advance


class Count(Protocol):
    """Called with how many of how many units are done."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`note` is shown beside the bar."""
        ...


@contextmanager
def counted(what: str) -> Iterator[Count]:
    """Progress on work whose size only its first call tells: nothing is shown before."""
    with ExitStack() as stack:
        advance: Advance | None = None
        shown = 0

        def count(done: int, total: int, note: str = "") -> None:
            nonlocal advance, shown
            if advance is None:
                advance = stack.enter_context(progress(what, total))
            advance(done - shown, note)
            shown = done

        yield count


def _plain(console: Console, what: str, total: int) -> Advance:
    done = 0
    last = time.monotonic()

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += count
        if count and (done >= total or time.monotonic() - last >= PLAIN_SECONDS):
            last = time.monotonic()
            line = f"{what} {done}/{total} {note}".rstrip()
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return advance


def _console(stderr: bool = False) -> Console:
    """A console on the stream as it is now, so that redirections hold."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)
