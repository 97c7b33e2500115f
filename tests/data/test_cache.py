import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cers.config import MaskReading
from cers.data.cache import ImageCache, resize_image, resize_mask
from cers.data.case import Case
from cers.errors import CersError

READING = MaskReading()


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def make_cases(folder: Path, count: int = 4, size: tuple[int, int] = (40, 60)) -> list[Case]:
    rng = np.random.default_rng(0)
    cases = []
    for i in range(count):
        image = write(folder / f"images/c{i}.png", rng.integers(0, 256, size, dtype=np.uint8))
        mask = np.zeros(size, np.uint8)
        mask[10:30, 5 * i : 5 * i + 20] = 255
        cases.append(Case(f"c{i}", image, write(folder / f"masks/c{i}.png", mask)))
    return cases


def arrays(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.npy")}


def test_serves_resized_pixels_masks_and_sizes(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    cases[2] = replace(cases[2], mask=None)
    cases[3] = replace(cases[3], mask=None, negative=True)
    told: list[tuple[int, int]] = []
    cache = ImageCache.build(cases, 32, tmp_path / "cache", READING, lambda *n: told.append(n))
    stored = cv2.imread(str(cases[0].image), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(cache.image("c0"), cv2.resize(stored, (32, 32), interpolation=cv2.INTER_AREA))
    mask = cache.mask("c1")
    assert mask is not None
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() == pytest.approx(20 * 20 / (40 * 60), rel=0.1)
    assert cache.mask("c2") is None
    negative = cache.mask("c3")
    assert negative is not None
    assert negative.shape == (32, 32)
    assert not negative.any()
    assert cache.original_size("c0") == (40, 60)
    assert "c0" in cache
    assert "c9" not in cache
    assert told == [(n, 6) for n in range(1, 7)]


def test_one_coloured_image_makes_all_coloured(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 2] = 200
    write(cases[2].image, red)
    cache = ImageCache.build(cases, 32, tmp_path / "cache", READING)
    np.testing.assert_array_equal(cache.image("c2"), np.broadcast_to(np.uint8([200, 0, 0]), (32, 32, 3)))
    grey = cache.image("c0")
    assert grey.shape == (32, 32, 3)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_second_build_reads_no_file(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    first = ImageCache.build(cases, 32, tmp_path / "cache", READING)
    status = cases[0].image.stat()
    cases[0].image.write_bytes(b"\0" * status.st_size)
    os.utime(cases[0].image, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = ImageCache.build(cases, 32, tmp_path / "cache", READING)
    np.testing.assert_array_equal(first.image("c0"), second.image("c0"))


def test_changed_file_is_decoded_again_and_the_old_array_goes(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    ImageCache.build(cases, 32, tmp_path / "cache", READING)
    before = arrays(tmp_path / "cache")
    write(cases[0].image, np.full((40, 60), 7, np.uint8))
    cache = ImageCache.build(cases, 32, tmp_path / "cache", READING)
    assert (cache.image("c0") == 7).all()
    after = arrays(tmp_path / "cache")
    assert len(after) == 2
    assert len(after.keys() & before.keys()) == 1


def test_other_masks_leave_the_images_alone(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    ImageCache.build(cases, 32, tmp_path / "cache", READING)
    before = arrays(tmp_path / "cache")
    hidden = [replace(case, mask=None) if case.id > "c1" else case for case in cases]
    cache = ImageCache.build(hidden, 32, tmp_path / "cache", READING)
    assert cache.mask("c3") is None
    inverted = ImageCache.build(cases, 32, tmp_path / "cache", MaskReading(foreground=(0,)))
    mask = inverted.mask("c0")
    assert mask is not None
    assert mask[0, -1] == 1
    images = {name for name in arrays(tmp_path / "cache") if name.startswith("images")}
    assert images == {name for name in before if name.startswith("images")}
    smaller = ImageCache.build(cases, 16, tmp_path / "cache", READING)
    assert smaller.image("c0").shape == (16, 16)


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("content", [b"not an image", None])
def test_unreadable_file_is_named_and_nothing_stays(tmp_path: Path, kind: str, content: bytes | None) -> None:
    cases = make_cases(tmp_path)
    bad = tmp_path / kind / "c2.png"
    bad.unlink()
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(CersError, match=r"'c2'.*c2\.png.*cers data check") as caught:
        ImageCache.build(cases, 32, tmp_path / "cache", READING)
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(kind)]


def test_mask_of_another_shape_is_refused_but_another_resolution_is_not(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    write(tmp_path / "masks/c1.png", np.zeros((80, 120), np.uint8))
    ImageCache.build(cases, 32, tmp_path / "cache", READING)
    write(tmp_path / "masks/c1.png", np.zeros((60, 40), np.uint8))
    with pytest.raises(CersError, match=r"c1\.png is 40x60.*60x40"):
        ImageCache.build(cases, 32, tmp_path / "cache", READING)


def test_two_cases_of_one_id_are_refused(tmp_path: Path) -> None:
    cases = make_cases(tmp_path)
    with pytest.raises(CersError, match="share an id"):
        ImageCache.build([*cases, cases[0]], 32, tmp_path / "cache", READING)


@pytest.mark.parametrize("damage", ["array", "index", "emptied"])
def test_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    cases = make_cases(tmp_path)
    good = np.array(ImageCache.build(cases, 32, tmp_path / "cache", READING).image("c3"))
    array = next((tmp_path / "cache").glob("images*.npy"))
    index = next((tmp_path / "cache").glob("images*.json"))
    if damage == "array":
        array.write_bytes(array.read_bytes()[:-900])
    elif damage == "index":
        index.write_text(index.read_text(encoding="utf-8")[:50], encoding="utf-8")
    else:
        array.unlink()
    np.testing.assert_array_equal(ImageCache.build(cases, 32, tmp_path / "cache", READING).image("c3"), good)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("when", [1, 3, 4, 6])
def test_kill_leaves_nothing_half(tmp_path: Path, when: int) -> None:
    cases = make_cases(tmp_path)
    folder = tmp_path / "cache"
    child = os.fork()
    if child == 0:
        stop = lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done == when else None  # noqa: E731
        ImageCache.build(cases, 32, folder, READING, stop)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    told: list[int] = []
    cache = ImageCache.build(cases, 32, folder, READING, lambda done, _: told.append(done))
    assert told[0] == (1 if when <= 4 else 4)
    clean = ImageCache.build(cases, 32, tmp_path / "clean", READING)
    for case in cases:
        np.testing.assert_array_equal(cache.image(case.id), clean.image(case.id))
        np.testing.assert_array_equal(cache.mask(case.id), clean.mask(case.id))


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_full_disk_is_one_line(tmp_path: Path) -> None:
    import resource

    cases = make_cases(tmp_path)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            ImageCache.build(cases, 64, tmp_path / "cache", READING)
        except CersError as error:
            os._exit(7 if "data.cache" in str(error) and "\n" not in str(error) else 8)
        os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine", encoding="utf-8")
    with pytest.raises(CersError, match=r"cannot write .*cache.*: Not a directory; .*data\.cache"):
        ImageCache.build(make_cases(tmp_path), 32, tmp_path / "cache" / "images", READING)


def test_travels_to_another_process_without_its_pixels(tmp_path: Path) -> None:
    cache = ImageCache.build(make_cases(tmp_path), 64, tmp_path / "cache", READING)
    sent = pickle.dumps(cache)
    assert len(sent) < 1500
    np.testing.assert_array_equal(pickle.loads(sent).image("c1"), cache.image("c1"))


def test_no_cases_and_no_masks(tmp_path: Path) -> None:
    empty = ImageCache.build([], 32, tmp_path / "cache", READING)
    assert "c0" not in empty
    unlabelled = [replace(case, mask=None) for case in make_cases(tmp_path)]
    assert ImageCache.build(unlabelled, 32, tmp_path / "cache", READING).mask("c0") is None


@given(hnp.arrays(np.bool_, (24, 24)), st.sampled_from([2, 3, 4]))
@settings(max_examples=60)
def test_mask_shrinks_by_the_half_rule(mask: np.ndarray, factor: int) -> None:
    side = 24 // factor
    share = mask.reshape(side, factor, side, factor).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize_mask(mask, side), share >= 0.5)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 50), st.integers(1, 50))), st.integers(1, 64))
@settings(max_examples=60)
def test_resizing_stays_within_the_grey_levels(pixels: np.ndarray, side: int) -> None:
    resized = resize_image(pixels, side)
    assert resized.shape == (side, side)
    assert resized.dtype == np.uint8
    assert pixels.min() <= resized.min()
    assert resized.max() <= pixels.max()
