"""Bad input gets one clear line and exit status 2, and nothing that was written before is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from cers.config import load_config
from cers.data.layouts import load_cases
from cers.engine.checkpoint import load_checkpoint
from cers.errors import CersError
from cers.material import make_batches
from cers.text.encoders import TextEncoders
from cers_command import Command, one_line, refused, succeeds
from manifest_files import edit_manifest

CERS = Path(sys.executable).with_name("cers")


@pytest.fixture
def copy(scans: Path, tmp_path: Path) -> Path:
    """The dataset, to be spoiled."""
    return Path(shutil.copytree(scans, tmp_path / "copy"))


@pytest.fixture
def victim(split_file: Path) -> str:
    """A labelled case: no run can do without it."""
    return str(json.loads(split_file.read_text(encoding="utf-8"))["labelled"][0])


@pytest.fixture
def attempt(settings: list[str], copy: Path, trained: Path, tmp_path: Path) -> Callable[..., str]:
    """Train on the spoiled dataset in place of an older run, which must be left as it was; returns the line."""

    def train(*changes: str) -> str:
        older = Path(shutil.copytree(trained, tmp_path / "older", dirs_exist_ok=True))
        before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}
        here = [f"data.path={copy}", f"data.cache={tmp_path / 'cache'}", *changes]
        line = refused("train", "--overwrite", "--out", older, *settings, *here)
        assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file()} == before
        return line

    return train


def replace_image(copy: Path, id_: str, name: str) -> Path:
    """Name another file as the image of a case; the id stays."""
    edit_manifest(copy, lambda i, row: [{**row, "image": f"images/{name}"} if i == id_ else row])
    return copy / "images" / name


def test_a_missing_folder(settings: list[str], tmp_path: Path) -> None:
    line = refused("train", "--out", tmp_path / "run", *settings, f"data.path={tmp_path / 'nowhere'}")
    assert f"no dataset at {tmp_path / 'nowhere'}" in line
    assert "data.path=FOLDER" in line
    assert not (tmp_path / "run").exists()


def test_no_dataset_named_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused("train")
    assert "no dataset at phantom" in line
    assert "data.path=FOLDER" in line
    assert list(tmp_path.iterdir()) == []


def test_a_text_file_named_png(copy: Path, victim: str, attempt: Callable[..., str]) -> None:
    path = copy / "images" / f"{victim}.png"
    path.write_text("not an image", encoding="utf-8")
    line = attempt()
    assert f"case '{victim}'" in line
    assert str(path) in line
    assert "cers data check" in line


def test_a_truncated_jpeg(copy: Path, victim: str, attempt: Callable[..., str]) -> None:
    pixels = cv2.imread(str(copy / "images" / f"{victim}.png"), cv2.IMREAD_GRAYSCALE)
    path = replace_image(copy, victim, f"{victim}.jpg")
    encoded = cv2.imencode(".jpg", pixels)[1].tobytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    assert str(path) in attempt()


def test_a_mask_of_another_shape(copy: Path, victim: str, attempt: Callable[..., str]) -> None:
    path = copy / "masks" / f"{victim}.png"
    cv2.imwrite(str(path), np.zeros((20, 90), np.uint8))
    line = attempt()
    assert f"mask {path} is 90x20 but its image" in line


def test_not_a_number_in_a_tiff(copy: Path, victim: str, attempt: Callable[..., str]) -> None:
    pixels = cv2.imread(str(copy / "images" / f"{victim}.png"), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    path = replace_image(copy, victim, f"{victim}.tif")
    pixels[3, 4] = np.nan
    tifffile.imwrite(path, pixels)
    assert f"{path} has NaN or infinite pixels; replace them by a number" in attempt()


def test_a_mask_in_doubt(copy: Path, victim: str, attempt: Callable[..., str]) -> None:
    path = copy / "masks" / f"{victim}.png"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    mask[:5, :5] = 1
    mask[5:9, :5] = 2
    cv2.imwrite(str(path), mask)
    assert "set e.g. data.mask.foreground=" in attempt()


@pytest.mark.parametrize("reading", ["threshold=300", "foreground=[7]", "foreground=[0, 255]"])
def test_labelled_masks_that_teach_nothing(reading: str, copy: Path, attempt: Callable[..., str]) -> None:
    line = attempt(f"data.mask.{reading}")
    what = "are lesion all over" if "255" in reading else "have no lesion"
    assert f"labelled masks {what} as read with" in line
    assert f"data.mask.{reading}" in line
    assert f"cers data check {copy}" in line


def test_one_labelled_mask_with_a_lesion_is_enough_to_train_on(
    settings: list[str], copy: Path, victim: str, split_file: Path, attempt: Callable[..., str], tmp_path: Path
) -> None:
    for id_ in json.loads(split_file.read_text(encoding="utf-8"))["labelled"]:
        path = copy / "masks" / f"{id_}.png"
        if id_ != victim:
            cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    here = [f"data.path={copy}", f"data.cache={tmp_path / 'cache'}", "train.steps=1", "method.name=supervised"]
    succeeds("train", "--out", tmp_path / "run", *settings, *here)
    path = copy / "masks" / f"{victim}.png"
    cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    assert "labelled masks have no lesion as read with data.mask.threshold=null" in attempt()


def test_images_known_to_have_no_lesion_have_no_mask_to_misread(settings: list[str], scans: Path) -> None:
    config = load_config("cpu", [*settings, "data.mask.threshold=300"])
    healthy, outlined = load_cases(scans)[:2]
    healthy = replace(healthy, mask=None, negative=True)
    make_batches(config, [healthy], TextEncoders(None, None), {healthy.id})
    with pytest.raises(CersError, match="all 1 labelled masks have no lesion"):
        make_batches(config, [healthy, outlined], TextEncoders(None, None), {healthy.id, outlined.id})


def test_a_table_from_windows_is_read_like_any_other(scans: Path, copy: Path) -> None:
    manifest = copy / "manifest.csv"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode("utf-8"))
    texts = [[(c.id, c.report, c.rationale, c.group) for c in load_cases(folder)] for folder in (scans, copy)]
    assert texts[0] == texts[1]


def test_a_duplicate_row(copy: Path, attempt: Callable[..., str]) -> None:
    edit_manifest(copy, lambda id_, row: [row, row] if id_ == "phantom_00000" else [row])
    line = attempt()
    assert "phantom_00000" in line
    assert "cers data check" in line


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00x", b'image,mask\n"a.png,b.png\n'])
def test_a_broken_table(content: bytes, copy: Path, attempt: Callable[..., str]) -> None:
    (copy / "manifest.csv").write_bytes(content)
    assert str(copy) in attempt("data.layout=manifest")


def test_a_cache_that_is_a_file(copy: Path, attempt: Callable[..., str]) -> None:
    line = attempt(f"data.cache={copy / 'manifest.csv'}")
    assert f"cannot write {copy / 'manifest.csv'}" in line
    assert "set data.cache elsewhere" in line


def test_images_larger_than_any_memory(attempt: Callable[..., str]) -> None:
    assert "data.image_size: Input should be less than or equal to 4096" in attempt("data.image_size=1000000")


@pytest.mark.parametrize("threshold", [-1, 0, 65_536])
def test_a_threshold_that_no_mask_can_have(threshold: int, copy: Path, attempt: Callable[..., str]) -> None:
    assert f"data.mask.threshold {threshold} leaves all pixels on one side" in attempt(
        f"data.mask.threshold={threshold}"
    )
    line = refused("data", "check", copy, "--mask-threshold", str(threshold))
    assert "choose from 1 to 255" in line


def test_an_unknown_setting(attempt: Callable[..., str]) -> None:
    assert "unknown setting 'train.stepps'; did you mean 'steps'?" in attempt("train.stepps=3")


def test_a_split_of_another_dataset(copy: Path, attempt: Callable[..., str]) -> None:
    for path in [*(copy / "images").iterdir(), *(copy / "masks").iterdir()]:
        path.rename(path.with_name(path.name.replace("phantom", "other")))
    names = ("image", "mask")
    edit_manifest(copy, lambda _, row: [row | {name: row[name].replace("phantom", "other") for name in names}])
    line = attempt()
    assert "24 ids are not in the dataset" in line
    assert "make a new one with `cers data split`" in line


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\x00"])
def test_a_split_that_is_none(content: str, attempt: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content, encoding="utf-8")
    assert str(tmp_path / "mine.json") in attempt(f"data.split={tmp_path / 'mine.json'}")


def test_an_out_folder_that_is_something_else(settings: list[str], trained: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "config.yaml").write_text("mine: true\n", encoding="utf-8")
    for more in ([], ["--overwrite"]):
        assert f"{precious} is not empty and holds no run" in refused("train", "--out", precious, *more, *settings)
    assert f"{precious / 'config.yaml'} is a file" in refused("train", "--out", precious / "config.yaml", *settings)
    assert f"cers train --resume {trained}" in refused("train", "--out", trained, *settings)
    assert (precious / "config.yaml").read_text(encoding="utf-8") == "mine: true\n"


def test_a_pool_of_another_encoder(settings: list[str], trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    succeeds("train", "--out", other, *settings, "train.steps=2", "seed=1")
    line = refused("eval", trained, "--pool", other / "pool")
    assert "was built with encoder test_convnext-" in line
    assert "build it again with `cers pool build`" in line
    assert "holds no knowledge pool" in refused("eval", trained, "--pool", tmp_path)


def test_a_full_disk_at_a_checkpoint_costs_nothing_written(settings: list[str], trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--out", folder, *settings]
    killed = Command(tmp_path / "a", "train", *arguments, die_at=("os.rename", "last.safetensors", 3)).wait()
    assert killed.status == -signal.SIGKILL
    path = folder / "checkpoints" / "last.safetensors"
    before = path.read_bytes()
    done = Command(tmp_path / "b", "train", "--resume", folder, largest=len(before) // 2).wait()
    line = one_line(done)
    assert f"cannot write {path}: File too large; free space" in line
    assert path.read_bytes() == before
    assert load_checkpoint(path).facts["state"]["step"] == 4
    assert not list(folder.rglob("*.tmp"))
    succeeds("train", "--resume", folder)
    end, whole = (load_checkpoint(f / "checkpoints" / "last.safetensors").tensors for f in (folder, trained))
    assert all(torch.equal(end[key], whole[key]) for key in whole)


@pytest.mark.parametrize("largest", [200, 3000, 20_000])
def test_a_disk_that_is_full_from_the_start(largest: int, settings: list[str], tmp_path: Path) -> None:
    cache = f"data.cache={tmp_path / 'cache'}"
    done = Command(tmp_path / "a", "train", "--out", tmp_path / "run", *settings, cache, largest=largest).wait()
    assert "File too large; free space" in one_line(done)
    succeeds("train", "--out", tmp_path / "run", *settings, cache, "train.steps=1", "method.name=supervised")


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_really_full_disk(settings: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system lets no one mount a small disk")
    try:
        line = refused("train", "--out", disk / "run", *settings)
        assert "No space left on device; free space" in line
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--preset", "papper"], "no preset or file 'papper'; did you mean 'paper'?"),
        (["eval", "nowhere"], "nowhere holds no run (config.yaml is missing); train one"),
        (["report", "nowhere"], "nowhere holds no run"),
    ],
)
def test_in_a_process_of_its_own(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = Command(tmp_path / "log", *arguments).wait()
    assert said in one_line(done)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_as_typed_in_a_shell(tmp_path: Path) -> None:
    command = [CERS, "train", "data.path=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("cers: error: no dataset at nowhere")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
