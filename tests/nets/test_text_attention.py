import pytest
import torch
from torch.nn import functional as F

from cers.nets.text_attention import ReportAttention, TextCrossAttention


def opened(channels=24, text_width=20, **options) -> TextCrossAttention:
    """An attention whose gate is open, as after some training."""
    torch.manual_seed(0)
    module = TextCrossAttention(channels, text_width, **options)
    torch.nn.init.constant_(module.gamma, 1.5)
    torch.nn.init.normal_(module.attention.in_proj_bias)
    torch.nn.init.normal_(module.attention.out_proj.bias)
    return module


def plain(module: TextCrossAttention, feature, tokens, padding):
    """The formula through torch's own multi-head attention, one map after another."""
    pixels = feature.flatten(2).transpose(1, 2)
    read, _ = module.attention(
        module.query(pixels), module.key(tokens), module.value(tokens), key_padding_mask=padding, need_weights=False
    )
    y = module.norm(pixels + module.gamma * module.out(read))
    return y.transpose(1, 2).reshape(feature.shape)


def test_parameter_count():
    module = ReportAttention((96, 192, 384, 768), 768)
    assert sum(p.numel() for p in module.parameters()) == 3_370_212


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_plain_formula(memory_format, norm):
    module = opened(width=32, heads=4, norm=norm)
    feature = torch.randn(3, 24, 5, 7).contiguous(memory_format=memory_format)
    tokens = torch.randn(3, 6, 20)
    padding = torch.arange(6) >= torch.tensor([[6], [1], [4]])
    ours = module(feature, tokens, padding)
    assert torch.allclose(ours, plain(module, feature, tokens, padding), atol=1e-5)
    assert torch.allclose(module(feature, tokens), plain(module, feature, tokens, None), atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last if norm else memory_format)


def test_padding_is_not_read():
    module = opened()
    feature, tokens = torch.randn(2, 24, 4, 4), torch.randn(2, 6, 20)
    padding = torch.tensor([[False] * 6, [False, False, True, True, True, True]])
    changed = tokens.clone()
    changed[1, 2:] = 99.0
    assert torch.equal(module(feature, tokens, padding), module(feature, changed, padding))
    alone = module(feature[1:], tokens[1:, :2])
    assert torch.allclose(module(feature, tokens, padding)[1:], alone, atol=1e-6)


def test_images_without_report_equal_a_closed_gate_and_stay_finite():
    module = opened()
    feature, tokens = torch.randn(2, 24, 4, 4, requires_grad=True), torch.randn(2, 3, 20)
    padding = torch.tensor([[False] * 3, [True] * 3])
    out = module(feature, tokens, padding)
    normed = F.layer_norm(feature.movedim(1, -1), (24,)).movedim(-1, 1)
    assert torch.allclose(out[1], normed[1], atol=1e-6)
    assert torch.allclose(module(feature), normed, atol=1e-6)
    assert (out[0] - normed[0]).abs().max() > 1e-3
    out.square().sum().backward()
    assert feature.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_without_its_norm_a_closed_gate_leaves_the_features_as_they_were():
    module = ReportAttention((8, 16), 20, norm=False)
    features = [torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)]
    assert all(torch.equal(a, b) for a, b in zip(module(features, torch.randn(2, 4, 20)), features, strict=True))


def test_text_does_not_matter_at_the_start_but_its_gate_learns():
    torch.manual_seed(0)
    module = ReportAttention((8, 16), 20)
    features = [torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)]
    with_text, without = module(features, torch.randn(2, 4, 20)), module(features)
    assert all(torch.equal(a, b) for a, b in zip(with_text, without, strict=True))
    sum((y * torch.randn_like(y)).sum() for y in with_text).backward()
    assert all(scale.gamma.grad.abs() > 0 for scale in module.scales)


def test_mixed_precision():
    module = opened()
    feature, tokens = torch.randn(2, 24, 4, 4), torch.randn(2, 6, 20)
    padding = torch.tensor([[False] * 6, [True] * 6])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(feature.bfloat16(), tokens, padding)
    assert rough.isfinite().all()
    assert torch.allclose(rough.float(), module(feature, tokens, padding), atol=0.08)
