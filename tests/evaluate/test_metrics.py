import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from cers.errors import CersError
from cers.evaluate.metrics import METRICS, Metrics, diagonal, score

law = settings(max_examples=50)
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
pairs = shapes.flatmap(lambda s: st.tuples(arrays(np.bool_, s), arrays(np.bool_, s)))
masks = shapes.flatmap(lambda s: arrays(np.bool_, s))


def compare(predicted: np.ndarray, mask: np.ndarray, **options: object) -> Metrics:
    return score(predicted.astype(np.float32), mask, **options)


def box(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def blob(seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random((48, 64)), 4)
    return noise > np.quantile(noise, 0.8)


def test_hand_computed_squares():
    # 4x4 squares, one shifted by 2 columns: 8 pixels in common, 16 each.
    found = compare(box((10, 12), 3, 2, 4, 4), box((10, 12), 3, 4, 4, 4), tolerance=1.0)
    assert found.dice == 0.5
    assert found.iou == pytest.approx(8 / 24)
    # Of 12 points of outline, the 4 in the outer column lie 2 from the other outline, 2 + 2 points lie 1 from it and
    # the other 4 lie on it.
    assert found.nsd == pytest.approx(16 / 24)
    assert found.assd == pytest.approx((4 * 2 + 4 * 1) / 12)
    assert found.hd95 == 2.0
    assert (found.predicted_area, found.true_area) == (16.0, 16.0)


def test_single_pixels_apart():
    found = compare(box((9, 9), 1, 1, 1, 1), box((9, 9), 4, 5, 1, 1))
    assert (found.dice, found.iou, found.nsd) == (0.0, 0.0, 0.0)
    assert found.hd95 == found.assd == 5.0
    assert compare(box((9, 9), 1, 1, 1, 1), box((9, 9), 4, 5, 1, 1), tolerance=5.0).nsd == 1.0


def test_false_lesions_touch_no_true_one():
    mask = box((20, 20), 2, 2, 4, 4)
    touching, apart, corner = box((20, 20), 5, 5, 2, 2), box((20, 20), 10, 10, 3, 3), box((20, 20), 13, 13, 2, 2)
    assert compare(touching, mask).false_lesions == 0
    assert compare(touching | apart, mask).false_lesions == 1
    assert compare(apart | corner, mask).false_lesions == 1  # they meet at a corner
    assert compare(apart | box((20, 20), 17, 2, 1, 1), np.zeros_like(mask)).false_lesions == 2


def test_border_dice_looks_at_the_band_alone():
    mask = box((60, 60), 10, 10, 40, 40)
    hollow = mask & ~box((60, 60), 14, 14, 32, 32)  # what is missing lies 4 px and more inside the outline
    assert compare(hollow, mask).border_dice == 1.0
    assert compare(mask | box((60, 60), 0, 0, 60, 6), mask).border_dice == 1.0  # 4 px outside
    inner, outer = box((60, 60), 11, 11, 38, 38), box((60, 60), 7, 7, 46, 46)
    band, missed = 40**2 - 32**2, 40**2 - 38**2  # the outline and 3 px inwards, of which the outline is missed
    assert compare(inner, mask).border_dice == pytest.approx(2 * (band - missed) / (2 * band - missed))
    assert compare(outer, mask).border_dice < compare(inner, mask).border_dice < 1
    assert compare(np.zeros_like(mask), mask).border_dice == 0
    assert compare(mask, np.zeros_like(mask)).border_dice == 0


def test_spacing_scales_each_axis():
    found = compare(box((9, 9), 1, 1, 1, 1), box((9, 9), 4, 5, 1, 1), spacing=(2.0, 0.5))
    assert found.hd95 == pytest.approx(math.hypot(3 * 2.0, 4 * 0.5))
    assert found.true_area == 1.0


def test_lesion_that_fills_the_image_has_an_outline():
    full = np.ones((6, 8), dtype=bool)
    found = compare(box((6, 8), 1, 1, 4, 6), full)
    assert found.hd95 == pytest.approx(math.sqrt(2), abs=0.45)
    assert found.assd >= 1.0
    assert compare(full, full).assd == 0.0


def test_both_masks_empty_is_perfect():
    empty = np.zeros((30, 40), dtype=bool)
    assert asdict(compare(empty, empty)) == {
        "dice": 1.0, "iou": 1.0, "nsd": 1.0, "hd95": 0.0, "assd": 0.0, "border_dice": 1.0,
        "false_lesions": 0.0, "predicted_area": 0.0, "true_area": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("missed", [True, False])
def test_one_mask_empty_costs_the_diagonal(missed):
    lesion, empty = box((30, 40), 3, 3, 5, 5), np.zeros((30, 40), dtype=bool)
    found = compare(empty, lesion) if missed else compare(lesion, empty)
    assert (found.dice, found.iou, found.nsd) == (0.0, 0.0, 0.0)
    assert found.hd95 == found.assd == 50.0
    assert compare(empty, lesion, spacing=(2.0, 2.0)).hd95 == 100.0


def test_probability_counts_from_the_threshold_on():
    mask = np.array([[True, True, False]])
    probability = np.array([[0.5, 0.49, 0.2]], dtype=np.float32)
    assert score(probability, mask).predicted_area == 1
    assert score(probability, mask, threshold=0.2).predicted_area == 3


@law
@given(pairs)
def test_every_score_lies_between_best_and_worst(pair):
    found = asdict(compare(*pair))
    for metric in METRICS:
        unbounded = pair[0].size if metric.name == "false_lesions" else diagonal(pair[0].shape)
        worst = unbounded if metric.worst is None else metric.worst
        assert min(metric.best, worst) <= found[metric.name] <= max(metric.best, worst)
        assert metric.higher_is_better == (metric.best > worst)


@law
@given(pairs)
def test_swapping_the_masks_changes_nothing(pair):
    there, back = asdict(compare(*pair)), asdict(compare(*reversed(pair)))
    for metric in METRICS[:5]:  # the others ask where the true lesion is
        assert there[metric.name] == pytest.approx(back[metric.name])


@law
@given(pairs)
def test_dice_follows_from_iou(pair):
    found = compare(*pair)
    assert found.dice == pytest.approx(2 * found.iou / (1 + found.iou))


@law
@given(masks)
def test_the_mask_itself_is_the_best_prediction(mask):
    found = asdict(compare(mask, mask))
    assert all(found[metric.name] == metric.best for metric in METRICS)


@law
@given(pairs, st.integers(1, 5), st.integers(1, 5))
def test_moving_both_masks_changes_nothing(pair, down, right):
    def padded(mask, top, left):
        return np.pad(mask, ((1 + top, 6 - top), (1 + left, 6 - left)))

    before = compare(*(padded(mask, 0, 0) for mask in pair))
    after = compare(*(padded(mask, down, right) for mask in pair))
    assert asdict(before) == pytest.approx(asdict(after))


@law
@given(pairs, st.floats(0.1, 10))
def test_isotropic_spacing_scales_distances_only(pair, factor):
    one = asdict(compare(*pair, tolerance=1.5))
    other = asdict(compare(*pair, spacing=(factor, factor), tolerance=1.5 * factor * (1 + 1e-9)))
    for name in ("dice", "iou", "nsd"):
        assert one[name] == pytest.approx(other[name])
    for name in ("hd95", "assd"):
        assert one[name] * factor == pytest.approx(other[name])


@settings(max_examples=25)
@given(st.integers(0, 500), st.integers(0, 500), st.sampled_from([0.5, 2.0, 4.0]))
def test_surface_scores_agree_with_monai(first, second, tolerance):
    predicted, mask = blob(first), blob(second)
    a, b = torch.from_numpy(predicted)[None, None], torch.from_numpy(mask)[None, None]
    found = compare(predicted, mask, tolerance=tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = compute_hausdorff_distance(a, b, percentile=95).item()
        assd = compute_average_surface_distance(a, b, symmetric=True).item()
        nsd = compute_surface_dice(a, b, [tolerance]).item()
    assert (found.hd95, found.assd, found.nsd) == pytest.approx((hd95, assd, nsd), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("probability", "mask", "message"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4), dtype=bool), r"\(4, 5\) and mask \(5, 4\)"),
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5), dtype=bool), "one .H,W. image"),
        (np.zeros((4, 5)), np.zeros((4, 5), dtype=np.uint8), "uint8"),
        (np.full((4, 5), np.nan), np.zeros((4, 5), dtype=bool), "not numbers"),
    ],
)
def test_unfit_input_is_refused_in_one_line(probability, mask, message):
    with pytest.raises(CersError, match=message) as caught:
        score(probability, mask)
    assert "\n" not in str(caught.value)


def test_every_metric_of_the_table_is_scored():
    assert [metric.name for metric in METRICS] == list(Metrics.__dataclass_fields__)[: len(METRICS)]
