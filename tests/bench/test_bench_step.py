from dataclasses import replace
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
SAME = 1e-5
FULL_PRECISION = [rung for rung in ladder() if not rung.bf16]


@pytest.fixture(scope="module")
def scene() -> Scene:
    scene = make_scene(TINY)
    with torch.no_grad():
        for scale in scene.method.report_attention.scales:
            scale.gamma.fill_(1.0)  # else reports would not matter
        _take_statistics(scene)
    # Dropout and batch statistics aside, every rung computes the same.
    scene.method.eval()
    scene.report_model.eval()
    return scene


def _take_statistics(scene: Scene) -> None:
    """One pass whose statistics BatchNorm keeps: with those of the start, nothing would count in evaluation mode."""
    for module in scene.method.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 1.0
    loss_of(scene, FULL_PRECISION[-1])[1]()


@pytest.fixture(scope="module")
def results(scene: Scene) -> dict[str, tuple[float, torch.Tensor]]:
    """Loss and gradient of every rung in full precision."""
    return {rung.name: loss_and_gradient(scene, rung) for rung in FULL_PRECISION}


def loss_and_gradient(scene: Scene, rung: Rung) -> tuple[float, torch.Tensor]:
    scene.method.zero_grad()
    _, loss = loss_of(scene, rung)
    value = loss()
    value.backward()
    gradients = [p.grad.flatten() for p in scene.method.parameters() if p.grad is not None]
    return value.item(), torch.cat(gradients)


def gradient_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1 - torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.mark.parametrize(("before", "after"), pairwise(FULL_PRECISION), ids=lambda rung: rung.name)
def test_each_rung_computes_what_the_one_before_does(results, before: Rung, after: Rung):
    loss, gradient = results[before.name]
    other, other_gradient = results[after.name]
    assert other == pytest.approx(loss, rel=SAME)
    assert gradient_distance(gradient, other_gradient) < SAME


@pytest.mark.parametrize("text", ["cots", "reports"])
def test_a_wrong_text_would_be_noticed(text, scene: Scene, results):
    authors = FULL_PRECISION[0]
    wrong = replace(scene.words, **{text: getattr(scene.words, text).flip(0)})
    loss, gradient = loss_and_gradient(replace(scene, words=wrong), authors)
    value, direction = results[authors.name]
    # The test above compares both, so it is enough that one of them tells.
    assert max(abs(loss / value - 1), gradient_distance(gradient, direction)) > 2 * SAME


def test_only_the_authors_train_a_report_model(scene: Scene):
    """And only while reports are not cached; the rationale model never learns."""
    trained = {
        rung.name: sum(p.numel() for p in loss_of(scene, rung)[0].parameters() if p.requires_grad)
        for rung in FULL_PRECISION
    }
    ours = trained["channels last"]
    report_model = sum(p.numel() for p in scene.report_model.parameters())
    assert trained["the authors' way"] == trained["reports padded to the batch"] == ours + report_model
    assert trained["reports cached"] == trained["pooled search, fp16 references"] == ours
