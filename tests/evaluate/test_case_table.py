import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cers.data.case import Case
from cers.data.prediction import CasePrediction
from cers.errors import CersError
from cers.evaluate.metrics import METRICS, Metrics
from cers.evaluate.table import (
    SIZES,
    CaseRow,
    build_rows,
    declared_rows,
    read_cases_csv,
    shown_branches,
    size_group,
    summarise,
    write_cases_csv,
    write_summary,
)

SHAPE = (40, 50)
COLUMNS = "id,branch,label,group,size,dice,iou,nsd,hd95,assd,border_dice,false_lesions,predicted_area,true_area"


def mask_of(pixels: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask.flat[:pixels] = True
    return mask


def scored(name: str, true: int, found: int, *, label: str | None = None, group: str | None = None, **branches: int):
    prediction = CasePrediction(
        name,
        mask_of(found).astype(np.float32),
        {branch: mask_of(pixels).astype(np.float32) for branch, pixels in branches.items()},
    )
    return Case(name, Path(f"{name}.png"), label=label, group=group), prediction, mask_of(true)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
finite = st.floats(0, 1e9)
all_rows = st.lists(
    st.builds(
        CaseRow,
        id=texts,
        branch=texts,
        label=st.none() | texts,
        group=st.none() | texts,
        size=st.sampled_from(SIZES),
        metrics=st.builds(Metrics, *[finite] * len(fields(Metrics))),
    ),
    max_size=5,
)


@settings(max_examples=40)
@given(all_rows)
def test_table_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "cases.csv"
    write_cases_csv(rows, path)
    assert read_cases_csv(path) == rows


@pytest.mark.parametrize(
    ("pixels", "size"), [(0, "none"), (1, "small"), (9, "small"), (10, "medium"), (100, "medium"), (101, "large")]
)
def test_size_groups_at_their_bounds(pixels, size):
    assert size_group(mask_of(pixels)) == size


def test_each_case_has_its_declared_branch_first():
    case = scored("a", 10, 10, retrieval=10, base=5)
    rows = build_rows([case, scored("b", 10, 0, retrieval=0, base=10)])
    assert [(row.id, row.branch) for row in rows] == [
        (name, branch) for name in "ab" for branch in ("declared", "retrieval", "base")
    ]
    assert [row.metrics.dice for row in declared_rows(rows)] == [1.0, 0.0]


def test_the_declared_branch_is_shown_once_under_its_own_name():
    def names(*cases):
        return list(shown_branches(summarise(build_rows(cases))["branches"]))

    assert names(scored("a", 10, 10, retrieval=10, base=5)) == ["retrieval (declared)", "base"]
    assert names(scored("a", 10, 5, retrieval=10, base=5)) == ["base (declared)", "retrieval"]
    assert names(scored("a", 10, 10, base=10)) == ["declared"]
    # Two equal branches: which of them was declared cannot be told from their scores.
    assert names(scored("a", 10, 10, retrieval=10, base=10)) == ["declared", "retrieval", "base"]


def test_a_single_branch_is_not_repeated():
    assert [row.branch for row in build_rows([scored("a", 10, 10, base=10)])] == ["declared"]


def test_the_prediction_without_evidence_is_a_branch():
    case, prediction, mask = scored("a", 10, 10)
    without = CasePrediction("a", prediction.probability, without_evidence=mask_of(5).astype(np.float32))
    rows = build_rows([(case, without, mask)])
    assert [(row.branch, row.metrics.predicted_area) for row in rows] == [("declared", 10), ("without_evidence", 5)]


def test_summary_counts_what_was_missed_and_what_was_invented():
    rows = build_rows(
        [
            scored("hit", 50, 50, label="glioma"),
            scored("missed", 50, 0, label="glioma"),
            scored("clean", 0, 0, label="none"),
            scored("invented", 0, 3, label="none"),
        ]
    )
    found = summarise(rows)["branches"]["declared"]
    assert found["all"]["n"] == 4
    assert found["all"]["metrics"]["dice"]["mean"] == 0.5
    assert found["all"]["metrics"]["hd95"]["mean"] == pytest.approx(np.hypot(*SHAPE) / 2)
    assert found["all"]["missed"] == {"count": 1, "of": 2}
    assert found["all"]["false_positives"] == {"count": 1, "of": 2}
    assert {name: part["n"] for name, part in found["by_class"].items()} == {"glioma": 2, "none": 2}
    assert list(found["by_size"]) == ["none", "medium"]
    assert found["by_class"]["none"]["missed"] == {"count": 0, "of": 0}


def test_a_prediction_elsewhere_misses_the_lesion():
    case, _, mask = scored("a", 50, 0)
    elsewhere = CasePrediction("a", np.flipud(mask).astype(np.float32))
    assert summarise(build_rows([(case, elsewhere, mask)]))["branches"]["declared"]["all"]["missed"]["count"] == 1


def test_summary_resamples_groups():
    cases = [scored(f"c{i}", 50, 50 * (i % 2), group=f"p{i % 4}") for i in range(40)]
    ungrouped = [scored(f"c{i}", 50, 50 * (i % 2)) for i in range(40)]
    wide, narrow = (summarise(build_rows(c))["branches"]["declared"]["all"] for c in (cases, ungrouped))
    assert (wide["groups"], narrow["groups"]) == (4, 40)
    widths = [part["metrics"]["dice"]["high"] - part["metrics"]["dice"]["low"] for part in (wide, narrow)]
    assert widths[0] > 2 * widths[1]


def test_summary_is_written_as_plain_json(tmp_path):
    summary = summarise(build_rows([scored("a", 10, 10, label="tumeur à gauche")]))
    write_summary(summary, tmp_path / "eval" / "summary.json")
    text = (tmp_path / "eval" / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == summary
    part = summary["branches"]["declared"]["all"]["metrics"]
    assert set(part) == {metric.name for metric in METRICS}
    assert part["dice"] == {"mean": 1.0, "low": None, "high": None}


def test_no_cases_make_an_empty_summary(tmp_path):
    write_cases_csv([], tmp_path / "cases.csv")
    assert summarise(read_cases_csv(tmp_path / "cases.csv")) == {"branches": {}}


def test_a_case_scored_twice_is_refused():
    with pytest.raises(CersError, match="'a' appears twice"):
        build_rows([scored("a", 1, 1), scored("a", 1, 1)])


def test_a_prediction_of_another_case_is_refused():
    case, _, mask = scored("a", 1, 1)
    with pytest.raises(CersError, match="prediction of 'b'"):
        build_rows([(case, CasePrediction("b", np.zeros(SHAPE, np.float32)), mask)])


def test_the_case_with_an_unfit_prediction_is_named():
    case, _, mask = scored("a", 1, 1)
    with pytest.raises(CersError, match="case 'a', branch 'declared'"):
        build_rows([(case, CasePrediction("a", np.zeros((3, 3), np.float32)), mask)])


@pytest.mark.parametrize(
    "content", ["id,branch\na,b\n", "x\n1\n", "id,branch,label,group,size,dice\na,b,,,small,high\n"]
)
def test_another_table_is_refused(tmp_path, content):
    path = tmp_path / "cases.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CersError, match="not a per-case table"):
        read_cases_csv(path)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(CersError, match="no per-case table at"):
        read_cases_csv(tmp_path / "cases.csv")
