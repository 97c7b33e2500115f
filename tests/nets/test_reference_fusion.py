import pytest
import torch
from torch.nn import functional as F

from cers.nets.reference_fusion import ReferenceFusion


def make(channels=32) -> ReferenceFusion:
    """A fusion after some training: at its start it reads nothing."""
    torch.manual_seed(0)
    fusion = ReferenceFusion(channels).eval()
    for p in fusion.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return fusion


def inputs(k=3, tokens=4, channels=32):
    torch.manual_seed(1)
    return torch.randn(2, channels, 3, 5), torch.randn(2, k, tokens, channels)


def test_parameter_count():
    assert sum(p.numel() for p in ReferenceFusion(768).parameters()) == 4_136_448


def test_starts_as_the_identity_and_learns_to_read():
    fusion = ReferenceFusion(32)
    feature, references = inputs()
    valid = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(fusion(feature, references, valid).map, feature)
    assert torch.equal(fusion.alone(feature), feature)
    fusion(feature, references, valid).map.square().sum().backward()
    assert fusion.attention.out_proj.weight.grad.abs().max() > 0


def test_equals_the_formula():
    fusion = make()
    feature, references = inputs()
    pixels = feature.flatten(2).transpose(1, 2)
    keys = fusion.reference_norm(references.reshape(2, 12, 32))
    read, _ = fusion.attention(fusion.query_norm(pixels), keys, keys)
    gated = pixels + torch.sigmoid(fusion.gate(torch.cat([pixels, read], -1))) * read
    expected = F.conv2d(
        gated.transpose(1, 2).reshape(feature.shape), fusion.out.weight[..., None, None], fusion.out.bias
    )
    fused, attention = fusion(feature, references, torch.ones(2, 3, dtype=torch.bool))
    assert attention is None
    assert torch.allclose(fused, expected, atol=1e-5)


@pytest.mark.parametrize("need_attention", [True, False])
def test_order_of_references_does_not_matter(need_attention):
    fusion = make()
    feature, references = inputs(k=5)
    valid = torch.tensor([[True] * 5, [True, False, True, True, False]])
    order = torch.tensor([3, 0, 4, 1, 2])
    fused, shares = fusion(feature, references, valid, need_attention)
    permuted, permuted_shares = fusion(feature, references[:, order], valid[:, order], need_attention)
    assert torch.allclose(fused, permuted, atol=1e-6, rtol=0)
    if need_attention:
        assert torch.allclose(shares[:, order], permuted_shares, atol=1e-6, rtol=0)


def test_shares_are_how_much_each_reference_was_read():
    fusion = make()
    feature, references = inputs()
    valid = torch.tensor([[True, True, True], [True, False, True]])
    fused, shares = fusion(feature, references, valid, need_attention=True)
    assert shares.shape == (2, 3)
    assert torch.allclose(shares.sum(1), torch.ones(2), atol=1e-6)
    assert shares[1, 1] == 0
    assert torch.allclose(fused, fusion(feature, references, valid).map, atol=1e-5)
    weights = fusion.attention(
        fusion.query_norm(feature.flatten(2).mT), *[fusion.reference_norm(references.flatten(1, 2))] * 2
    )[1]
    assert torch.allclose(shares[0, 1], weights[0, :, 4:8].sum(1).mean(), atol=1e-6)


def test_invalid_references_are_not_read():
    fusion = make()
    feature, references = inputs()
    valid = torch.tensor([[True, False, False], [True, True, False]])
    changed = torch.where(valid[..., None, None], references, torch.full_like(references, 50.0))
    assert torch.equal(fusion(feature, references, valid).map, fusion(feature, changed, valid).map)


def test_without_any_reference_only_f4_passes():
    fusion = make()
    feature, references = inputs()
    feature.requires_grad_()
    valid = torch.tensor([[False] * 3, [True] * 3])
    fused, shares = fusion(feature, references, valid, need_attention=True)
    expected = F.conv2d(feature, fusion.out.weight[..., None, None], fusion.out.bias)
    assert torch.allclose(fused[0], expected[0], atol=1e-6)
    assert torch.allclose(fused[0], fusion.alone(feature)[0], atol=1e-6)
    assert shares[0].tolist() == [0, 0, 0]
    fused.square().sum().backward()
    assert feature.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


def test_half_precision_tokens_and_mixed_precision():
    fusion = make()
    feature, references = inputs()
    valid = torch.ones(2, 3, dtype=torch.bool)
    exact = fusion(feature, references, valid).map
    assert torch.allclose(fusion(feature, references.half(), valid).map, exact, atol=5e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = fusion(feature.bfloat16(), references.half(), valid, need_attention=True)
    assert torch.allclose(rough.map.float(), exact, atol=0.05)
    assert torch.allclose(rough.attention.float().sum(1), torch.ones(2), atol=0.02)
