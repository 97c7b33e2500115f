"""The two decoders against their plain forms, and their share of a step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cers.bench import plain_decoders
from cers.bench.measure import Advance, measure
from cers.bench.scene import Workload
from cers.bench.step import Rung, optimiser_step, random_scene
from cers.nets.mcam import MCAMDecoder

IMAGES = 16


def bench_decoders(workload: Workload, repeats: int, done: Advance) -> dict[str, Any]:
    """CPU seconds, forward and backward, for 16 images, channels last as in training."""
    scene = random_scene(replace(workload, images=IMAGES // 2))
    step = measure(optimiser_step(scene, Rung("ours", None, channels_last=True)), repeats)
    done("step")
    method, images = scene.method, scene.batch.joined().images
    with torch.no_grad():
        features = [f.detach() for f in method.encoder(images)]
    size = (workload.size, workload.size)
    base, retrieval = method.base_decoder, method.retrieval_decoder
    assert isinstance(retrieval, MCAMDecoder)
    forms: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        "base": (lambda f: plain_decoders.unet(base, f, size), lambda f: base(f, size)),
        "mcam": (lambda f: plain_decoders.mcam(retrieval, f, f[-1], size), lambda f: retrieval(f, None, size)),
    }
    rows = []
    for name, (plain, ours) in forms.items():
        before, after = (measure(_both_ways(form, features), repeats).cpu_s for form in (plain, ours))
        share = after / step.cpu_s
        rows.append({"decoder": name, "plain_s": before, "ours_s": after, "gain": before / after, "share": share})
        done(name)
    return {"encoder": workload.encoder, "size": workload.size, "step_cpu_s": step.cpu_s, "decoders": rows}


def _both_ways(decode: Callable[[list[Tensor]], Tensor], features: list[Tensor]) -> Callable[[], None]:
    leaves = [f.requires_grad_() for f in features]
    return lambda: torch.autograd.backward(decode(leaves).sum())
