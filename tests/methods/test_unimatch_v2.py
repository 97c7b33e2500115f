"""UniMatch V2's recipe: who labels, what counts, what is dropped and pasted."""

import pytest
import torch
from tiny_runs import make, make_batch, make_semi, noise
from torch.nn import functional as F

from cers.data.case import SemiBatch
from cers.losses import two_class_dice
from cers.methods.base import Progress
from cers.methods.strong_views import cutmix_boxes, paste
from cers.methods.unimatch_v2 import UniMatchV2

STEP = Progress("train", 0, 10)


def unimatch(**settings) -> UniMatchV2:
    method = make("unimatch-v2", settings)
    assert isinstance(method, UniMatchV2)
    return method


def test_boxes_are_of_the_published_areas_and_shapes():
    torch.manual_seed(0)
    boxes = cutmix_boxes(3000, (64, 96), 0.5)
    filled = boxes.flatten(1).sum(1)
    assert 0.45 < (filled > 0).float().mean() < 0.55
    for box in boxes[filled > 0, 0][:200]:
        rows, columns = torch.nonzero(box, as_tuple=True)
        h, w = int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)
        assert h * w == box.sum()
        assert 0.01 < h * w / (64 * 96) <= 0.4
        assert 0.2 < h / w < 4.5
    covered = boxes.any(dim=0)[0]
    assert covered.float().mean() > 0.98
    assert all(edge.any() for edge in (covered[0], covered[-1], covered[:, 0], covered[:, -1]))
    assert cutmix_boxes(8, (64, 64), 0.0).sum() == 0


def test_pasting_takes_the_box_from_the_batch_in_reverse():
    x, boxes = noise("x", 3, 2, 8, 8), torch.zeros(3, 1, 8, 8)
    boxes[0, :, 2:5, 2:5] = 1
    mixed = paste(x, boxes)
    assert torch.equal(mixed[0, :, 2:5, 2:5], x[2, :, 2:5, 2:5])
    assert torch.equal(mixed[1:], x[1:])
    assert (mixed[0] != x[0]).any(dim=0).sum() == 9


def test_dropped_channels_of_the_two_views_complete_each_other():
    method = unimatch()
    torch.manual_seed(0)
    kept = method._drop_channels(torch.ones(8, 50, 2, 2))
    first, second = kept[:4, :, 0, 0], kept[4:, :, 0, 0]
    assert (first + second == 2).all()
    whole = (first == 1).all(dim=1)
    assert whole.sum() == 2
    assert set(first[~whole].unique().tolist()) == {0.0, 2.0}
    assert unimatch(kept=1.0)._drop_channels(torch.ones(2, 5, 1, 1)).unique().tolist() == [1.0]
    (alone,) = unimatch(kept=0.5)._drop_channels(torch.ones(2, 5, 1, 1))[:1]
    assert alone.shape == (5, 1, 1)


@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_the_loss_is_its_formula(dice):
    method = unimatch(cutmix=0.0, kept=1.0, confidence=0.6, lesson_dice=dice).eval()
    with torch.no_grad():
        method.teacher.network.decoder.head.logit.bias.fill_(0.3)
    batch = make_semi(strong_views=2)
    (result,) = method.steps(batch, STEP)
    (alone,) = method.steps(SemiBatch(batch.labelled), STEP)
    p = method.teacher(batch.unlabelled.images).sigmoid()
    sure = ((p >= 0.6) | (p <= 0.4)).float()
    assert 0 < sure.mean() < 1
    label = (p > 0.5).float()
    losses = [
        (sure * F.binary_cross_entropy_with_logits(logits, label, reduction="none")).mean()
        + dice * two_class_dice(logits, label)
        for logits in map(method.student, batch.unlabelled.strong.unbind(1))
    ]
    expected = (alone.loss + sum(losses) / 2) / 2
    assert float(result.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(result.logs["sure"]) == pytest.approx(float(sure.mean()))


def test_labels_and_sureness_move_with_the_boxes():
    method = unimatch(cutmix=1.0).train()
    batch = make_batch(("u0", "u1"), masked=False, strong_views=2)
    lesson = method._lesson(batch)
    views, labels, sure = (x.chunk(2) for x in (lesson.images, lesson.label, lesson.sure))
    p = method.teacher(batch.images).sigmoid()
    plain = {"label": (p > 0.5).float(), "sure": (torch.maximum(p, 1 - p) >= 0.95).float()}
    for i, view in enumerate(views):
        strong = batch.strong[:, i]
        pasted = (view == strong.flip(0)).all(dim=1, keepdim=True) & (view != strong).any(dim=1, keepdim=True)
        assert pasted.any()
        assert torch.equal(labels[i], torch.where(pasted, plain["label"].flip(0), plain["label"]))
        assert torch.equal(sure[i], torch.where(pasted, plain["sure"].flip(0), plain["sure"]))
