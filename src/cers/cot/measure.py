"""What can be measured of a region in one image: the numbers behind the offline writer's words.

Everything is relative (to the tissue around, to the noise, to the size of the body), so that scanners and grey windows
compare. Images are worked on at most `SIDE` pixels long.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import graycomatrix, graycoprops
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

SIDE = 256
Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """An image made comparable: `grey` (H,W) float32 in units where tissue spans about 0 to 1, and its `body` (H,W)."""

    grey: Grey
    body: Mask
    noise: float


def scene(image: NDArray[np.uint8]) -> Scene:
    """The scene of an 8-bit image (H,W) or (H,W,3)."""
    plain = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    raw = np.asarray(fit(plain, cv2.INTER_AREA), np.float32)
    smooth = cv2.GaussianBlur(raw, (0, 0), 1.0)
    body = _body(smooth)
    tissue = smooth[body]
    low, high = (float(v) for v in np.percentile(tissue, [2, 98]))
    span = max(high - low, 1.0)
    return Scene((smooth - low) / span, body, _noise(raw, body) / span)


def fit(pixels: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    """`pixels` (H,W) shrunk to at most `SIDE` on the longer side."""
    scale = SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
    return np.asarray(cv2.resize(pixels, size, interpolation=interpolation), np.uint8)


def _body(smooth: Grey) -> Mask:
    """The largest object brighter than the background, holes filled; the whole image where nothing stands out."""
    if np.ptp(smooth) < 1:
        return np.ones(smooth.shape, bool)
    bright = (smooth > 0.5 * threshold_otsu(smooth)).astype(np.uint8)
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.zeros_like(bright)
    if outlines:
        cv2.drawContours(body, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    if body.mean() < 0.05:
        return np.ones(smooth.shape, bool)
    return np.asarray(body, bool)


def _noise(raw: Grey, body: Mask) -> float:
    """Robust noise level: median response of the difference of two Laplacians, which ignores smooth structure."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = np.abs(cv2.filter2D(raw, cv2.CV_32F, kernel))[body]
    return float(np.median(response)) / (0.6745 * 6)


def mirrored(grey: Grey, body: Mask) -> Grey:
    """`grey` (H,W) reflected about the vertical axis through the middle of `body`."""
    columns = np.nonzero(body.any(axis=0))[0]
    shift = int(grey.shape[1] - 1 - columns.min() - columns.max())
    return np.roll(grey[:, ::-1], -shift, axis=1)


def measure_image(scene: Scene) -> dict[str, float]:
    """Measurements that need no region: extent, contrast, noise, symmetry, dark spaces and bright structures."""
    tissue = scene.grey[scene.body]
    ys, xs = np.nonzero(scene.body)
    return {
        "extent": float(scene.body.mean()),
        "elongation": float((np.ptp(ys) + 1) / (np.ptp(xs) + 1)),
        "level": float(np.median(tissue)),
        "noise": scene.noise,
        "asymmetry": float(np.abs(scene.grey - mirrored(scene.grey, scene.body))[scene.body].mean()),
        "dark_spaces": float((tissue < 0.2).mean()),
        "bright_structures": float((tissue > 0.75).mean()),
        "detail": float(np.abs(cv2.Laplacian(scene.grey, cv2.CV_32F))[scene.body].mean()),
    }


def measure_region(scene: Scene, region: Mask, organ: Mask) -> dict[str, float]:
    """Measurements of a non-empty `region` (H,W) against what surrounds it within `organ` (H,W)."""
    grey, body = scene.grey, scene.body
    inside = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)
    outside = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 3)
    reach = max(2.0, 0.35 * np.sqrt(region.sum() / np.pi))
    ring = (outside > 1) & (outside <= 1 + reach) & organ
    rim, core = region & (inside <= inside.max() / 2), region & (inside > inside.max() / 2)
    values, around = grey[region], grey[ring] if ring.any() else grey[body]
    return {
        "count": float(_count(region)),
        "size": float(region.sum() / max(body.sum(), 1)),
        "contrast": float(values.mean() - around.mean()),
        "level": float((grey[body] < np.median(values)).mean()),
        "heterogeneity": float(values.std()),
        "core": float(grey[core].mean() - grey[rim].mean()) if core.any() and rim.any() else 0.0,
        "dark_neighbour": float((around < 0.2).mean()),
        **_edge(scene, region),
        **_shape(region),
        **_texture(grey, region),
        **_look_alikes(scene, region, outside > 1 + reach),
        **_place(scene, region),
    }


def _count(region: Mask) -> int:
    _, _, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int((areas >= max(4, 0.02 * areas.max())).sum())


def _edge(scene: Scene, region: Mask) -> dict[str, float]:
    """Gradient along the contour, and the share of the contour that stands out from the noise."""
    gradient = np.hypot(cv2.Sobel(scene.grey, cv2.CV_32F, 1, 0), cv2.Sobel(scene.grey, cv2.CV_32F, 0, 1)) / 8
    small = cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    contour = gradient[region & ~small] if (region & ~small).any() else gradient[region]
    return {
        "sharpness": float(contour.mean()),
        "sharp_share": float((contour > max(0.04, 2 * scene.noise)).mean()),
    }


def _shape(region: Mask) -> dict[str, float]:
    """Shape of the largest part."""
    part = max(regionprops(label(region)), key=lambda p: p.area)
    return {
        "solidity": float(part.solidity),
        "eccentricity": float(part.eccentricity),
    }


def _texture(grey: Grey, region: Mask, levels: int = 16) -> dict[str, float]:
    """Grey-level co-occurrence at distance 1 within the region (Haralick 1973), four directions averaged."""
    ys, xs = np.nonzero(region)
    window = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    binned = 1 + np.clip(grey[window] * levels, 0, levels - 1).astype(np.uint8)
    binned[~region[window]] = 0
    pairs = graycomatrix(binned, [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels + 1, symmetric=True)
    pairs = pairs[1:, 1:].sum(axis=3, keepdims=True).astype(np.float64)
    total = pairs.sum()
    return {"graininess": float(graycoprops(pairs / total, "contrast")[0, 0]) if total else 0.0}


def _look_alikes(scene: Scene, region: Mask, away: Mask) -> dict[str, float]:
    """Tissue elsewhere with the region's grey values, and how deep in the body the region lies."""
    low, high = np.percentile(scene.grey[region], [25, 75])
    elsewhere = scene.grey[away & scene.body]
    depth = cv2.distanceTransform(np.pad(scene.body, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return {
        "look_alikes": float(((elsewhere >= low - 0.02) & (elsewhere <= high + 0.02)).mean())
        if elsewhere.size
        else 0.0,
        "depth": float(depth[region].mean() / max(depth.max(), 1.0)),
    }


def _place(scene: Scene, region: Mask) -> dict[str, float]:
    """How far from the body's vertical axis the region lies (0 on it, 1 at the side), and how low (0 top, 1 bottom)."""
    ys, xs = np.nonzero(scene.body)
    rows, columns = np.nonzero(region)
    across = np.abs(columns - (xs.min() + xs.max()) / 2) / max((xs.max() - xs.min()) / 2, 1)
    return {"aside": float(across.mean()), "low": float((rows.mean() - ys.min()) / max(ys.max() - ys.min(), 1))}
