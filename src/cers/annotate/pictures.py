"""The picture of a request: pixels encoded anew, so that no metadata leaves, and no bigger than asked for.

Only here does a mask become visible, and only the picture of a labelled case is given one.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cers.errors import CersError

Pixels = NDArray[np.uint8]
RED = (220, 20, 20)
_OPACITY = 0.35
_LEGEND = 24
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def draw(
    image: Pixels, mask: NDArray[np.bool_] | None, *, max_side: int, overlay: Literal["fill", "contour"], target: str
) -> Pixels:
    """`image` (H,W) or (H,W,3), its longest side at most `max_side`; with the lesion of `mask` (H,W) in red.

    An empty mask leaves the image as it is. A legend below, within `max_side` as well, names the colour.
    """
    marked = mask is not None and bool(mask.any())
    height, width = sent_size(image.shape[0], image.shape[1], max_side, legend=marked)
    size = (height - _LEGEND if marked else height, width)
    image = _resized(image, size)
    if mask is None or not marked:
        return image
    lesion = _resized(mask.astype(np.uint8), size) > 0
    picture = np.array(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    if overlay == "fill":
        picture[lesion] = np.rint((1 - _OPACITY) * picture[lesion] + _OPACITY * np.array(RED)).astype(np.uint8)
    else:
        outlines, _ = cv2.findContours(lesion.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, RED, 1)
    return np.vstack([picture, _legend(picture.shape[1], target)])


def encode(picture: Pixels, image_format: Literal["jpeg", "png"]) -> bytes:
    """A picture, grey or RGB, as the bytes of a file that holds pixels and nothing else."""
    pixels = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    if image_format == "png":
        done, data = cv2.imencode(".png", pixels)
    else:
        done, data = cv2.imencode(".jpg", pixels, _JPEG)
    if not done:
        raise CersError(f"a picture of shape {picture.shape} cannot be encoded as {image_format}")
    return data.tobytes()


def sent_size(height: int, width: int, max_side: int, *, legend: bool) -> tuple[int, int]:
    """Height and width of what `draw` makes of an image."""
    strip = _LEGEND if legend else 0
    scale = min(1.0, (max_side - strip) / height, max_side / width)
    return max(1, round(height * scale)) + strip, max(1, round(width * scale))


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if size == pixels.shape[:2]:
        return pixels
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _legend(width: int, target: str) -> Pixels:
    strip = np.zeros((_LEGEND, width, 3), np.uint8)
    cv2.rectangle(strip, (6, 6), (18, 18), RED, cv2.FILLED)
    text = target.encode("ascii", "ignore").decode() or "marked"
    cv2.putText(strip, text, (24, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return strip
