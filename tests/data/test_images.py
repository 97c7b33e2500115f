import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from cers.config import MaskReading
from cers.data.images import colour_over_index, image_size, mask_values, read_image, read_mask
from cers.errors import CersError

UNSET = MaskReading()
GREY = (np.arange(12 * 17).reshape(12, 17) % 251).astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
SPOT = np.zeros((12, 17), np.uint8)
SPOT[3:6, 4:9] = 1


def one_line(error: pytest.ExceptionInfo[CersError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert path.name in text
    return text


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_and_colour_files_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    for pixels in (GREY, COLOUR):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(pixels).save(path)
        read = read_image(path)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, pixels)
        assert image_size(path) == (12, 17)


def test_jpeg_is_read_under_a_wrong_extension(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(GREY).save(path, format="JPEG", quality=100)
    assert np.abs(read_image(path).astype(int) - GREY).max() < 8
    assert image_size(path) == (12, 17)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_equal_channels_become_one(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(GREY).convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path), GREY)


def test_palette_and_transparency_keep_the_colours(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    image.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(image.convert("RGB")))
    clear = np.dstack([COLOUR, GREY])
    Image.fromarray(clear).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOUR)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(SPOT.astype(bool)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), SPOT * 255)


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int16", "uint32", "float32", "float64"])
def test_deep_tiffs_are_windowed_linearly(tmp_path: Path, dtype: str) -> None:
    deep = (np.arange(10_000).reshape(100, 100) * 3 + 100).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", deep)
    read = read_image(tmp_path / "x.tif").astype(float)
    low, high = np.percentile(deep, (0.5, 99.5))
    expected = ((deep.astype(float).clip(low, high) - low) / (high - low)) * 255
    assert read.min() == 0
    assert read.max() == 255
    assert np.abs(read - expected).max() <= 0.5 + 1e-9


def test_deep_pngs_keep_low_bytes(tmp_path: Path) -> None:
    deep = (np.arange(10_000).reshape(100, 100) % 200).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    assert len(np.unique(read_image(tmp_path / "grey.png"))) > 150
    colour = np.dstack([deep, deep[::-1], deep.T])
    cv2.imwrite(str(tmp_path / "colour.png"), colour[..., ::-1])
    read = read_image(tmp_path / "colour.png")
    assert read.shape == (100, 100, 3)
    assert np.corrcoef(read[..., 2].ravel(), deep.T.ravel())[0, 1] > 0.999
    assert image_size(tmp_path / "colour.png") == (100, 100)


@settings(max_examples=30)
@given(
    pixels=hnp.arrays(np.uint16, (9, 9)),
    factor=st.integers(1, 50),
    offset=st.integers(0, 1000),
)
def test_window_ignores_scale_and_offset(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray, factor: int, offset: int
) -> None:
    folder = tmp_path_factory.mktemp("window")
    tifffile.imwrite(folder / "a.tif", pixels)
    tifffile.imwrite(folder / "b.tif", pixels.astype(np.float64) * factor + offset)
    first, second = read_image(folder / "a.tif").astype(int), read_image(folder / "b.tif").astype(int)
    assert np.abs(first - second).max() <= 1  # rounding at a half
    order = pixels.ravel().argsort()
    assert (np.diff(first.ravel()[order]) >= 0).all()


def test_window_survives_flat_images(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "flat.tif", np.full((8, 8), 700, np.uint16))
    assert not read_image(tmp_path / "flat.tif").any()
    spot = np.zeros((100, 100), np.uint16)
    spot[5, 5] = 900
    tifffile.imwrite(tmp_path / "spot.tif", spot)
    np.testing.assert_array_equal(read_image(tmp_path / "spot.tif"), (spot > 0) * 255)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
def test_compressed_tiffs(tmp_path: Path, compression: str | None) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "x.tif", compression=compression)
    read = read_image(tmp_path / "x.tif")
    assert read.shape == COLOUR.shape
    if compression != "jpeg":
        np.testing.assert_array_equal(read, COLOUR)


