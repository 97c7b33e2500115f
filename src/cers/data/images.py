"""Image and mask files as arrays: PNG, JPEG, BMP (Pillow) and TIFF (tifffile).

Where a file says that its pixels are stored turned (EXIF, TIFF), they are read as a viewer shows them.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG, SAMPLEFORMAT

from cers.config import DEEPEST_GREY, MaskReading
from cers.errors import CersError

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN_TIFF = (COMPRESSION.NONE, COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE)
_WINDOW = (0.5, 99.5)
_LYING = (5, 6, 7, 8)  # orientations in which rows are stored as columns
# What tifffile would log about a broken file reaches the user as one CersError instead.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
Result = TypeVar("Result")


def read_image(path: Path) -> NDArray[np.uint8]:
    """The image as (H,W), or (H,W,3) where its colour channels differ; transparency is dropped.

    Pixels deeper than 8 bit are mapped linearly from the image's own 0.5 to 99.5 percentile onto 0 to 255.

    Raises:
        CersError: missing, empty, truncated or no 2-D image, or NaN or infinite pixels.
    """
    pixels, palette = _reading(path, _decode)
    if palette is not None:
        pixels = palette[pixels]
    grey = _without_alpha(pixels)
    if grey.ndim == 3 and (grey[..., :1] == grey[..., 1:]).all():
        grey = grey[..., 0]
    return _to_8_bit(grey, path)


def read_mask(path: Path, reading: MaskReading) -> NDArray[np.bool_]:
    """The lesion as (H,W). Without a setting only masks that leave no doubt: all zero, {0,1}, {0,255}, two indexes.

    One bit per pixel always reads as white = lesion.

    Raises:
        CersError: unreadable, coloured, or values of which `reading` does not say what is lesion.
    """
    if reading.threshold is not None and reading.foreground is not None:
        raise CersError("data.mask: give threshold or foreground, not both")
    grey = _mask_grey(path)
    unset = reading.threshold is None and reading.foreground is None
    if grey.dtype == np.bool_ and not (unset and grey.all()):
        return grey
    if reading.threshold is not None:
        return np.asarray(grey >= reading.threshold)
    if reading.foreground is not None:
        return np.isin(grey, reading.foreground)
    values = _unique(grey)
    if values[0] != 0 or len(values) > 2 or values[-1] not in (0, 1, 255):
        raise CersError(f"{path}: {_doubt(values)}")
    return np.asarray(grey != 0)


def read_mask_at(path: Path, shape: tuple[int, ...], reading: MaskReading) -> NDArray[np.bool_]:
    """The same mask at the size (H,W) of its image, by nearest neighbours.

    Raises:
        CersError: as `read_mask`, or it has other proportions than the image.
    """
    mask = read_mask(path, reading)
    if mask.shape == shape:
        return mask
    require_same_proportions(path, mask.shape, shape)
    return np.asarray(cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST), np.bool_)


def same_proportions(mask: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether height and width (H,W) of a mask stand to each other as those of its image do, to within 2 %."""
    (mask_height, mask_width), (height, width) = mask, image
    return abs(height * mask_width - width * mask_height) <= 0.02 * width * mask_height


