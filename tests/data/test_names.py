import pytest

from cers.data.names import key, known_group, known_label


@pytest.mark.parametrize(
    ("stem", "group"),
    [
        ("Jun_coronacases_case1_100", "Jun_coronacases_case1"),
        ("Jun_coronacases_case10_100", "Jun_coronacases_case10"),
        ("Jun_radiopaedia_29_86490_1_case16_5", "Jun_radiopaedia_29"),
        ("Jun_radiopaedia_29_86491_1_case17_5", "Jun_radiopaedia_29"),
        ("Morozov_study_0255_3", "Morozov_study_0255"),
        ("bjorke_7", "bjorke_7"),
        ("Data-1_coronacases_org_001_10", "coronacases_org_001"),
        ("Data-1_radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm_81", "radiopaedia_org_covid-19-pneumonia-10"),
        ("sub-S09340_ses-E17628_run-1_bp-chest_vp-ap_cr", "sub-S09340"),
        ("covid_12", "covid_12"),
        ("brisc2025_train_00001_gl_ax_t1", None),
        ("patient_12", None),
    ],
)
def test_groups_of_published_names(stem: str, group: str | None) -> None:
    assert known_group(stem) == group


def test_labels_of_brisc_names() -> None:
    codes = {"gl": "glioma", "me": "meningioma", "pi": "pituitary", "no": "no_tumor"}
    assert {c: known_label(f"brisc2025_test_00001_{c}_sa_t1") for c in codes} == codes
    assert known_label("gl_ax_t1") is None


def test_keys_drop_folders_and_image_endings_only() -> None:
    assert key(" images/a.b.JPG ") == "a.b"
    assert key("c\\a.tiff") == "a"
    assert key("study.1") == "study.1"
    assert key("e\u0301.png") == key("é")
