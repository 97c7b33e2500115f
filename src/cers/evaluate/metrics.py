"""How well one predicted lesion matches one true lesion.

An empty mask is not a reason to leave a case out of a mean. Both empty is a perfect answer; one empty is the worst
one: overlap 0, and the diagonal of the image as distance. So every metric has a number for every case.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from scipy.spatial import KDTree

from cers.errors import CersError


@dataclass(frozen=True)
class Metric:
    """A metric's name, how it is written for readers, and its ends. `worst` None differs from image to image."""

    name: str
    title: str
    best: float
    worst: float | None
    higher_is_better: bool
    digits: int = 3


METRICS = (
    Metric("dice", "Dice", best=1.0, worst=0.0, higher_is_better=True),
    Metric("iou", "IoU", best=1.0, worst=0.0, higher_is_better=True),
    Metric("nsd", "NSD", best=1.0, worst=0.0, higher_is_better=True),
    Metric("hd95", "HD95", best=0.0, worst=None, higher_is_better=False, digits=1),
    Metric("assd", "ASSD", best=0.0, worst=None, higher_is_better=False, digits=1),
    Metric("border_dice", "Border Dice", best=1.0, worst=0.0, higher_is_better=True),
    Metric("false_lesions", "False lesions", best=0.0, worst=None, higher_is_better=False, digits=2),
)


@dataclass(frozen=True)
class Metrics:
    """Scores of one case. Distances are in pixels and areas in square pixels, or in the units of the spacing.

    `dice` and `iou` compare areas. `nsd`, normalised surface distance (Nikolov et al. 2021), is the share of both
    outlines that lies within the tolerance of the other. `hd95` is the larger of the two directed 95th percentiles
    of the distance between outlines, `assd` the mean of the distance over all points of both. `border_dice` is the
    Dice of the pixels within 3 of the true outline. `false_lesions` counts the connected regions that touch no true
    lesion: a look-alike that was taken for one.
    """

    dice: float
    iou: float
    nsd: float
    hd95: float
    assd: float
    border_dice: float
    false_lesions: float
    predicted_area: float
    true_area: float


def score(
    probability: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    threshold: float = 0.5,
    spacing: tuple[float, float] = (1.0, 1.0),
    tolerance: float = 2.0,
) -> Metrics:
    """Compare `probability` (H,W), lesion from `threshold` on, with the true `mask` (H,W).

    `spacing` is the height and the width of a pixel; `tolerance` of the NSD is in the same unit.

    Raises:
        CersError: shapes differ, the mask is not boolean or a probability is not a number.
    """
    _check(probability, mask)
    predicted = probability >= threshold
    dice, iou = overlap(predicted, mask)
    nsd, hd95, assd = surface_scores(predicted, mask, spacing, tolerance)
    pixel = spacing[0] * spacing[1]
    return Metrics(
        dice,
        iou,
        nsd,
        hd95,
        assd,
        border_dice(predicted, mask, spacing),
        float(false_lesions(predicted, mask)),
        predicted_area=float(predicted.sum() * pixel),
        true_area=float(mask.sum() * pixel),
    )


def overlap(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Dice and IoU of two masks (H,W); 1 where both are empty."""
    common = int((predicted & mask).sum())
    total = int(predicted.sum()) + int(mask.sum())
    if total == 0:
        return 1.0, 1.0
    return 2 * common / total, common / (total - common)


def surface_scores(
    predicted: NDArray[np.bool_], mask: NDArray[np.bool_], spacing: tuple[float, float], tolerance: float
) -> tuple[float, float, float]:
    """NSD, HD95 and ASSD of two masks (H,W); 1, 0, 0 where both are empty, 0 and the diagonal where one is."""
    if not (predicted.any() or mask.any()):
        return 1.0, 0.0, 0.0
    if not (predicted.any() and mask.any()):
        return 0.0, diagonal(mask.shape, spacing), diagonal(mask.shape, spacing)
    a, b = _outline(predicted) * spacing, _outline(mask) * spacing
    to_mask, to_predicted = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    both = np.concatenate([to_mask, to_predicted])
    hd95 = max(np.percentile(to_mask, 95), np.percentile(to_predicted, 95))
    return float((both <= tolerance).mean()), float(hd95), float(both.mean())


def border_dice(
    predicted: NDArray[np.bool_], mask: NDArray[np.bool_], spacing: tuple[float, float], width: float = 3.0
) -> float:
    """Dice of two masks (H,W) over the pixels within `width` of the outline of `mask`; all pixels if it is empty."""
    if not mask.any():
        return overlap(predicted, mask)[0]
    reach = [math.ceil(width / side) for side in spacing]
    near = tuple(
        slice(max(0, int(places.min()) - margin), int(places.max()) + margin + 1)
        for places, margin in zip(np.nonzero(mask), reach, strict=True)
    )
    predicted, mask = predicted[near], mask[near]
    band = distance_transform_edt(~_border(mask), sampling=spacing) <= width
    return overlap(predicted & band, mask & band)[0]


def false_lesions(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> int:
    """Number of connected regions of `predicted` (H,W), corners included, that share no pixel with `mask`."""
    regions, n = label(predicted, structure=np.ones((3, 3)))
    touching = np.unique(regions[mask & predicted])
    return int(n - len(touching))


def diagonal(shape: tuple[int, ...], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """Length of the diagonal of an image of `shape` (H,W): no distance between two of its pixels is longer."""
    return math.hypot(shape[0] * spacing[0], shape[1] * spacing[1])


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(N,2) places of the border."""
    return np.argwhere(_border(mask))


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask with one of four neighbours outside it; beyond the image counts as outside."""
    border: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    return border


def _check(probability: NDArray[np.floating], mask: NDArray[np.bool_]) -> None:
    if probability.ndim != 2 or probability.shape != mask.shape:
        raise CersError(f"prediction {probability.shape} and mask {mask.shape} differ; both must be one (H,W) image")
    if mask.dtype != np.bool_:
        raise CersError(f"the mask has values of type {mask.dtype}; binarise it first, e.g. mask >= 128")
    if not np.isfinite(probability).all():
        raise CersError("the prediction holds values that are not numbers; the run has diverged, train it again")
