import time

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cers.data.augment import augment, view_geometry

SIDE = 64


def picture(colour: bool = False) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    grey = (90 + 60 * np.sin(x / 7) * np.cos(y / 9)).astype(np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1) if colour else grey


def blob() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return (np.hypot(x - 40, (y - 28) * 1.4) < 13).astype(np.uint8)


def test_is_a_pure_function() -> None:
    first = augment(picture(), blob(), seed=3, draw=5, case_id="a", flips=True, strong_views=2)
    np.random.seed(1)
    second = augment(picture(), blob(), seed=3, draw=5, case_id="a", flips=True, strong_views=2)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(first[2], second[2])


def test_leaves_its_arguments_alone() -> None:
    image, mask = picture(), blob()
    image.flags.writeable = mask.flags.writeable = False
    augment(image, mask, seed=0, draw=0, case_id="a", flips=True, strong_views=3)


@pytest.mark.parametrize("other", [{"seed": 4}, {"seed": -3}, {"draw": 6}, {"case_id": "b"}])
def test_differs_by_seed_draw_and_case(other: dict[str, object]) -> None:
    same: dict[str, object] = {"seed": 3, "draw": 5, "case_id": "a", "flips": False, "strong_views": 0}
    assert (augment(picture(), None, **same)[0] != augment(picture(), None, **(same | other))[0]).any()


@given(draw=st.integers(0, 10**6), views=st.integers(1, 3), colour=st.booleans())
@settings(max_examples=40)
def test_weak_view_does_not_depend_on_strong_views(draw: int, views: int, colour: bool) -> None:
    image = picture(colour)
    alone = augment(image, blob(), seed=0, draw=draw, case_id="a", flips=True, strong_views=0)
    full = augment(image, blob(), seed=0, draw=draw, case_id="a", flips=True, strong_views=views)
    np.testing.assert_array_equal(alone[0], full[0])
    assert alone[2] == []
    assert [v.shape for v in full[2]] == [image.shape] * views
    assert {v.dtype for v in full[2]} == {np.dtype(np.uint8)}


@given(draw=st.integers(0, 10**6), colour=st.booleans())
@settings(max_examples=40)
def test_a_mask_does_not_move_its_image(draw: int, colour: bool) -> None:
    """Labelled or not, a case looks the same, but for how OpenCV rounds one channel or several."""
    image = picture(colour)
    without, none, _ = augment(image, None, seed=0, draw=draw, case_id="a", flips=True, strong_views=0)
    with_mask, _, _ = augment(image, blob(), seed=0, draw=draw, case_id="a", flips=True, strong_views=0)
    assert none is None
    assert np.abs(without.astype(int) - with_mask).max() <= 4


@given(draw=st.integers(0, 10**6), flips=st.booleans())
@settings(max_examples=40)
def test_mask_and_all_views_share_one_geometry(draw: int, flips: bool) -> None:
    image = 80 + 90 * blob()
    weak, mask, strong = augment(image, blob(), seed=0, draw=draw, case_id="a", flips=flips, strong_views=2)
    assert mask is not None
    assert set(np.unique(mask)) == {0, 1}
    core = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
    rim = (cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0) & (cv2.dilate(mask, np.ones((5, 5), np.uint8)) == 0)
    inside = cv2.dilate(core.astype(np.uint8), np.ones((21, 21), np.uint8)) > 0
    for view in (weak, *strong):
        assert view[core].mean() > view[rim & inside].mean()


def test_left_stays_left_without_flips() -> None:
    marker = np.zeros((SIDE, SIDE), np.uint8)
    marker[28:36, 8:16] = 1
    image = marker * np.uint8(200)

    def sides(flips: bool) -> set[bool]:
        masks = [augment(image, marker, seed=0, draw=d, case_id="a", flips=flips, strong_views=0)[1] for d in range(60)]
        return {bool(np.nonzero(m)[1].mean() < SIDE / 2) for m in masks if m is not None}

    assert sides(flips=False) == {True}
    assert sides(flips=True) == {True, False}


def test_allowing_flips_leaves_unflipped_draws_as_they_were() -> None:
    def weak(draw: int, flips: bool) -> np.ndarray:
        return augment(picture(), None, seed=0, draw=draw, case_id="a", flips=flips, strong_views=0)[0]

    equal = [bool((weak(draw, False) == weak(draw, True)).all()) for draw in range(40)]
    assert 10 <= sum(equal) <= 30


def test_strong_views_are_stronger_and_unlike_each_other() -> None:
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return 1 - float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])

    to_weak, to_each_other = [], []
    for draw in range(60):
        weak, _, views = augment(picture(), None, seed=0, draw=draw, case_id="a", flips=False, strong_views=2)
        to_weak.append(distance(weak, views[0]))
        to_each_other.append(distance(views[0], views[1]))
    assert np.mean(to_weak) > 0.01
    assert min(to_each_other) > 0


def test_grey_stays_grey() -> None:
    image = np.repeat(picture()[..., None], 3, axis=2)
    weak, _, strong = augment(image, None, seed=0, draw=4, case_id="a", flips=True, strong_views=4)
    for view in (weak, *strong):
        np.testing.assert_array_equal(view[..., 0], view[..., 1])
        np.testing.assert_array_equal(view[..., 0], view[..., 2])


@pytest.mark.parametrize("value", [0, 255])
def test_constant_image(value: int) -> None:
    image = np.full((SIDE, SIDE), value, np.uint8)
    weak, _, strong = augment(image, None, seed=0, draw=1, case_id="a", flips=True, strong_views=3)
    assert weak.shape == strong[0].shape == (SIDE, SIDE)


def test_thousand_pairs_per_second_and_core() -> None:
    image = cv2.resize(picture(), (224, 224))
    mask = cv2.resize(blob(), (224, 224), interpolation=cv2.INTER_NEAREST)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        rates = []
        for _ in range(5):
            start = time.process_time()
            for draw in range(200):
                augment(image, mask, seed=0, draw=draw, case_id="a", flips=True, strong_views=0)
            rates.append(200 / (time.process_time() - start))
    finally:
        cv2.setNumThreads(threads)
    assert max(rates) >= 1000


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("draw", range(4))
def test_the_geometry_of_a_view_leads_there_and_back(draw: int, flips: bool) -> None:
    """Sampled by it, the untouched mask becomes the view's mask, but for what interpolation rounds at the edge."""
    mask, same = blob(), {"seed": 0, "draw": draw, "case_id": "a", "flips": flips}
    moved = augment(picture(), mask, **same, strong_views=0)[1]
    geometry = torch.from_numpy(view_geometry(mask.shape[0], **same))
    back = torch.linalg.inv(torch.cat([geometry, torch.tensor([[0.0, 0.0, 1.0]])]))[:2]
    grid = F.affine_grid(back[None], [1, 1, *mask.shape], align_corners=False)
    found = F.grid_sample(torch.from_numpy(mask).float()[None, None], grid, align_corners=False)[0, 0] > 0.5
    different = (found.numpy() != (moved > 0)).sum()
    assert different <= 0.02 * moved.sum()
    assert (mask != moved).sum() > 5 * different
