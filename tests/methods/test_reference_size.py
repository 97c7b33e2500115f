"""Sizes of references: which of them count, and what growing an answer to a size does and does not do to it."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, label
from torch import Tensor

from cers.methods.reference_size import CORNERS, OVERSHOOT, grown, smallest_size

SIDE = 16
seeds, shares = st.integers(0, 10_000), st.floats(0, 1)


def opinion(seed: int) -> Tensor:
    """Smooth logits (1,1,S,S) of which some, all or none are above zero."""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=(SIDE, SIDE)), 1.5)
    return torch.from_numpy(20 * smooth - random.uniform(-4, 12)).float()[None, None]


def count(logits: Tensor) -> int:
    return int((logits.sigmoid() > 0.5).sum())


@given(seeds, shares)
def test_an_answer_grows_as_far_as_its_size_and_loses_nothing(seed: int, share: float) -> None:
    before = opinion(seed)
    after = grown(before, torch.tensor([share]))
    wanted = np.float32(share) * before.numel()
    assert (after >= before).all()
    if count(before) >= wanted / 2:
        assert torch.equal(after, before)
    else:
        assert 0 < count(after) <= OVERSHOOT * np.ceil(wanted)


@given(seeds, shares)
def test_only_the_region_around_the_peak_grows_and_its_places_stay_in_order(seed: int, share: float) -> None:
    before = opinion(seed)
    lift = (grown(before, torch.tensor([share])) - before)[0, 0].numpy()
    changed = lift > 0
    if changed.any():
        assert label(changed, structure=CORNERS)[1] == 1
        assert changed.flat[int(before.argmax())]
        assert np.allclose(lift[changed], lift[changed][0], atol=1e-5)


def test_an_outline_half_as_large_stands_and_a_smaller_one_grows() -> None:
    before = torch.linspace(9, -9, SIDE**2).view(1, 1, SIDE, SIDE)  # pixel by pixel less likely
    for outlined, grows in ((20, False), (19, True)):
        logits = before - (before.flatten()[outlined - 1] + before.flatten()[outlined]) / 2
        assert count(logits) == outlined
        assert count(grown(logits, torch.tensor([40 / SIDE**2]))) == (40 if grows else outlined)


def test_no_second_region_comes_in_with_the_first() -> None:
    before = torch.full((1, 1, SIDE, SIDE), -9.0)
    before[..., 2:6, 2:6] = torch.linspace(-2, -1, 16).view(4, 4)
    before[..., 10:13, 10:13] = torch.linspace(-2.5, -1.5, 9).view(3, 3)
    after = grown(before, torch.tensor([12 / SIDE**2]))
    assert count(after) == count(after[..., 2:6, 2:6]) == 12
    assert torch.equal(after[..., 8:, 8:], before[..., 8:, 8:])


def test_a_region_stops_before_it_runs_into_something_large() -> None:
    before = torch.full((1, 1, SIDE, SIDE), -9.0)
    before[..., 2, 2:8] = torch.linspace(-1, -2, 6)
    after = grown(before, torch.tensor([10 / SIDE**2]))  # the seventh pixel would bring in the whole image
    assert count(after) == count(after[..., 2, 2:8]) == 6


def test_each_image_has_a_size_of_its_own() -> None:
    before = torch.cat([opinion(3) - 50, opinion(4) - 50, opinion(5)])
    after = grown(before, torch.tensor([0.0, 0.2, 0.0]))
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert count(before[1:2]) == 0
    assert count(after[1:2]) > 0


def test_an_answer_that_prefers_no_place_is_left_as_it_is() -> None:
    before = torch.full((1, 1, SIDE, SIDE), -9.0)
    assert torch.equal(grown(before, torch.tensor([0.1])), before)
    before[0, 0, 0, :4] = -5.0
    assert count(grown(before, torch.tensor([0.1]))) == 4


def test_half_precision_keeps_its_type() -> None:
    before = (opinion(7) - 50).bfloat16()
    after = grown(before, torch.tensor([0.1]))
    assert after.dtype == torch.bfloat16
    assert (after >= before).all()


def test_only_valid_references_with_known_words_have_a_say() -> None:
    area = torch.tensor([0.03, 0.02, 0.01]).expand(4, 3)
    text = torch.tensor([0.9, -0.2, torch.nan]).repeat(4, 1)
    valid = torch.ones(4, 3, dtype=torch.bool)
    valid[1, 1] = False
    valid[2] = False
    text[3] = torch.nan
    assert torch.allclose(smallest_size(area, text, valid), torch.tensor([0.02, 0.03, 0.0, 0.0]))


def test_a_reference_without_lesion_asks_for_none() -> None:
    area, text = torch.tensor([[0.03, 0.0]]), torch.ones(1, 2)
    assert smallest_size(area, text, torch.ones(1, 2, dtype=torch.bool)) == 0
