import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cers.cli.annotate import app
from cers.cot.rationale import parse_rationale
from cers.data.layouts import load_cases
from cers.data.splits import make_split, save_split
from cers.errors import CersError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for i in range(12):
        image = np.full((80, 80), 90, np.uint8)
        mask = np.zeros((80, 80), np.uint8)
        cv2.circle(mask, (25 + 2 * i, 40), 5 + i % 4, 255, cv2.FILLED)
        image[mask > 0] = 200
        image = (image + rng.integers(0, 12, image.shape)).astype(np.uint8)
        cv2.imwrite(str(root / "images" / f"case{i}.png"), image)
        cv2.imwrite(str(root / "masks" / f"case{i}.png"), mask)
    split = root.parent / "split.json"
    save_split(make_split(load_cases(root), strategy="paper", labelled=0.5, val=0.2, test=0.2), split)
    return root, split


def test_offline_writes_what_training_reads(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    root, split = dataset
    out = tmp_path / "rationales.csv"
    result = RUNNER.invoke(app, ["offline", str(root), "--split", str(split), "--out", str(out), "--no-report"])
    assert result.exit_code == 0, result.output
    labelled = set(json.loads(split.read_text(encoding="utf-8"))["labelled"])
    cases = load_cases(root, rationales=out)
    assert len(cases) == 12
    assert all(parse_rationale(case.rationale or "") for case in cases)
    assert {case.id for case in cases if case.mask_rationale} == labelled
    assert f"rationales written {12 + len(labelled)}" in " ".join(result.stdout.split())
    again = RUNNER.invoke(app, ["offline", str(root), "--split", str(split), "--out", str(out), "--no-report"])
    assert "rationales written 0" in " ".join(again.stdout.split())
    assert f"delete {out} to have all written without" in " ".join(again.stderr.split())


def test_without_a_split_no_mask_is_opened(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(dataset[0], tmp_path / "copy"))
    for mask in (root / "masks").iterdir():
        mask.write_bytes(b"no mask")
    out = tmp_path / "rationales.csv"
    result = RUNNER.invoke(app, ["offline", str(root), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "rationales written 12" in " ".join(result.stdout.split())
    assert not any(case.mask_rationale for case in load_cases(dataset[0], rationales=out))


def test_the_bar_of_a_second_run_counts_what_it_does(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    root, split = dataset
    out = tmp_path / "rationales.csv"
    offline = ["offline", str(root), "--split", str(split), "--out", str(out), "--no-report"]
    RUNNER.invoke(app, offline)
    lines = out.read_text(encoding="utf-8").split("\ncase")
    out.write_text("\ncase".join(lines[:-3]) + "\n", encoding="utf-8")
    again = RUNNER.invoke(app, offline)
    assert "rationales 3/3" in again.stderr
    assert len(out.read_text(encoding="utf-8").split("\ncase")) == len(lines)


def test_masks_of_several_lesions_are_read_as_the_options_say(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(dataset[0], tmp_path / "copy"))
    for path in (root / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 255
        mask[:3, :3] = 2
        cv2.imwrite(str(path), mask)
    offline = ["offline", str(root), "--split", str(dataset[1]), "--no-report", "--out"]
    assert "leave open what is lesion" in RUNNER.invoke(app, [*offline, str(tmp_path / "a.csv")]).stdout
    both = RUNNER.invoke(app, [*offline, str(tmp_path / "b.csv"), "--mask-foreground", "1", "--mask-foreground", "2"])
    assert both.exit_code == 0, both.output
    assert "problems 0" in " ".join(both.stdout.split())
    from_1 = RUNNER.invoke(app, [*offline, str(tmp_path / "c.csv"), "--mask-threshold", "1"])
    assert from_1.exit_code == 0
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()


def test_mistakes_are_one_line(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    root, split = dataset
    foreign = tmp_path / "split.json"
    foreign.write_text(split.read_text(encoding="utf-8").replace("case", "other"), encoding="utf-8")
    result = RUNNER.invoke(app, ["offline", str(root), "--split", str(foreign), "--out", str(tmp_path / "o.csv")])
    assert isinstance(result.exception, CersError)
    assert not (tmp_path / "o.csv").exists()
