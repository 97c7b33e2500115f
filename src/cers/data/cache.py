"""Every image of a dataset decoded once, at network size, in memory-mapped files that the next run finds again."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from cers.config import MaskReading
from cers.data.case import Case
from cers.data.images import read_image, read_mask, require_same_proportions
from cers.errors import CersError
from cers.files import write_atomic

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]
# A row at network size, and the (height, width) of the file it came from.
_Decoded = tuple[Pixels, tuple[int, int]]

# Part of every key: raise it whenever decoding or resizing changes, so that older files are not taken for current.
_VERSION = 2


class ImageCache:
    """Images (S,S) or, if any case is coloured, (S,S,3), and masks (S,S) of 0 and 1: 8-bit, by case id.

    Images and masks lie in files of their own, so that another share of labelled cases decodes no image again. What a
    case's masks may be used for is for the caller to say: hide it with `replace(case, mask=None)` before building.
    """

    def __init__(self, images: "_Rows", masks: "_Rows", negatives: frozenset[str]) -> None:
        self._images = images
        self._masks = masks
        self._negatives = negatives

    @classmethod
    def build(
        cls,
        cases: Sequence[Case],
        image_size: int,
        folder: Path,
        mask_reading: MaskReading,
        progress: Progress | None = None,
    ) -> Self:
        """Decode what `folder` does not already hold; `progress` is told how many files of how many are done.

        A file whose path, size or time of change differs, or another `image_size` or `mask_reading`, is decoded again.

        Raises:
            CersError: a file is missing or unreadable, a mask does not fit its image, or the disk is full.
        """
        images = {case.id: case.image for case in cases}
        masks = {case.id: case.mask for case in cases if case.mask is not None}
        if len(images) < len(cases):
            raise CersError(f"{len(cases) - len(images)} cases share an id with another; run `cers data check`")

        def tell(done: int) -> None:
            if progress is not None:
                progress(done, len(images) + len(masks))

        def image_row(path: Path) -> _Decoded:
            pixels = read_image(path)
            return resize_image(pixels, image_size), (pixels.shape[0], pixels.shape[1])

        def mask_row(path: Path) -> _Decoded:
            pixels = read_mask(path, mask_reading)
            return resize_mask(pixels, image_size), (pixels.shape[0], pixels.shape[1])

        size = str(image_size)
        reading = f"{size} {mask_reading.model_dump_json()}"
        rows = _Rows.build(folder, "images", images, size, image_row, tell)
        mask_rows = _Rows.build(folder, "masks", masks, reading, mask_row, lambda n: tell(len(images) + n))
        _check_shapes(rows, mask_rows, masks)
        return cls(rows, mask_rows, frozenset(case.id for case in cases if case.negative))

    def __contains__(self, case_id: str) -> bool:
        return case_id in self._images.index

    def image(self, case_id: str) -> Pixels:
        """The image (S,S) or (S,S,3), 8 bit, read-only."""
        return self._images[case_id]

    def mask(self, case_id: str) -> Pixels | None:
        """The mask (S,S) of 0 and 1; zeros for a case known to show no lesion, None for one nobody annotated."""
        if case_id in self._masks.index:
            return self._masks[case_id]
        return np.zeros(self._images.array.shape[1:3], np.uint8) if case_id in self._negatives else None

    def original_size(self, case_id: str) -> tuple[int, int]:
        """Height and width of the file, pixels."""
        return self._images.size(case_id)


class _Rows:
    """One memory-mapped array (N,S,S) or (N,S,S,3) and the JSON index that says which row is whose.

    The array's name holds a stamp of the files it was made from, and the index, written last, names the array: a kill
    at any moment leaves the previous pair, or the new one.
    """

    def __init__(self, index_file: Path) -> None:
        self.file = index_file
        entry = json.loads(index_file.read_text(encoding="utf-8"))
        self.stamp: str = entry["stamp"]
        self.index: dict[str, tuple[int, int, int]] = {k: (v[0], v[1], v[2]) for k, v in entry["rows"].items()}
        self.array = np.load(index_file.parent / entry["array"], mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[type["_Rows"], tuple[Path]]:
        # A worker process maps the same file; the pixels themselves are never sent.
        return _Rows, (self.file,)

    def __getitem__(self, case_id: str) -> Pixels:
        row: Pixels = self.array[self.index[case_id][0]]
        return row

    def size(self, case_id: str) -> tuple[int, int]:
        return self.index[case_id][1:]

    @classmethod
    def build(
        cls,
        folder: Path,
        kind: str,
        sources: Mapping[str, Path],
        settings: str,
        decode: Callable[[Path], _Decoded],
        tell: Callable[[int], None],
    ) -> "_Rows":
        """The rows of `sources` from `folder` if they are still true to their files, decoded anew otherwise."""
        key = _digest([kind, str(_VERSION), settings, *(f"{k}\0{p.absolute()}" for k, p in sources.items())])
        stamp = _digest(_state(path) for path in sources.values())
        index_file = folder / f"{kind}-{key}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = cls(index_file)
            if found.stamp == stamp:
                tell(len(sources))
                return found
        array = folder / f"{kind}-{key}-{stamp}.npy"
        sizes = _write_array(array, sources, decode, tell)
        rows = {case_id: (row, *size) for row, (case_id, size) in enumerate(zip(sources, sizes, strict=True))}
        write_atomic(index_file, json.dumps({"stamp": stamp, "array": array.name, "rows": rows}))
        _remove_stale(folder, f"{kind}-{key}-", array)
        return cls(index_file)


def _write_array(
    path: Path, sources: Mapping[str, Path], decode: Callable[[Path], _Decoded], tell: Callable[[int], None]
) -> list[tuple[int, int]]:
    """Write all rows to `path`, as grey unless a coloured image turns up; the original (height, width) of each."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            sizes = _write_rows(temporary, sources, decode, tell, coloured=False)
        except _ColourMetError:
            sizes = _write_rows(temporary, sources, decode, tell, coloured=True)
        temporary.replace(path)
    except OSError as error:
        raise CersError(f"cannot write {path}: {error.strerror}; free space or set data.cache elsewhere") from None
    finally:
        with suppress(OSError):  # what went wrong above is the error to tell
            temporary.unlink()
    return sizes


