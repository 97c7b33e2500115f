"""UCMT by its specification (methods.md, 4)."""

from dataclasses import replace

import pytest
import torch
from tiny_runs import make, make_semi, noise
from torch import Tensor

from cers.data.case import Batch, SemiBatch
from cers.losses import binary_entropy, dice_ce, two_class_dice
from cers.methods.base import Progress
from cers.methods.ucmt import GRID, UCMT, _result, move_patches, umix_source


def ucmt(**settings) -> UCMT:
    method = make("ucmt", settings)
    assert isinstance(method, UCMT)
    return method


@pytest.mark.parametrize("share", [0.99, 0.5])
def test_the_first_update_makes_the_teacher_the_students_mean(share):
    method = ucmt(share=share)
    method.after_step()
    teacher, first, second = (dict(m.named_parameters()) for m in (method.teacher.network, method.first, method.second))
    for name, value in teacher.items():
        assert torch.allclose(value, share * first[name] + (1 - share) * second[name], atol=1e-7)
    assert not torch.equal(first["decoder.blocks.0.conv1.weight"], second["decoder.blocks.0.conv1.weight"])


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_umix_moves_at_most_2k_patches_and_labels_with_them(size):
    first, second = (noise(f"doubt {i}", 3, 1, *size).sigmoid() for i in (1, 2))
    source = umix_source(first, second, 2)
    moved = source != torch.arange(GRID**2)
    assert (moved.sum(1) <= 4).all()
    assert moved.any()
    images = noise("umix", 3, 3, *size)
    both = move_patches(torch.cat([images, images[:, :1] * 7], dim=1), source)
    assert torch.equal(both[:, 3:], both[:, :1] * 7)  # image and label come from the same place
    changed = (both[:, :3] != images).any(dim=1)
    h, w = size[0] // GRID, size[1] // GRID
    assert (changed.flatten(1).sum(1) <= 4 * h * w).all()
    assert not changed[:, GRID * h :].any()
    assert not changed[:, :, GRID * w :].any()


def test_umix_puts_the_surest_over_the_least_sure_both_ways():
    side = 2 * GRID
    first, second = torch.full((1, 1, side, side), 0.5), torch.full((1, 1, side, side), 0.5)
    first[..., 0:2, 0:2], first[..., 4:6, 4:6] = 0.6, 0.1  # patch 0 is the least sure, patch 34 the surest
    second[..., 0:2, 2:4], second[..., 6:8, 6:8] = 0.6, 0.1  # patches 1 and 51
    source = umix_source(first, second, 1)[0]
    assert source[0] == 3 * GRID + 3
    assert source[1] == 2 * GRID + 2
    assert (source != torch.arange(GRID**2)).sum() == 2
    maps = torch.arange(side * side).reshape(1, 1, side, side)
    assert torch.equal(move_patches(maps, source[None])[..., 0:2, 0:2], maps[..., 6:8, 6:8])


def test_no_patch_moves_for_k_of_zero():
    doubt = noise("doubt", 2, 1, 32, 32)
    images = noise("image", 2, 3, 32, 32)
    assert torch.equal(move_patches(images, umix_source(doubt, doubt, 0)), images)


def test_students_learn_from_each_other_through_their_own_logits_only():
    first, second = (noise(f"z{i}", 4, 1, 8, 8).requires_grad_() for i in (1, 2))
    labels = (noise("y", 4, 1, 8, 8) > 0).float()
    with_second = torch.autograd.grad(_result(first, second, labels, 2, 1.0).loss, first)[0]
    with_signs = torch.autograd.grad(_result(first, second.detach().sign(), labels, 2, 1.0).loss, first)[0]
    assert torch.equal(with_second, with_signs)
    assert with_second[2:].abs().sum() > 0
    silent = torch.autograd.grad(_result(first, second, labels, 2, 0.0).loss, first)[0]
    assert silent[2:].abs().sum() == 0


def test_two_class_dice_is_the_mean_of_lesion_and_background():
    logits, masks = noise("z", 2, 1, 4, 4), (noise("m", 2, 1, 4, 4) > 0).float()
    p = torch.stack([1 - logits.sigmoid(), logits.sigmoid()])
    y = torch.stack([1 - masks, masks])
    dice = (2 * (p * y).flatten(2).sum(2) + 1) / (p.flatten(2).sum(2) + y.flatten(2).sum(2) + 1)
    assert float(two_class_dice(logits, masks)) == pytest.approx(float(1 - dice.mean()), rel=1e-5)


def test_the_weight_reaches_its_largest_after_a_fifth():
    method = ucmt().train()
    batch = make_semi(strong_views=2)
    for step, weight in ((20, 0.1), (60, 0.1), (0, 0.1 * 0.006738)):
        torch.manual_seed(0)
        result = next(method.steps(batch, Progress("train", step, 100)))
        extra = result.logs["taught"] + result.logs["cross"]
        unlabelled = result.loss.detach() - result.logs["segmentation"]
        assert float(unlabelled) == pytest.approx(float(weight * extra), abs=1e-5)


def with_views_apart(batch: Batch) -> Batch:
    """Both strong views differ in contrast, from each other and from the plain one."""
    return replace(batch, strong=batch.images[:, None] * torch.tensor([1.5, 0.5]).reshape(2, 1, 1, 1))


def formula(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Both steps' loss at weight 1: four labelled images come first."""
    supervised = dice_ce(first[:4], labels[:4]) + dice_ce(second[:4], labels[:4])
    first, second, labels = first[4:], second[4:], labels[4:]
    taught = two_class_dice(first, labels) + two_class_dice(second, labels)
    cross = two_class_dice(first, (second > 0).float()) + two_class_dice(second, (first > 0).float())
    return supervised + (taught + cross) / 2


@torch.no_grad()
def test_the_second_step_is_the_first_on_the_umix_of_the_first_strong_view():
    """Against the definition: student i sees A_i, and labels move where its doubt, shared with the teacher's, says."""
    method = ucmt(consistency=1.0, patches=30).eval()
    for net, bias in ((method.first, 0.0), (method.second, 0.0), (method.teacher.network, 1.0)):
        net.decoder.head.logit.weight.mul_(10)  # lesions in places
        net.decoder.head.logit.bias.fill_(bias)
    streams = make_semi()
    batch = SemiBatch(with_views_apart(streams.labelled), with_views_apart(streams.unlabelled))
    plain, views = batch.joined().images, batch.joined().strong
    taught = method.teacher(plain).sigmoid()
    labels = torch.cat([batch.labelled.required_masks, (taught[4:] > 0.5).float()])
    first, second = (net(torch.cat([plain[:4], views[4:, i]])) for i, net in enumerate((method.first, method.second)))
    source = umix_source(*(binary_entropy((z.sigmoid() + taught) / 2) for z in (first, second)), 30)
    mixed, moved = move_patches(views[:, 0], source), move_patches(labels, source)
    assert (moved != labels).flatten(1).any(dim=1).all()

    one, two = method.steps(batch, Progress("train", 10, 10))
    assert float(one.loss) == pytest.approx(float(formula(first, second, labels)), rel=1e-5)
    assert float(two.loss) == pytest.approx(float(formula(method.first(mixed), method.second(mixed), moved)), rel=1e-5)
