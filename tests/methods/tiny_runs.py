"""Generated cases with texts, and a training loop of a few lines that does what the engine does."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cers.data.case import Batch, SemiBatch
from cers.methods.base import Method, Progress, Setup
from cers.methods.registry import METHODS, create_method
from cers.nets.encoder import PyramidEncoder

REPORT, COT, WORDS = 6, 10, 3
LABELLED, UNLABELLED = ("l0", "l1", "l2", "l3"), ("u0", "u1", "u2", "u3")


def make_setup(
    *, seed: int = 0, report: bool = True, cot: bool = True, size: int = 32, labelled: Sequence[str] = LABELLED
) -> Setup:
    return Setup(
        encoder=lambda: PyramidEncoder("test_convnext2", drop_path=0.0),
        labelled=[(id_, None, None) for id_ in labelled],
        image_size=size,
        report_width=REPORT if report else None,
        cot_width=COT if cot else None,
        seed=seed,
        unlabelled=UNLABELLED,
    )


def make(name: str, settings: dict[str, Any] | None = None, **setup: Any) -> Method:
    """A method with the tiny encoder; a network of its own is made narrow, if its settings have a width."""
    narrow = {"width": 8} if "width" in METHODS[name].Settings.model_fields else {}
    return create_method(name, narrow | (settings or {}), make_setup(**setup))


def begin(method: Method, stage: str, batch: SemiBatch) -> None:
    """Start a stage as the engine does, with clean views of the same cases."""
    method.start_stage(stage, [replace(batch.labelled, strong=None)])
    if batch.unlabelled is not None:
        method.label_unlabelled(stage, [replace(batch.unlabelled, strong=None)])
    method.train()


def noise(what: str, *shape: int) -> Tensor:
    """Normal values that are a function of `what`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(what.encode())))


def disc(id_: str, height: int, width: int) -> Tensor:
    """A mask (1,H,W) with one disc somewhere."""
    y, x = (0.3 + 0.4 * torch.sigmoid(noise(f"at {id_}", 2))).tolist()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return (((rows - y * height) ** 2 + (columns - x * width) ** 2) < (min(height, width) / 5) ** 2).float()[None]


def texts_of(ids: Sequence[str], *, report: bool, cot: bool, masked: bool, salt: str = "") -> dict[str, Tensor]:
    """Text fields of a batch; every case has its own length of report, the last of four has no text at all."""
    fields: dict[str, Tensor] = {}
    known = torch.tensor([not id_.endswith("3") for id_ in ids])
    if report:
        lengths = torch.tensor([1 + int(id_[-1]) % WORDS for id_ in ids])
        padding = (torch.arange(WORDS) >= lengths[:, None]) | ~known[:, None]
        tokens = torch.stack([noise(f"{salt}report {id_}", WORDS, REPORT) for id_ in ids])
        fields |= {"report_tokens": tokens.masked_fill(padding[..., None], 0.0), "report_padding": padding}
        fields |= {"report": tokens.mean(dim=1) * known[:, None], "report_known": known}
    if cot:
        free = torch.stack([noise(f"{salt}cot {id_}", COT) for id_ in ids])
        informed = torch.stack([noise(f"{salt}mask {id_}", COT) for id_ in ids])
        informed_known = known if masked else torch.zeros_like(known)
        fields |= {"cot": free * known[:, None], "cot_known": known}
        fields |= {"mask_cot": informed * informed_known[:, None], "mask_cot_known": informed_known}
    return fields


def make_batch(
    ids: Sequence[str],
    *,
    masked: bool,
    size: tuple[int, int] = (32, 32),
    report: bool = True,
    cot: bool = True,
    strong_views: int = 0,
) -> Batch:
    masks = torch.stack([disc(id_, *size) for id_ in ids])
    images = (2 * masks + 0.3 * torch.stack([noise(f"pixels {id_}", 1, *size) for id_ in ids])).repeat(1, 3, 1, 1)
    return Batch(
        ids=tuple(ids),
        images=images,
        masks=masks if masked else None,
        strong=images[:, None].repeat(1, strong_views, 1, 1, 1) * 1.1 if strong_views else None,
        groups=(None,) * len(ids),
        **texts_of(ids, report=report, cot=cot, masked=masked),
    )


def make_semi(labelled: Sequence[str] = LABELLED, unlabelled: Sequence[str] = UNLABELLED, **options: Any) -> SemiBatch:
    return SemiBatch(
        make_batch(labelled, masked=True, **options),
        make_batch(unlabelled, masked=False, **options) if unlabelled else None,
    )


def with_other_texts(batch: Batch) -> Batch:
    """The same images with other reports and rationales."""
    return replace(batch, **texts_of(batch.ids, report=True, cot=True, masked=batch.masks is not None, salt="other "))


def train(method: Method, batch: SemiBatch, steps: int, *, lr: float = 6e-3, stages: Sequence[str] = ()) -> list[float]:
    """A run of `steps` steps (or some of its stages) on the same cases, as the engine takes them; the losses."""
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=lr)
    losses = []
    for stage in method.stages():
        if stages and stage.name not in stages:
            continue
        begin(method, stage.name, batch)
        seen = batch if stage.unlabelled else SemiBatch(batch.labelled)
        count = max(1, round(stage.share * steps))
        for step in range(count):
            torch.manual_seed(step)
            for result in method.steps(seen, Progress(stage.name, step, count)):
                optimiser.zero_grad(set_to_none=True)
                result.loss.backward()
                optimiser.step()
                method.after_step()
                losses.append(float(result.loss.detach()))
    method.eval()
    return losses


def dice(probability: Tensor, masks: Tensor) -> float:
    predicted, true = probability.flatten(1) > 0.5, masks.flatten(1) > 0.5
    return float((2 * (predicted & true).sum(1) / (predicted.sum(1) + true.sum(1))).mean())