def require_same_proportions(path: Path, mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    """A mask may have another resolution than its image, but not another shape.

    Raises:
        CersError: the mask in `path` has other proportions, as `same_proportions` says.
    """
    if not same_proportions(mask, image):
        (mask_height, mask_width), (height, width) = mask, image
        raise CersError(
            f"mask {path} is {mask_width}x{mask_height} but its image {width}x{height}; run `cers data check`"
        )


def mask_values(path: Path) -> NDArray[Any]:
    """The sorted grey values, or palette indexes, that occur in a mask, as `read_mask` sees them.

    Raises:
        CersError: unreadable, or coloured.
    """
    return _unique(_mask_grey(path))


def colour_over_index(path: Path) -> bool:
    """Whether a mask is read by the colours of its palette, which say the opposite of its indexes: 0 is white.

    Raises:
        CersError: unreadable.
    """
    return _reading(path, _colour_over_index)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels, from the header alone where the format allows.

    Raises:
        CersError: missing or no image.
    """
    return _reading(path, _header_size)


def _reading(path: Path, read: Callable[[Path], Result]) -> Result:
    try:
        if not path.stat().st_size:
            raise CersError(f"{path} is empty (0 bytes); copy it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(path)
    except CersError:
        raise
    except FileNotFoundError:
        raise CersError(f"no file {path}; run `cers data check` on its dataset") from None
    except PermissionError:
        raise CersError(f"{path} may not be read; mend its permissions") from None
    except Exception as error:  # decoders answer broken bytes with exceptions of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CersError(f"{path} cannot be read as PNG, JPEG, TIFF or BMP ({reason}); copy it again") from None


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF_MAGIC


def _header_size(path: Path) -> tuple[int, int]:
    if _is_tiff(path):
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            height, width, orientation = page.imagelength, page.imagewidth, _tiff_orientation(page)
    else:
        with Image.open(path, formats=_FORMATS) as image:
            height, width, orientation = image.height, image.width, _orientation(image)
    return (width, height) if orientation in _LYING else (height, width)


def _orientation(image: Image.Image) -> int:
    """How the pixels are stored, from 1 (upright) to 8; 1 where broken EXIF data do not say."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow answers broken bytes with exceptions of any type
        return 1


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    return int(page.tags.valueof("Orientation", 1))


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H,W) or (H,W,C) turned from how it is stored to how it is shown (TIFF 6.0, tag 274, which EXIF took over).

    Not `tifffile.reorient`, which takes 7 for 8.
    """
    if orientation in _LYING:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """As `_decode_any`, but only what is an image in the plane."""
    pixels, palette = _decode_any(path)
    if not pixels.size or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] > 4):
        raise CersError(f"{path} holds an array of shape {pixels.shape}; save it as a grey or RGB image")
    return pixels, palette


def _decode_any(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Pixels (H,W) or (H,W,C) at the depth of the file, and the palette (N,3) if they are indexes into one."""
    if _is_tiff(path):
        pixels = _decode_tiff(path)
        if pixels is not None:
            return pixels, None
    with Image.open(path, formats=_FORMATS) as image:
        pixels, palette = _decode_by_pillow(image, path)
        return _upright(pixels, _orientation(image)), palette  # of a TIFF, which Pillow turns by itself, 1 by now


def _decode_by_pillow(image: Image.Image, path: Path) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    if image.format == "PNG" and image.mode.startswith("RGB") and _png_depth(path) == 16:
        return _decode_deep_colour(path), None
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        indexes = np.asarray(image)
        return indexes, np.pad(colours, ((0, max(0, int(indexes.max()) + 1 - len(colours))), (0, 0)))
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return np.asarray(image.convert("RGB")), None
    if image.mode.startswith("I;16") and _zero_is_white(path):  # Pillow inverts 8 bit only
        return np.invert(np.asarray(image)), None
    return np.asarray(image), None


def _decode_tiff(path: Path) -> NDArray[Any] | None:
    """One page as tifffile gives it, or None where Pillow does better: palettes, inverted 8 bit, LZW and JPEG.

    Inverted grey may be off by a constant (12 bits in 16), which the window of deep pixels takes out again.
    """
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if len(tiff.pages) > 1 or page.imagedepth > 1:
            raise CersError(f"{path} holds {len(tiff.pages)} pages; save each slice as a 2-D image")
        inverted = page.photometric == PHOTOMETRIC.MINISWHITE
        if inverted and page.sampleformat != SAMPLEFORMAT.UINT:
            raise CersError(f"{path}: a TIFF of signed or fractional grey in which 0 is white; save it with 0 as black")
        known = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) or (inverted and page.bitspersample > 8)
        if page.compression not in _PLAIN_TIFF or not known:
            return None
        pixels = page.asarray()
        if page.planarconfig == PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        return _upright(np.invert(pixels) if inverted else pixels, _tiff_orientation(page))


def _zero_is_white(path: Path) -> bool:
    """Whether this is a TIFF of inverted grey. By the standard 1 is black, but tifffile writes True so, meaning 1."""
    if not _is_tiff(path):
        return False
    with tifffile.TiffFile(path) as tiff:
        return bool(tiff.pages.first.photometric == PHOTOMETRIC.MINISWHITE)


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


