"""Coarse pointing carried to the edges of an image."""

import pytest
import torch
import torch.nn.functional as F

from cers.methods.outline import contradicted, outline

SIZE = 64


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def disc(radius: float) -> torch.Tensor:
    """(1,1,SIZE,SIZE): 1 within `radius` of a centre a little beside the middle."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return ((y - 28) ** 2 + (x - 36) ** 2 <= radius**2).float()[None, None]


def scan(lesion: torch.Tensor) -> torch.Tensor:
    return (lesion + 0.05 * torch.randn(1, 1, SIZE, SIZE)).expand(1, 3, -1, -1)


def pointing(lesion: torch.Tensor, stride: int = 8) -> torch.Tensor:
    """Logits from -1 to 3 as a map at `stride` knows them."""
    return F.interpolate(4 * F.avg_pool2d(lesion, stride) - 1, size=(SIZE, SIZE), mode="bilinear")


def dice(found: torch.Tensor, lesion: torch.Tensor) -> float:
    return float(2 * (found * lesion).sum() / (found.sum() + lesion.sum()))


@pytest.mark.parametrize("radius", [7, 11, 15])
def test_the_outline_follows_the_image(radius):
    lesion = disc(radius)
    coarse = pointing(lesion)
    found = outline(scan(lesion), coarse) > 0.5
    assert dice(found, lesion) > 0.95 > dice(coarse > 0, lesion)


def test_it_takes_what_was_pointed_at_and_not_its_double():
    lesion = disc(8)
    double = lesion.roll((24, -24), dims=(2, 3))
    found = outline(scan(lesion + double), pointing(lesion)) > 0.5
    assert dice(found, lesion) > 0.9
    assert not (found * double).any()


def test_brightness_and_contrast_do_not_matter():
    lesion = disc(11)
    image, coarse = scan(lesion), pointing(lesion)
    assert torch.allclose(outline(image, coarse), outline(5 - 3 * image, coarse), atol=1e-6)


@pytest.mark.parametrize("logit", [-3.0, -0.2, 2.0], ids=["nothing marked", "nothing sure", "everything marked"])
def test_where_there_is_nothing_to_decide_it_is_what_was_pointed(logit):
    flat = torch.full((1, 1, SIZE, SIZE), logit)
    assert torch.equal(outline(scan(disc(9)), flat), flat.sigmoid())


def test_images_do_not_depend_on_each_other():
    lesions = torch.cat([disc(7), disc(12)])
    images, coarse = torch.cat([scan(lesion[None]) for lesion in lesions]), pointing(lesions)
    assert torch.equal(outline(images, coarse)[1:], outline(images[1:], coarse[1:]))
    assert outline(images[:0], coarse[:0]).shape == (0, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(slice(0, 4), False), (slice(0, 5), False), (slice(2, 6), True), (slice(4, 8), True), (slice(0, 0), True)],
    ids=["the same", "a little more", "half of it", "another place", "nothing"],
)
def test_references_contradict_an_outline_to_which_they_prefer_their_own(rows, expected):
    said, probability = torch.full((1, 1, 8, 8), -0.2), torch.zeros(1, 1, 8, 8)
    said[:, :, :4] = 1.0
    probability[:, :, rows] = 0.9
    assert contradicted(probability, said.sigmoid(), said).tolist() == [expected]
    nothing = torch.full_like(said, -0.2)
    assert contradicted(probability, nothing.sigmoid(), nothing).tolist() == [False]
