"""DuCiSC by its specification (methods.md, 6)."""

import pytest
import torch
from tiny_runs import make, make_batch, make_semi, noise, train
from torch import Tensor

from cers.methods.base import Progress
from cers.methods.ducisc import (
    DuCiSC,
    _distance,
    _pseudo,
    certain_pixels,
    mixed_loss,
    next_thresholds,
    prototypes,
)
from cers.nets.side_heads import Scales

SEMI = Progress("semi", 3, 10)


def ducisc(**settings) -> DuCiSC:
    method = make("ducisc", settings)
    assert isinstance(method, DuCiSC)
    return method


@pytest.fixture(scope="module")
def trained() -> DuCiSC:
    """Sure enough to see lesions. Not to be changed."""
    method = ducisc()
    train(method, make_semi(), 20)
    return method.train()


def test_the_loss_says_how_hard_each_part_pulls(trained):
    batch = make_semi()
    (result,) = trained.steps(batch, SEMI)
    assert set(result.logs) == {"supervised", "pseudo", "prototypes", "mixed", "mixed_prototypes"}
    assert all(value > 0 for value in result.logs.values())
    assert float(result.loss.detach()) == pytest.approx(1.6, abs=1e-5)
    (warm,) = trained.steps(batch, Progress("warm-up", 0, 10))
    assert float(warm.loss.detach()) == pytest.approx(1.0, abs=1e-5)


def test_a_part_that_is_zero_adds_nothing():
    method, one = ducisc(), torch.tensor(2.0, requires_grad=True)
    loss = method._balanced({"supervised": one, "pseudo": 0 * one})
    assert float(loss.detach()) == 1.0
    loss.backward()
    assert float(one.grad) == pytest.approx(0.5)


def test_thresholds_follow_the_student_within_bounds():
    thresholds = torch.tensor([[0.5, 0.5], [0.95, 0.6]])
    p = [torch.full((1, 1, 2, 2), 0.9), torch.full((1, 1, 2, 2), 0.2)]
    y = [torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]]), torch.zeros(1, 1, 2, 2)]
    found = next_thresholds(thresholds, p, y, 0.9)
    assert found[0].tolist() == pytest.approx([0.5, 0.9 * 0.5 + 0.1 * 0.9])  # background fell to 0.46: kept at 0.5
    assert found[1].tolist() == pytest.approx([0.9 * 0.95 + 0.1 * 0.8, 0.6])  # no lesion seen: 0.6 stays
    for momentum in (0.0, 0.5, 1.0):
        assert ((q := next_thresholds(thresholds, p, y, momentum)) >= 0.5).all()
        assert (q <= 0.95).all()


def test_thresholds_move_after_the_step_of_the_second_stage_only():
    method = ducisc().train()
    list(method.steps(make_semi(), Progress("warm-up", 0, 10)))
    method.after_step()
    assert (method.thresholds == 0.5).all()
    list(method.steps(make_semi(), SEMI))
    assert (method.thresholds == 0.5).all()
    method.after_step()
    assert (method.thresholds[:, 0] > 0.5).any()
    assert method.thresholds.shape == (4, 2)


def like(trained: DuCiSC, **settings) -> DuCiSC:
    """A copy that may be changed, in eval mode: what it says of an image is the same in any batch."""
    method = ducisc(**settings)
    method.load_state_dict(trained.state_dict())
    return method.eval()


@torch.no_grad()
def test_thresholds_become_the_students_mean_on_what_the_teacher_calls_each_class(trained):
    method, batch = like(trained, momentum=0.0), make_semi()
    student, teacher = (
        [z.sigmoid() for z in net(batch.unlabelled.images).logits] for net in (method.student, method.teacher)
    )
    list(method.steps(batch, SEMI))
    method.after_step()
    means = [[(1 - p)[q <= 0.5].mean(), p[q > 0.5].mean()] for p, q in zip(student, teacher, strict=True)]
    assert torch.allclose(method.thresholds, torch.tensor(means).clamp(0.5, 0.95), atol=1e-5)


@torch.no_grad()
def test_mixed_labels_have_the_share_of_their_images_and_count_where_the_teacher_is_certain(trained):
    method, batch, seen = like(trained), make_semi(), []
    x, u, y = batch.labelled.images, batch.unlabelled.images, batch.labelled.required_masks
    method.teacher.network.decoder.head.logit.weight.neg_()  # labels that are not the student's
    taught = method.teacher(u).logits[-1].sigmoid()
    method.thresholds.fill_(taught.maximum(1 - taught).median())  # half of the pixels
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (result,) = method.steps(batch, SEMI)
    mixed = seen[0][8:]
    share = ((mixed - u).flatten(1).norm(dim=1) / (x - u).flatten(1).norm(dim=1)).reshape(4, 1, 1, 1)
    assert torch.allclose(mixed, share * x + (1 - share) * u, atol=1e-5)
    assert ((share > 0.25) & (share < 0.75)).all()
    soft, certain = share * y + (1 - share) * (taught > 0.5), certain_pixels(taught, method.thresholds[-1])
    expected = mixed_loss(method.student(mixed).logits[-1], soft, certain)
    assert float(result.logs["mixed"]) == pytest.approx(float(expected), rel=1e-4)


