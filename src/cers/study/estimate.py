"""What a study will cost, by a few real steps of every different configuration."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cers.config import RunConfig
from cers.engine.costs import peak_memory
from cers.engine.trainer import spans
from cers.run import prepare
from cers.study.plan import Plan, PlannedRun
from cers.study.runner import process_for
from cers.study.worker import Ended, serve

STEPS_OF_A_STAGE = 3  # the first of which is not counted: it warms up


@dataclass(frozen=True)
class Measured:
    """Seconds of a step by stage, of one validation, and of a stage's start; bytes held at most.

    `shares` are the stages' parts of the budget, `cases` those of one validation.
    """

    steps: dict[str, float]
    shares: dict[str, float]
    validation: float
    cases: int
    start: float
    memory: int | None
    parameters: int


@dataclass(frozen=True)
class Estimate:
    """What one run will take: `seconds` of training and scoring, and `memory` bytes; None where measuring `failed`."""

    run: PlannedRun
    seconds: float | None
    memory: int | None
    parameters: int | None
    failed: str = ""


def estimate(
    plan: Plan, runs: Sequence[PlannedRun], threads: int = 1, on_measured: Callable[[str], None] | None = None
) -> list[Estimate]:
    """Measure a few real steps per different configuration (seeds cost the same), and extrapolate to each of `runs`.

    Starting Python and the first decoding of images are not in it.
    """
    found: dict[tuple[str, Any], Measured | Ended] = {}
    for run in runs:
        if _like(run) not in found:
            found[_like(run)] = _measured_apart(plan, run, threads)
            if on_measured is not None:
                on_measured(run.name)
    return [_extrapolated(run, found[_like(run)]) for run in runs]


def distinct(runs: Sequence[PlannedRun]) -> int:
    """How many configurations `estimate` measures."""
    return len({_like(run) for run in runs})


def _like(run: PlannedRun) -> tuple[str, Any]:
    return run.family, run.share


def _measured_apart(plan: Plan, run: PlannedRun, threads: int) -> "Measured | Ended":
    """In a process of its own, whose memory is the run's alone."""
    answer: Measured | Ended | None = None
    with process_for(serve, measure, run.config, plan.out / "logs" / "dry-run.log", threads) as (process, pipe):
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            process.join()
    return answer or Ended("failed", f"its process ended with status {process.exitcode}")


def measure(config: RunConfig) -> Measured:
    """Train `STEPS_OF_A_STAGE` steps of every stage in a folder that is thrown away.

    Raises:
        CersError: bad settings or data.
    """
    times: list[tuple[str, str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        new = prepare(
            config,
            Path(folder) / "run",
            on_row=lambda row: times.append((row["kind"], row["stage"], time.perf_counter())),
        )
        trainer, stages = new.trainer, new.trainer.method.stages()
        trainer.steps = math.ceil(STEPS_OF_A_STAGE / min(stage.share for stage in stages))
        while any(span.end - span.first < STEPS_OF_A_STAGE for span in spans(stages, trainer.steps)):
            trainer.steps += 1
        began = time.perf_counter()
        trainer.run()
    steps: dict[str, list[float]] = {stage.name: [] for stage in stages}
    validations, starts, before, last = [], [], "", began
    for kind, stage, at in times:
        spent = at - last
        if kind == "validation":
            validations.append(spent)
        elif before != stage:
            starts.append(spent)
        else:
            steps[stage].append(spent)
        before, last = stage, at
    each = {name: median(values) for name, values in steps.items()}
    return Measured(
        steps=each,
        shares={stage.name: stage.share for stage in stages},
        validation=median(validations) if validations else 0.0,
        cases=len(new.split.val),
        start=sum(starts),
        memory=peak_memory(),
        parameters=int(new.trainer.facts["parameters"]),
    )


def _extrapolated(run: PlannedRun, measured: "Measured | Ended") -> Estimate:
    if isinstance(measured, Ended):
        return Estimate(run, None, None, None, measured.why or measured.how)
    training = sum(run.steps * share * measured.steps[name] for name, share in measured.shares.items())
    validations = run.steps // run.config.train.validate_every + 1
    scoring = measured.validation * len(run.split.test) / max(1, measured.cases)
    seconds = training + validations * measured.validation + measured.start + scoring
    return Estimate(run, seconds, measured.memory, measured.parameters)
