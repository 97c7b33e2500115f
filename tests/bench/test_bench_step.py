from itertools import pairwise

import pytest
import torch

from cers.bench.scene import Workload
from cers.bench.step import Rung, Scene, ladder, loss_of, make_scene

pytest.importorskip("transformers")

LANGUAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 1005,
}
# Fewer cases than coarse candidates: rationales decide, however images are compared.
TINY = Workload(encoder="tf_efficientnet_lite0", size=64, pool=30, images=2, language=LANGUAGE)
FULL_PRECISION = [rung for rung in ladder() if not rung.bf16]


@pytest.fixture(scope="module")
def scene() -> Scene:
    scene = make_scene(TINY)
    with torch.no_grad():
        for scale in scene.method.report_attention.scales:
            scale.gamma.fill_(1.0)  # else reports would not matter
    # Dropout and batch statistics aside, every rung computes the same.
    scene.method.eval()
    scene.report_model.eval()
    return scene


def loss_and_gradient(scene: Scene, rung: Rung) -> tuple[float, torch.Tensor]:
    _, loss = loss_of(scene, rung)
    scene.method.zero_grad()
    value = loss()
    value.backward()
    gradients = [p.grad.flatten() for p in scene.method.parameters() if p.grad is not None]
    return value.item(), torch.cat(gradients)


@pytest.mark.parametrize(("before", "after"), pairwise(FULL_PRECISION), ids=lambda rung: rung.name)
def test_each_rung_computes_what_the_one_before_does(scene: Scene, before: Rung, after: Rung):
    loss, gradient = loss_and_gradient(scene, before)
    other, other_gradient = loss_and_gradient(scene, after)
    half = after.way is not None and after.way.pooled
    assert other == pytest.approx(loss, rel=1e-3 if half else 1e-5)
    assert torch.nn.functional.cosine_similarity(gradient, other_gradient, dim=0) > 0.9999
