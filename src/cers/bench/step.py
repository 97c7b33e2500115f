"""The stage-2 step, from the authors' way to ours: one change a rung, and what each gave."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cers.bench.authors import AuthorsStep, Way, read, shortened
from cers.bench.measure import Advance, measure, seconds
from cers.bench.scene import Words, Workload, language_model, make_batch, make_method, make_words, random_batch
from cers.data.case import SemiBatch
from cers.engine.device import cpu_has_bf16
from cers.methods.base import Progress
from cers.methods.cers import CERS

PROGRESS = Progress("semi", 1, 2)


@dataclass(frozen=True)
class Rung:
    """One way to compute the step; `way` None is the method as it is trained."""

    name: str
    way: Way | None
    channels_last: bool = False
    bf16: bool = False


def ladder() -> Iterator[Rung]:
    """All rungs; each changes one thing of the one before."""
    way = Way()
    yield Rung("the authors' way", way)
    changes: list[tuple[str, dict[str, Any]]] = [
        ("retrieval pass without gradient", {"query": "no-grad"}),
        ("retrieval pass through the encoder only", {"query": "encoder"}),
        ("retrieval by the training pass's features", {"query": "reused"}),
        ("rationales cached", {"cached_cot": True}),
        ("reports padded to the batch", {"reports": "batch"}),
        ("reports cached", {"reports": "cached"}),
        ("both streams in one forward", {"one_forward": True}),
        ("pooled search, fp16 references", {"pooled": True}),
    ]
    for name, change in changes:
        way = replace(way, **change)
        yield Rung(name, way)
    yield Rung("decoders convolve before they enlarge", None)
    yield Rung("channels last", None, channels_last=True)
    yield Rung("bf16", None, channels_last=True, bf16=True)


@dataclass(frozen=True)
class Scene:
    """Method and batch of a workload, and what the authors' ways need besides: language models and their texts."""

    method: CERS
    batch: SemiBatch
    words: Words
    report_model: nn.Module | None = None
    cot_model: nn.Module | None = None


@torch.no_grad()
def make_scene(workload: Workload) -> Scene:
    """Everything that the ladder computes on; the batch holds the language models' own features.

    Raises:
        CersError: the extra `hf` is missing, or timm has no such encoder.
    """
    report_model, cot_model = language_model(workload).eval(), language_model(workload).eval()
    words = make_words(workload)
    method = make_method(workload)
    report, padding = read(report_model, shortened(words.reports))
    cot = read(cot_model, words.cots)[0][:, 0]
    batch = make_batch(workload, report, padding, cot)
    return Scene(method, batch, words, report_model.train(), cot_model)


def random_scene(workload: Workload) -> Scene:
    """A scene for our way only, with random features in place of the texts'."""
    return Scene(make_method(workload), random_batch(workload), make_words(workload))


def loss_of(scene: Scene, rung: Rung) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The module whose parameters a rung trains, and its loss."""
    if rung.way is None:
        return scene.method, lambda: next(scene.method.steps(scene.batch, PROGRESS)).loss
    step = AuthorsStep(scene.method, rung.way, scene.report_model, scene.cot_model)
    return step, partial(step, scene.batch, scene.words, PROGRESS.fraction)


def optimiser_step(scene: Scene, rung: Rung) -> Callable[[], None]:
    """One whole step on `rung`: forward, backward, SGD with momentum, and the pool's refresh where it belongs."""
    module, loss = loss_of(scene, rung)
    layout = torch.channels_last if rung.channels_last else torch.contiguous_format
    module.to(memory_format=layout)
    optimiser = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, weight_decay=1e-4
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=rung.bf16):
            value = loss()
        torch.autograd.backward(value)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        scene.method.after_step()

    return step


def bench_step(workload: Workload, repeats: int, done: Advance) -> dict[str, Any]:
    """CPU seconds of every rung, the gain of each change and of all so far.

    bf16 is left out where the processor would only emulate it, ten times slower.
    """
    scene = make_scene(workload)
    rows: list[dict[str, Any]] = []
    skipped = []
    for rung in ladder():
        if rung.bf16 and not cpu_has_bf16():
            skipped.append(f"{rung.name}: this processor does not multiply in bf16")
            continue
        timing = measure(optimiser_step(scene, rung), repeats)
        before = rows[-1]["cpu_s"] if rows else timing.cpu_s
        first = rows[0]["cpu_s"] if rows else timing.cpu_s
        row = {"rung": rung.name, "precision": "bf16" if rung.bf16 else "fp32", **seconds(timing)}
        rows.append(row | {"gain": before / timing.cpu_s, "total_gain": first / timing.cpu_s})
        done(rung.name)
    equal = max(row["total_gain"] for row in rows if row["precision"] == "fp32")
    refresh = _refresh(scene, workload, repeats)
    done("pool refresh")
    return {"rungs": rows, "skipped": skipped, "total_gain_fp32": equal, "pool_refresh": refresh}


def rungs() -> int:
    """How many times `bench_step` reports."""
    return len(list(ladder())) + (1 if cpu_has_bf16() else 0)


@torch.no_grad()
def _refresh(scene: Scene, workload: Workload, repeats: int) -> Mapping[str, float]:
    """Our refresh rides on the step; the authors' passes every case through the networks once an epoch."""
    method, labelled = scene.method, scene.batch.labelled
    features = method.encoder(labelled.images)[-1]
    ours = measure(lambda: method.pool.update(labelled.ids, features, method.settings.pool_momentum), repeats)
    step = AuthorsStep(method, Way(query="no-grad"), scene.report_model, scene.cot_model)
    words = scene.words.part(slice(0, len(labelled)))
    theirs = measure(lambda: (step.query(labelled, words), step.cot(labelled, words)), repeats)
    passes = workload.pool / len(labelled)
    return {"ours_s_per_step": ours.cpu_s, "authors_s_per_epoch": theirs.cpu_s * passes}
