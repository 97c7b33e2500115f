"""`cers bench`: what a step, a search and an input cost on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cers.cli.console import Cell, note, progress, say, say_table
from cers.errors import CersError

if TYPE_CHECKING:
    from cers.bench.measure import Advance
    from cers.bench.scene import Workload

SMALL = ("tf_efficientnet_lite0", 128)
QUICK_LANGUAGE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


class What(StrEnum):
    """What is measured."""

    STEP = "step"
    RETRIEVAL = "retrieval"
    INPUT = "input"
    DECODERS = "decoders"
    ALL = "all"


@dataclass(frozen=True)
class Plan:
    """How large and how often: the same for every part."""

    workload: "Workload"
    small: "Workload"
    pools: tuple[int, ...]
    images: int
    repeats: int


Part = Callable[[Plan, "Advance"], dict[str, Any]]


def bench(
    context: typer.Context,
    what: Annotated[What, typer.Argument(help="Which part to measure.")] = What.ALL,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    encoder: Annotated[str, typer.Option(help="timm name of the encoder.")] = "convnext_tiny",
    size: Annotated[int, typer.Option(min=32, help="Side of the images, pixels.")] = 224,
    pool: Annotated[int, typer.Option(min=4, help="Cases in the pool of the step.")] = 500,
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timings of which the median counts, after a warm-up.")] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small everything: to see that it runs, not how fast.")
    ] = False,
) -> None:
    """Measure speed and memory on this machine. Ratios within one run mean more than seconds between machines."""
    from json import dumps

    from cers.bench import measure
    from cers.files import write_atomic

    _refuse_unused(context, what, quick)
    plan = _plan(encoder, size, pool, repeats, quick)
    wanted = [name for name in PARTS if what in (What.ALL, name)]
    with measure.threads(threads):
        figures: dict[str, Any] = {"machine": measure.machine(), "quick": quick}
        figures["workload"] = {"encoder": plan.workload.encoder, "size": plan.workload.size, "pool": plan.workload.pool}
        for name in wanted:
            figures[name] = _measured(name, plan)
            SHOWN[name](figures[name])
            if json is not None:
                write_atomic(json, dumps(figures, indent=1, allow_nan=False) + "\n")
    note("CPU seconds count; wall seconds also hold the waiting for other programs on the machine")
    if json is not None:
        say(f"written: {json}")


def _refuse_unused(context: typer.Context, what: What, quick: bool) -> None:
    """An option that changes nothing was given in the belief that it does."""
    used = set() if quick else {option for name in PARTS if what in (What.ALL, name) for option in USED[name]}
    for option in ("encoder", "size", "pool", "repeats"):
        source = context.get_parameter_source(option)
        if option not in used and source is not None and source.name == "COMMANDLINE":
            command = f"cers bench {what}{' --quick' if quick else ''}"
            takes = ", ".join(f"--{name}" for name in (*sorted(used), "threads"))
            raise CersError(
                f"`{command}` does not use --{option}, only {takes}; leave it out, or see `cers bench --help`"
            )


def _plan(encoder: str, size: int, pool: int, repeats: int, quick: bool) -> Plan:
    from cers.bench.scene import Workload

    if quick:
        small = Workload(SMALL[0], 32, 20, 2, QUICK_LANGUAGE)
        return Plan(small, small, (1_000,), 16, 1)
    return Plan(Workload(encoder, size, pool), Workload(*SMALL, pool), (1_000, 10_000, 100_000), 160, repeats)


def _measured(name: str, plan: Plan) -> dict[str, Any]:
    part, total = PARTS[name]
    with progress(f"measuring {name}", total(plan)) as advance:
        return part(plan, lambda note: advance(1, note))


def _step(plan: Plan, done: "Advance") -> dict[str, Any]:
    from cers.bench.step import bench_step

    return bench_step(plan.workload, plan.repeats, done)


def _rungs(_: Plan) -> int:
    from cers.bench.step import rungs

    return rungs()


def _retrieval(plan: Plan, done: "Advance") -> dict[str, Any]:
    from cers.bench.search import bench_memory, bench_search

    return {
        "search": bench_search(plan.workload, plan.pools, plan.repeats, done),
        "memory": bench_memory(plan.workload),
    }


def _input(plan: Plan, done: "Advance") -> dict[str, Any]:
    from cers.bench.inputs import bench_input

    return bench_input(max(plan.workload.size, 64), plan.images, plan.repeats, done)


def _decoders(plan: Plan, done: "Advance") -> dict[str, Any]:
    from cers.bench.decoders import bench_decoders

    return bench_decoders(plan.small, plan.repeats, done)


PARTS: dict[str, tuple[Part, Callable[[Plan], int]]] = {
    "step": (_step, _rungs),
    "retrieval": (_retrieval, lambda plan: 1 + len(plan.pools)),
    "input": (_input, lambda _: 3),
    "decoders": (_decoders, lambda _: 3),
}


USED = {
    "step": ("encoder", "size", "pool", "repeats"),
    "retrieval": ("encoder", "size", "pool", "repeats"),
    "input": ("size", "repeats"),
    "decoders": ("pool", "repeats"),  # their images are small and few, to be done in seconds
}


def _show_step(figures: dict[str, Any]) -> None:
    columns = ("rung", "precision", "cpu_s", "wall_s", "gain", "total_gain")
    _table("stage-2 step", columns, figures["rungs"])
    for reason in figures["skipped"]:
        note(f"left out: {reason}")
    refresh = figures["pool_refresh"]
    say(f"at equal precision {figures['total_gain_fp32']:.2f}x as fast as the authors' way")
    ours, theirs = 1e3 * refresh["ours_s_per_step"], refresh["authors_s_per_epoch"]
    say(f"pool refresh: {ours:.1f} ms a step, without a pass; the authors' passes take {theirs:.0f} s an epoch\n")


def _show_retrieval(figures: dict[str, Any]) -> None:
    search, memory = figures["search"], figures["memory"]
    title = f"retrieval for {search['queries']} queries, beside a step of {search['step_cpu_s']:.2f} s"
    _table(title, ("cases", "cpu_ms", "wall_ms", "share_of_step"), search["pools"])
    say(f"pool: {memory['total']:,} bytes a case with a grid of {memory['grid']}x{memory['grid']} tokens\n")


def _show_input(figures: dict[str, Any]) -> None:
    rates = [(name.replace("_", " "), round(value)) for name, value in figures.items() if isinstance(value, float)]
    say_table(("CPU time", "rate"), rates, f"input at {figures['size']} px")
    say("")


def _show_decoders(figures: dict[str, Any]) -> None:
    title = f"decoders, {figures['encoder']} at {figures['size']} px, step of {figures['step_cpu_s']:.2f} s"
    _table(title, ("decoder", "plain_s", "ours_s", "gain", "share"), figures["decoders"])


SHOWN = {"step": _show_step, "retrieval": _show_retrieval, "input": _show_input, "decoders": _show_decoders}


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, Cell]]) -> None:
    say_table([column.replace("_", " ") for column in columns], [[row[c] for c in columns] for row in rows], title)
    say("")