def test_certainty_needs_one_class_above_its_threshold():
    p = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    assert certain_pixels(p, torch.tensor([0.8, 0.6])).tolist() == [1, 0, 0, 1, 1]


def test_prototypes_are_means_over_each_class():
    maps = noise("maps", 3, 5, 4, 4)
    lesion = (noise("lesion", 3, 1, 4, 4) > 0).float()
    lesion[2] = 0
    means, found = prototypes(maps, lesion)
    expected = torch.stack([maps[i].flatten(1)[:, lesion[i].flatten() > 0].mean(dim=1) for i in (0, 1)]).mean(dim=0)
    assert torch.allclose(means[1], expected, atol=1e-6)
    assert found.tolist() == [True, True]
    assert prototypes(maps, torch.zeros(3, 1, 4, 4))[1].tolist() == [True, False]


def test_equal_prototypes_are_at_no_distance_wherever_the_pixels_are():
    maps, lesion = noise("maps", 3, 5, 4, 4), (noise("lesion", 3, 1, 4, 4) > 0).float()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].reshape(x.shape)

    mine, moved = prototypes(maps, lesion), prototypes(shuffled(maps), shuffled(lesion))
    assert float(_distance([mine], [mine])) == 0
    assert float(_distance([mine], [moved])) == pytest.approx(0, abs=1e-10)
    assert float(_distance([mine], [prototypes(maps + 1, lesion)])) == pytest.approx(1, rel=1e-5)
    nowhere = prototypes(maps + 1, torch.zeros_like(lesion))
    assert float(_distance([mine], [nowhere])) < float(_distance([mine], [prototypes(maps + 2, lesion)]))


def test_uncertain_pixels_teach_nothing():
    logits = noise("z", 2, 1, 4, 4).requires_grad_()
    scales, labels = Scales([], [logits]), [(noise("y", 2, 1, 4, 4) > 0).float()]
    for loss in (
        _pseudo(scales, labels, [torch.zeros(2, 1, 4, 4)]),
        mixed_loss(logits, labels[0], torch.zeros(2, 1, 4, 4)),
    ):
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.abs().sum() == 0
    half = torch.zeros(2, 1, 4, 4)
    half[0] = 1
    (gradient,) = torch.autograd.grad(_pseudo(scales, labels, [half]), logits)
    assert gradient[1].abs().sum() == 0
    assert gradient[0].abs().sum() > 0


def test_the_mixed_loss_is_the_divergence_from_the_soft_label():
    soft = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones_like(soft)
    p = noise("z", 1, 1, 4, 4).sigmoid()
    kl = soft * (soft / p).log() + (1 - soft) * ((1 - soft) / (1 - p)).log()
    dice = 1 - (2 * (p * soft).sum() + 1) / (p.square().sum() + soft.square().sum() + 1)
    assert float(mixed_loss(p.logit(), soft, everywhere)) == pytest.approx(float(kl.mean() / 2 + dice), rel=1e-4)
    assert float(mixed_loss(soft.logit(), soft, everywhere)) == pytest.approx(0, abs=1e-5)


def test_the_network_is_the_shared_one_with_side_heads():
    method, supervised = ducisc(), make("supervised").state_dict()
    mine = method.student.state_dict()
    assert {k for k in mine if not k.startswith("side_heads.")} == supervised.keys()
    query = make_batch(("q0",), masked=False, size=(64, 64))
    scales = method.student.eval()(query.images)
    assert [z.shape[2] for z in scales.logits] == [4, 8, 16, 64]
    assert [m.shape[1:] for m in scales.maps] == [(64, 4, 4), (32, 8, 8), (16, 16, 16), (8, 32, 32)]


@pytest.mark.parametrize(("labelled", "unlabelled"), [(3, 1), (1, 4)])
def test_unequal_streams_share_a_step(labelled, unlabelled):
    batch = make_semi(tuple(f"l{i}" for i in range(labelled)), tuple(f"u{i}" for i in range(unlabelled)))
    (result,) = ducisc().train().steps(batch, SEMI)
    assert result.loss.isfinite()
