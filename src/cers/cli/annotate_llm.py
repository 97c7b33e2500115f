"""`cers annotate plan`, `run`, `status`, `show`, `prices`: rationales from a language model."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cers.evaluate.render import duration

if TYPE_CHECKING:
    from cers.annotate.job import Job
    from cers.cot.records import Role, State
    from cers.cot.store import AnnotationStore

Data = Annotated[Path, typer.Argument(help="Folder or manifest of the dataset.")]
Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value, e.g. model=gpt-5.2 modality=MR.")]
SplitFile = Annotated[Path, typer.Option("--split", help="Split file; only masks of its labelled cases are shown.")]
Store = Annotated[Path, typer.Option("--store", help="SQLite file that keeps every answer; made if absent.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with the same settings.")]
Layout = Annotated[str, typer.Option("--layout", help="Layout of the dataset.")]
Negatives = Annotated[bool, typer.Option("--negatives", help="Add the dataset's lesion-free images.")]
RoleOption = Annotated[str | None, typer.Option("--role", help="Only labelled or unlabelled texts.")]
Again = Annotated[bool, typer.Option("--again", help="Also ask anew where the answer was invalid or refused.")]
Redact = Annotated[bool, typer.Option("--redact", help="Mask burnt-in text at borders and names in reports.")]

_STORE = Path("rationales.db")


def plan(
    data: Data,
    split: SplitFile,
    settings: Settings = None,
    store: Store = _STORE,
    config: Config = None,
    layout: Layout = "auto",
    negatives: Negatives = False,
    role: RoleOption = None,
    again: Again = False,
    redact: Redact = False,
) -> None:
    """Say how many calls, tokens, dollars and hours a run will take. Nothing is sent."""
    from cers.annotate.plan import plan_annotation
    from cers.cli.console import counted, say, say_list, say_table
    from cers.cot.store import AnnotationStore

    job = _job(data, split, settings, config, layout, negatives, redact)
    kept = AnnotationStore(store) if store.is_file() else None
    with counted("files") as count:
        made = plan_annotation(job, kept, roles=_roles(role), again=_states(again), progress=count)
    rows = [(p.role, p.done, p.calls, p.tokens_in, p.tokens_out) for p in made.roles]
    say_table(("texts", "done", "calls", "tokens in", "tokens out"), rows)
    source = "as measured" if made.measured else "as estimated"
    cost = "unknown: add the model to a price table, see `cers annotate prices`"
    if made.cost is not None and made.batch_cost is not None:
        cost = f"${made.cost:.2f}, as batch ${made.batch_cost:.2f}"
    say(f"model {job.config.model}; cost {cost} (tokens {source})")
    say(f"time about {duration(made.seconds)} with {job.config.concurrency} calls at a time")
    say_list(made.problems)


def run(
    data: Data,
    split: SplitFile,
    settings: Settings = None,
    store: Store = _STORE,
    config: Config = None,
    layout: Layout = "auto",
    negatives: Negatives = False,
    role: RoleOption = None,
    again: Again = False,
    redact: Redact = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many texts now.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="US dollars the store may cost in all.")] = None,
    allow_remote: Annotated[
        str | None, typer.Option(metavar="HOST", help="Allow sending to this host; the store remembers it.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Use the provider's Batch API.")] = False,
) -> None:
    """Have rationales written by a language model. Ctrl-C loses nothing: the same command goes on."""
    import logging

    from cers.cli.console import note
    from cers.cot.store import AnnotationStore

    handler = logging.Handler()
    handler.emit = lambda record: note(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("cers.annotate").addHandler(handler)
    job = _job(data, split, settings, config, layout, negatives, redact)
    with AnnotationStore(store) as opened:
        (_run_batches if batch else _run_calls)(
            job,
            opened,
            roles=_roles(role),
            again=_states(again),
            limit=limit,
            max_cost=max_cost,
            allow_remote=allow_remote,
        )


def status(store: Annotated[Path, typer.Argument(help="The store of a run.")] = _STORE) -> None:
    """Say what a store holds, by model, prompt and role, and what it has cost."""
    from datetime import datetime

    from cers.cli.console import say, say_list, say_table
    from cers.cot.records import STATES
    from cers.cot.store import AnnotationStore

    with AnnotationStore(store, create=False) as opened:
        groups: dict[tuple[str, str, str], dict[str, float]] = {}
        reasons: list[str] = []
        for row in opened.rows():
            group = groups.setdefault((row.model, row.prompt, row.role), dict.fromkeys((*STATES, "tokens", "cost"), 0))
            group[row.state] += 1
            group["tokens"] += row.tokens_in + row.tokens_out
            group["cost"] += row.cost
            if row.reason:
                reasons.append(f"{row.image} {row.role} {row.state}: {row.reason}")
        columns = ("model", "prompt", "role", *STATES, "tokens", "cost $")
        say_table(columns, [(*k, *(int(g[s]) for s in STATES), int(g["tokens"]), g["cost"]) for k, g in groups.items()])
        paid, at_risk = opened.spent()
        say(
            f"paid ${paid:.4f}"
            + (f"; answers that got lost may have cost up to ${at_risk:.4f}" if at_risk > 5e-5 else "")
        )
        for id, count in opened.batches().items():
            say(f"batch {id}: {count} texts; `cers annotate run --batch` collects them")
        for host, given in opened.allowed().items():
            say(f"sending to {host} was allowed on {datetime.fromtimestamp(given):%Y-%m-%d %H:%M}")
    say_list(reasons)


def show(
    data: Data,
    split: SplitFile,
    image: Annotated[str, typer.Option(help="Id of the case.")],
    settings: Settings = None,
    config: Config = None,
    layout: Layout = "auto",
    negatives: Negatives = False,
    redact: Redact = False,
    out: Annotated[Path, typer.Option(help="Folder for the prompt and the picture of each role.")] = Path("request"),
) -> None:
    """Write down exactly what a run would send for one image: prompts as text, pictures as files."""
    import base64

    from cers.cli.console import say
    from cers.errors import CersError, nearest
    from cers.files import write_atomic

    job = _job(data, split, settings, config, layout, negatives, redact)
    keys = [key for key in job.wanted() if key.image == image]
    if not keys:
        raise CersError(f"no case '{image}'; {nearest(image, job.cases)}")
    for key in keys:
        text, picture = job.request(key)[0]["content"]
        suffix = {"jpeg": "jpg"}.get(job.config.image_format, job.config.image_format)
        write_atomic(out / f"{image}.{key.role}.txt", text["text"] + "\n")
        write_atomic(
            out / f"{image}.{key.role}.{suffix}", base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        )
        say(f"{out / image}.{key.role}.txt and .{suffix}: prompt {key.prompt}")


def prices() -> None:
    """Print the price table, to be edited and named with prices=FILE."""
    from importlib import resources

    from cers.cli.console import say

    say((resources.files("cers.annotate") / "prices.yaml").read_text(encoding="utf-8").rstrip())


def _job(
    data: Path, split: Path, settings: list[str] | None, config: Path | None, layout: str, negatives: bool, redact: bool
) -> "Job":
    from cers.annotate.job import Job
    from cers.annotate.settings import load_annotate_config
    from cers.data.layouts import load_cases
    from cers.data.splits import load_split

    chosen = load_annotate_config(config, [*(settings or []), *(["redact=true"] if redact else [])])
    return Job.of(load_cases(data, layout, negatives=negatives), load_split(split).labelled, chosen)


def _run_calls(job: "Job", store: "AnnotationStore", **options: Any) -> None:
    import time

    from cers.annotate.run import run_annotation
    from cers.cli.console import counted, say, say_list, say_table

    begun = time.monotonic()
    with counted("rationales") as count:

        def tell(done: int, total: int, cost: float) -> None:
            rate = done / max(time.monotonic() - begun, 1e-9)
            count(done, total, f"{rate:.1f}/s ${cost:.2f} {duration((total - done) / rate)} left")

        summary = run_annotation(job, store, progress=tell, **options)
    say_table(("state", "texts"), [(state, n) for state, n in summary.done.items() if n])
    say(f"paid ${summary.cost:.4f} in {duration(summary.seconds)}; {summary.left} texts left")
    say_list(summary.problems)
    _end(store, summary.stopped)


def _run_batches(job: "Job", store: "AnnotationStore", **options: Any) -> None:
    from cers.annotate.batch import run_batches
    from cers.cli.console import note, say, say_list, say_table

    summary = run_batches(job, store, tell=note, **options)
    say_table(("state", "texts"), [(state, n) for state, n in summary.done.items() if n])
    say(f"paid ${summary.cost:.4f}; {summary.submitted} texts submitted, {store.outstanding()} left")
    say_list(summary.problems)
    _end(store, summary.stopped)


def _end(store: "AnnotationStore", stopped: str | None) -> None:
    from cers.cli.console import note
    from cers.errors import CersError

    counts = store.counts()
    if unusable := counts["invalid"] + counts["refused"]:
        note(f"{unusable} texts are invalid or were refused; `--again` asks for them anew")
    if stopped:
        raise CersError(stopped)


def _roles(role: str | None) -> "Collection[Role]":
    from cers.cot.records import ROLES
    from cers.errors import CersError, nearest

    chosen = tuple(known for known in ROLES if role in (None, known))
    if not chosen:
        raise CersError(f"no role '{role}'; {nearest(str(role), ROLES)}")
    return chosen


def _states(again: bool) -> "Collection[State]":
    from cers.cot.records import FAILED

    return (*FAILED, "invalid", "refused") if again else FAILED
