import pytest
import torch
from torch.nn import functional as F

from cers.nets.mask_prior import MaskPrior, mask_prototypes

CHANNELS = (3, 4, 5, 6, 7)  # strides 2 to 32; those at 8 and 16 count


def maps(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, s, s, generator=generator) for c, s in zip(CHANNELS, (32, 16, 8, 4, 2), strict=True)]


def half_masks(batch=2):
    """The upper half of the image is lesion."""
    masks = torch.zeros(batch, 1, 64, 64)
    masks[:, :, :32] = 1
    return masks


def trained() -> MaskPrior:
    prior = MaskPrior(CHANNELS)
    torch.manual_seed(0)
    for p in prior.parameters():
        torch.nn.init.normal_(p)
    return prior


def test_prototypes_are_the_mean_directions_under_and_outside_the_mask():
    features = maps()
    found = mask_prototypes(features, half_masks())
    assert found.shape == (2, 2, 5 + 6)
    for width, start, feature in ((5, 0, features[2]), (6, 5, features[3])):
        rows = feature.shape[2] // 2
        for i, part in enumerate((feature[:, :, :rows], feature[:, :, rows:])):
            expected = F.normalize(part.mean(dim=(2, 3)), dim=-1)
            assert torch.allclose(found[:, i, start : start + width], expected, atol=1e-6)


@pytest.mark.parametrize(("value", "absent", "present"), [(0.0, 0, 1), (1.0, 1, 0)])
def test_an_absent_side_has_no_prototype(value, absent, present):
    found = mask_prototypes(maps(), torch.full((2, 1, 64, 64), value))
    assert (found[:, absent] == 0).all()
    assert found[:, present].norm(dim=-1) == pytest.approx(2**0.5)


def test_starts_silent_and_learns():
    prior, features = MaskPrior(CHANNELS), maps()
    prototypes = mask_prototypes(features, half_masks())[:, None].expand(-1, 3, -1, -1)
    told = prior(features, features, prototypes, torch.ones(2, 3, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(told, features, strict=True))
    sum(t.square().sum() for t in told).backward()
    assert all(conv.weight.grad.abs().max() > 0 for conv in prior.enter)


def test_points_at_what_looks_like_the_lesion_of_the_references():
    """A prior whose convolution hands the mean margin on: highest where the query is the reference's lesion."""
    prior, features = MaskPrior(CHANNELS), maps()
    with torch.no_grad():
        for conv in prior.enter:
            conv.weight[:, 0] = 1.0
    lesion, rest = torch.randn(6), torch.randn(6)
    features[3] = rest[None, :, None, None].repeat(2, 1, 4, 4)
    features[3][:, :, 1:3, 1:3] = lesion[:, None, None]
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 16:48, 16:48] = 1
    prototypes = mask_prototypes(features, masks)[:, None]
    zeros = [torch.zeros_like(f) for f in features]
    told = prior(features, zeros, prototypes, torch.ones(2, 1, dtype=torch.bool))[3][:, 0]
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1:3, 1:3] = True
    cosine = float(F.cosine_similarity(lesion, rest, dim=0))
    assert told[:, inside].detach() == pytest.approx(1 - cosine, abs=1e-4)
    assert told[:, ~inside].detach() == pytest.approx(cosine - 1, abs=1e-4)


def test_the_order_of_references_and_those_that_are_absent_do_not_matter():
    prior, features = trained(), maps()
    prototypes = torch.stack([mask_prototypes(maps(seed=s), half_masks()) for s in (1, 2, 3)], dim=1)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    told = prior(features, features, prototypes, valid)
    order = torch.tensor([2, 0, 1])
    for a, b in zip(told, prior(features, features, prototypes[:, order], valid[:, order]), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    other = prototypes.clone()
    other[0, 2] = 9.0
    for a, b in zip(told, prior(features, features, other, valid), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("why", ["no reference", "no lesion in any"])
def test_nothing_to_say_is_the_same_for_whatever_reason(why):
    prior, features = trained(), maps()
    prototypes = mask_prototypes(maps(seed=1), half_masks())[:, None]
    valid = torch.ones(2, 1, dtype=torch.bool)
    if why == "no reference":
        valid[:] = False
    else:
        prototypes[:, :, 0] = 0
    told = prior(features, features, prototypes, valid)
    for place, (conv, feature) in enumerate(zip(prior.enter, features[2:4], strict=True), start=2):
        assert torch.allclose(told[place], feature + conv.bias[:, None, None], atol=1e-6)
