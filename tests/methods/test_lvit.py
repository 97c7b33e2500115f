"""LViT by its specification (methods.md, 8)."""

from dataclasses import replace

import pytest
import torch
from tiny_runs import LABELLED, REPORT, UNLABELLED, begin, make, make_batch, make_semi, noise
from torch import Tensor

from cers.data.case import SemiBatch
from cers.losses import dice_ce
from cers.methods.base import Progress
from cers.methods.lvit import LViT, into_view, iterate, language_vision
from cers.nets.lvit import PLAM, LViTNet

SEMI = Progress("semi", 3, 10)
FLIP = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
SHIFT = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])  # a quarter of the width to the right


def lvit(settings=None, **setup) -> LViT:
    method = make("lvit", settings, **setup)
    assert isinstance(method, LViT)
    return method


@pytest.fixture
def started() -> LViT:
    method = lvit()
    begin(method, "semi", make_semi())
    return method


def test_pseudo_labels_start_from_the_prototype_and_move_by_their_share(started):
    batch = make_semi()
    clean = started.eval().predict(batch.unlabelled).probability[:, 0]
    assert torch.allclose(started.pseudo_labels.float(), clean, atol=1e-3)
    started.train()
    before = started.pseudo_labels.float()
    torch.manual_seed(0)
    seen = started._logits(batch.joined())[4:, 0].detach().sigmoid()
    list(started.steps(batch, SEMI))
    assert torch.equal(started.pseudo_labels.float(), before)  # until the step is taken
    started.after_step()
    assert torch.allclose(started.pseudo_labels.float(), 0.99 * before + 0.01 * seen, atol=1e-3)
    assert started.pseudo_labels.min() >= 0
    assert started.pseudo_labels.max() <= 1


def test_only_unlabelled_images_have_pseudo_labels(started):
    assert set(started._rows) == set(UNLABELLED)
    assert not set(started._rows) & set(LABELLED)
    assert len(started.pseudo_labels) == len(UNLABELLED)
    assert len(lvit(labelled=("l0",)).masks) == 1


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_iteration_is_exact_where_the_view_shows_the_image(beta):
    labels, p = noise("P", 1, 1, 8, 8).sigmoid(), noise("p", 1, 1, 8, 8).sigmoid()
    assert torch.allclose(iterate(labels, p, None, beta), beta * labels + (1 - beta) * p, atol=1e-6)
    assert torch.allclose(iterate(labels, p, FLIP, beta), beta * labels + (1 - beta) * p.flip(3), atol=1e-6)
    moved = iterate(labels, p, SHIFT, beta)  # the view lost the right quarter
    assert torch.allclose(moved[..., :6], (beta * labels + (1 - beta) * p.roll(-2, 3))[..., :6], atol=1e-6)
    assert torch.equal(moved[..., 6:], labels[..., 6:])


def test_labels_follow_their_image_into_the_view():
    labels = noise("P", 1, 1, 8, 8).sigmoid()
    assert torch.allclose(into_view(labels, None, (8, 8)), labels, atol=1e-6)
    assert torch.allclose(into_view(labels, FLIP, (8, 8)), labels.flip(3), atol=1e-6)
    shifted = into_view(labels, SHIFT, (8, 8))
    assert torch.allclose(shifted[..., 2:], labels[..., :6], atol=1e-6)
    assert shifted[..., :2].abs().max() < 1e-6
    assert into_view(labels, FLIP, (5, 9)).shape == (1, 1, 5, 9)


def test_a_mirrored_view_teaches_and_is_taught_the_mirrored_pseudo_label():
    """By a network that judges each pixel alone: it says the same of a pixel in any view, so P stays as it started."""
    method, batch = lvit({"momentum": 0.5}), make_semi()
    method.network.forward = lambda images, *_: images[:, :1]
    begin(method, "semi", batch)
    before = method.pseudo_labels.clone()
    view = replace(batch.unlabelled, images=batch.unlabelled.images.flip(3), geometry=FLIP.repeat(4, 1, 1))
    (result,) = method.steps(SemiBatch(batch.labelled, view), SEMI)
    logits = view.images[:, :1]
    assert float(result.logs["pseudo"]) == pytest.approx(float(dice_ce(logits, logits.sigmoid())), rel=1e-3)
    method.after_step()
    assert torch.allclose(method.pseudo_labels, before, atol=1e-3)


