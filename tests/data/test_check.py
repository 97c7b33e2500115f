import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cers.config import MaskReading
from cers.cot.rationale import parse_rationale
from cers.data.check import CheckReport, check_dataset
from cers.data.layouts import scan
from cers.data.splits import make_split, save_split
from cers.errors import CersError

GOOD = "Texture: ground glass.\nBoundary: ill-defined.\nContext: at the left base.\nSummary: one lesion."
REAL = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def write_table(path: Path, rows: list[tuple[str, str]], column: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", column), *rows])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twenty sound pairs with a report and a rationale each, nothing wrong with any."""
    for i in range(20):
        rng = np.random.default_rng(i)
        write(tmp_path / f"images/c{i:02d}.png", rng.integers(0, 255, (40, 48)).astype(np.uint8))
        mask = np.zeros((40, 48), np.uint8)
        mask[5:20, 5 + i % 9 : 30] = 255
        write(tmp_path / f"masks/c{i:02d}.png", mask)
    write_table(tmp_path / "reports/text.csv", [(f"c{i:02d}.png", f"Report {i}.") for i in range(20)], "text")
    write_table(tmp_path / "reports/cot_no_mask.csv", [(f"c{i:02d}", GOOD) for i in range(20)], "cot")
    return tmp_path


def found(report: CheckReport) -> set[tuple[str, str]]:
    return {(problem.level, problem.kind) for problem in report.problems}


def only(report: CheckReport, kind: str) -> str:
    """Place and message of the one problem of this kind."""
    (problem,) = [p for p in report.problems if p.kind == kind]
    assert "\n" not in problem.message
    return f"{problem.where}: {problem.message}"


def test_a_sound_dataset_has_no_problem(dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_dataset(
        dataset, parse_rationale=parse_rationale, progress=lambda done, total: seen.append((done, total))
    )
    assert report.problems == []
    assert report.errors == 0
    assert report.counts["images"] == report.counts["masks"] == report.counts["distinct reports"] == 20
    assert [(k.values, k.lesion, len(k.masks)) for k in report.masks] == [("{0, 255}", "255", 20)]
    assert seen[-1] == (20, 20)


def test_every_defect_is_found_in_one_pass(dataset: Path) -> None:
    (dataset / "images/c00.png").write_bytes((dataset / "images/c00.png").read_bytes()[:200])
    (dataset / "images/c01.png").write_bytes(b"")
    (dataset / "masks/c02.png").write_bytes((dataset / "masks/c02.png").read_bytes()[:60])
    write(dataset / "masks/c03.png", np.eye(30, dtype=np.uint8) * 255)
    write(dataset / "masks/c04.png", np.zeros((40, 48), np.uint8))
    write(dataset / "masks/c06.png", np.arange(40 * 48).reshape(40, 48).astype(np.uint8))
    write(dataset / "images/c07.png", np.full((40, 48), 9, np.uint8))
    (dataset / "masks/c08.png").rename(dataset / "masks/c8.png")
    report = check_dataset(dataset)
    assert found(report) == {
        ("error", "unreadable-image"),
        ("error", "unreadable-mask"),
        ("error", "size-mismatch"),
        ("error", "doubtful-mask"),
        ("error", "missing-mask"),
        ("error", "mask-without-image"),
        ("warning", "blank-image"),
        ("note", "empty-mask"),
    }
    assert {Path(p.where).name for p in report.problems if p.kind == "unreadable-image"} == {"c00.png", "c01.png"}
    assert "c02.png" in only(report, "unreadable-mask")
    assert "the mask is 30x30 (HxW), its image 40x48 (HxW)" in only(report, "size-mismatch")
    assert "c04" in only(report, "empty-mask")
    assert "threshold" in only(report, "doubtful-mask")
    assert "did you mean" in only(report, "missing-mask")


def test_errors_come_first_and_are_counted(dataset: Path) -> None:
    (dataset / "images/c00.png").write_bytes(b"")
    write(dataset / "masks/c04.png", np.zeros((40, 48), np.uint8))
    write(dataset / "images/c07.png", np.full((40, 48), 9, np.uint8))
    report = check_dataset(dataset)
    assert [p.level for p in report.problems] == ["error", "warning", "note"]
    values = json.loads(report.to_json())
    assert report.errors == values["errors"] == 1
    assert values["problems"][0]["kind"] == "unreadable-image"
    assert {"values": "{0}", "lesion": "none", "masks": 1, "lesion_share": 0.0} in values["masks"]


def test_masks_in_doubt_are_told_once_per_kind_and_a_reading_settles_them(dataset: Path) -> None:
    for i in range(20):
        soft = cv2.GaussianBlur(cv2.imread(str(dataset / f"masks/c{i:02d}.png"), 0), (9, 9), 3)
        write(dataset / f"masks/c{i:02d}.png", soft if i < 15 else (soft > 99).astype(np.uint8) * 2)
    report = check_dataset(dataset)
    assert report.errors == 4
    assert {(k.values, k.lesion, len(k.masks)) for k in report.masks} == {
        ("more than 8 greys", None, 15),
        ("{0, 2}", None, 5),
    }
    settled = check_dataset(dataset, mask=MaskReading(threshold=2))
    assert settled.errors == 0
    assert {k.lesion for k in settled.masks} == {">= 2"}


def test_a_reading_that_finds_no_lesion_at_all_is_an_error(dataset: Path) -> None:
    report = check_dataset(dataset, mask=MaskReading(foreground=(1, 2)))
    assert "no mask has any lesion" in only(report, "all-empty")
    assert report.masks[0].lesion == "1 or 2"


def test_a_mask_of_another_resolution_is_a_note_as_training_takes_it(dataset: Path) -> None:
    large = cv2.imread(str(dataset / "masks/c03.png"), 0).repeat(2, 0).repeat(2, 1)
    write(dataset / "masks/c03.png", large)
    report = check_dataset(dataset)
    assert found(report) == {("note", "other-resolution")}
    assert "1 of 20 masks have another resolution than their image" in only(report, "other-resolution")
    assert "'c03'" in only(report, "other-resolution")


def test_masks_that_look_inverted_are_told_in_one_line(dataset: Path) -> None:
    for i in range(5):
        write(dataset / f"masks/c{i:02d}.png", 255 - cv2.imread(str(dataset / f"masks/c{i:02d}.png"), 0))
    frame = np.zeros((40, 48), np.uint8)
    frame[:3], frame[-3:], frame[:, :3], frame[:, -3:] = 255, 255, 255, 255  # little of the image, all of its border
    write(dataset / "masks/c05.png", frame)
    write(dataset / "masks/c06.png", np.full((40, 48), 255, np.uint8))
    report = check_dataset(dataset, mask=MaskReading(threshold=1))
    assert found(report) == {("warning", "inverted-masks")}
    assert "in 7 of 20 masks" in only(report, "inverted-masks")
    assert "'c00'" in only(report, "inverted-masks")
    assert report.masks[0].share == pytest.approx(0.4, abs=0.2)


def test_palettes_whose_first_colour_is_white_are_told_in_one_line(dataset: Path) -> None:
    for i in range(3):
        lesion = cv2.imread(str(dataset / f"masks/c{i:02d}.png"), 0) > 0
        image = Image.fromarray(lesion.astype(np.uint8))  # the program that wrote it numbered the lesion 1
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.save(dataset / f"masks/c{i:02d}.png")
    report = check_dataset(dataset)
    assert found(report) == {("warning", "white-palettes"), ("warning", "inverted-masks")}
    assert "3 of 20 masks" in only(report, "white-palettes")
    assert "'c00'" in only(report, "white-palettes")


def test_the_share_of_the_lesion_is_told_by_kind(dataset: Path) -> None:
    write(dataset / "masks/c04.png", np.zeros((40, 48), np.uint8))
    report = check_dataset(dataset)
    shares = {kind.values: kind.share for kind in report.masks}
    lesions = [(cv2.imread(str(dataset / f"masks/c{i:02d}.png"), 0) > 0).mean() for i in range(20) if i != 4]
    assert shares == {"{0, 255}": pytest.approx(np.mean(lesions)), "{0}": 0.0}


def test_identical_images_with_different_masks_are_named(dataset: Path) -> None:
    (dataset / "images/c11.png").write_bytes((dataset / "images/c03.png").read_bytes())
    report = check_dataset(dataset)
    assert "'c03', 'c11', with different masks" in only(report, "identical-images")
    assert report.identical == report.near_duplicates == [["c03", "c11"]]
    assert "--strategy grouped" in only(report, "near-duplicates")
    patients = check_dataset(dataset, group_pattern=r"(c\d+)")
    assert "patients 'c03', 'c11' share a slice" in only(patients, "shared-slice")
    assert ("warning", "near-duplicates") not in found(patients)


def test_images_that_all_look_alike_cannot_be_grouped_by_look(dataset: Path) -> None:
    for i in range(10):
        (dataset / f"images/c{i:02d}.png").write_bytes((dataset / "images/c00.png").read_bytes())
    assert "10 of 20 images" in only(check_dataset(dataset), "giant-cluster")


def test_texts_are_counted_and_malformed_ones_named(dataset: Path) -> None:
    reports = [(f"c{i:02d}.png", "Same.") for i in range(18)] + [("elsewhere.png", "Whose?")]
    write_table(dataset / "reports/text.csv", reports, "text")
    rationales = [(f"c{i:02d}", GOOD if i > 1 else "I'm sorry, I can't help.") for i in range(19)]
    write_table(dataset / "reports/cot_no_mask.csv", rationales, "cot")
    report = check_dataset(dataset, parse_rationale=parse_rationale)
    assert "1 distinct texts for 18 images" in only(report, "shared-reports")
    assert "2 of 20 cases have no report: 'c18', 'c19'" in only(report, "missing-report")
    assert "1 of 20 cases have no rationale: 'c19'" in only(report, "missing-rationale")
    assert "elsewhere" in only(report, "unmatched-text")
    malformed = [p for p in report.problems if p.kind == "malformed-rationale"]
    assert [p.where for p in malformed] == ["c00", "c01"]
    assert all("refusal" in p.message for p in malformed)
    assert report.counts["reports"] == 18
    assert report.counts["reports without image"] == 1


def test_a_sound_split_adds_nothing(dataset: Path, tmp_path: Path) -> None:
    save_split(make_split(scan(dataset).cases), tmp_path / "split.json")
    assert check_dataset(dataset, split=tmp_path / "split.json").problems == []


def test_leaks_of_a_split_are_found(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = make_split(scan(dataset).cases, clusters=[])
    save_split(split, path)
    copied = dataset / f"images/{split.test[0]}.png"
    copied.write_bytes((dataset / f"images/{split.labelled[0]}.png").read_bytes())
    report = check_dataset(dataset, split=path)
    assert report.errors == 1
    assert f"'{split.test[0]}' (test)" in only(report, "split-byte-identical")
    paper = make_split(scan(dataset).cases, strategy="paper")
    save_split(paper, path)
    straddling = check_dataset(dataset, split=path, group_pattern=r"(c\d)")
    assert straddling.errors == 0
    assert "2 groups are in more than one part" in only(straddling, "split-straddle")


def test_a_split_of_other_images_and_a_broken_one_are_errors(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = make_split(scan(dataset).cases)
    save_split(split, path)
    for folder in ("images", "masks"):
        (dataset / folder / f"{split.test[0]}.png").rename(dataset / folder / "new.png")
    report = check_dataset(dataset, split=path)
    assert split.test[0] in only(report, "split-misfit")
    assert "'new'" in only(report, "split-incomplete")
    path.write_text("{}")
    assert "not a split file" in only(check_dataset(dataset, split=path), "split")


def test_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CersError):
        check_dataset(tmp_path / "nothing")


@pytest.mark.skipif(not (REAL / "covid_ct").is_dir(), reason="needs the development data in ../shared/data")
def test_covid_ct_shows_one_slice_under_two_patients() -> None:
    report = check_dataset(REAL / "covid_ct", parse_rationale=parse_rationale)
    assert report.errors == 0
    assert "'bjorke_11', 'bjorke_44'" in only(report, "shared-slice")
