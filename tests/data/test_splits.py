import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_cases import NOWHERE, datasets, many

from cers.data.case import Case
from cers.data.splits import Split, check_split, load_split, make_split, save_split
from cers.errors import CersError


@given(datasets(), st.integers(0, 99))
@settings(max_examples=60)
def test_a_grouped_split_is_a_partition_that_no_group_straddles(
    data: tuple[list[Case], list[list[str]]], seed: int
) -> None:
    cases, clusters = data
    split = make_split(cases, seed=seed, clusters=clusters)
    assert check_split(split, cases) == []
    everything = [*split.labelled, *split.unlabelled, *split.val, *split.test, *split.left_out]
    assert sorted(everything) == sorted(case.id for case in cases)
    part = {case_id: name for name, ids in split.parts.items() for case_id in ids}
    for cluster in clusters:
        assert len({part[i] for i in cluster if i in part}) <= 1
    by_id = {case.id: case for case in cases}
    assert all(by_id[i].annotated for i in (*split.labelled, *split.val, *split.test))
    assert not any(by_id[i].annotated for i in split.left_out)
    assert split.val
    assert split.test


@given(datasets(), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=60)
def test_another_draw_of_labelled_images_keeps_the_parts(
    data: tuple[list[Case], list[list[str]]], first: int, second: int
) -> None:
    cases, clusters = data
    split = make_split(cases, seed=first, clusters=clusters, labelled=5)
    other = split.redrawn(cases, second)
    assert {name: sorted(ids) for name, ids in other.parts.items()} == {n: sorted(i) for n, i in split.parts.items()}
    assert sorted(other.order) == sorted(split.order)
    assert len(other.labelled) == 5
    assert check_split(other, cases) == []
    assert other.redrawn(cases, first) == split.redrawn(cases, first)


@given(datasets(), st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.sampled_from(["grouped", "paper"]))
@settings(max_examples=60)
def test_labelled_shares_are_nested_and_the_same_whichever_way_they_are_made(
    data: tuple[list[Case], list[list[str]]], share: float, other: float, strategy: str
) -> None:
    cases, clusters = data
    split = make_split(cases, strategy=strategy, clusters=clusters)
    small, large = (split.with_labelled(s) for s in sorted([share, other]))
    assert set(small.labelled) <= set(large.labelled)
    assert large.with_labelled(min(share, other)) == small
    assert make_split(cases, strategy=strategy, clusters=clusters, labelled=share) == split.with_labelled(share)
    assert sorted(small.parts["train"]) == sorted(split.parts["train"])
    assert (small.val, small.test, small.order) == (split.val, split.test, split.order)


@given(st.integers(0, 99), st.sampled_from(["grouped", "paper"]), st.floats(0.1, 1.0))
@settings(max_examples=25)
def test_every_labelled_share_has_the_classes_in_proportion(seed: int, strategy: str, share: float) -> None:
    cases = many(600, classes=3, per_group=0)
    split = make_split(cases, strategy=strategy, seed=seed, clusters=[])
    label = {case.id: case.label for case in cases}
    whole = Counter(label[i] for i in split.order)
    chosen = split.with_labelled(share)
    counts = Counter(label[i] for i in chosen.labelled)
    for name, n in whole.items():
        assert abs(counts[name] - n * len(chosen.labelled) / len(split.order)) <= 1.5