def _decode_deep_colour(path: Path) -> NDArray[Any]:
    """(H,W,3) of a 16-bit colour PNG, of which Pillow would keep the high bytes only."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise CersError(f"{path} cannot be read as a 16-bit colour PNG; copy it again")
    return np.asarray(pixels[..., 2::-1])


def _without_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H,W) or (H,W,3), without the last of two or four channels."""
    if pixels.ndim == 2:
        return pixels
    return pixels[..., 0] if pixels.shape[-1] <= 2 else pixels[..., :3]


def _to_8_bit(pixels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    deep = pixels.astype(np.float64)
    if not np.isfinite(deep).all():
        raise CersError(f"{path} has NaN or infinite pixels; replace them by a number")
    low, high = np.percentile(deep, _WINDOW)
    if low == high:  # a small bright spot on a flat ground lies outside the percentiles
        low, high = deep.min(), deep.max()
    scaled = (deep.clip(low, high) - low) / ((high - low) or 1.0)
    return np.asarray(np.rint(scaled * 255), dtype=np.uint8)


def _mask_grey(path: Path) -> NDArray[Any]:
    """(H,W): grey values, palette indexes, or bool where the file has one bit per pixel."""
    if _reading(path, _zero_is_white):
        raise CersError(f"{path}: a TIFF in which 0 is white leaves open what is lesion; save the mask as 0/255 PNG")
    pixels, palette = _reading(path, _decode)
    if palette is not None:
        return _palette_grey(pixels, palette)
    if pixels.ndim == 2:
        grey = pixels
    else:
        colours = _without_alpha(pixels)
        if pixels.shape[-1] in (2, 4) and np.ptp(pixels[..., -1]):
            raise CersError(f"{path}: the mask is partly transparent; save it as a grey image without transparency")
        if colours.ndim == 3 and (colours[..., :1] != colours[..., 1:]).any():
            raise CersError(f"{path}: the mask is coloured (its channels differ); save it as a grey image")
        grey = colours[..., 0] if colours.ndim == 3 else colours
    if not np.isfinite(grey).all():
        raise CersError(f"{path}: the mask has NaN or infinite pixels; save it as 0 and 255")
    return grey


def _palette_grey(indexes: NDArray[Any], palette: NDArray[np.uint8]) -> NDArray[Any]:
    """The indexes, unless the colours in use are black and white: these say themselves which is lesion."""
    return np.asarray(palette[indexes][..., 0] if _black_or_white(palette[_unique(indexes)]) else indexes)


def _colour_over_index(path: Path) -> bool:
    if not _is_tiff(path):
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode != "P":  # most masks, of which the header is enough
                return False
    indexes, palette = _decode(path)
    return palette is not None and bool((palette[0] == 255).all()) and _black_or_white(palette[_unique(indexes)])


def _black_or_white(colours: NDArray[np.uint8]) -> bool:
    return bool(((colours == 0).all(axis=1) | (colours == 255).all(axis=1)).all())


def _unique(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.uint8:  # counting is ten times as fast as sorting
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).astype(np.uint8)
    return np.unique(values)


def _doubt(values: NDArray[Any]) -> str:
    """What is unclear about a mask of these values, and the setting that makes it clear."""
    shown = ",".join(f"{v:g}" for v in values[:8].astype(float)) + (",…" if len(values) > 8 else "")
    lesion = [int(v) for v in values if v > 0]
    if values.dtype.kind == "f" and any(v != int(v) for v in values):
        return f"mask values {{{shown}}} are fractions; save the mask as 0 and 255"
    if len(values) <= 8:
        options = " ".join(f"--mask-foreground {v}" for v in lesion)
        said = f"data.mask.foreground={lesion} (as options: {options})"
        return f"mask values {{{shown}}} leave open what is lesion; set e.g. {said}"
    half = 128 if values[-1] <= 255 else min((int(values[-1]) + 1) // 2, DEEPEST_GREY)
    said = f"data.mask.threshold={half} (as option: --mask-threshold {half})"
    return f"mask has {len(values)} values {{{shown}}}; set e.g. {said}"
