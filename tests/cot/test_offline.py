from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cers.config import MaskReading
from cers.cot.audit import find_flaws
from cers.cot.offline import annotate_offline
from cers.cot.rationale import parse_rationale
from cers.cot.texts import read_texts
from cers.data.case import Case
from cers.errors import CersError

READING = MaskReading()


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(6):
        image = np.zeros((96, 96), np.uint8)
        mask = np.zeros((96, 96), np.uint8)
        cv2.ellipse(image, (48, 48), (36, 42), 0, 0, 360, 90, cv2.FILLED)
        cv2.circle(mask, (36 + 4 * i, 50), 6 + i, 255, cv2.FILLED)
        image[mask > 0] = 200
        image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        paths = tmp_path / f"c{i}.png", tmp_path / f"c{i}_mask.png"
        cv2.imwrite(str(paths[0]), image)
        cv2.imwrite(str(paths[1]), mask)
        made.append(Case(f"c{i}", *paths, report="An axial MRI scan with one small glioma lesion."))
    return made


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, encoding="utf-8")


def test_every_case_is_described_and_only_labelled_ones_with_mask(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out" / "rationales.csv"
    seen: list[tuple[int, int]] = []
    summary = annotate_offline(cases, {"c0", "c3"}, out, mask_reading=READING, progress=lambda *done: seen.append(done))
    rows = table(out)
    assert list(rows.columns) == ["image", "role", "cot"]
    assert sorted(rows.loc[rows.role == "unlabelled", "image"]) == [case.id for case in cases]
    assert sorted(rows.loc[rows.role == "labelled", "image"]) == ["c0", "c3"]
    assert all(parse_rationale(text) for text in rows.cot)
    assert (summary.written, summary.kept, summary.problems) == (8, 0, [])
    assert seen == [(i, 8) for i in range(1, 9)]
    assert find_flaws(read_texts([out]), {case.id: case.report or "" for case in cases}) == []


@pytest.mark.parametrize("spoil", ["garbage", "absent", "other mask"])
def test_masks_of_unlabelled_cases_are_never_opened(cases: list[Case], tmp_path: Path, spoil: str) -> None:
    annotate_offline(cases, {"c0"}, tmp_path / "before.csv", mask_reading=READING)
    for case in cases[1:]:
        assert case.mask is not None
        if spoil == "absent":
            case.mask.unlink()
        elif spoil == "garbage":
            case.mask.write_bytes(b"no image at all")
        else:
            cv2.imwrite(str(case.mask), np.eye(96, dtype=np.uint8) * 255)
    summary = annotate_offline(cases, {"c0"}, tmp_path / "after.csv", mask_reading=READING)
    assert summary.problems == []
    assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()


def test_labelled_share_does_not_change_mask_free_texts(cases: list[Case], tmp_path: Path) -> None:
    annotate_offline(cases, set(), tmp_path / "none.csv", mask_reading=READING)
    annotate_offline(cases, {c.id for c in cases}, tmp_path / "all.csv", mask_reading=READING)
    every = table(tmp_path / "all.csv")
    pd.testing.assert_frame_equal(
        every[every.role == "unlabelled"].reset_index(drop=True), table(tmp_path / "none.csv")
    )


def test_rerun_completes_without_repeating(cases: list[Case], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    annotate_offline(cases, {"c0", "c1"}, whole, mask_reading=READING)
    annotate_offline(cases[:2], {"c0"}, out, mask_reading=READING)
    summary = annotate_offline(cases, {"c0", "c1"}, out, mask_reading=READING)
    assert (summary.written, summary.kept) == (5, 3)
    assert out.read_bytes() == whole.read_bytes()
    again = annotate_offline(cases, {"c0", "c1"}, out, mask_reading=READING)
    assert (again.written, again.kept) == (0, 8)
    assert out.read_bytes() == whole.read_bytes()


def test_interruption_keeps_what_is_done(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"

    def interrupt(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate_offline(cases, {"c0"}, out, mask_reading=READING, progress=interrupt)
    assert len(table(out)) == 3
    assert annotate_offline(cases, {"c0"}, out, mask_reading=READING).written == 4


def test_malformed_earlier_text_is_written_anew(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    annotate_offline(cases, set(), out, mask_reading=READING)
    whole = out.read_bytes()
    rows = table(out)
    rows.loc[2, "cot"] = "RateLimitError: 429"
    rows.to_csv(out, index=False, encoding="utf-8")
    summary = annotate_offline(cases, set(), out, mask_reading=READING)
    assert summary.written == 1
    assert "error message" in summary.problems[0]
    assert out.read_bytes() == whole


def test_mask_informed_text_goes_when_the_case_is_labelled_no_more(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    annotate_offline(cases, {"c0", "c1"}, out, mask_reading=READING)
    summary = annotate_offline(cases, {"c1"}, out, mask_reading=READING)
    rows = table(out)
    assert rows.loc[rows.role == "labelled", "image"].tolist() == ["c1"]
    assert summary.problems[0].startswith("c0: ")


def test_bad_files_are_problems_and_never_text(cases: list[Case], tmp_path: Path) -> None:
    cases[0].image.write_bytes(b"broken")
    assert cases[1].mask is not None
    cases[1].mask.write_bytes(b"broken")
    cases[2] = replace(cases[2], mask=None)
    cv2.imwrite(str(cases[3].mask), np.zeros((96, 48), np.uint8))
    out = tmp_path / "out.csv"
    summary = annotate_offline(cases, {"c1", "c2", "c3"}, out, mask_reading=READING)
    assert sorted(p.split(":")[0] for p in summary.problems) == ["c0", "c1", "c2", "c3"]
    rows = table(out)
    assert rows["image"].tolist() == ["c1", "c2", "c3", "c4", "c5"]
    assert set(rows.role) == {"unlabelled"}


def test_negative_case_is_described_as_free_of_lesion(cases: list[Case], tmp_path: Path) -> None:
    cases[0] = replace(cases[0], mask=None, negative=True, report=None)
    annotate_offline(cases, {"c0"}, tmp_path / "out.csv", mask_reading=READING)
    rows = table(tmp_path / "out.csv")
    assert "No focal lesion" in rows.loc[rows.role == "labelled", "cot"].item()


def test_mask_of_another_resolution_is_fitted(cases: list[Case], tmp_path: Path) -> None:
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    annotate_offline(cases, {"c5"}, before, mask_reading=READING)
    mask = cv2.imread(str(cases[5].mask), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(cases[5].mask), cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    assert annotate_offline(cases, {"c5"}, after, mask_reading=READING).problems == []
    assert after.read_bytes() == before.read_bytes()


def test_mistakes_are_said_in_one_line(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(CersError, match="'zz'"):
        annotate_offline(cases, {"zz"}, tmp_path / "out.csv", mask_reading=READING)
    other = tmp_path / "other.csv"
    other.write_text("name,text\na,b\n", encoding="utf-8")
    with pytest.raises(CersError, match="no column 'cot'"):
        annotate_offline(cases, set(), other, mask_reading=READING)
    assert other.read_text(encoding="utf-8") == "name,text\na,b\n"