@pytest.mark.parametrize("per_group", [0, 5])
def test_grouped_parts_are_stratified_and_near_8_1_1(per_group: int) -> None:
    cases = many(1000, classes=1, per_group=per_group)
    cases = [replace(case, label="ab"[(i // 5) % 3 == 0]) for i, case in enumerate(cases)]
    split = make_split(cases, clusters=[])
    label = {case.id: case.label for case in cases}
    for ids, share in ((split.labelled, 0.8), (split.val, 0.1), (split.test, 0.1)):
        counts = Counter(label[i] for i in ids)
        assert counts["a"] == pytest.approx(share * 665, abs=6)
        assert counts["b"] == pytest.approx(share * 335, abs=6)


def test_at_most_one_group_has_labelled_and_unlabelled_images() -> None:
    cases = many(300, classes=1, per_group=6)
    group = {case.id: case.group for case in cases}
    split = make_split(cases, clusters=[], labelled=50)
    assert len(split.labelled) == 50
    assert len({group[i] for i in split.labelled} & {group[i] for i in split.unlabelled}) == 1


@pytest.mark.parametrize(
    ("total", "sizes", "quarter", "half"),
    [
        (2729, (2183, 272, 274), 545, 1091),
        (9258, (7406, 925, 927), 1851, 3703),
        (4793, (3834, 479, 480), 958, 1917),
    ],
)
def test_the_paper_s_sizes(total: int, sizes: tuple[int, int, int], quarter: int, half: int) -> None:
    split = make_split(many(total, classes=3), strategy="paper", seed=42)
    assert tuple(map(len, split.parts.values())) == sizes
    assert len(split.with_labelled(0.25).labelled) == quarter
    assert len(split.with_labelled(0.5).labelled) == half


def test_seed_and_content_decide_the_hash() -> None:
    cases = many(100, classes=2, per_group=2)
    split = make_split(cases, seed=1, clusters=[])
    assert make_split(cases[::-1], seed=1, clusters=[]) == split
    assert make_split(cases[::-1], seed=1, clusters=[]).hash == split.hash
    variants = [
        make_split(cases, seed=2, clusters=[]),
        make_split(cases[:-1], seed=1, clusters=[]),
        split.with_labelled(0.5),
        replace(split, val=split.test, test=split.val),
    ]
    assert len({split.hash, *(variant.hash for variant in variants)}) == 5
    assert split.dataset != variants[1].dataset


def test_official_parts_are_kept_and_validation_is_carved_out_of_training() -> None:
    parts = ["train"] * 160 + ["test"] * 40
    cases = [replace(case, part=part) for case, part in zip(many(200, 2, per_group=4), parts, strict=True)]
    cases.append(Case(id="bare", image=NOWHERE, part="test"))
    split = make_split(cases, strategy="official", clusters=[])
    assert split.test == [case.id for case in cases[160:200]]
    assert len(split.val) == 16
    assert split.left_out == ["bare"]
    assert check_split(split, cases) == []
    with_val = [replace(case, part="val") if i < 20 else case for i, case in enumerate(cases)]
    assert make_split(with_val, strategy="official", clusters=[]).val == [case.id for case in cases[:20]]


def test_official_says_what_is_missing() -> None:
    cases = many(50)
    with pytest.raises(CersError, match="no official parts"):
        make_split(cases, strategy="official", clusters=[])
    train = [replace(case, part="train") for case in cases]
    with pytest.raises(CersError, match="no official test part"):
        make_split(train, strategy="official", clusters=[])
    assert make_split(train, strategy="official", clusters=[], test=0).test == []
    with pytest.raises(CersError, match=r"1 annotated cases are in no official part.*'c00000'"):
        make_split([cases[0], *train[1:]], strategy="official", clusters=[])


@pytest.mark.parametrize("strategy", ["grouped", "paper"])
def test_a_class_without_masks_is_unlabelled_at_every_share_and_still_tested(strategy: str) -> None:
    cases = many(300, classes=3, per_group=2)
    label = {case.id: case.label for case in cases}
    whole = make_split(cases, strategy=strategy, labelled=0.5, clusters=[])
    unseen = whole.without_class("class1", cases)
    assert unseen.labelled == [i for i in whole.labelled if label[i] != "class1"]
    assert (unseen.val, unseen.test) == (whole.val, whole.test)
    assert "class1" in {label[i] for i in unseen.test}
    assert sorted(unseen.parts["train"]) == sorted(whole.parts["train"])
    assert "class1" not in {label[i] for i in unseen.with_labelled(1.0).labelled}
    assert check_split(unseen, cases) == [] or strategy == "paper"
    with pytest.raises(CersError, match="no labelled case is of class 'clas2'; did you mean 'class2'"):
        whole.without_class("clas2", cases)
    with pytest.raises(CersError, match="nothing is left to learn from"):
        unseen.without_class("class0", cases).without_class("class2", cases)


def test_unannotated_images_train_unless_their_patient_is_tested() -> None:
    cases = many(100, per_group=2)
    cases += [Case(id=f"bare{i}", image=NOWHERE, group=f"p{i}") for i in range(50)]
    cases += [Case(id="stranger", image=NOWHERE, group="q")]
    split = make_split(cases, clusters=[])
    assert len(split.left_out) == (len(split.val) + len(split.test)) / 2
    assert "stranger" in split.unlabelled
    assert len(split.unlabelled) + len(split.left_out) == 51
    assert make_split(cases, strategy="paper").left_out == []


def test_clusters_are_found_in_the_images_when_not_given(tmp_path: Path) -> None:
    cases = []
    for i in range(12):
        image = np.random.default_rng(i // 3).integers(0, 255, (64, 64)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        cases.append(Case(id=str(i), image=tmp_path / f"{i}.png", mask=NOWHERE))
    split = make_split(cases)
    assert {split.groups[case.id] for case in cases} == {"0", "10", "3", "6"}
    assert [len(ids) for ids in split.parts.values()] == [6, 3, 3]


def test_few_groups_fill_all_parts_or_say_so() -> None:
    sizes = [len(ids) for ids in make_split(many(30, per_group=10), clusters=[]).parts.values()]
    assert sizes == [10, 10, 10]
    with pytest.raises(CersError, match="2 groups"):
        make_split(many(30, per_group=15), clusters=[])
    assert make_split(many(30, per_group=15), clusters=[], val=0).val == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategy": "grouppd"}, "did you mean 'grouped'"),
        ({"val": 0.5, "test": 0.5}, "leave some for training"),
        ({"val": -0.1}, "leave some for training"),
        ({"labelled": 0}, "count from 1 to"),
        ({"labelled": 1.5}, "share such as 0.25"),
        ({"labelled": 99}, "count from 1 to 80"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(CersError, match=words) as error:
        make_split(many(100), clusters=[], **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_nothing_annotated_cannot_be_split() -> None:
    for strategy in ("grouped", "paper"):
        with pytest.raises(CersError):
            make_split([Case(id="a", image=NOWHERE)], strategy=strategy, clusters=[])


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Split, list[Case]]:
    cases = many(100, classes=2, per_group=4)
    split = make_split(cases, clusters=[], labelled=0.5)
    save_split(split, tmp_path / "split.json")
    return tmp_path / "split.json", split, cases


def test_a_saved_split_comes_back(saved: tuple[Path, Split, list[Case]]) -> None:
    path, split, cases = saved
    assert load_split(path) == load_split(path, cases) == split
    assert load_split(path).with_labelled(1.0).unlabelled == []


def test_a_changed_file_is_refused(saved: tuple[Path, Split, list[Case]]) -> None:
    path, split, _ = saved
    path.write_text(path.read_text().replace(split.test[0], split.val[0]))
    with pytest.raises(CersError, match="changed since"):
        load_split(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"labelled": []}', "\x00"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CersError, match="not a split file"):
        load_split(tmp_path / "x.json")
    with pytest.raises(CersError, match="no split file"):
        load_split(tmp_path / "y.json")


def test_wrong_types_are_refused(saved: tuple[Path, Split, list[Case]]) -> None:
    path, _, _ = saved
    for key, value in (("val", "abc"), ("test", [1]), ("groups", []), ("seed", None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(CersError, match="make a new one"):
            load_split(path)


def test_overlaps_and_straddling_groups_are_refused(saved: tuple[Path, Split, list[Case]]) -> None:
    path, split, cases = saved
    save_split(replace(split, test=[*split.test, split.val[0]]), path)
    with pytest.raises(CersError, match=f"'{split.val[0]}' occurs 2 times, in val and test"):
        load_split(path)
    moved = replace(split, val=split.val[1:], test=[*split.test, split.val[0]])
    save_split(moved, path)
    with pytest.raises(CersError, match="is in test and val"):
        load_split(path, cases)
    assert check_split(moved, cases) == [f"group '{split.groups[split.val[0]]}' is in test and val"]


def test_groups_that_the_split_did_not_know_of_are_held_against_it(saved: tuple[Path, Split, list[Case]]) -> None:
    path, split, cases = saved
    torn = {split.val[0], split.test[0]}
    with pytest.raises(CersError, match="group 'one patient' is in test and val"):
        load_split(path, [replace(case, group="one patient") if case.id in torn else case for case in cases])


def test_a_split_of_another_dataset_is_refused(saved: tuple[Path, Split, list[Case]]) -> None:
    path, _, cases = saved
    with pytest.raises(CersError, match=r"1 ids are not in the dataset.*'c00000'"):
        load_split(path, cases[1:])
    bare = [replace(case, mask=None) for case in cases]
    with pytest.raises(CersError, match="100 cases have lost their mask"):
        load_split(path, bare)
    more = [*cases, Case(id="new", image=NOWHERE)]
    assert check_split(load_split(path, more), more) == ["1 cases of the dataset are in no part, e.g. 'new'"]


def test_limit_draws_whole_groups_and_keeps_the_shares() -> None:
    cases = [Case(f"c{i:03d}", Path("x.png"), mask=Path("m.png"), group=f"g{i // 4}") for i in range(200)]
    split = make_split(cases, clusters=[], limit=80, test=0.3)
    used = [*split.labelled, *split.unlabelled, *split.val, *split.test]
    assert 80 <= len(used) < 84
    assert {Counter(i // 4 for i in (int(u[1:]) for u in used)).get(g) for g in {int(u[1:]) // 4 for u in used}} == {4}
    assert abs(len(split.test) - 24) <= 4
    assert make_split(cases, clusters=[], limit=80, test=0.3).hash == split.hash
    with pytest.raises(CersError, match="at least 3"):
        make_split(cases, clusters=[], limit=2)