class _ColourMetError(Exception):
    """A coloured image cannot go among grey rows."""


def _write_rows(
    path: Path,
    sources: Mapping[str, Path],
    decode: Callable[[Path], _Decoded],
    tell: Callable[[int], None],
    *,
    coloured: bool,
) -> list[tuple[int, int]]:
    """Write one row after the other, so that a full disk is an error and not, as in a mapped file, a crash."""
    sizes: list[tuple[int, int]] = []
    shape: tuple[int, ...] = (0, 0)
    with path.open("wb") as file:
        for case_id, source in sources.items():
            row, size = _decode(decode, source, case_id)
            row = _as_colour(row) if coloured else _as_grey(row)
            if not sizes:
                shape = row.shape
                np.lib.format.write_array_header_1_0(file, _header(len(sources), shape))
            file.write(np.ascontiguousarray(row).data)
            sizes.append(size)
            tell(len(sizes))
        if not sizes:
            np.lib.format.write_array_header_1_0(file, _header(0, shape))
    return sizes


def _decode(decode: Callable[[Path], _Decoded], source: Path, case_id: str) -> _Decoded:
    try:
        return decode(source)
    except OSError as error:
        raise CersError(f"case '{case_id}': cannot read {source}: {error.strerror}; run `cers data check`") from None
    except CersError as error:
        raise CersError(f"case '{case_id}': {error}; `cers data check` lists every such file") from None


def _header(count: int, shape: tuple[int, ...]) -> dict[str, object]:
    return {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}


def _as_colour(row: Pixels) -> Pixels:
    return row if row.ndim == 3 else np.repeat(row[..., None], 3, axis=2)


def _as_grey(row: Pixels) -> Pixels:
    if row.ndim == 2:
        return row
    if (row == row[..., :1]).all():
        return row[..., 0]
    raise _ColourMetError


def _remove_stale(folder: Path, prefix: str, current: Path) -> None:
    """Delete arrays made from older files, and what a kill an hour ago or more left half written."""
    for path in folder.glob(f"{prefix}*"):
        # Another run may hold it open, which some systems forbid to delete, or have deleted it just now.
        with suppress(OSError):
            if path != current and (path.suffix == ".npy" or time.time() - path.stat().st_mtime > 3600):
                path.unlink()


def resize_image(pixels: Pixels, side: int) -> Pixels:
    """`pixels` (H,W) or (H,W,3) at (side,side): area means when shrinking, linear otherwise."""
    if pixels.shape[:2] == (side, side):
        return pixels
    method = cv2.INTER_AREA if max(pixels.shape[:2]) > side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=method), np.uint8)


def resize_mask(mask: NDArray[np.bool_], side: int) -> Pixels:
    """`mask` (H,W) at (side,side): 1 where at least half of the area that a pixel stands for is lesion, else 0."""
    return (resize_image(mask.astype(np.uint8) * np.uint8(255), side) >= 128).astype(np.uint8)


def _check_shapes(images: _Rows, masks: _Rows, files: Mapping[str, Path]) -> None:
    for case_id, path in files.items():
        require_same_proportions(path, masks.size(case_id), images.size(case_id))


def _state(path: Path) -> str:
    """What changes when the file does; a missing file is reported when it is decoded."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()[:16]
