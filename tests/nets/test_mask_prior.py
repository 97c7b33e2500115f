import pytest
import torch
from torch.nn import functional as F

from cers.losses import pointing_loss
from cers.nets.mask_prior import TEMPERATURE, MaskPrior, mask_prototypes, pointed

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


def tell(prior, features, prototypes, valid):
    return prior(features, prior.margins(features, prototypes, valid))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_prototypes_are_the_mean_directions_under_and_outside_the_mask():
    features = maps()
    found = mask_prototypes(features, half_masks())
    assert found.shape == (2, 3, 5 + 6)
    for width, start, feature in ((5, 0, features[2]), (6, 5, features[3])):
        rows = feature.shape[2] // 2
        for i, part in enumerate((feature[:, :, :rows], feature[:, :, rows:])):
            expected = F.normalize(part.mean(dim=(2, 3)), dim=-1)
            assert torch.allclose(found[:, i, start : start + width], expected, atol=1e-6)


def test_the_look_alike_is_the_place_outside_the_mask_that_most_resembles_the_lesion():
    features = maps()
    features[3][:, :, :2] = torch.randn(6)[:, None, None]  # the lesion is even
    features[3][:, :, 3, 1] = 5 * features[3][:, :, 0, 0] + 0.1 * torch.randn(2, 6)
    look_alike = mask_prototypes(features, half_masks())[:, 2, 5:]
    assert torch.allclose(look_alike, F.normalize(features[3][:, :, 3, 1], dim=-1), atol=1e-3)


def test_a_place_that_the_lesion_touches_is_no_look_alike():
    features, masks = maps(), half_masks()
    masks[:, :, 32:34] = 1  # one row of pixels more: all of the third row of places is touched
    first = mask_prototypes(features, masks)[:, 2, 5:]
    features[3][:, :, 2] = features[3][:, :, 0]
    features[3][:, :, 3] = torch.randn(6)[:, None]
    second = mask_prototypes(features, masks)[:, 2, 5:]
    assert torch.allclose(second, F.normalize(features[3][:, :, 3, 0], dim=-1), atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize(("value", "absent", "present"), [(0.0, [0, 2], [1]), (1.0, [1, 2], [0])])
def test_an_absent_side_has_no_prototype(value, absent, present):
    found = mask_prototypes(maps(), torch.full((2, 1, 64, 64), value))
    assert (found[:, absent] == 0).all()
    assert found[:, present].norm(dim=-1).flatten().tolist() == pytest.approx([2**0.5] * 2)
    assert found.isfinite().all()


def test_starts_silent_and_learns():
    prior, features = MaskPrior(CHANNELS), maps()
    prototypes = mask_prototypes(features, half_masks())[:, None].expand(-1, 3, -1, -1)
    told = tell(prior, features, prototypes, torch.ones(2, 3, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(told, features, strict=True))
    sum(t.square().sum() for t in told).backward()
    assert all(conv.weight.grad.abs().max() > 0 for conv in prior.enter)


def squares():
    """Two images whose middle is lesion, at stride 16 of two even kinds, and their prototypes."""
    features = maps()
    lesion, rest = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    features[3] = rest[None, :, None, None].repeat(2, 1, 4, 4)
    features[3][:, :, 1:3, 1:3] = lesion[:, None, None]
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 16:48, 16:48] = 1
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1:3, 1:3] = True
    return features, masks, inside, float(F.cosine_similarity(lesion, rest, dim=0))


def test_points_at_what_looks_like_the_lesion_of_the_references():
    features, masks, inside, cosine = squares()
    evidence = MaskPrior(CHANNELS).margins(
        features, mask_prototypes(features, masks)[:, None], torch.ones(2, 1, dtype=torch.bool)
    )
    for said in evidence[1].unbind(1):  # of one reference, mean and maximum are the same
        assert said[:, inside] * TEMPERATURE == pytest.approx(1 - cosine, abs=1e-4)
        assert said[:, ~inside] * TEMPERATURE == pytest.approx(cosine - 1, abs=1e-4)


