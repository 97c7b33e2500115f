from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cers.data.case import Case
from cers.data.duplicates import SAME_SLICE, THRESHOLD, file_hash, near_duplicates, thumbnail
from cers.errors import CersError


def picture(seed: int, size: int = 96) -> NDArray[np.uint8]:
    """Smooth random blobs, as different from one seed to the next as two patients."""
    noise = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def neighbour(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """What the next slice looks like: moved by a pixel, brighter, noisy."""
    noise = np.random.default_rng(seed).normal(scale=6, size=image.shape)
    return (np.roll(image, 1, axis=0) * 0.8 + 40 + noise).clip(0, 255).astype(np.uint8)


def cases(n: int, groups: list[str | None] | None = None) -> list[Case]:
    return [Case(id=f"c{i:04d}", image=Path(f"c{i}.png"), group=groups[i] if groups else None) for i in range(n)]


def test_neighbouring_slices_are_found_and_strangers_are_not() -> None:
    images = [picture(0), picture(1), neighbour(picture(0), 7), picture(2)]
    assert near_duplicates(cases(4), images) == [["c0000", "c0002"]]


def test_a_resized_or_colour_copy_is_found() -> None:
    image = picture(3)
    larger = cv2.resize(image, (150, 150))
    colour = np.stack([image] * 3, axis=-1)
    assert near_duplicates(cases(4), [image, larger, colour, picture(4)]) == [["c0000", "c0001", "c0002"]]


def test_constant_images_resemble_nothing() -> None:
    black = np.zeros((40, 40), np.uint8)
    assert not thumbnail(black).any()
    assert near_duplicates(cases(3), [black, black, picture(0)]) == []


def test_known_patients_are_joined_by_the_same_slice_only() -> None:
    image, near = picture(0), neighbour(picture(0), 7)
    correlation = float(thumbnail(image) @ thumbnail(near))
    assert THRESHOLD <= correlation < SAME_SLICE
    assert near_duplicates(cases(2, ["a", "b"]), [image, near]) == []
    assert near_duplicates(cases(2, ["a", "a"]), [image, near]) == [["c0000", "c0001"]]
    assert near_duplicates(cases(2, ["a", None]), [image, near]) == [["c0000", "c0001"]]
    assert near_duplicates(cases(2, ["a", "b"]), [image, image]) == [["c0000", "c0001"]]


def test_clusters_are_found_across_blocks_of_the_matrix() -> None:
    images = [picture(i, 32) for i in range(1500)]
    images[1400] = images[5]
    clusters = near_duplicates(cases(1500), images)
    assert ["c0005", "c1400"] in clusters
    assert sum(map(len, clusters)) < 30


def test_progress_and_order_do_not_change_the_result() -> None:
    images = [picture(0), neighbour(picture(0), 1), picture(2)]
    seen: list[tuple[int, int]] = []
    forward = near_duplicates(cases(3), images, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert near_duplicates(cases(3)[::-1], images[::-1]) == forward
    assert near_duplicates([], []) == near_duplicates(cases(1), images[:1]) == []


def test_a_file_that_cannot_be_read_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(CersError, match="cannot be read: Is a directory; run `cers data check`"):
        file_hash(tmp_path)
