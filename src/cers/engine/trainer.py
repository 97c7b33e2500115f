"""The only training loop. It never asks which method it runs."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cers.config import FREE, RunConfig
from cers.data.case import SemiBatch
from cers.data.loaders import BatchMaker, evaluation_batches, steps_per_epoch, training_batches
from cers.ema import WeightAverage
from cers.engine.checkpoint import (
    load_checkpoint,
    require_same_run,
    restore_average,
    restore_method,
    restore_optimizer,
    save_checkpoint,
)
from cers.engine.costs import ImagePasses, peak_memory
from cers.engine.device import make_accelerator
from cers.engine.interrupt import Interrupts
from cers.engine.log import OnRow, RunLog
from cers.engine.optim import make_optimizer, set_learning_rate
from cers.engine.validation import validation_dice
from cers.errors import CersError, Interrupted
from cers.files import write_atomic
from cers.methods.base import Method, Progress, Stage, StepResult
from cers.schedules import learning_rate

EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Streams:
    """Ids of the cases a run may train and validate on; there is no place for a test case."""

    labelled: Sequence[str]
    unlabelled: Sequence[str]
    validation: Sequence[str]


@dataclass
class State:
    """What a resumed run must know beside its tensors. `step` counts finished steps.

    `seconds` is the time of the steps alone, `wall_seconds` that of everything up to the last checkpoint: loading,
    validation and saving included. `labelled_images` and `unlabelled_images` are drawn from the two streams;
    `image_passes` counts each image once for each network it goes through while training. `peak_memory` is in bytes.
    """

    step: int = 0
    best_dice: float = -1.0
    best_step: int = 0
    without_better: int = 0
    stopped: bool = False
    average_updates: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    wall_seconds: float = 0.0
    optimiser_steps: int = 0
    labelled_images: int = 0
    unlabelled_images: int = 0
    image_passes: int = 0
    peak_memory: int | None = None


@dataclass(frozen=True)
class Span:
    """A stage with its first step and the step after its last."""

    stage: Stage
    first: int
    end: int


class Trainer:
    """Trains `method` on `streams` and keeps `folder` resumable at any moment.

    `facts` go into every checkpoint: what it was trained on.
    """

    def __init__(
        self,
        method: Method,
        maker: BatchMaker,
        streams: Streams,
        config: RunConfig,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        on_row: OnRow | None = None,
    ) -> None:
        self.config, self.folder, self.maker, self.streams, self.facts = config, folder, maker, streams, dict(facts)
        self.accelerator = make_accelerator(config.train.precision)
        self.method = method.to(self.accelerator.device).to(memory_format=torch.channels_last)
        self.optimizer = self.accelerator.prepare(make_optimizer(config.optim, self.method))
        self.average = WeightAverage(self.method, config.train.ema) if config.train.ema else None
        self.passes = ImagePasses(self.method)
        self.state = State()
        self._clock = time.perf_counter()
        self.steps = total_steps(config, streams)
        self.on_row = on_row

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights with the best validation Dice of the last stage."""
        return self.folder / "checkpoints" / "best.safetensors"

    def resume(self) -> None:
        """Go back to the last checkpoint; without one, start anew. What a kill left half written is removed."""
        for left in self.folder.rglob(".*.tmp"):
            left.unlink(missing_ok=True)
        if not self.last.is_file():
            return
        checkpoint = load_checkpoint(self.last)
        require_same_run(checkpoint, self.config, self.facts["split"], self.last)
        restore_method(self.method, checkpoint, self.last)
        restore_optimizer(self.optimizer, checkpoint)
        self.state = State(**checkpoint.facts["state"])
        if self.average is not None:
            restore_average(self.average, checkpoint, self.state.average_updates)
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(self.state.scaler)

    def run(self) -> State:
        """Train to the end of the budget or until validation stops getting better.

        Raises:
            Interrupted: Ctrl-C; the finished steps are saved.
            CersError: the loss is not finite (the batch is saved for replay), or nothing can be written.
        """
        self._clock = time.perf_counter()
        log = RunLog(
            self.folder, keep_until=self.state.step, tensorboard=self.config.train.tensorboard, on_row=self.on_row
        )
        try:
            with Interrupts() as interrupts:
                for span in spans(self.method.stages(), self.steps):
                    if self.state.step < span.end and not self.state.stopped:
                        self._run_stage(span, log, interrupts)
        finally:
            log.close()
        self._save()
        return self.state

    def _run_stage(self, span: Span, log: RunLog, interrupts: Interrupts) -> None:
        if self.state.step == span.first:
            self._start_stage(span.stage.name)
        for batch in self._batches(span):
            self._step(batch, span, log)
            done = self.state.step
            if done % self.config.train.validate_every == 0 or done == span.end:
                self._validate(span, log)
            if interrupts.requested:
                self._save()
                again = f"cers train --resume {quote(str(self.folder))}"
                raise Interrupted(f"stopped after step {done} of {self.steps}; go on with `{again}`")
            if done % self.config.train.checkpoint_every == 0 or done == span.end or self.state.stopped:
                self._save()
            if self.state.stopped:
                return

    def _start_stage(self, stage: str) -> None:
        self.state.best_dice, self.state.without_better = -1.0, 0
        batches = evaluation_batches(self.maker, self.streams.labelled, EVALUATION_BATCH)
        with self.accelerator.autocast(), self.passes.counting():
            self.method.start_stage(stage, (batch.to(self.accelerator.device) for batch in batches))
            others = evaluation_batches(self.maker, self.streams.unlabelled, EVALUATION_BATCH, with_masks=False)
            self.method.label_unlabelled(stage, (batch.to(self.accelerator.device) for batch in others))

    def _batches(self, span: Span) -> Iterator[SemiBatch]:
        train = self.config.train
        with_unlabelled = span.stage.unlabelled and bool(self.streams.unlabelled)
        return training_batches(
            self.maker,
            self.streams.labelled,
            self.streams.unlabelled if with_unlabelled else (),
            batch_labelled=train.batch_labelled + (0 if with_unlabelled else train.batch_unlabelled),
            batch_unlabelled=train.batch_unlabelled if with_unlabelled else 0,
            seed=self.config.seed,
            labelled_before=self.state.labelled_images,
            unlabelled_before=self.state.unlabelled_images,
            steps=span.end - self.state.step,
            flips=self.config.data.flips,
            strong_views=self.method.strong_views,
            workers=train.workers,
        )

    def _step(self, batch: SemiBatch, span: Span, log: RunLog) -> None:
        started = time.perf_counter()
        step = self.state.step
        # Dropout and the like become a function of the step alone, so that a resumed run needs no generator state.
        torch.manual_seed(hash((self.config.seed, step)) % 2**63)
        batch = batch.to(self.accelerator.device)
        lr = self._learning_rate(step) * span.stage.lr_factor
        self.method.train()
        progress = Progress(span.stage.name, step - span.first, span.end - span.first)
        with self.passes.counting():
            losses = [self._optimise(result, batch, lr) for result in self._results(batch, progress)]
        self.state.step += 1
        self.state.optimiser_steps += len(losses)
        self.state.labelled_images += len(batch.labelled)
        self.state.unlabelled_images += len(batch.unlabelled) if batch.unlabelled else 0
        seconds = time.perf_counter() - started
        self.state.seconds += seconds
        parts = {name: float(value) for name, value in losses[-1].logs.items()}
        row = {
            "kind": "step",
            "step": step + 1,
            "steps": self.steps,
            "stage": span.stage.name,
            "loss": float(losses[-1].loss.detach()),
            "lr": lr,
        }
        log.write({**row, **parts, "seconds": round(seconds, 4)})

    def _results(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        results = self.method.steps(batch, progress)
        while True:
            with self.accelerator.autocast():
                result = self._next(results, batch)
            if result is None:
                return
            yield result

    def _next(self, results: Iterator[StepResult], batch: SemiBatch) -> StepResult | None:
        try:
            return next(results, None)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            side = max(batch.labelled.size)
            raise CersError(
                f"a batch of one image of {side} px leaves BatchNorm a single value a channel to learn from; raise "
                "train.batch_labelled to 2 or data.image_size to 64"
            ) from None

    def _optimise(self, result: StepResult, batch: SemiBatch, lr: float) -> StepResult:
        self._require_finite(result.loss, "loss", batch)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(result.loss)
        norm = self.accelerator.clip_grad_norm_(self.method.parameters(), self.config.optim.clip_norm or math.inf)
        if self.accelerator.scaler is None:  # fp16 skips such steps by itself
            self._require_finite(norm, "gradient", batch)
        self.optimizer.step()
        self.method.after_step()
        if self.average is not None:
            self.average.update()
            self.state.average_updates = self.average.updates
        return result

    def _learning_rate(self, step: int) -> float:
        optim = self.config.optim
        return learning_rate(
            step,
            self.steps,
            lr=optim.lr,
            min_lr=min(optim.min_lr, optim.lr),
            schedule=optim.schedule,
            warmup_steps=optim.warmup_steps,
        )

    def _require_finite(self, value: Tensor, what: str, batch: SemiBatch) -> None:
        if torch.isfinite(value).all():
            return
        path = self.folder / "replay" / f"step-{self.state.step + 1}.safetensors"
        ids = [*batch.labelled.ids, *(batch.unlabelled.ids if batch.unlabelled else ())]
        write_atomic(path, save(batch.tensors(), metadata={"ids": ",".join(ids)}))
        raise CersError(
            f"the {what} of step {self.state.step + 1} is not finite; its batch is saved as {path}; start a new "
            "run with a lower optim.lr, with optim.clip_norm or with train.precision=no"
        )

    def _validate(self, span: Span, log: RunLog) -> None:
        if not self.streams.validation:
            return
        batches = evaluation_batches(self.maker, self.streams.validation, EVALUATION_BATCH)
        with self._averaged(), self.accelerator.autocast():
            declared, branches = validation_dice(self.method, batches, self.accelerator.device)
            declared = self.method.after_validation(declared, branches)
            better = declared > self.state.best_dice
            if better:
                self.state.best_dice, self.state.best_step, self.state.without_better = declared, self.state.step, 0
                save_checkpoint(self.best, self._facts(), self.method)
            else:
                self.state.without_better += 1
        row = {"kind": "validation", "step": self.state.step, "stage": span.stage.name, "best": better}
        log.write({**row, "declared": declared, "dice": branches})
        patience = self.config.train.patience
        is_last_stage = span.end == self.steps
        self.state.stopped = is_last_stage and patience is not None and self.state.without_better >= patience

    def _save(self) -> None:
        self._account()
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        save_checkpoint(self.last, self._facts(), self.method, self.optimizer, self.average)
        if not self.streams.validation:
            with self._averaged():
                save_checkpoint(self.best, self._facts(), self.method)

    def _account(self) -> None:
        """Bring what the clock, the hooks and the memory know into the state."""
        now = time.perf_counter()
        self.state.wall_seconds += now - self._clock
        self._clock = now
        self.state.image_passes += self.passes.count
        self.passes.count = 0
        self.state.peak_memory = max(filter(None, (self.state.peak_memory, peak_memory())), default=None)

    def _facts(self) -> dict[str, Any]:
        settings = {key: value for key, value in self.config.flat().items() if key not in FREE}
        return {**self.facts, "settings": settings, "state": asdict(self.state), "steps": self.steps}

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()


def total_steps(config: RunConfig, streams: Streams) -> int:
    """Steps of the whole run.

    Raises:
        CersError: neither `train.steps` nor `train.epochs` is given.
    """
    train = config.train
    if train.steps is not None:
        return train.steps
    if train.epochs is None:
        raise CersError("the budget is missing: set train.steps=… or train.epochs=…")
    return train.epochs * steps_per_epoch(
        len(streams.labelled), len(streams.unlabelled), train.batch_labelled, train.batch_unlabelled
    )


def spans(stages: Sequence[Stage], steps: int) -> list[Span]:
    """The stages laid over `steps` by their shares; the last ends the run."""
    found, first, share = [], 0, 0.0
    for stage in stages:
        share += stage.share
        end = steps if stage is stages[-1] else round(steps * share)
        found.append(Span(stage, first, end))
        first = end
    return found