def test_language_and_vision_agree_on_what_is_proportional():
    label = (noise("C", 2, 1, 8, 8) > 0).float().requires_grad_()
    assert language_vision(0.3 * label, label).abs().max() < 1e-6
    assert (language_vision(1 - label, label) == 1).all()
    p = noise("p", 2, 1, 8, 8).sigmoid()
    cosine = (p * label).flatten(1).sum(1) / (p.flatten(1).norm(dim=1) * label.flatten(1).norm(dim=1))
    assert torch.allclose(language_vision(p, label), 1 - cosine, atol=1e-6)


def told_like(batch: SemiBatch, rows: list[int], known: list[bool]) -> SemiBatch:
    """Unlabelled images whose reports are those of labelled `rows`, three times as long."""
    report = batch.labelled.report[rows] * 3
    return SemiBatch(batch.labelled, replace(batch.unlabelled, report=report, report_known=torch.tensor(known)))


def test_the_contrastive_label_is_that_of_the_most_similar_report():
    batch, method = make_semi(), lvit()
    begin(method, "semi", told_like(batch, [2, 1, 0, 2], [True, True, True, False]))
    p = noise("p", 4, 1, 32, 32).sigmoid().requires_grad_()
    masks = batch.labelled.required_masks[[2, 1, 0]]
    loss = method._language_vision_loss(batch.unlabelled, p)
    assert float(loss.detach()) == pytest.approx(float(language_vision(p[:3], masks).mean().detach()), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, p)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [True, True, True, False]


def test_a_mirrored_view_has_the_label_mirrored_once():
    """Its report speaks of the other side, as the labelled image does whose mask lies there; that one is not meant."""
    batch, method = make_semi(), lvit()
    begin(method, "semi", told_like(batch, [2, 1, 0, 2], [True] * 4))
    mirrored = replace(told_like(batch, [0, 0, 2, 0], [True] * 4).unlabelled, geometry=FLIP.repeat(4, 1, 1))
    p = noise("p", 4, 1, 32, 32).sigmoid()
    masks = batch.labelled.required_masks[[2, 1, 0, 2]].flip(3)
    expected = language_vision(p, masks).mean()
    assert float(method._language_vision_loss(mirrored, p)) == pytest.approx(float(expected), rel=1e-4)


def test_without_reports_or_lesions_there_is_no_language_loss(started):
    batch, p = make_semi(), torch.rand(4, 1, 32, 32)
    assert started._language_vision_loss(batch.unlabelled, p) > 0
    started.masks.zero_()
    assert started._language_vision_loss(batch.unlabelled, p) == 0
    for method, given in ((lvit(), make_semi(report=False)), (lvit(report=False), batch)):
        begin(method, "semi", given)
        assert method._language_vision_loss(batch.unlabelled, p) == 0


@pytest.mark.parametrize("tokens", [10, 3])
def test_any_number_of_tokens_reads_like_the_padded_text(tokens):
    net = LViTNet(8, 32, REPORT, tokens).eval()
    image, words = make_batch(("q0",), masked=False).images, noise("words", 1, 16, REPORT)

    def read(tokens: Tensor | None, padding: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return net(image, tokens, padding)

    for count in (0, 1, 2, 8, 9, 12):
        padded = torch.cat([words[:, :count], 9 * torch.ones(1, 16 - count, REPORT)], dim=1)
        padding = torch.arange(16)[None] >= count
        assert torch.allclose(read(words[:, :count]), read(padded, padding), atol=1e-5)
    nothing = read(None)
    assert torch.allclose(nothing, read(words, torch.ones(1, 16, dtype=torch.bool)), atol=1e-6)
    assert torch.allclose(nothing, read(torch.zeros_like(words)), atol=1e-6)
    assert not torch.allclose(nothing, read(words), atol=1e-4)
    longer = words.clone()
    longer[:, tokens:] += 1
    assert torch.equal(read(longer), read(words))


def test_plam_scales_each_pixel_of_the_skip():
    attention = PLAM(4)
    x = noise("x", 2, 4, 8, 8)
    assert torch.equal(attention(x), x * attention.gate(x))
    assert attention.gate(x).shape == (2, 1, 8, 8)
    assert attention(torch.zeros_like(x)).abs().max() == 0


def test_every_parameter_learns_and_the_network_is_as_large_as_published():
    with torch.device("meta"):
        net = LViTNet(64, 224, 768, 10)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(29.9e6, rel=0.002)
    method = lvit().train()
    for result in method.steps(make_semi(), Progress("prototype", 0, 10)):
        result.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_an_image_that_a_batch_holds_twice_is_kept_once(started):
    batch = make_semi(unlabelled=("u0", "u0"))
    list(started.steps(batch, SEMI))
    started.after_step()
    assert started.pseudo_labels.isfinite().all()
