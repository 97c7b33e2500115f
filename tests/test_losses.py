import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cers.losses import contrastive_alignment, dice_ce, sharpen, sharpened_consistency


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks_like(logits: torch.Tensor, seed: int = 9) -> torch.Tensor:
    return (rand(*logits.shape, seed=seed) > 0.5).float()


def plain_dice_ce(logits: torch.Tensor, masks: torch.Tensor) -> float:
    """Eq. 1, image by image."""
    total = 0.0
    for z, y in zip(logits, masks, strict=True):
        p = z.sigmoid()
        total += float(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
    p = logits.sigmoid()
    entropy = -(masks * p.log() + (1 - masks) * (1 - p).log())
    return total / len(logits) + float(entropy.mean())


@settings(max_examples=25)
@given(seed=st.integers(0, 999), batch=st.integers(1, 4))
def test_dice_ce_is_its_formula(seed, batch):
    logits = rand(batch, 1, 6, 5, seed=seed)
    masks = masks_like(logits, seed + 1)
    assert float(dice_ce(logits, masks)) == pytest.approx(plain_dice_ce(logits, masks), rel=1e-5)


def test_dice_is_the_mean_of_images_and_not_that_of_the_batch():
    """A large and a small lesion count alike: two images in one batch cost the mean of what each costs alone."""
    logits = rand(2, 1, 16, 16)
    masks = torch.zeros_like(logits)
    masks[0, :, :12], masks[1, :, :1, :2] = 1, 1
    alone = (dice_ce(logits[:1], masks[:1]) + dice_ce(logits[1:], masks[1:])) / 2
    assert torch.allclose(dice_ce(logits, masks), alone)


def test_dice_ce_vanishes_as_logits_match_the_mask():
    masks = masks_like(torch.zeros(2, 1, 8, 8))
    costs = [float(dice_ce((2 * masks - 1) * sure, masks)) for sure in (1.0, 10.0, 100.0)]
    assert costs[0] > costs[1] > costs[2]
    assert costs[2] == pytest.approx(0, abs=1e-6)
    assert float(dice_ce((1 - 2 * masks) * 100, masks)) > 100


def test_an_empty_mask_pulls_every_pixel_down_and_empty_on_empty_is_free():
    logits = rand(1, 1, 32, 32).requires_grad_()
    empty = torch.zeros_like(logits)
    dice = dice_ce(logits, empty) - F.binary_cross_entropy_with_logits(logits, empty)
    (gradient,) = torch.autograd.grad(dice, logits)
    assert (gradient > 0).all()
    assert gradient.sum() > 1e-4  # a smoothing of 1e-7 would leave 1e-10
    assert float(dice_ce(torch.full_like(logits, -50.0), empty).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_cost_what_their_float_values_do(dtype):
    logits = (rand(2, 1, 64, 64) * 30).to(dtype)
    masks = masks_like(logits.float())
    cost = dice_ce(logits, masks)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, dice_ce(logits.float(), masks))


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(rand(*shape, seed=seed), dim=-1)


def test_alignment_is_the_symmetric_cross_entropy():
    image, cot, scale = unit(4, 8, seed=1), unit(4, 8, seed=2), torch.tensor(1.3)
    similarity = math.exp(1.3) * image @ cot.T
    expected = 0.0
    for i in range(4):
        expected -= float(similarity[i, i] - similarity[i].logsumexp(0))
        expected -= float(similarity[i, i] - similarity[:, i].logsumexp(0))
    assert float(contrastive_alignment(image, cot, scale)) == pytest.approx(expected / 8, rel=1e-5)


def test_alignment_is_lowest_for_true_pairs_and_does_not_see_the_order():
    image, scale = unit(5, 16, seed=1), torch.tensor(2.659)
    cot = F.normalize(image + 0.1 * rand(5, 16, seed=3), dim=-1)
    order = torch.tensor([3, 0, 4, 1, 2])
    true = contrastive_alignment(image, cot, scale)
    assert true < contrastive_alignment(image, cot[order], scale)
    assert torch.allclose(true, contrastive_alignment(image[order], cot[order], scale))
    assert torch.allclose(true, contrastive_alignment(cot, image, scale))


def test_the_scale_is_held_at_100():
    image, cot = unit(4, 8, seed=1), unit(4, 8, seed=2)
    at_100 = contrastive_alignment(image, cot, torch.tensor(math.log(100)))
    assert torch.allclose(contrastive_alignment(image, cot, torch.tensor(50.0)), at_100)
    assert not torch.allclose(contrastive_alignment(image, cot, torch.tensor(math.log(50))), at_100)


def test_cases_without_rationale_are_left_out():
    image, cot, scale = unit(5, 8, seed=1), unit(5, 8, seed=2), torch.tensor(2.0)
    known = torch.tensor([True, False, True, True, False])
    expected = contrastive_alignment(image[known], cot[known], scale)
    assert torch.equal(contrastive_alignment(image, cot, scale, known), expected)
    assert not torch.allclose(contrastive_alignment(image, cot, scale), expected)


@pytest.mark.parametrize("known", [[True, False, False], [False, False, False]])
def test_nothing_to_tell_apart_costs_nothing_and_still_has_a_gradient(known):
    image, cot = unit(3, 8, seed=1).requires_grad_(), unit(3, 8, seed=2).requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    loss = contrastive_alignment(image, cot, scale, torch.tensor(known))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(t.grad is not None and not t.grad.any() for t in (image, cot, scale))


def test_alignment_is_computed_in_full_precision_under_autocast():
    image, cot, scale = unit(4, 8, seed=1), unit(4, 8, seed=2), torch.tensor(4.0)
    exact = contrastive_alignment(image, cot, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_alignment(image, cot, scale), exact)


@settings(max_examples=50)
@given(p=st.floats(1e-3, 1 - 1e-3), temperature=st.floats(0.1, 1.0))
def test_sharpen_is_its_formula(p, temperature):
    lesion, background = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    found = float(sharpen(torch.tensor(p, dtype=torch.float64), temperature))
    assert found == pytest.approx(lesion / (lesion + background), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", [1e-4, 0.005, 0.1, 1.0, 3.0])
def test_sharpening_has_three_fixed_points_at_any_temperature(temperature):
    points = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(sharpen(points, temperature), points)


def test_sharpening_pushes_away_from_one_half_and_keeps_the_order():
    p = torch.linspace(0.01, 0.99, 99)
    q = sharpen(p, 0.5)
    assert ((q - p) * (p - 0.5) >= 0).all()
    assert (q.diff() > 0).all()
    assert torch.allclose(sharpen(p, 1.0), p)
    assert torch.equal(sharpen(p, 0.01) > 0.5, p > 0.5)


def test_consistency_is_eq_6():
    z, w = rand(2, 1, 4, 4, seed=1), rand(2, 1, 4, 4, seed=2)
    p, q = z.sigmoid(), w.sigmoid()
    expected = ((p - sharpen(q, 0.1)) ** 2).mean() + ((q - sharpen(p, 0.1)) ** 2).mean()
    assert torch.allclose(sharpened_consistency(z, w), expected)
    assert torch.allclose(sharpened_consistency(z, w), sharpened_consistency(w, z))


def test_each_branch_learns_from_the_other_and_not_from_its_own_target():
    z, w = rand(2, 1, 4, 4, seed=1).requires_grad_(), rand(2, 1, 4, 4, seed=2).requires_grad_()
    found = torch.autograd.grad(sharpened_consistency(z, w), (z, w))
    for own, other, gradient in ((z, w, found[0]), (w, z, found[1])):
        target = sharpen(other.detach().sigmoid(), 0.1)
        (expected,) = torch.autograd.grad(((own.sigmoid() - target) ** 2).mean(), own)
        assert torch.allclose(gradient, expected)
        assert gradient.any()


def test_sure_branches_that_agree_cost_nothing():
    sure = (2 * masks_like(torch.zeros(2, 1, 8, 8)) - 1) * 200
    assert float(sharpened_consistency(sure, sure)) == 0
    assert float(sharpened_consistency(sure, -sure)) == 2


def test_consistency_depends_on_neither_batch_nor_resolution():
    z, w = rand(4, 1, 8, 8, seed=1), rand(4, 1, 8, 8, seed=2)
    loss = sharpened_consistency(z, w)
    assert torch.allclose(loss, sharpened_consistency(z.repeat(2, 1, 1, 1), w.repeat(2, 1, 1, 1)))
    finer = [t.repeat_interleave(2, 2).repeat_interleave(2, 3) for t in (z, w)]
    assert torch.allclose(loss, sharpened_consistency(*finer))
