from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from layout_files import kinds, table

from cers.data.case import Case
from cers.data.layouts import load_cases, scan
from cers.errors import CersError


def test_a_manifest_gives_every_field(plain: Path) -> None:
    columns = ("image", "mask", "report", "cot", "mask_cot", "group", "label", "part")
    full = ("images/a.jpg", "masks/a.png", "r", "c", "m", "p1", "x", "train")
    path = table(plain / "data.csv", columns, full, ("unlabeled/c.jpg", *[""] * 7), bom=True)
    a, c = load_cases(path)
    assert (a.image, a.mask) == (plain / "images/a.jpg", plain / "masks/a.png")
    assert (a.id, a.report, a.rationale, a.mask_rationale, a.group, a.label, a.part) == ("a", *full[2:])
    assert c == Case(id="c", image=plain / "unlabeled/c.jpg")


def test_a_parquet_manifest_reads_the_same(plain: Path) -> None:
    frame = pd.DataFrame(
        {"image": ["images/a.jpg", "images/b.jpg"], "mask": ["masks/a.png", None], "group": [1.0, None]}
    )
    frame.to_parquet(plain / "data.parquet")
    table(
        plain / "data.csv", ("image", "mask", "group"), ("images/a.jpg", "masks/a.png", "1"), ("images/b.jpg", "", "")
    )
    assert load_cases(plain / "data.parquet") == load_cases(plain / "data.csv")
    (plain / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(CersError, match="not a Parquet table"):
        scan(plain / "bad.parquet")


def test_flaws_of_manifests(plain: Path) -> None:
    path = table(
        plain / "data.csv",
        ("image", "msak", "part", "mask"),
        ("images/a.jpg", "", "training", ""),
        ("images/z.jpg", "", "", ""),
        ("images/b.jpg", "", "", "masks/z.png"),
        ("", "", "val", ""),
        ("images/a.jpg", "", "", ""),
    )
    found = scan(path)
    assert Counter(kinds(found)) == {"unknown-part": 1, "missing-file": 3, "duplicate-id": 1}
    assert "did you mean 'mask'" in next(p.message for p in found.problems if p.kind == "unknown-column")
    assert {p.where for p in found.problems if p.kind == "missing-file"} == {f"{path}:{n}" for n in (3, 4, 5)}
    with pytest.raises(CersError, match="no column 'image'"):
        scan(table(plain / "none.csv", ("img",), ("a",)))


def test_a_cell_longer_than_any_name_names_no_file(plain: Path) -> None:
    path = table(plain / "data.csv", ("image", "mask"), ("images/a.jpg", "m" * 5000), ("Bilateral. " * 99, ""))
    found = scan(path)
    assert kinds(found) == ["missing-file"] * 2
    for problem, begin in zip(found.problems, ("mmm", "Bilateral. Bi"), strict=True):
        assert problem.message.startswith(f"no file {begin}")
        assert f"…; relative names count from {plain}" in problem.message
        assert len(problem.message) < 300 + len(str(plain))


def test_a_row_of_too_few_cells_is_told(plain: Path) -> None:
    path = plain / "data.csv"
    for end in ("", "\n\n \n,\n"):  # such lines are no rows
        path.write_text("image,mask,group,\nimages/a.jpg\nimages/b.jpg,masks/b.png,p1" + end, encoding="utf-8")
        (short,) = [p for p in scan(path).problems if p.kind == "short-rows"]
        assert (short.level, short.where) == ("warning", f"{path}:2")
        assert "fewer cells than columns" in short.message


def test_a_column_named_twice_is_not_read_in_silence(plain: Path) -> None:
    path = plain / "data.csv"
    path.write_text("image,mask,Mask,note,note\nimages/a.jpg,masks/a.png,,x,y\n", encoding="utf-8")
    (twice,) = [p for p in scan(path).problems if p.level == "error"]
    assert (twice.kind, twice.where) == ("repeated-column", str(path))
    assert "2 columns are named 'mask'" in twice.message
    pd.DataFrame({"image": ["images/a.jpg"], "Image": ["images/b.jpg"]}).to_parquet(plain / "data.parquet")
    assert kinds(scan(plain / "data.parquet")) == ["repeated-column"]


def test_rationales_replace_those_of_a_manifest(plain: Path) -> None:
    path = table(plain / "data.csv", ("image", "cot", "mask_cot"), ("images/a.jpg", "old", "old"))
    own = table(plain / "own.csv", ("image", "cot"), ("a", "new"))
    (case,) = load_cases(path, rationales=own)
    assert (case.rationale, case.mask_rationale) == ("new", None)


def test_a_manifest_in_a_folder_speaks_for_the_folder(plain: Path) -> None:
    table(plain / "text.csv", ("image", "text"), ("a", "left"))
    foreign = table(plain / "manifest.csv", ("file", "image_width"), ("a", "12"))
    assert scan(plain).layout == "folder"
    table(foreign, ("group", "image"), ("p1", "images/a.jpg"), bom=True)
    assert scan(plain).layout == "manifest"
    assert load_cases(plain) == [Case(id="a", image=plain / "images/a.jpg", group="p1")]
    assert len(load_cases(plain, "folder")) == 3


def test_blanks_around_names_make_no_new_patient_and_no_new_class(plain: Path) -> None:
    path = table(
        plain / "data.csv",
        ("image", "mask", "group", "label", "part", "report"),
        (" images/a.jpg", "masks/a.png ", "P1 ", " glioma", " train ", " Left. "),
        ("images/b.jpg", "masks/b.png", "P1", "glioma", "train", " "),
    )
    a, b = load_cases(path)
    assert (a.group, a.label, a.part) == (b.group, b.label, b.part) == ("P1", "glioma", "train")
    assert (a.report, b.report) == (" Left. ", None)  # texts stay as they were written


def test_a_column_of_patients_by_another_name_is_told_its_own(plain: Path) -> None:
    path = table(plain / "data.csv", ("image", "Patient_ID"), ("images/a.jpg", "P1"))
    (problem,) = scan(path).problems
    assert (problem.level, problem.kind) == ("warning", "unknown-column")
    assert problem.message == "column 'patient_id' is not read; if it names the patient, call it 'group'"
    (problem,) = scan(table(path, ("image", "group", "patient"), ("images/a.jpg", "P1", "P1"))).problems
    assert "call it" not in problem.message


def test_a_parquet_manifest_may_have_its_images_as_index(plain: Path) -> None:
    frame = pd.DataFrame({"image": ["images/a.jpg", "images/b.jpg"], "group": ["P1", "P2"]})
    frame.set_index("image").to_parquet(plain / "data.parquet")
    found = scan(plain / "data.parquet")
    assert ([c.group for c in found.cases], found.problems) == (["P1", "P2"], [])
    frame.set_index("image", drop=False).to_parquet(plain / "twice.parquet")
    assert kinds(scan(plain / "twice.parquet")) == ["repeated-column"]
    frame[frame.group == "P2"].to_parquet(plain / "unnamed.parquet")
    assert scan(plain / "unnamed.parquet").problems == []
