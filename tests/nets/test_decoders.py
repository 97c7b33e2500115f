import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cers.bench import plain_decoders as plain
from cers.nets.decoders import ResidualUNetDecoder
from cers.nets.layers import conv3x3_upsampled, upsample
from cers.nets.mcam import MCAMDecoder, make_retrieval_decoder

CONVNEXT = (96, 192, 384, 768)
SMALL = (16, 24, 48, 64)
DECODERS = ("mcam", "unet", "swin-unet")


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pyramid(channels=SMALL, height=64, width=96, batch=2, dtype=torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    strides = (4, 8, 16, 32)
    return [torch.randn(batch, c, height // s, width // s, dtype=dtype) for c, s in zip(channels, strides, strict=True)]


def test_parameter_counts_are_those_of_the_paper_program():
    assert parameters(ResidualUNetDecoder(CONVNEXT)) == 6_661_801
    assert parameters(MCAMDecoder(CONVNEXT)) == 6_741_301
    # Swin-Unet's layer formula gives 6.75 M; the LayerNorm before its first expansion is ours.
    assert parameters(make_retrieval_decoder("swin-unet", CONVNEXT)) == 6_756_282


@pytest.mark.parametrize("training", [True, False])
def test_unet_equals_its_plain_form(training):
    torch.manual_seed(0)
    decoder = ResidualUNetDecoder(SMALL).train(training)
    features = pyramid()
    expected = plain.unet(decoder, features, (64, 96))
    assert torch.allclose(decoder(features, (64, 96)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_mcam_equals_its_plain_form(training):
    torch.manual_seed(0)
    decoder = MCAMDecoder(SMALL).train(training)
    features = pyramid()
    reference = torch.randn_like(features[3])
    expected = plain.mcam(decoder, features, reference, (64, 96))
    assert torch.allclose(decoder(features, reference, (64, 96)), expected, atol=1e-5, rtol=0)


def test_gradients_equal_those_of_the_plain_forms():
    torch.manual_seed(0)
    unet, mcam = ResidualUNetDecoder(SMALL).double(), MCAMDecoder(SMALL).double()
    features = [f.requires_grad_() for f in pyramid(dtype=torch.float64)]
    size = (64, 96)
    weights = torch.randn(2, 1, *size, dtype=torch.float64)
    pairs = (
        (unet, unet(features, size), plain.unet(unet, features, size)),
        (mcam, mcam(features, None, size), plain.mcam(mcam, features, features[3], size)),
    )
    for module, ours, expected in pairs:
        wanted = [*module.parameters(), *features]
        for a, b in zip(
            torch.autograd.grad((ours * weights).sum(), wanted),
            torch.autograd.grad((expected * weights).sum(), wanted),
            strict=True,
        ):
            assert torch.allclose(a, b, atol=1e-9, rtol=1e-8)


@settings(max_examples=40)
@given(
    old=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    new=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    channels=st.sampled_from([1, 3, 64]),
)
def test_convolving_before_or_after_enlarging_is_the_same(old, new, channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, *old, dtype=torch.float64)
    weight = torch.randn(5, channels, 3, 3, dtype=torch.float64)
    expected = F.conv2d(upsample(x, new), weight, padding=1)
    assert torch.allclose(conv3x3_upsampled(x, weight, new), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [(64, 96), (57, 70)])
def test_logits_come_at_the_size_asked_for(name, size):
    decoder = make_retrieval_decoder(name, SMALL).eval()
    assert decoder(pyramid(), None, size).shape == (2, 1, *size)


@pytest.mark.parametrize("name", DECODERS)
def test_no_reference_means_f4_and_another_one_matters(name):
    torch.manual_seed(0)
    decoder = make_retrieval_decoder(name, SMALL).eval()
    features = pyramid()
    alone = decoder(features, None, (64, 96))
    assert torch.equal(alone, decoder(features, features[3], (64, 96)))
    other = decoder(features, torch.randn_like(features[3]), (64, 96))
    assert (alone - other).abs().mean() > 0.001 * alone.std()


@pytest.mark.parametrize("name", DECODERS)
def test_every_parameter_learns(name):
    decoder = make_retrieval_decoder(name, SMALL)
    features = pyramid()
    logits = decoder(features, torch.randn_like(features[3]), (64, 96))
    (logits * torch.randn_like(logits)).sum().backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", DECODERS)
def test_mixed_precision_and_channels_last(name):
    torch.manual_seed(0)
    decoder = make_retrieval_decoder(name, SMALL).eval().to(memory_format=torch.channels_last)
    features = [f.contiguous(memory_format=torch.channels_last) for f in pyramid(height=32, width=32)]
    exact = decoder(features, None, (32, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = decoder(features, None, (32, 32))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.02


def test_ablations_take_out_their_part_and_nothing_else():
    full, no_gate = MCAMDecoder(SMALL), MCAMDecoder(SMALL, coordinate_gate=False)
    no_mix = MCAMDecoder(SMALL, multi_scale=False)
    bare = MCAMDecoder(SMALL, coordinate_gate=False, multi_scale=False)
    names = [{n.split(".", 2)[2].split(".")[0] for n in m.state_dict() if "blocks" in n} for m in (full, bare)]
    assert names[0] == names[1] == {"main", "reference", "gate", "mix"}
    widths = (32, 16, 8, 4)
    assert parameters(bare.blocks[0].gate) == 2 * widths[0] * widths[0] + widths[0]
    assert parameters(bare.blocks[0].mix) == 2 * (widths[0] * widths[0] + widths[0])
    assert parameters(full) - parameters(no_gate) == parameters(no_mix) - parameters(bare) > 0
    for decoder in (no_gate, no_mix, bare):
        assert decoder(pyramid(), None, (64, 96)).isfinite().all()
