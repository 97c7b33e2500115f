import os
from collections import Counter
from pathlib import Path

import pytest
from layout_files import by_id, excel, kinds, table, touch

from cers.data.layouts import load_cases, scan
from cers.data.readers import LAYOUTS
from cers.errors import CersError

REAL = Path(__file__).parents[2] / ".." / "shared" / "data"

# ---- every layout

BRISC = [
    f"segmentation_task/{part}/{kind}/brisc2025_{part}_{n:05}_{code}_ax_t1.{suffix}"
    for part, n, code in (("train", 1, "gl"), ("train", 2, "me"), ("test", 3, "pi"))
    for kind, suffix in (("images", "jpg"), ("masks", "png"))
]
MOSMED = [
    f"{kind}/{name}.png"
    for kind in ("frames", "masks")
    for name in ("Jun_coronacases_case1_10", "Jun_radiopaedia_4_85506_1_case13_5", "Morozov_study_0255_3", "bjorke_7")
]
QATA_NAMES = ("sub-S09340_ses-E17628_run-1_bp-chest_vp-ap_cr", "covid_12")
QATA = [
    f"QaTa-COV19-v2/{part} Set/{kind}{name}{part[:2]}.png"
    for part in ("Train", "Test")
    for kind in ("Images/", "Ground-truths/mask_")
    for name in QATA_NAMES
]


def lvit(prefix: str, image_suffix: str = "png") -> list[str]:
    return [
        f"{part}_Folder/{kind}x{part}.{suffix}"
        for part in ("Train", "Val", "Test")
        for kind, suffix in (("img/", image_suffix), (f"labelcol/{prefix}", "png"))
    ]


@pytest.mark.parametrize(
    ("files", "name", "count"),
    [
        (BRISC, "brisc", 3),
        (MOSMED, "mosmed", 4),
        ([*MOSMED, "text.csv"], "cers", 4),
        (QATA, "qata", 4),
        (lvit("mask_"), "qata", 3),
        (lvit("", "tif"), "mosmed", 3),
        (["imagesTr/c1_0000.png", "labelsTr/c1.png", "imagesTs/c2_0000.png"], "nnunet", 2),
        (["images/a.png", "masks/a.png", "unlabelled/b.png"], "folder", 2),
        (["Images/a.PNG", "Masks/a.Tiff"], "folder", 1),
    ],
)
@pytest.mark.parametrize("nested", ["", "archive/"])
def test_every_layout_is_found_and_read(tmp_path: Path, files: list[str], name: str, count: int, nested: str) -> None:
    touch(tmp_path, *(nested + file for file in files))
    touch(tmp_path, *("__MACOSX/" + file for file in files))
    for text in tmp_path.rglob("text.csv"):
        table(text, ("image", "text"), ("bjorke_7", "fine"))
    for layout in ("auto", name):
        found = scan(tmp_path, layout)
        assert found.layout == name
        assert len(found.cases) == count
        assert found.problems == []


def test_the_registry_names_what_the_settings_promise() -> None:
    assert set(LAYOUTS) == {"brisc", "mosmed", "qata", "cers", "folder", "manifest", "nnunet"}


def test_brisc_knows_class_part_and_negatives(tmp_path: Path) -> None:
    touch(tmp_path, *BRISC, "classification_task/train/no_tumor/brisc2025_train_00009_no_co_t1.jpg")
    touch(tmp_path, "classification_task/train/glioma/brisc2025_train_00001_gl_ax_t1.jpg")
    cases = load_cases(tmp_path)
    assert [c.label for c in cases] == ["glioma", "meningioma", "pituitary"]
    assert [c.part for c in cases] == ["train", "train", "test"]
    assert all(c.mask is not None and c.mask.stem == c.id and c.annotated for c in cases)
    more = load_cases(tmp_path, negatives=True)
    assert more[:-1] == cases
    assert more[-1].negative
    assert more[-1].annotated
    assert (more[-1].mask, more[-1].label, more[-1].part) == (None, "no_tumor", "train")


def test_negatives_that_are_not_there_are_an_error(plain: Path) -> None:
    assert kinds(scan(plain, negatives=True)) == ["no-negatives"]


def test_qata_pairs_prefixed_masks_and_groups_patients(tmp_path: Path) -> None:
    touch(tmp_path, *QATA)
    cases = load_cases(tmp_path)
    assert all(c.mask is not None and c.mask.stem == f"mask_{c.id}" for c in cases)
    assert Counter(c.part for c in cases) == {"train": 2, "test": 2}
    assert {c.group for c in cases if c.id.startswith("sub")} == {"sub-S09340"}


