"""Sizes of references: which of them count, and what raising an answer to a size does and does not do to it."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cers.methods.reference_size import AGREEING, raised, smallest_size

SIDE = 8
shares = st.floats(0, 1)


def logits(seed: int, images: int = 1) -> Tensor:
    return 4 * torch.randn(images, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) - 5


def outlined(values: Tensor) -> Tensor:
    return (values.sigmoid() > 0.5).flatten(1).float().mean(dim=1)


@given(st.integers(0, 10_000), shares)
def test_an_answer_is_raised_to_its_size_and_no_further(seed: int, share: float) -> None:
    before = logits(seed)
    after = raised(before, torch.tensor([share]))
    assert outlined(after) >= share
    if outlined(before) >= share:
        assert torch.equal(after, before)
    else:  # no two pixels are equal, so the last one that is wanted is the last that comes in
        assert outlined(after) < share + 1.5 / SIDE**2


@given(st.integers(0, 10_000), shares)
def test_what_the_answer_thinks_of_places_stays_in_order(seed: int, share: float) -> None:
    before, after = logits(seed).flatten(), raised(logits(seed), torch.tensor([share])).flatten()
    lift = after - before
    assert torch.allclose(lift, lift[0].expand_as(lift), atol=1e-5)
    assert lift[0] >= 0


def test_each_image_has_a_size_of_its_own() -> None:
    before = logits(1, images=3)
    after = raised(before, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(after[0], before[0])
    assert outlined(after).tolist() == [outlined(before)[0].item(), 0.25, 1.0]


def test_an_answer_that_prefers_no_place_is_left_as_it_is() -> None:
    before = torch.full((1, 1, SIDE, SIDE), -9.0)
    assert torch.equal(raised(before, torch.tensor([0.1])), before)
    before[0, 0, 0, :4] = -5.0
    assert outlined(raised(before, torch.tensor([4 / SIDE**2]))) == 4 / SIDE**2
    assert torch.equal(raised(before, torch.tensor([5 / SIDE**2])), before)


def test_only_valid_references_whose_words_agree_have_a_say() -> None:
    area = torch.tensor([[0.03, 0.02, 0.01, 0.005]]).expand(4, 4)
    text = torch.tensor([[0.9, AGREEING, AGREEING - 0.01, torch.nan]]).expand(4, 4)
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[1, 1] = False
    valid[2] = False
    text = text.clone()
    text[3] = torch.nan
    assert torch.allclose(smallest_size(area, text, valid), torch.tensor([0.02, 0.03, 0.0, 0.0]))


def test_a_reference_without_lesion_asks_for_none() -> None:
    area, text = torch.tensor([[0.03, 0.0]]), torch.ones(1, 2)
    assert smallest_size(area, text, torch.ones(1, 2, dtype=torch.bool)) == 0
