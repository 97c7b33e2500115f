import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.draw import polygon2mask

from cers.report.figures import THUMBNAIL, contour, difference, picture, window


def opened(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("shape", [(1000, 400), (1000, 400, 3), (40, 30)])
def test_picture_is_a_thumbnail_in_proportion(shape: tuple[int, ...]) -> None:
    image = opened(picture(np.full(shape, 128, np.uint8)))
    scale = min(1, THUMBNAIL / max(shape[:2]))
    assert image.size == (round(shape[1] * scale), round(shape[0] * scale))
    assert abs(np.asarray(image.convert("L")).mean() - 128) < 3


def refilled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask that a path encloses, holes by the even-odd rule. Pixel centres lie at 0.5."""
    mask = np.zeros(shape, bool)
    for part in re.findall(r"M([^Z]*)Z", path):
        points = np.array([[float(v) for v in pair.split(",")] for pair in part.split()])
        mask ^= polygon2mask(shape, points[:, ::-1] - 0.5)
    return mask


def test_contour_encloses_its_mask_up_to_the_border_and_around_holes() -> None:
    mask = np.zeros((60, 80), bool)
    mask[:30, :40] = True
    mask[10:20, 10:20] = False
    mask[45:55, 60:75] = True
    path = contour(mask)
    assert path.count("M") == 3
    assert (refilled(path, mask.shape) != mask).mean() < 0.01


@settings(max_examples=30)
@given(st.integers(5, 250), st.integers(5, 250), st.integers(3, 60))
def test_contour_of_any_disc_lies_on_its_edge(row: int, column: int, radius: int) -> None:
    rows, columns = np.mgrid[:256, :256]
    mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    assert (refilled(contour(mask), mask.shape) != mask).sum() <= 0.1 * mask.sum() + 8


def test_a_single_pixel_has_a_contour_and_nothing_has_none() -> None:
    mask = np.zeros((32, 32), bool)
    assert contour(mask) == ""
    mask[5, 9] = True
    numbers = [float(v) for v in re.findall(r"[\d.]+", contour(mask))]
    assert np.mean(numbers[0:-2:2]) == pytest.approx(9.5)
    assert np.mean(numbers[1:-2:2]) == pytest.approx(5.5)


def test_difference_is_orange_where_higher_blue_where_lower_and_grey_elsewhere() -> None:
    image = np.full((4, 3), 100, np.uint8)
    first, second = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
    first[0], second[1] = 1, 1
    first[2] = second[2] = 0.8
    red, green, blue = np.moveaxis(difference(image, first, second).astype(int), 2, 0)
    assert (red[0] > green[0]).all()
    assert (green[0] > blue[0]).all()
    assert (blue[1] > green[1]).all()
    assert (green[1] > red[1]).all()
    assert (red[2:] == 60).all()
    assert (blue[2:] == 60).all()


def test_difference_grows_with_the_disagreement() -> None:
    image = np.zeros((1, 5), np.uint8)
    steps = np.linspace(0, 1, 5, dtype=np.float32)[None]
    red = difference(image, steps, np.zeros_like(steps))[0, :, 0].astype(int)
    assert (np.diff(red) > 0).all()


@given(st.integers(1, 90), st.integers(1, 90), st.data())
def test_window_holds_everything_in_proportion(height: int, width: int, data: st.DataObject) -> None:
    where = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(0, 3))):
        where[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    rows, columns = window(where)
    inside = where[rows, columns]
    assert inside.sum() == where.sum()
    assert abs(inside.shape[0] / height - inside.shape[1] / width) <= 0.5 / height + 0.5 / width + 1e-9
    assert inside.shape[0] >= min(height, max(1, round(height / 3)))
