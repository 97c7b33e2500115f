"""Mean Teacher and its relatives by their specification (methods.md, 3)."""

import math
from itertools import pairwise

import pytest
import torch
from tiny_runs import make, make_batch, make_semi
from torch.nn import functional as F

from cers.data.case import SemiBatch
from cers.losses import binary_entropy
from cers.methods.base import Progress
from cers.methods.cps import CPS
from cers.methods.mean_teacher import MeanTeacher
from cers.methods.ua_mt import UAMT

HALFWAY = Progress("train", 5, 10)


def mean_teacher(**settings) -> MeanTeacher:
    method = make("mean-teacher", settings)
    assert isinstance(method, MeanTeacher)
    return method


def test_the_student_starts_as_the_supervised_network_of_the_same_seed():
    student = mean_teacher().student.state_dict()
    supervised = make("supervised").state_dict()
    assert student.keys() == supervised.keys()
    assert all(torch.equal(student[k], supervised[k]) for k in student)


def test_a_teacher_that_is_the_student_and_hears_no_noise_asks_for_nothing():
    method = mean_teacher(noise=0.0).eval()
    (result,) = method.steps(make_semi(), HALFWAY)
    assert result.logs["consistency"] == 0
    (noisy,) = mean_teacher(noise=0.1).eval().steps(make_semi(), HALFWAY)
    assert noisy.logs["consistency"] > 0


def test_consistency_comes_from_unlabelled_images_alone(monkeypatch):
    monkeypatch.setattr("cers.methods.mean_teacher.dice_ce", lambda *_: torch.zeros(()))
    method = mean_teacher().eval()  # in training, batch statistics join the images
    batch = make_semi()
    for images in (batch.labelled.images, batch.unlabelled.images):
        images.requires_grad_()
    (result,) = method.steps(batch, HALFWAY)
    result.loss.backward()
    assert (batch.labelled.images.grad == 0).all()
    assert (batch.unlabelled.images.grad != 0).any()


def test_the_weight_is_silent_then_rises_to_its_largest():
    method = mean_teacher()
    weights = [method.weight(Progress("train", step, 300)) for step in range(300)]
    assert weights[:10] == [0.0] * 10
    assert weights[10] == pytest.approx(0.1 * math.exp(-5 * (29 / 30) ** 2))
    assert all(a < b for a, b in pairwise(weights[10:]))
    assert method.weight(Progress("train", 300, 300)) == pytest.approx(0.1)


def test_noise_is_cut_off_at_twice_its_deviation():
    method = mean_teacher(noise=0.3)
    heard = []
    method.teacher.forward = lambda images: heard.append(images) or images[:, :1]
    method._taught(torch.zeros(4, 3, 32, 32))
    assert heard[0].abs().max() == pytest.approx(0.6)
    assert heard[0].std() == pytest.approx(0.3 * 0.96, rel=0.05)


def test_the_output_is_the_declared_one_and_both_are_shown():
    query = make_batch(("q0", "q1"), masked=False)
    for output in ("teacher", "student"):
        method = mean_teacher(output=output)
        torch.nn.init.constant_(method.student.decoder.head.logit.bias, 1.0)
        prediction = method.eval().predict(query)
        assert torch.equal(prediction.probability, prediction.branches[output])
        assert not torch.equal(prediction.branches["teacher"], prediction.branches["student"])


def test_the_programs_teacher_normalises_by_its_batch():
    method = mean_teacher(teacher_mode="train").train()
    assert method.teacher.network.decoder.blocks[0].norm1.training
    assert not method.eval().teacher.network.decoder.blocks[0].norm1.training


def test_uncertain_pixels_ask_for_nothing():
    """Against the definition, pixel by pixel; the passes draw their noise in order."""
    method = make("ua-mt", {"passes": 3})
    assert isinstance(method, UAMT)
    method.eval()
    with torch.no_grad():
        method.teacher.network.decoder.head.logit.weight.mul_(40)  # away from one half, in places
        images = make_batch(("u0", "u1"), masked=False).images
        student = torch.rand(2, 1, 32, 32)
        torch.manual_seed(3)
        found = method._consistency(student, images, HALFWAY)
        torch.manual_seed(3)
        target, *others = (method._taught(images) for _ in range(4))
    h = (0.75 + 0.25 * math.exp(-5 * 0.25)) * math.log(2)
    mean = (others[0] + others[1] + others[2]) / 3
    sure = -(mean * mean.log() + (1 - mean) * (1 - mean).log()) < h
    assert 0 < sure.sum() < sure.numel()
    assert found == pytest.approx(float(((student - target) ** 2)[sure].mean()), rel=1e-5)
    assert method.largest_entropy(Progress("train", 10, 10)) == pytest.approx(math.log(2))
    assert binary_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, math.log(2), 0])


def test_without_a_sure_pixel_the_consistency_is_zero():
    method = make("ua-mt")
    method._taught = lambda _: torch.full((2, 1, 4, 4), 0.5)
    assert method._consistency(torch.rand(2, 1, 4, 4), torch.zeros(2, 3, 4, 4), HALFWAY) == 0


def test_cross_supervision_teaches_each_network_by_the_other_ones_hard_labels():
    method = make("cps", {"consistency": 1.0}).eval()
    assert isinstance(method, CPS)
    with torch.no_grad():
        for net in (method.first, method.second):
            net.decoder.head.logit.bias.fill_(0.0)
            net.decoder.head.logit.weight.mul_(10)
    batch, end = make_semi(), Progress("train", 10, 10)
    (result,) = method.steps(batch, end)
    (alone,) = method.steps(SemiBatch(batch.labelled), end)
    z1, z2 = method.first(batch.unlabelled.images), method.second(batch.unlabelled.images)
    assert 0 < (z1 > 0).sum() < z1.numel()
    expected = F.binary_cross_entropy(z1.sigmoid(), (z2 > 0).float()) + F.binary_cross_entropy(
        z2.sigmoid(), (z1 > 0).float()
    )
    assert float((result.loss - alone.loss).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert not torch.equal(method.first.decoder.blocks[0].conv1.weight, method.second.decoder.blocks[0].conv1.weight)