def test_unusual_tiffs(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(COLOUR, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "planar.tif"), COLOUR)
    tifffile.imwrite(tmp_path / "inverted.tif", 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "inverted.tif"), GREY)
    tifffile.imwrite(tmp_path / "big.tif", GREY, bigtiff=True)
    np.testing.assert_array_equal(read_image(tmp_path / "big.tif"), GREY)
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.tif"), GREY)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("compressed", [False, True])
def test_unsigned_tiffs_in_which_zero_is_white(tmp_path: Path, dtype: str, compressed: bool) -> None:
    path = tmp_path / "x.tif"
    stored = np.iinfo(dtype).max - GREY.astype(dtype)
    if compressed and dtype != "uint32":  # which Pillow does not write
        Image.fromarray(stored).save(path, compression="tiff_lzw")
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            tiff.pages.first.tags["PhotometricInterpretation"].overwrite(0)
    else:
        tifffile.imwrite(path, stored, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "plain.tif", GREY.astype(dtype), photometric="minisblack")
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "plain.tif"))


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_signed_tiffs_in_which_zero_is_white_are_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, GREY.astype(dtype), photometric="miniswhite")
    with pytest.raises(CersError) as error:
        read_image(path)
    assert "0 is white" in one_line(error, path)


# ---- files that say how to turn them


TURNED = ["jpg", "png", "deep.png", "tif", "lzw.tif", "jpeg.tif", "planar.tif", "float.tif"]


def save_turned(path: Path, pixels: np.ndarray, kind: str, orientation: int) -> None:
    """`pixels` as they are, with the remark that they are stored in `orientation`."""
    exif = Image.Exif()
    exif[274] = orientation
    match kind:
        case "jpg":
            Image.fromarray(pixels).save(path, quality=100, subsampling=0, exif=exif)
        case "png":
            Image.fromarray(pixels).save(path, exif=exif)
        case "deep.png":
            cv2.imwrite(str(path), pixels[..., ::-1].astype(np.uint16) * 257)
            add_png_exif(path, exif.tobytes().removeprefix(b"Exif\0\0"))
        case "tif" | "float.tif":
            tag = [(274, "H", 1, orientation, True)]
            tifffile.imwrite(path, pixels.astype(np.uint8 if kind == "tif" else np.float32), extratags=tag)
        case "planar.tif":
            tag = [(274, "H", 1, orientation, True)]
            tifffile.imwrite(
                path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate", extratags=tag
            )
        case _:
            compression = "tiff_lzw" if kind == "lzw.tif" else "jpeg"
            Image.fromarray(pixels).save(path, compression=compression, tiffinfo={274: orientation})


def add_png_exif(path: Path, exif: bytes) -> None:
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    chunk = b"eXIf" + exif
    crc = zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:end] + len(exif).to_bytes(4, "big") + chunk + crc + content[end:])


@pytest.mark.parametrize("kind", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_read_as_a_viewer_shows_it(tmp_path: Path, kind: str, orientation: int) -> None:
    path, plain = tmp_path / f"x.{kind}", tmp_path / f"plain.{kind}"
    save_turned(path, COLOUR, kind, orientation)
    save_turned(plain, COLOUR, kind, 1)
    stored = Image.fromarray(read_image(plain))  # what compression left of the colours
    stored.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == upright.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_and_its_mask_are_turned_alike(tmp_path: Path, orientation: int) -> None:
    save_turned(tmp_path / "i.jpg", np.kron(SPOT * 255, np.ones((8, 8), np.uint8)), "jpg", orientation)
    palette = Image.fromarray(np.kron(SPOT, np.ones((8, 8), np.uint8)))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    exif = Image.Exif()
    exif[274] = orientation
    palette.save(tmp_path / "p.png", exif=exif)
    save_turned(tmp_path / "m.tif", np.kron(SPOT, np.ones((8, 8), np.uint8)), "tif", orientation)
    image = read_image(tmp_path / "i.jpg") > 127
    for name in ("p.png", "m.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, UNSET), image)


def test_broken_exif_data_turn_nothing(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "broken.jpg", exif=b"Exif\0\0no TIFF header at all")
    for kind in ("jpg", "png", "tif"):
        save_turned(tmp_path / f"nine.{kind}", GREY, kind, 9)
    for path in tmp_path.iterdir():
        assert read_image(path).shape == GREY.shape == image_size(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    pixels = np.ones((8, 8), np.float32)
    pixels[2, 2] = bad
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels)
    for read in (read_image, mask_values, lambda p: read_mask(p, UNSET)):
        with pytest.raises(CersError) as error:
            read(path)
        assert "NaN" in one_line(error, path)


def test_stacks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((5, 8, 8), np.uint8), photometric="minisblack")
    with pytest.raises(CersError) as error:
        read_image(path)
    assert "5 pages" in one_line(error, path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image\n", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff", b"BM", b"GIF89a"]
)
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (read_image, mask_values, image_size, lambda p: read_mask(p, UNSET)):
        with pytest.raises(CersError) as error:
            read(path)
        one_line(error, path)


