"""Pictures of a case as text that stands inside a page: data URIs and SVG paths."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

THUMBNAIL = 256
SMALL = 192
"""Longest side of an embedded picture, pixels: in a panel, and in a column of the evidence table."""

# Orange and blue stay apart for every common colour vision, on grey, on paper and on a dark screen.
HIGHER = np.array([255, 140, 0], np.float32)
LOWER = np.array([60, 150, 255], np.float32)


def picture(image: NDArray[np.uint8], side: int = THUMBNAIL) -> str:
    """`image` (H,W) or (H,W,3) as the data URI of a thumbnail whose longer side is at most `side`."""
    shown = Image.fromarray(np.ascontiguousarray(image))
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, format="WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def contour(values: NDArray[np.floating] | NDArray[np.bool_]) -> str:
    """The outline of `values` (H,W) at 0.5 as the `d` of an SVG path in pixel coordinates; empty where there is none.

    The path is exact to 0.4 pixels of the thumbnail. Lesions that touch the border are closed along it.
    """
    padded = np.pad(np.asarray(values, np.float32), 1)
    tolerance = 0.4 * max(1.0, max(values.shape) / THUMBNAIL)
    lines = (approximate_polygon(line, tolerance) for line in find_contours(padded, 0.5))
    # The padding moved everything by one pixel, and the centre of the first pixel lies at 0.5.
    return " ".join("M" + " ".join(f"{x - 0.5:.1f},{y - 0.5:.1f}" for y, x in line) + "Z" for line in lines)


def difference(
    image: NDArray[np.uint8], first: NDArray[np.floating], second: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """`first - second` (H,W) over the dimmed `image` as (H,W,3): orange where first is higher, blue where lower.

    The opacity is the size of the difference, on the same scale in every picture.
    """
    grey = image if image.ndim == 2 else image.mean(axis=2)
    ground = np.repeat(np.asarray(grey, np.float32)[..., None] * 0.6, 3, axis=2)
    signed = (np.asarray(first, np.float32) - np.asarray(second, np.float32))[..., None]
    opacity = np.clip(np.abs(signed), 0, 1) * 0.9
    blended = ground * (1 - opacity) + np.where(signed > 0, HIGHER, LOWER) * opacity
    return np.rint(blended).astype(np.uint8)


def window(where: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around the true pixels of `where` (H,W), in its proportions and at least a third of its sides.

    Everything, where nothing is true.
    """
    if not where.any():
        return slice(None), slice(None)
    height, width = where.shape
    found = [np.flatnonzero(where.any(axis=axis)) for axis in (1, 0)]
    spans = [(int(f[0]), int(f[-1]) + 1) for f in found]
    share = max(1.5 * max((b - a) / side for (a, b), side in zip(spans, where.shape, strict=True)), 1 / 3)
    if share >= 1:
        return slice(None), slice(None)
    return _around(spans[0], height, share), _around(spans[1], width, share)


def _around(span: tuple[int, int], side: int, share: float) -> slice:
    length = max(1, round(side * share))
    start = min(max((span[0] + span[1] - length) // 2, 0), side - length)
    return slice(start, start + length)
