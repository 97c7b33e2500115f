"""BCP by its specification (methods.md, 5)."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_runs import make, make_semi, noise, train

from cers.data.case import SemiBatch
from cers.losses import dice_ce, region_dice_ce
from cers.methods.base import Progress
from cers.methods.bcp import BCP, bidirectional, bidirectional_loss, clean, cycled, halves, rectangle


def bcp(**settings) -> BCP:
    method = make("bcp", settings)
    assert isinstance(method, BCP)
    return method


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (50, 71), (32, 32)])
def test_the_mask_is_one_rectangle_of_zeros_anywhere(size):
    expected = (2 * size[0] // 3) * (2 * size[1] // 3)
    corners = set()
    for seed in range(20):
        torch.manual_seed(seed)
        inside = 1 - rectangle(size, 2 / 3)[0, 0].numpy()
        assert inside.sum() == expected
        assert ndimage.label(inside)[1] == 1
        rows, columns = np.nonzero(inside)
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == expected
        corners.add((rows.min(), columns.min()))
    assert len(corners) > 5


def test_collages_are_one_image_inside_and_the_other_around():
    labelled, unlabelled = noise("l", 4, 3, 30, 30), noise("u", 4, 3, 30, 30)
    outside = rectangle((30, 30), 2 / 3)
    inner, outer = bidirectional(labelled, unlabelled, outside)
    around = (outside > 0).expand(2, 3, 30, 30)
    assert torch.equal(inner[around], unlabelled[:2][around])
    assert torch.equal(inner[~around], labelled[:2][~around])
    assert torch.equal(outer[around], labelled[2:][around])
    assert torch.equal(outer[~around], unlabelled[2:][~around])


def test_the_student_sees_collages_and_the_targets_follow():
    method = bcp().train()
    batch, seen = make_semi(), []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(4)
    outside = rectangle((32, 32), 2 / 3)
    torch.manual_seed(4)
    with torch.no_grad():
        method.teacher.network.decoder.head.logit.weight.mul_(10)  # lesions in places
        method.teacher.network.decoder.head.logit.bias.zero_()
        (result,) = method.steps(batch, Progress("self-training", 0, 10))
        logits = method.student(seen[0]).chunk(2)
        pseudo_labels = (method.teacher(batch.unlabelled.images) > 0).float()
    assert torch.equal(seen[0], torch.cat(bidirectional(batch.labelled.images, batch.unlabelled.images, outside)))
    assert len(seen[0]) == 4
    masks, inside = batch.labelled.required_masks, 1 - outside
    targets = (
        pseudo_labels[:2] * outside + masks[:2] * inside,
        masks[2:] * outside + pseudo_labels[2:] * inside,
    )
    expected = bidirectional_loss(logits, targets, outside, 0.5).loss
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-5)


def test_without_weight_unlabelled_pixels_get_no_gradient():
    logits = tuple(noise(f"z{i}", 2, 1, 30, 30).requires_grad_() for i in (1, 2))
    targets = tuple((noise(f"y{i}", 2, 1, 30, 30) > 0).float() for i in (1, 2))
    outside = rectangle((30, 30), 2 / 3)
    around = (outside > 0).expand(2, 1, 30, 30)
    inner, outer = torch.autograd.grad(bidirectional_loss(logits, targets, outside, 0.0).loss, logits)
    assert inner[around].abs().sum() == 0
    assert outer[~around].abs().sum() == 0
    assert (inner[~around] != 0).all()
    assert (outer[around] != 0).all()


def test_equal_weights_do_not_tell_the_directions_apart():
    logits = tuple(noise(f"z{i}", 2, 1, 30, 30) for i in (1, 2))
    targets = tuple((noise(f"y{i}", 2, 1, 30, 30) > 0).float() for i in (1, 2))
    outside = rectangle((30, 30), 2 / 3)
    one = bidirectional_loss(logits, targets, outside, 1.0).loss
    other = bidirectional_loss(logits[::-1], targets[::-1], 1 - outside, 1.0).loss
    assert float(one) == pytest.approx(float(other), rel=1e-6)
    assert float(bidirectional_loss(logits, targets, outside, 0.5).loss) < float(one)


def test_a_region_does_not_see_the_rest():
    logits, target = noise("z", 2, 1, 30, 30), (noise("y", 2, 1, 30, 30) > 0).float()
    outside = rectangle((30, 30), 2 / 3)
    changed = torch.where(outside > 0, logits, -7 * logits)
    assert float(region_dice_ce(logits, target, outside)) == float(region_dice_ce(changed, target, outside))
    sure = 40 * (2 * target - 1)
    assert float(region_dice_ce(sure, target, outside)) == pytest.approx(0, abs=1e-6)
    assert region_dice_ce(logits, target, torch.zeros_like(outside)) == 0
    assert dice_ce(sure, target) == pytest.approx(0, abs=1e-6)


def test_self_training_starts_with_the_student_as_teacher():
    method = bcp()
    train(method, make_semi(), 8, stages=["pre-training"])
    student = method.student.state_dict()
    method.start_stage("self-training", [])
    assert all(torch.equal(v, student[k]) for k, v in method.teacher.network.state_dict().items())
    with torch.no_grad():
        method.student.decoder.head.logit.bias += 1.0
    before = method.teacher.network.decoder.head.logit.bias.clone()
    method.after_step()
    moved = method.teacher.network.decoder.head.logit.bias - before
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_halves_of_any_batch():
    values = torch.arange(5)
    assert [h.tolist() for h in halves(values)] == [[0, 1, 2], [2, 3, 4]]
    assert [h.tolist() for h in halves(values[:4])] == [[0, 1], [2, 3]]
    assert [h.tolist() for h in halves(values[:1])] == [[0], [0]]
    assert cycled(values[:2], 5).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("labelled", "unlabelled"), [(3, 1), (1, 4), (2, 3)])
def test_unequal_streams_share_a_step(labelled, unlabelled):
    batch = make_semi(tuple(f"l{i}" for i in range(labelled)), tuple(f"u{i}" for i in range(unlabelled)))
    (result,) = bcp().train().steps(batch, Progress("self-training", 0, 10))
    assert result.loss.isfinite()
    (alone,) = bcp().train().steps(SemiBatch(batch.labelled), Progress("self-training", 0, 10))
    assert "segmentation" in alone.logs


def test_pseudo_labels_are_cleaned_if_asked():
    label = np.zeros((12, 12), np.float32)
    label[1:3, 1:3] = label[3, 3] = 1  # five pixels, the last by a corner
    label[6:9, 6:9] = 1
    label[11, 0] = 1
    assert clean(label, largest_only=False, smallest=0).sum() == 15
    assert clean(label, largest_only=False, smallest=2).sum() == 14
    assert clean(label, largest_only=True, smallest=0).sum() == 9
    assert clean(label, largest_only=True, smallest=10).sum() == 0
    assert clean(np.zeros((4, 4), np.float32), largest_only=True, smallest=0).sum() == 0
    for settings in ({"largest_component": True}, {"smallest_piece": 3}):
        labels = bcp(**settings).eval()._pseudo_labels(make_semi().unlabelled.images)
        assert labels.shape == (4, 1, 32, 32)
        assert set(labels.unique().tolist()) <= {0.0, 1.0}
