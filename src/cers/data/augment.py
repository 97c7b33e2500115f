"""One random geometry per sample, photometric strength on top: a pure function of (seed, draw, case id)."""

import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Table = NDArray[np.float32]

_GREY = np.linspace(0, 1, 256, dtype=np.float32)


def augment(
    image: Pixels,
    mask: Pixels | None,
    *,
    seed: int,
    draw: int,
    case_id: str,
    flips: bool,
    strong_views: int,
) -> tuple[Pixels, Pixels | None, list[Pixels]]:
    """The weak view, its mask, and `strong_views` harder views of the very same geometry.

    `image` is (S,S) or (S,S,3), `mask` (S,S) of 0 and 1. `draw` counts how often the case was drawn before. Equal
    arguments give equal pixels, and the weak view does not depend on `strong_views` (methods.md 1.6).
    """
    rng = _generator(seed, draw, case_id)
    moved, moved_mask = _warp(image, mask, _geometry(rng, image.shape[0], flips))
    weak = _look_up(moved, _tone(rng, 0.1))
    return weak, moved_mask, [_strong(moved, rng) for _ in range(strong_views)]


def view_geometry(side: int, *, seed: int, draw: int, case_id: str, flips: bool) -> Table:
    """Where `augment` with these arguments moves a point of an image: a map (2,3) of (x, y, 1), x and y in -1..1."""
    matrix = _geometry(_generator(seed, draw, case_id), side, flips)
    linear, centre = matrix[:, :2], np.full(2, (side - 1) / 2)
    moved = linear @ centre + matrix[:, 2] - centre
    return np.column_stack([linear, 2 * moved / side]).astype(np.float32)


def _generator(seed: int, draw: int, case_id: str) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, draw, zlib.crc32(case_id.encode("utf-8"))])


def _geometry(rng: np.random.Generator, side: int, flips: bool) -> NDArray[np.float64]:
    """A 2x3 affine map about the centre: rotation, zoom, shift and, if allowed, a left/right flip."""
    angle = np.deg2rad(rng.uniform(-15, 15))
    scale = rng.uniform(0.9, 1.2)
    shift = rng.uniform(-0.06, 0.06, size=2) * side
    mirror = -1.0 if rng.random() < 0.5 and flips else 1.0
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[mirror * cosine, -sine], [mirror * sine, cosine]])
    centre = np.full(2, (side - 1) / 2)
    return np.column_stack([linear, centre + shift - linear @ centre])


def _warp(image: Pixels, mask: Pixels | None, matrix: NDArray[np.float64]) -> tuple[Pixels, Pixels | None]:
    """Image and mask through one warp, the mask as a further channel; what comes in from outside is 0 in both."""
    size = (image.shape[1], image.shape[0])
    if mask is None:
        return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR).astype(np.uint8, copy=False), None
    planes = [*cv2.split(image), mask * np.uint8(255)]
    *moved, moved_mask = cv2.split(cv2.warpAffine(cv2.merge(planes), matrix, size, flags=cv2.INTER_LINEAR))
    pixels = moved[0] if image.ndim == 2 else cv2.merge(moved)
    return pixels.astype(np.uint8, copy=False), (moved_mask >= 128).astype(np.uint8)


def _strong(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Contrast, gamma, and often equalisation, coarser grey levels, blur and noise; nothing is cut out."""
    table = _tone(rng, 0.5)
    if rng.random() < 0.3:
        table += rng.uniform(0.3, 0.8) * (_equalising(image)[np.rint(table * 255).astype(np.intp)] - table)
    if rng.random() < 0.3:
        levels = rng.integers(6, 24)
        table = np.rint(table * levels) / levels
    view = _look_up(image, table)
    if rng.random() < 0.5:
        view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.3, 1.5)).astype(np.uint8, copy=False)
    if rng.random() < 0.5:
        noise = rng.standard_normal(view.shape[:2], np.float32) * np.float32(rng.uniform(2, 16))
        noisy = view + (noise if view.ndim == 2 else noise[..., None])
        view = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return view


def _tone(rng: np.random.Generator, strength: float) -> Table:
    """A table (256,) over [0,1]: gamma, contrast about mid-grey and brightness, each varied by `strength`."""
    gamma, contrast = np.exp(rng.uniform(-strength, strength, size=2))
    brightness = rng.uniform(-strength, strength) / 2
    return np.asarray(np.clip((_GREY**gamma - 0.5) * contrast + 0.5 + brightness, 0, 1), np.float32)


def _equalising(image: Pixels) -> Table:
    """The table (256,) that would give every grey level its share of the image."""
    return np.cumsum(np.bincount(image.ravel(), minlength=256)).astype(np.float32) / np.float32(image.size)


def _look_up(image: Pixels, table: Table) -> Pixels:
    return np.asarray(cv2.LUT(image, np.rint(table * 255).astype(np.uint8)), np.uint8)