def test_a_look_alike_of_the_references_is_told_from_their_lesion():
    """Background is far from both; what sets the two foci apart is little, and only the look-alike knows it."""
    features, prior = maps(), MaskPrior(CHANNELS)
    even = torch.tensor([0.0, 0, 0, 0, 0, 1])
    lesion, other = torch.tensor([1.0, 0.3, 0, 0, 0, 0]), torch.tensor([1.0, -0.3, 0, 0, 0, 0])
    features[3] = even[None, :, None, None].repeat(2, 1, 4, 4)
    features[3][:, :, 0, 0], features[3][:, :, 3, 3] = lesion, other
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, :16, :16] = 1
    prototypes, valid = mask_prototypes(features, masks)[:, None], torch.ones(2, 1, dtype=torch.bool)
    said = prior.margins(features, prototypes, valid)[1][:, 0]
    assert (said[:, 0, 0] > 0).all()
    assert (said[:, 3, 3] < 0).all()
    prototypes[:, :, 2] = 0
    assert (prior.margins(features, prototypes, valid)[1][:, 0, 3, 3] > 0).all()


def test_references_alone_find_the_lesion():
    features, masks, _, _ = squares()
    features[2] = F.interpolate(features[3], scale_factor=2)[:, :5]
    prototypes, valid = mask_prototypes(features, masks)[:, None], torch.ones(2, 1, dtype=torch.bool)
    logits = pointed(MaskPrior(CHANNELS).margins(features, prototypes, valid), (64, 64))
    assert logits.shape == masks.shape
    found = logits > 0
    assert float(2 * (found * masks).sum() / (found.sum() + masks.sum())) > 0.85


def test_pointing_costs_little_where_it_is_right():
    features, masks, _, _ = squares()
    prototypes, valid = mask_prototypes(features, masks)[:, None], torch.ones(2, 1, dtype=torch.bool)
    right = MaskPrior(CHANNELS).margins(features, prototypes, valid)[1:]
    assert float(pointing_loss(right, masks)) < 0.1 < 1 < float(pointing_loss(right, 1 - masks))


def test_half_precision_does_not_reach_the_cosines():
    features, prior = maps(), MaskPrior(CHANNELS)
    valid = torch.ones(2, 1, dtype=torch.bool)
    plain = prior.margins(features, mask_prototypes(features, half_masks())[:, None], valid)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = prior.margins(features, mask_prototypes(features, half_masks())[:, None], valid)
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_pointing_teaches_the_encoder():
    features, masks, _, _ = squares()
    features = [feature.requires_grad_() for feature in features]
    prototypes, valid = mask_prototypes(maps(seed=4), masks)[:, None], torch.ones(2, 1, dtype=torch.bool)
    pointing_loss(MaskPrior(CHANNELS).margins(features, prototypes, valid), masks).backward()
    assert all(features[scale].grad.abs().max() > 0 for scale in (2, 3))


def test_the_order_of_references_and_those_that_are_absent_do_not_matter():
    prior, features = trained(), maps()
    prototypes = torch.stack([mask_prototypes(maps(seed=s), half_masks()) for s in (1, 2, 3)], dim=1)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    told = tell(prior, features, prototypes, valid)
    order = torch.tensor([2, 0, 1])
    for a, b in zip(told, tell(prior, features, prototypes[:, order], valid[:, order]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    other = prototypes.clone()
    other[0, 2] = 9.0
    for a, b in zip(told, tell(prior, features, other, valid), strict=True):
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
    told = tell(prior, features, prototypes, valid)
    for place, (conv, feature) in enumerate(zip(prior.enter, features[2:4], strict=True), start=2):
        assert torch.allclose(told[place], feature + conv.bias[:, None, None], atol=1e-6)
