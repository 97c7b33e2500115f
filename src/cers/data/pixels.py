"""Reading every file of a dataset once, to learn what its pixels will do to training. One bad file hides no other."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cers.config import MaskReading
from cers.data.case import Case
from cers.data.duplicates import file_hash, thumbnail
from cers.data.images import mask_values, read_image, read_mask
from cers.data.problems import Problem, some
from cers.errors import CersError

_LISTED_VALUES = 8


@dataclass
class MaskKind:
    """Masks that hold the same set of values: how many, of what `lesion` is read, or None where that is in doubt."""

    values: str
    lesion: str | None
    masks: list[str] = field(default_factory=list)


@dataclass
class Pixels:
    """What the files hold, by case id; `hashes` are of image files, `lesions` of masks as read."""

    problems: list[Problem] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    thumbnails: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    lesion_pixels: dict[str, int] = field(default_factory=dict)
    lesions: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, MaskKind] = field(default_factory=dict)

    @property
    def empty(self) -> list[str]:
        """Cases whose mask has no lesion."""
        return [case_id for case_id, n in self.lesion_pixels.items() if n == 0]


def read_pixels(cases: Sequence[Case], mask: MaskReading, progress: Callable[[int, int], None] | None = None) -> Pixels:
    """Read image and mask of every case; `progress` hears how many of how many are done."""
    found = Pixels()
    for done, case in enumerate(cases, start=1):
        _read_image(case, found)
        if case.mask is not None:
            _read_mask(case, case.mask, mask, found)
        if progress:
            progress(done, len(cases))
    _judge_masks(found)
    return found


def _read_image(case: Case, found: Pixels) -> None:
    try:
        image = read_image(case.image)
        found.hashes[case.id] = file_hash(case.image)
    except (CersError, OSError) as error:
        found.problems.append(Problem("error", "unreadable-image", str(case.image), _reason(error, case.image)))
        return
    found.sizes[case.id] = (image.shape[0], image.shape[1])
    found.thumbnails[case.id] = thumbnail(image)
    if image.min() == image.max():
        message = f"every pixel is {image.flat[0]}: nothing to segment; remove it or restore the original"
        found.problems.append(Problem("warning", "blank-image", str(case.image), message))


def _read_mask(case: Case, path: Path, reading: MaskReading, found: Pixels) -> None:
    try:
        values = mask_values(path)
    except (CersError, OSError) as error:
        found.problems.append(Problem("error", "unreadable-mask", str(path), _reason(error, path)))
        return
    name = _named(values)
    try:
        lesion = read_mask(path, reading)
    except CersError as error:
        kind = found.kinds.setdefault(f"?{name}", MaskKind(name, None))
        if not kind.masks:
            found.problems.append(Problem("error", "doubtful-mask", str(path), _reason(error, path)))
        kind.masks.append(case.id)
        return
    found.kinds.setdefault(name, MaskKind(name, _meaning(values, reading))).masks.append(case.id)
    found.lesion_pixels[case.id] = int(lesion.sum())
    found.lesions[case.id] = hashlib.sha256(np.packbits(lesion).tobytes()).hexdigest()
    size = found.sizes.get(case.id, lesion.shape)
    if size != lesion.shape:
        message = f"the mask is {_size(lesion.shape)}, its image {_size(size)}; save both at one size"
        found.problems.append(Problem("error", "size-mismatch", str(path), message))
    elif lesion.all():
        message = "every pixel is lesion; is it inverted, or is the wrong value lesion?"
        found.problems.append(Problem("warning", "full-mask", str(path), message))


def _judge_masks(found: Pixels) -> None:
    doubtful = [kind for kind in found.kinds.values() if kind.lesion is None and len(kind.masks) > 1]
    for kind in doubtful:
        message = f"the same holds for {len(kind.masks) - 1} more masks of the values {kind.values}"
        found.problems.append(Problem("error", "doubtful-mask", some(kind.masks[1:]), message))
    if found.empty and len(found.empty) == len(found.lesion_pixels):
        message = "no mask has any lesion as they are read now; set data.mask (--mask-threshold or --mask-foreground)"
        found.problems.append(Problem("error", "all-empty", "masks", message))
    elif found.empty:
        message = f"{len(found.empty)} masks are empty and mean 'no lesion': {some(found.empty)}"
        found.problems.append(Problem("note", "empty-mask", "masks", message))


def _named(values: NDArray[np.generic]) -> str:
    """A name for a set of values that anti-aliased masks share, though each has its own greys."""
    if values.dtype == np.bool_:
        return "1 bit"
    if len(values) > _LISTED_VALUES:
        return f"more than {_LISTED_VALUES} greys"
    return "{" + ", ".join(f"{v:g}" for v in values.astype(float)) + "}"


def _meaning(values: NDArray[np.generic], reading: MaskReading) -> str:
    if values.dtype == np.bool_:
        return "1"
    if reading.threshold is not None:
        return f">= {reading.threshold}"
    if reading.foreground is not None:
        return " or ".join(map(str, reading.foreground))
    return f"{values[-1]}" if values[-1] else "none"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} (HxW)"


def _reason(error: Exception, path: Path) -> str:
    """The message without the path, which the problem states beside it."""
    return str(error).removeprefix(str(path)).lstrip(": ")
