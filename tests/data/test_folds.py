from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_cases import NOWHERE, datasets, many

from cers.data.case import Case
from cers.data.folds import fold_files, make_folds
from cers.data.splits import check_split, load_split, save_split
from cers.errors import CersError


@given(datasets(), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=60)
def test_every_annotated_case_is_tested_once_by_what_saw_nothing_of_its_group(
    data: tuple[list[Case], list[list[str]]], folds: int, seed: int
) -> None:
    cases, clusters = data
    splits = make_folds(cases, folds, seed=seed, clusters=clusters)
    assert sorted(case_id for split in splits for case_id in split.test) == sorted(c.id for c in cases if c.annotated)
    for split in splits:
        assert check_split(split, cases) == []
        assert split.ids == {case.id for case in cases}
        assert split.val
        assert split.test
        part = {case_id: name for name, ids in split.parts.items() for case_id in ids}
        for cluster in clusters:
            assert len({part[i] for i in cluster if i in part}) <= 1
    assert make_folds(cases, folds, seed=seed, clusters=clusters) == splits


@pytest.mark.parametrize("per_group", [1, 4])
def test_folds_are_alike_in_size_class_and_validation(per_group: int) -> None:
    cases = many(400, classes=4 if per_group == 1 else 1, per_group=per_group)
    label = {case.id: case.label for case in cases}
    for split in make_folds(cases, 5, val=0.2, clusters=[]):
        assert len(split.test) == 80
        assert len(split.val) == 80
        assert len(set(Counter(label[i] for i in split.test).values())) == 1


def test_classes_of_one_group_each_fill_all_folds_alike() -> None:
    cases = [replace(case, label=case.group) for case in many(60, per_group=5)]
    assert [len(split.test) for split in make_folds(cases, 4, clusters=[])] == [15] * 4


def test_masks_in_use_are_a_share_of_each_fold_s_training_images() -> None:
    for split in make_folds(many(100), 4, labelled=0.2, val=0.05, clusters=[]):
        assert (len(split.order), len(split.labelled), len(split.unlabelled)) == (70, 14, 56)


def test_images_without_annotation_train_but_in_the_fold_that_tests_their_patient() -> None:
    bare = [Case(id=f"bare{i}", image=NOWHERE, group=f"p{i}" if i < 10 else None) for i in range(20)]
    splits = make_folds([*many(40, per_group=4), *bare], 5, clusters=[])
    tested = {f"bare{i}" for split in splits for i in range(10) if f"c{4 * i:05d}" in split.test}
    assert tested == {f"bare{i}" for i in range(10)}
    for split in splits:
        away = {f"bare{i}" for i in range(10) if f"c{4 * i:05d}" in (*split.test, *split.val)}
        assert set(split.left_out) == away
        assert {case.id for case in bare} - away == set(split.unlabelled)


def test_a_limit_draws_whole_groups_for_all_folds() -> None:
    splits = make_folds(many(400, per_group=4), 4, limit=100, clusters=[])
    assert sum(len(split.test) for split in splits) == 100


def test_files_are_numbered_and_read_again(tmp_path: Path) -> None:
    cases = many(30)
    files = fold_files(tmp_path / "split.json", 3)
    assert [file.name for file in files] == ["split-1.json", "split-2.json", "split-3.json"]
    splits = make_folds(cases, 3, clusters=[])
    for split, file in zip(splits, files, strict=True):
        save_split(split, file)
    assert [load_split(file, cases) for file in files] == splits


@pytest.mark.parametrize(
    ("folds", "val", "words"),
    [
        (1, 0.1, "no cross-validation; give at least 2"),
        (11, 0.05, "10 groups of annotated images cannot fill 11 parts; .*fewer --folds"),
        (2, 0.5, r"val 0\.5 leaves none of 2 folds"),
        (2, -0.1, r"val -0\.1"),
    ],
)
def test_mistakes_are_named(folds: int, val: float, words: str) -> None:
    with pytest.raises(CersError, match=words):
        make_folds(many(40, per_group=4), folds, val=val, clusters=[])
