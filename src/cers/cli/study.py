"""`cers study`: a grid of runs and the table of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cers.cli.console import Cell, note, progress, say, say_table
from cers.errors import CersError, Interrupted

if TYPE_CHECKING:
    from cers.study.definition import Share, Study
    from cers.study.plan import Plan, PlannedRun
    from cers.study.runner import Progress
    from cers.study.worker import Ended


def study(
    source: Annotated[
        str, typer.Argument(help="table1, table2, table3, topk, additions, learning_rate or a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of every run, e.g. data.path=brisc2025 data.split=split.json")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A preset or YAML file, in place of the study's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder; default runs/<study>.")] = None,
    labelled: Annotated[str | None, typer.Option(help="Other labelled shares or counts, e.g. 0.02,0.25,1.0")] = None,
    seeds: Annotated[str | None, typer.Option(help="Other seeds, e.g. 0,1,2,3,4")] = None,
    folds: Annotated[
        str | None,
        typer.Option(help="Cross-validate: numbers for {fold} in a setting, e.g. data.split=split-{fold}.json"),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Only these rows, by name and comma, and the reference.")] = None,
    reference: Annotated[str | None, typer.Option(help="Another row to test all others against.")] = None,
    part: Annotated[str | None, typer.Option(help="Score on test or, to choose settings, on val.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Save and stop after this time; the same command goes on.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, how long, in what memory.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Only show and write the table of what is done.")] = False,
) -> None:
    """Train and score a grid of runs as far as it is not done, then compare them. Ctrl-C, or a kill, loses no run."""
    note("loading libraries")
    from cers.study.plan import make_plan, require_data
    from cers.study.runner import do_runs

    chosen = chosen_study(source, preset, labelled, seeds, rows, part, folds, reference)
    plan = make_plan(chosen, out or Path("runs") / Path(source).stem, overrides or ())
    todo = [run for run in plan.runs if not plan.is_done(run)]
    if table:
        if len(todo) == len(plan.runs):
            raise CersError(f"no run of this study is done in {plan.out}; leave out --table, or give its --out")
        note(_standing(plan))
        _show_table(plan)
        return
    if todo:
        require_data(plan)
    if dry_run:
        _show_estimates(plan, todo, jobs, threads)
        return
    try:
        with _watched(plan, todo, jobs) as on_change:
            found = do_runs(
                plan, jobs=jobs, threads=threads, seconds=None if minutes is None else 60 * minutes, on_change=on_change
            )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {_standing(plan)}; go on with the same command") from None
    _show_table(plan)
    _conclude(plan, found)


def chosen_study(
    source: str,
    preset: str | None,
    labelled: str | None,
    seeds: str | None,
    rows: str | None,
    part: str | None,
    folds: str | None = None,
    reference: str | None = None,
) -> "Study":
    """A study as the options of the command make it.

    Raises:
        CersError: no such study, or an option that does not fit it.
    """
    from cers.study.definition import load_study

    shares = _numbers(labelled, "--labelled")
    each, parts = _integers(seeds, "--seeds"), _integers(folds, "--folds")
    whole = load_study(source)
    names = _names(rows, [row.name for row in whole.rows])
    return whole.restricted(preset, shares, each, names, part, parts, reference)


@contextmanager
def _watched(
    plan: "Plan", todo: Sequence["PlannedRun"], jobs: int
) -> Iterator[Callable[["PlannedRun", "Progress", "Ended | None"], None]]:
    """A bar in steps over all runs to do; a line for each run that ends."""
    from cers.evaluate.render import duration
    from cers.study.runner import remaining

    if len(todo) < len(plan.runs):
        note(f"{len(plan.runs) - len(todo)} of {len(plan.runs)} runs are done already")
    shown: dict[str, int] = {}
    told = 0.0
    left = ""
    with progress("study, steps", sum(run.steps for run in todo)) as advance:

        def on_change(run: "PlannedRun", now: "Progress", how: "Ended | None") -> None:
            nonlocal told, left
            at = now.current.get(run.key)
            step = run.steps if how is not None else at.done if at is not None and at.phase == "training" else None
            before = shown.get(run.key, 0)
            shown[run.key] = before if step is None else step
            if how is not None or time.monotonic() - told > 5:
                told = time.monotonic()
                seconds = now.left(remaining(plan, now), jobs)
                left = f", about {duration(seconds)} left" if seconds else ""
            what = "" if at is None else f", {run.name}: {at.phase} {at.done}/{at.total}"
            advance(shown[run.key] - before, f"{now.done} of {now.total} runs{what}{left}")
            if how is not None:
                said = "done" if how.how == "done" else f"{how.how}: {how.why}"
                note(f"{now.done} of {now.total} runs; {run.name} {said}{left}")

        yield on_change


def _show_table(plan: "Plan") -> None:
    from cers.cli.compare import show_comparison
    from cers.study.table import protocol, published_rows, study_table, write_tables

    table = study_table(plan)
    if table is None:
        return
    say("")
    show_comparison(table)
    head, *body = published_rows(plan, table) or [[]]
    if body and plan.study.published:
        say("")
        say_table(head, body, title=f"Beside {plan.study.published.source} (Dice / IoU, %)")
        for line in protocol(plan):
            note(line)
    say(f"written: {', '.join(map(str, write_tables(plan, table)))}")


def _conclude(plan: "Plan", found: "Progress") -> None:
    """Exit status 2 where a run failed, after everything else was shown."""
    from cers.study.table import failures

    for line in failures(plan, found.failed):
        note(f"failed: {line}")
    if found.failed:
        raise CersError(
            f"{len(found.failed)} of {found.total} runs failed; mend the cause and run the same command again"
        )
    if found.done < found.total:
        say(f"time is up: {_standing(plan)}; go on with the same command")


def _standing(plan: "Plan") -> str:
    return f"{sum(plan.is_done(run) for run in plan.runs)} of {len(plan.runs)} runs are done"


def _show_estimates(plan: "Plan", todo: Sequence["PlannedRun"], jobs: int, threads: int) -> None:
    from cers.evaluate.render import count, duration, memory
    from cers.study.estimate import distinct, estimate

    with progress("measuring configurations", distinct(todo)) as advance:
        found = estimate(plan, todo, threads, lambda name: advance(1, name))
    by_key = {each.run.key: each for each in found}
    rows: list[list[Cell]] = []
    for run in plan.runs:
        each = by_key.get(run.key)
        cells: list[Cell] = [run.name, run.config.method.name, len(run.split.labelled), run.steps]
        if each is None:
            rows.append([*cells, "–", "done", "–"])
        else:
            time_left = "fails" if each.failed else duration(each.seconds)
            rows.append([*cells, count(each.parameters), time_left, memory(each.memory)])
    say_table(["run", "method", "labelled", "steps", "parameters", "time", "memory"], rows, title=plan.study.title)
    at_once = min(jobs, max(1, len(todo)))
    total = sum(each.seconds or 0.0 for each in found) / at_once
    largest = max((each.memory or 0 for each in found), default=0) * at_once
    say(
        f"{len(todo)} of {len(plan.runs)} runs to do in {plan.out}: about {duration(total)} and up to {memory(largest)}"
    )
    note(f"by a few steps of each of {distinct(todo)} configurations, measured one at a time; {at_once} at once")
    failed = [each for each in found if each.failed]
    for each in failed:
        note(f"failed: {each.run.name}: {each.failed}")
    if failed:
        raise CersError(f"{len(failed)} of {len(todo)} runs would fail, and are not in the time; mend the cause first")


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _names(text: str | None, known: Sequence[str]) -> list[str]:
    """Names between commas, of which a known name may have some itself."""
    found, rest = [], (text or "").strip(" ,")
    while rest:
        whole = [name for name in known if f"{rest},".startswith(f"{name},")]
        found.append(max(whole, key=len, default=rest.partition(",")[0].strip()))
        rest = rest[len(found[-1]) :].lstrip(" ,")
    return found


def _integers(text: str | None, option: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise CersError(f"{option} '{text}' is not a list of whole numbers, e.g. 0,1,2") from None


def _numbers(text: str | None, option: str) -> "list[Share]":
    try:
        return [int(word) if word.isdecimal() else float(word) for word in _words(text)]
    except ValueError:
        raise CersError(f"{option} '{text}' is not a list of shares or counts, e.g. 0.05,0.25 or 50,100") from None