def test_arrays_of_many_channels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((9, 9, 7), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(CersError) as error:
        read_image(path)
    assert "(9, 9, 7)" in one_line(error, path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("absent.png", "folder.png"):
        for read in (read_image, image_size):
            with pytest.raises(CersError) as error:
                read(tmp_path / name)
            one_line(error, tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "options"), [("png", {}), ("jpg", {}), ("bmp", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})]
)
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9])
def test_truncated_files_never_pass(tmp_path: Path, suffix: str, options: dict[str, str], kept: float) -> None:
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CersError) as error:
        read_image(path)
    one_line(error, path)


@settings(max_examples=100)
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "tif", "bmp"]))
def test_broken_bytes_give_an_image_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("broken") / f"x.{suffix}"
    Image.fromarray(COLOUR).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    for read in (read_image, image_size, mask_values):
        message = ""
        try:
            read(path)
        except CersError as error:
            message = str(error)
        assert "\n" not in message


# ---- masks


def save_mask(path: Path, kind: str) -> None:
    image = Image.fromarray(SPOT)
    white = Image.fromarray(SPOT * 255)
    match kind:
        case "0/1":
            image.save(path)
        case "0/255":
            white.save(path)
        case "bit":
            white.convert("1").save(path)
        case "RGB" | "RGBA" | "LA":
            white.convert(kind).save(path)
        case "uint16":
            Image.fromarray(SPOT.astype(np.uint16)).save(path)
        case "red palette":
            image.putpalette([0, 0, 0, 255, 0, 0])
            image.save(path)
        case "white first":
            Image.fromarray(1 - SPOT).save(path)
            image = Image.open(path).convert("L")
            image.putpalette([255, 255, 255, 0, 0, 0])
            image.save(path)
        case "second of three":
            indexes = Image.fromarray(SPOT * 2)
            indexes.putpalette([0, 0, 0, 0, 255, 0, 128, 0, 0])
            indexes.save(path)


CLEAR = ["0/1", "0/255", "bit", "RGB", "RGBA", "LA", "uint16", "red palette", "white first"]


@pytest.mark.parametrize("kind", CLEAR)
def test_masks_without_doubt_need_no_setting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    save_mask(path, kind)
    mask = read_mask(path, UNSET)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, SPOT.astype(bool))


@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.int16])
def test_tiff_masks(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "m.tif", SPOT.astype(dtype), photometric="minisblack")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", UNSET), SPOT.astype(bool))


def test_tiff_masks_in_which_zero_is_white_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", SPOT.astype(bool))  # tifffile's default for bool
    with pytest.raises(CersError, match="0 is white"):
        read_mask(tmp_path / "m.tif", UNSET)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_empty_masks_say_no_lesion(tmp_path: Path, mode: str) -> None:
    Image.fromarray(SPOT * 0).convert(mode).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", UNSET)
    assert mask.shape == SPOT.shape
    assert not mask.any()


