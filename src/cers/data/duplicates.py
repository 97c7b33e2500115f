"""Images that occur twice: byte for byte, or as near-duplicates such as neighbouring slices of one volume.

Near-duplicates are found by the correlation of high-pass thumbnails: the image at 32x32, minus its own Gaussian blur
(sigma 2), zero mean, unit norm. Without the high-pass all heads, and all chests, correlate above 0.9 with one another.

The threshold 0.82 was chosen on two public sets. On 1,600 CT slices of 20 known volumes it puts 99 % of neighbouring
slices together, and the only two volumes it joins are two series of one study; at 0.775 seven volumes merge. On the
3,933 MR slices of BRISC 2025 its largest cluster has 15 images (0.4 %); at 0.7 one has 598. Images of patients known
to differ must correlate at 0.98, which only the same slice does: simple images, and frontal chest films, look alike
across patients. The measure does not see through flips, rotations or crops.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cers.data.case import Case
from cers.data.images import read_image
from cers.errors import CersError

THRESHOLD = 0.82
SAME_SLICE = 0.98
SIDE = 32
BLUR = 2.0
BLOCK = 1024
# A cluster beyond this share of the images is hardly one patient's slices: all images of the set look alike.
GIANT = 0.25


def file_hash(path: Path) -> str:
    """SHA-256 of the bytes of a file.

    Raises:
        CersError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CersError(f"{path} cannot be read: {error.strerror}; run `cers data check`") from None


def pixel_hash(path: Path) -> str:
    """SHA-256 of the pixels of an image and their shape: the same for a file that was saved anew without loss.

    Raises:
        CersError: it cannot be read.
    """
    image = read_image(path)
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()


def same_value(values: dict[str, str]) -> list[list[str]]:
    """Ids that share a value, one sorted list per value that occurs more than once."""
    ids: dict[str, list[str]] = {}
    for case_id, value in values.items():
        ids.setdefault(value, []).append(case_id)
    return sorted(sorted(group) for group in ids.values() if len(group) > 1)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The (1024,) descriptor of an (H,W) or (H,W,3) image; two of them correlate by their inner product.

    A constant image has the zero vector, which resembles nothing.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), BLUR)
    detail -= detail.mean()
    norm = float(np.linalg.norm(detail))
    flat: NDArray[np.float32] = detail.ravel()
    return flat / norm if norm > 1e-3 else np.zeros_like(flat)


def near_duplicates(
    cases: Sequence[Case],
    images: Iterable[NDArray[np.uint8]] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[str]]:
    """Clusters of near-duplicate images (ids, sorted): see the module's text for the measure.

    `images` come in the order of `cases`; without them the files are read, one at a time. `progress` hears how many
    of how many are read.

    Raises:
        CersError: an image cannot be read.
    """
    thumbnails = []
    for image in (read_image(case.image) for case in cases) if images is None else images:
        thumbnails.append(thumbnail(image))
        if progress:
            progress(len(thumbnails), len(cases))
    return clusters(cases, thumbnails)


def clusters(cases: Sequence[Case], thumbnails: Sequence[NDArray[np.float32]]) -> list[list[str]]:
    """Connected components, of two ids or more, of the graph of near-duplicates; a thumbnail for every case."""
    if len(cases) < 2:
        return []
    matrix = np.stack(thumbnails)
    code = {group: i for i, group in enumerate(sorted({case.group for case in cases if case.group is not None}))}
    patient = np.array([-1 if case.group is None else code[case.group] for case in cases])
    rows, columns = [], []
    for start in range(0, len(matrix), BLOCK):
        here = slice(start, start + BLOCK)
        alike = matrix[here] @ matrix.T
        differ = (patient[here, None] != patient) & (patient[here, None] >= 0) & (patient >= 0)
        row, column = np.nonzero(alike >= np.where(differ, np.float32(SAME_SLICE), np.float32(THRESHOLD)))
        rows.append(row + start)
        columns.append(column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(len(cases), len(cases)))
    _, component = connected_components(graph, directed=False)
    return same_value({case.id: str(c) for case, c in zip(cases, component.tolist(), strict=True)})