def test_lvit_texts_name_the_label_file(tmp_path: Path) -> None:
    touch(tmp_path, *lvit("mask_"))
    excel(tmp_path / "Train_text.xlsx", ("Image", "Description"), ("mask_xTrain.png", "left lung"))
    excel(tmp_path / "Test_Folder" / "Test_text.xlsx", ("Image", "Description"), ("mask_xTest.png", "right lung"))
    touch(tmp_path, "~$Train_text.xlsx")
    found = scan(tmp_path)
    assert {c.part: c.report for c in found.cases} == {"train": "left lung", "val": None, "test": "right lung"}
    assert found.reports_matched == 2
    assert found.problems == []


def test_nnunet_reads_one_channel_only(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/c_0000.png", "imagesTr/c_0001.png", "labelsTr/c.png", "imagesTs/t_0000.png")
    found = scan(tmp_path)
    assert kinds(found) == ["channel"]
    assert {c.id: c.part for c in found.cases} == {"c": "train", "t": "test"}


def test_unlabelled_images_have_no_mask_by_design(plain: Path) -> None:
    cases = by_id(load_cases(plain))
    assert not cases["c"].annotated
    assert cases["a"].mask == plain / "masks" / "a.png"


def test_group_pattern_overrides_names(tmp_path: Path) -> None:
    touch(tmp_path, "images/bjorke_1.png", "masks/bjorke_1.png", "images/x2.png", "masks/x2.png")
    assert {c.id: c.group for c in load_cases(tmp_path)} == {"bjorke_1": "bjorke_1", "x2": None}
    found = scan(tmp_path, group_pattern=r"^x(\d)")
    assert {c.id: c.group for c in found.cases} == {"bjorke_1": None, "x2": "2"}
    assert kinds(found, "warning") == ["group-pattern"]


@pytest.mark.parametrize(("pattern", "said"), [("(", "not a regular expression"), ("x", "no group")])
def test_bad_group_patterns(plain: Path, pattern: str, said: str) -> None:
    with pytest.raises(CersError, match=said):
        scan(plain, group_pattern=pattern)


# ---- mistakes


def test_near_misses_name_each_other(plain: Path) -> None:
    touch(plain, "images/case_017.jpg", "masks/case_O17.png")
    found = scan(plain)
    messages = {p.kind: p.message for p in found.problems}
    assert "did you mean 'case_O17'?" in messages["missing-mask"]
    assert "did you mean 'case_017'?" in messages["mask-without-image"]
    assert len(found.cases) == 4


def test_a_wrong_folder_is_not_a_thousand_problems(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/a{n}.png" for n in range(1000)), *(f"masks/b{n}.png" for n in range(1000)))
    problems = scan(tmp_path).problems
    assert len(problems) < 50
    assert any("980 more of" in p.message for p in problems)


def test_one_mask_with_a_suffix_is_paired_and_two_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/benign (1).png", "masks/benign (1)_mask.png")
    assert load_cases(tmp_path)[0].mask == tmp_path / "masks" / "benign (1)_mask.png"
    touch(tmp_path, "masks/benign (1)_mask_1.png")
    found = scan(tmp_path)
    assert kinds(found) == ["several-masks"]
    assert "merge" in found.problems[0].message


def test_stems_are_unique(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/a.jpg", "masks/a.png", "unlabeled/a.png")
    found = scan(tmp_path)
    assert kinds(found) == ["duplicate-id", "duplicate-id"]
    assert len(found.cases) == 1


def test_what_is_not_read_is_said(plain: Path) -> None:
    touch(plain, "images/.DS_Store", "images/._a.jpg", "images/Thumbs.db", "images/d.nii.gz", "images/sub/e.png")
    (found,) = scan(plain).problems
    assert found.kind == "ignored-file"
    assert ".nii.gz" in found.message
    assert "subfolder" in found.message


def test_links_that_lead_nowhere(plain: Path) -> None:
    os.symlink(plain / "absent.jpg", plain / "unlabeled" / "d.jpg")
    assert kinds(scan(plain)) == ["missing-file"]


def test_load_cases_stops_at_the_first_error(plain: Path) -> None:
    touch(plain, "images/d.png", "images/e.png")
    with pytest.raises(CersError, match=r"d\.png: no mask.*cers data check") as error:
        load_cases(plain)
    assert "\n" not in str(error.value)


def test_paths_and_layouts_that_do_not_exist(plain: Path) -> None:
    (plain / "empty").mkdir()
    for path, layout, said in (
        (plain / "imagse", "auto", "did you mean 'images'"),
        (plain / "no" / "where", "auto", "no dataset at"),
        (plain, "foldr", "did you mean 'folder'"),
        (plain / "empty", "auto", "brisc needs .*; manifest needs .*folder needs"),
        (plain, "brisc", "brisc needs segmentation_task"),
    ):
        with pytest.raises(CersError, match=said) as error:
            scan(path, layout)
        assert "\n" not in str(error.value)


def test_empty_folders_and_several_datasets(tmp_path: Path) -> None:
    touch(tmp_path, "one/images/a.nii.gz", "one/masks/a.nii.gz")
    with pytest.raises(CersError, match=r"no image.*nii\.gz"):
        scan(tmp_path)
    touch(tmp_path, "two/images/a.png", "two/masks/a.png")
    with pytest.raises(CersError, match="several datasets"):
        scan(tmp_path)
    assert len(load_cases(tmp_path / "two")) == 1


def test_scanning_never_opens_an_image(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/{n:04}.png" for n in range(4000) for kind in ("images", "masks")))
    table(tmp_path / "text.csv", ("image", "text"), *((f"{n:04}.jpg", "fine") for n in range(4000)))
    found = scan(tmp_path)  # every file is empty, so that decoding one would fail
    assert found.reports_matched == len(found.cases) == 4000
    assert found.problems == []


def test_a_group_pattern_that_fits_no_name_is_refused(plain: Path) -> None:
    with pytest.raises(CersError, match=r"finds no patient in any of 3 names, e\.g\. 'a'") as error:
        load_cases(plain, group_pattern=r"^(P\d+)_")
    assert "\n" not in str(error.value)


def test_warnings_are_heard_by_who_loads(plain: Path) -> None:
    touch(plain, "images/d.nii.gz")
    heard: list[str] = []
    load_cases(plain, group_pattern="(a)", on_warning=heard.append)
    assert len(heard) == 2
    assert heard[0].startswith(f"{plain / 'images'}: not read: 1x .nii.gz")
    assert heard[1].startswith("data.group_pattern: 2 of 3 names have no patient")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["imagesTr/a_0000.png", "labelsTr/a.png", "unlabeled/b_0000.png", "unlabelled/c_0000.png"], "nnunet"),
        ([*BRISC[:2], "unlabeled/b.jpg", "unlabelled/c.jpg"], "brisc"),
        ([*QATA, "QaTa-COV19-v2/unlabeled/b.png", "QaTa-COV19-v2/unlabelled/c.png"], "qata"),
        ([*lvit("mask_"), "unlabeled/b.png", "unlabelled/c.png"], "qata"),
    ],
)
def test_every_layout_reads_what_the_advice_names(tmp_path: Path, files: list[str], name: str) -> None:
    touch(tmp_path, *files)
    found = scan(tmp_path)
    assert (found.layout, found.problems) == (name, [])
    assert [c.id for c in found.cases if not c.annotated] == ["b", "c"]


def test_what_is_no_table_is_said_to_be_none(plain: Path) -> None:
    excel(plain / "cases.xlsx", ("image",), ("images/a.jpg",))
    with pytest.raises(CersError, match=r"cases\.xlsx is no table .*save it as CSV or Parquet"):
        scan(plain / "cases.xlsx")


@pytest.mark.parametrize("inside", ["images", "masks"])
def test_a_folder_inside_a_dataset_names_the_one_above(plain: Path, inside: str) -> None:
    with pytest.raises(CersError, match=f"give the folder above, {plain}"):
        scan(plain / inside)


def test_a_wrong_path_in_a_table_is_the_reason_and_not_a_warning(plain: Path) -> None:
    path = table(plain / "t.csv", ("image", "study"), ("images/c00.jpg", "1"))
    with pytest.raises(CersError, match=r"no file images/c00\.jpg; relative names count from"):
        scan(path)


def test_the_advised_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    root = tmp_path / "my scans"
    touch(root, "images/a.png", "masks/b.png")
    with pytest.raises(CersError, match=f"`cers data check '{root}'`"):
        load_cases(root)


# ---- the published data, where it is at hand


@pytest.mark.skipif(not REAL.is_dir(), reason="the public images in ../shared/data are not here")
def test_published_data() -> None:
    brisc = scan(REAL / "brisc2025", negatives=True)
    assert (brisc.layout, len(brisc.cases), brisc.problems) == ("brisc", 5000, [])
    assert sum(c.negative for c in brisc.cases) == 1067
    assert brisc.reports_matched == brisc.rationales_matched == brisc.mask_rationales_matched == 3933
    covid = scan(REAL / "covid_ct")
    assert (covid.layout, len(covid.cases), covid.problems) == ("folder", 1650, [])
    assert sum(c.annotated for c in covid.cases) == covid.rationales_matched == 50
    assert all(c.group for c in covid.cases)