@pytest.mark.parametrize(
    ("pixels", "needed"),
    [
        (np.full((4, 4), 255, np.uint8), "data.mask.foreground=[255]"),
        (np.ones((4, 4), np.uint8), "data.mask.foreground=[1]"),
        (np.array([[0, 1], [2, 0]], np.uint8), "data.mask.foreground=[1, 2]"),
        (np.array([[0, 128], [0, 0]], np.uint8), "data.mask.foreground=[128]"),
        (np.array([[1, 2], [1, 2]], np.uint8), "data.mask.foreground="),
        (np.arange(256, dtype=np.uint8).reshape(16, 16), "data.mask.threshold=128"),
        (np.arange(1000, dtype=np.uint16).reshape(20, 50), "data.mask.threshold=500"),
        (np.arange(1000, dtype=np.uint32).reshape(20, 50) * 1000, "data.mask.threshold=65535"),
        (np.array([[0, 0.5], [0.25, 1]], np.float32), "save the mask as 0 and 255"),
    ],
)
def test_doubtful_masks_name_values_and_setting(tmp_path: Path, pixels: np.ndarray, needed: str) -> None:
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, pixels)
    with pytest.raises(CersError) as error:
        read_mask(path, UNSET)
    text = one_line(error, path)
    assert needed in text
    assert f"{pixels.max():g}" in text or "…" in text


def test_the_advised_setting_resolves_the_doubt(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [2, 0, 0]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png", MaskReading(foreground=(1, 2))), labels > 0)
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png", MaskReading(foreground=(2,))), labels == 2)
    soft = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(soft).save(tmp_path / "soft.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "soft.png", MaskReading(threshold=128)), soft >= 128)


def test_anti_aliased_jpeg_needs_and_takes_a_threshold(tmp_path: Path) -> None:
    big = np.kron(SPOT * 255, np.ones((7, 7), np.uint8))
    Image.fromarray(big).save(tmp_path / "m.jpg", quality=60)
    with pytest.raises(CersError, match=r"threshold=128"):
        read_mask(tmp_path / "m.jpg", UNSET)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg", MaskReading(threshold=128)), big > 0)


def test_full_one_bit_mask_needs_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.ones((4, 4), bool)).save(path)
    with pytest.raises(CersError, match=r"foreground="):
        read_mask(path, UNSET)
    for reading in (MaskReading(foreground=(1,)), MaskReading(threshold=128)):
        assert read_mask(path, reading).all()


def test_a_threshold_for_the_dataset_does_not_empty_its_one_bit_masks(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.png", "bit")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", MaskReading(threshold=128)), SPOT.astype(bool))


def test_coloured_and_transparent_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "c.png")
    with pytest.raises(CersError, match="coloured"):
        read_mask(tmp_path / "c.png", MaskReading(threshold=128))
    Image.fromarray(np.dstack([SPOT * 0] * 3 + [SPOT * 255])).save(tmp_path / "t.png")
    with pytest.raises(CersError, match="transparent"):
        read_mask(tmp_path / "t.png", UNSET)


def test_two_settings_at_once_are_refused(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.png", "0/1")
    with pytest.raises(CersError, match="not both"):
        read_mask(tmp_path / "m.png", MaskReading(threshold=1, foreground=(1,)))


def test_mask_values_are_sorted_and_distinct(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 0], [3, 7]], np.uint8)).save(tmp_path / "m.png")
    assert mask_values(tmp_path / "m.png").tolist() == [0, 3, 7]
    save_mask(tmp_path / "p.png", "second of three")
    assert mask_values(tmp_path / "p.png").tolist() == [0, 2]


@settings(max_examples=40)
@given(labels=hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 4)), threshold=st.integers(1, 5))
def test_settings_mean_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, threshold: int
) -> None:
    path = tmp_path_factory.mktemp("labels") / "m.png"
    Image.fromarray(labels).save(path)
    at_least = read_mask(path, MaskReading(threshold=threshold))
    among = read_mask(path, MaskReading(foreground=tuple(range(threshold, 6))))
    np.testing.assert_array_equal(at_least, labels >= threshold)
    np.testing.assert_array_equal(at_least, among)


def test_palettes_whose_colours_contradict_their_indexes_are_known(tmp_path: Path) -> None:
    for kind in [*CLEAR, "second of three"]:
        save_mask(tmp_path / "m.png", kind)
        assert colour_over_index(tmp_path / "m.png") == (kind == "white first")
