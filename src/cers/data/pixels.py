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
from cers.data.images import colour_over_index, mask_values, read_image, read_mask, same_proportions
from cers.data.problems import Problem, some
from cers.errors import CersError

_LISTED_VALUES = 8


@dataclass
class MaskKind:
    """Masks (case ids) that hold the same set of values, and what of it is read as `lesion`; None where in doubt.

    `share` is that of the image which the lesion covers, in the mean over the masks; None where in doubt.
    """

    values: str
    lesion: str | None
    masks: list[str] = field(default_factory=list)
    share: float | None = None


@dataclass
class Pixels:
    """What the files hold, by case id; `hashes` are of image files, `lesions` of masks as read.

    `shares` are those of the image that is lesion. The masks of `rescaled` have another resolution than their image,
    those of `inverted` look as if the lesion were the background, and those of `white_first` have a palette that
    begins with white, which is read as lesion.
    """

    problems: list[Problem] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    thumbnails: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    lesions: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, MaskKind] = field(default_factory=dict)
    rescaled: list[str] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    white_first: list[str] = field(default_factory=list)

    @property
    def empty(self) -> list[str]:
        """Cases whose mask has no lesion."""
        return [case_id for case_id, share in self.shares.items() if share == 0]


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
    found.shares[case.id] = float(lesion.mean())
    found.lesions[case.id] = hashlib.sha256(np.packbits(lesion).tobytes()).hexdigest()
    if _looks_inverted(lesion):
        found.inverted.append(case.id)
    if 0 not in (reading.foreground or ()) and colour_over_index(path):
        found.white_first.append(case.id)
    size = found.sizes.get(case.id, lesion.shape)
    if not same_proportions(lesion.shape, size):
        message = f"the mask is {_size(lesion.shape)}, its image {_size(size)}; save both at one size"
        found.problems.append(Problem("error", "size-mismatch", str(path), message))
    elif size != lesion.shape:
        found.rescaled.append(case.id)


def _looks_inverted(lesion: NDArray[np.bool_]) -> bool:
    """Whether it covers most of the image, or most of its border, where a lesion seldom lies and background does."""
    border = np.concatenate([lesion[0], lesion[-1], lesion[:, 0], lesion[:, -1]])
    return bool(lesion.mean() > 0.5 or border.mean() > 0.5)


def _judge_masks(found: Pixels) -> None:
    for kind in found.kinds.values():
        if kind.lesion is not None:
            kind.share = float(np.mean([found.shares[case_id] for case_id in kind.masks]))
    _judge_doubts(found)
    masks = f"of {len(found.shares)} masks"
    if found.inverted:
        message = (
            f"in {len(found.inverted)} {masks} lesion covers most of the image or of its border: "
            f"{some(found.inverted)}; are they inverted (save them anew), or is the wrong value lesion "
            "(--mask-foreground)?"
        )
        found.problems.append(Problem("warning", "inverted-masks", "masks", message))
    if found.white_first:
        message = (
            f"{len(found.white_first)} {masks} have a palette that begins with white, which is read as lesion: "
            f"{some(found.white_first)}; is white their background?"
        )
        found.problems.append(Problem("warning", "white-palettes", "masks", message))
    if found.rescaled:
        message = (
            f"{len(found.rescaled)} {masks} have another resolution than their image and are scaled to it: "
            f"{some(found.rescaled)}"
        )
        found.problems.append(Problem("note", "other-resolution", "masks", message))


def _judge_doubts(found: Pixels) -> None:
    doubtful = [kind for kind in found.kinds.values() if kind.lesion is None and len(kind.masks) > 1]
    for kind in doubtful:
        message = f"the same holds for {len(kind.masks) - 1} more masks of the values {kind.values}"
        found.problems.append(Problem("error", "doubtful-mask", some(kind.masks[1:]), message))
    if found.empty and len(found.empty) == len(found.shares):
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
