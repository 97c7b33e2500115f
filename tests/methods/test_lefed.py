"""LeFeD by its specification (methods.md, 7)."""

import pytest
import torch
from tiny_runs import make, make_batch, make_semi
from torch import Tensor

from cers.losses import dice_ce
from cers.methods.base import Progress
from cers.methods.lefed import LeFeD, relative_feedback
from cers.nets.differential import DifferentialUNet
from cers.nets.encoder import PyramidEncoder
from cers.nets.vnet import VNetEncoder

STEP = Progress("train", 0, 10)


def lefed(**settings) -> LeFeD:
    method = make("lefed", settings)
    assert isinstance(method, LeFeD)
    return method


@pytest.fixture(params=["encoder", "vnet"])
def network(request) -> DifferentialUNet:
    torch.manual_seed(0)
    encoder = PyramidEncoder("test_convnext2", drop_path=0.0) if request.param == "encoder" else VNetEncoder(4)
    return DifferentialUNet(encoder).eval()


def images() -> Tensor:
    return make_batch(("q0", "q1"), masked=False).images


def test_feedback_of_zero_changes_nothing_and_other_feedback_does(network):
    first = network(images())
    again = network(images(), [0 * e for e in first.feedback(1.0)])
    assert torch.equal(first.first, again.first)
    assert torch.equal(first.second, again.second)
    assert not torch.equal(network(images(), first.feedback(1.0)).first, first.first)


def test_feedback_reaches_every_stage_before_the_next_reads_it(network):
    """Added to one stage alone it shows in that map exactly, in all coarser ones, and in no finer one."""
    plain = network.encoder(images())
    for stage in range(len(plain)):
        feedback = [torch.zeros_like(m) for m in plain]
        feedback[stage] += 1.0
        fed = network.encoder(images(), feedback)
        assert all(torch.equal(a, b) for a, b in zip(fed[:stage], plain[:stage], strict=True))
        assert torch.allclose(fed[stage], plain[stage] + 1, atol=1e-5)
        assert all(not torch.allclose(a, b) for a, b in zip(fed[stage + 1 :], plain[stage + 1 :], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(network.encoder(images()), plain, strict=True))


def test_feedback_is_added_in_the_layout_of_the_encoder():
    torch.manual_seed(0)
    for name in ("tf_efficientnet_lite0", "resnet18", "swinv2_tiny_window8_256"):
        encoder = PyramidEncoder(name).eval()
        plain = encoder(images())
        feedback = [torch.zeros_like(m) for m in plain]
        feedback[1] += torch.arange(plain[1].shape[1])[:, None, None]
        assert torch.allclose(encoder(images(), feedback)[1], plain[1] + feedback[1], atol=1e-4), name


def test_differences_carry_no_gradient_and_vanish_between_equal_decoders(network):
    seen = network(images())
    assert not any(e.requires_grad for e in seen.feedback(1e-3))
    assert [e.shape for e in seen.feedback(1.0)] == [m.shape for m in network.encoder(images())]
    assert all(e.abs().max() > 0 for e in seen.feedback(1.0))
    network.gated, network.second = False, network.first
    assert all(e.abs().max() == 0 for e in network(images()).feedback(1.0))


def test_a_difference_is_the_second_decoder_less_the_first(network):
    seen = network(images())
    bottleneck = network.encoder(images())[-1]
    expected = bottleneck * bottleneck.sigmoid()  # the gate opens by the bottleneck itself
    assert torch.allclose(seen.feedback(1.0)[-1], expected, atol=1e-5)
    assert torch.allclose(seen.feedback(1e-3)[0], 1e-3 * seen.feedback(1.0)[0])


def test_the_log_says_how_large_the_feedback_is_beside_what_it_is_added_to(network):
    seen = network(images())
    own = network.encoder(images())
    parts = [e.norm().item() / max(x.norm().item(), 1e-6) for e, x in zip(seen.feedback(0.3), own, strict=True)]
    assert relative_feedback(seen, 0.3).item() == pytest.approx(sum(parts) / len(parts), rel=1e-4)


def test_the_first_decoder_learns_nothing_from_the_second_ones_loss(network):
    network.train()
    masks = make_batch(("q0", "q1"), masked=True).required_masks
    dice_ce(network(images()).second, masks).backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in network.first.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.second.ups.parameters())


def test_gates_lie_between_0_and_1(network):
    heard = []
    network.second.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[2]))
    network(images())
    assert all(((g > 0) & (g < 1)).all() and not g.requires_grad for g in heard[0])


@pytest.mark.parametrize("passes", [1, 3])
def test_each_batch_takes_its_passes_and_leaves_no_feedback(passes):
    method = lefed(passes=passes).train()
    heard = []
    method.network.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[1]))
    for _ in range(2):
        results = list(method.steps(make_semi(), STEP))
        assert len(results) == passes == method.optimiser_steps
    assert [h is None for h in heard] == 2 * ([True] + [False] * (passes - 1))


def test_each_pass_hears_the_differences_of_the_one_before():
    method = lefed(feedback=0.1).train()
    heard, seen = [], []
    method.network.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[1]))
    method.network.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    list(method.steps(make_semi(), STEP))
    for feedback, before in zip(heard[1:], seen[:-1], strict=True):
        differences = [0.1 * (second - first) for first, second in reversed(before.features)]
        assert all(torch.equal(e, d) for e, d in zip(feedback, differences, strict=True))


def test_the_loss_is_its_formula():
    method = lefed().eval()
    batch = make_semi()
    (result, *_) = method.steps(batch, STEP)
    seen, masks = method.network(batch.joined().images), batch.labelled.required_masks
    expected = dice_ce(seen.first[:4], masks) + dice_ce(seen.second[:4], masks)
    for weight, side in zip((0.8, 0.6, 0.4, 0.2), seen.sides, strict=True):
        expected = expected + weight * dice_ce(side[:4], masks)
    agreement = (seen.first.sigmoid() - seen.second.sigmoid()).square().mean()
    assert float(result.loss.detach()) == pytest.approx(float((expected + agreement).detach()), rel=1e-5)


def test_it_runs_on_the_v_net_of_the_paper():
    method = lefed(backbone="vnet", width=4).train()
    assert len(method.network.side_heads) == 5
    for result in method.steps(make_semi(size=(50, 71)), STEP):
        result.loss.backward()
    assert all(p.grad is not None for p in method.network.parameters())
    assert method.eval().predict(make_batch(("q0",), masked=False, size=(50, 71))).probability.shape == (1, 1, 50, 71)
    maps = VNetEncoder(16).eval()(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1:] for m in maps] == [(16 * 2**i, 64 // 2**i, 64 // 2**i) for i in range(5)]
