import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cers.data.case import Case
from cers.data.splits import make_split, save_split
from cers.errors import CersError
from cers.evaluate.compare import compare
from cers.evaluate.metrics import METRICS
from cers.evaluate.table import build_rows, read_cases_csv, write_cases_csv
from cers.predict.prediction import CasePrediction

N = 24


def make_run(folder: Path, noise: float, seed: int, *, cases: int = N, shift: int = 0, grouped: bool = True) -> Path:
    """A run whose predictions are the true boxes with a share of wrong pixels; its base branch finds nothing."""
    rng, scored = np.random.default_rng(seed), []
    for i in range(cases):
        mask = np.zeros((24, 24), dtype=bool)
        mask[4 + i % 5 : 14 + shift, 6:18] = True
        found = (mask ^ (rng.random(mask.shape) < noise * (1 + i % 3))).astype(np.float32)
        case = Case(f"c{i}", Path(f"c{i}.png"), group=f"p{i // 2}" if grouped else None)
        branches = {"retrieval": found, "base": np.zeros_like(found)}
        scored.append((case, CasePrediction(case.id, found, branches), mask))
    write_cases_csv(build_rows(scored), folder / "eval" / "cases.csv")
    return folder


@pytest.fixture
def runs(tmp_path):
    return {
        "weak": [make_run(tmp_path / f"weak{s}", 0.08, s) for s in (1, 2)],
        "strong": [make_run(tmp_path / f"strong{s}", 0.01, s + 10) for s in (1, 2, 3)],
        "alike": [make_run(tmp_path / "alike", 0.08, 102)],
    }


def test_lines_hold_mean_spread_and_paired_test(runs):
    table = compare(runs, "weak")
    assert len(table.lines) == len(METRICS) * 3
    dice = {line.method: line for line in table.lines if line.metric == "dice"}
    assert list(dice) == ["weak", "strong", "alike"]
    means = [
        np.mean([r.metrics.dice for r in read_cases_csv(run / "eval" / "cases.csv") if r.branch == "declared"])
        for run in runs["strong"]
    ]
    assert dice["strong"].mean == pytest.approx(np.mean(means))
    assert dice["strong"].spread == pytest.approx(np.std(means, ddof=1))
    assert dice["strong"].low < dice["strong"].mean < dice["strong"].high
    assert dice["strong"].difference == pytest.approx(dice["strong"].mean - dice["weak"].mean)
    assert (dice["strong"].seeds, dice["strong"].n, dice["strong"].groups) == (3, N, N // 2)
    # 12 groups have 4096 sign patterns, of which two are as extreme as a difference of one sign throughout.
    assert dice["strong"].p == pytest.approx(2 / 4096, abs=8e-4)
    assert dice["strong"].p_holm == pytest.approx(2 * dice["strong"].p)
    assert dice["alike"].p > 0.05
    assert math.isnan(dice["alike"].spread)
    assert math.isnan(dice["weak"].p)


def test_lower_distances_are_a_negative_difference(runs):
    assd = {line.method: line for line in compare(runs, "weak").lines if line.metric == "assd"}
    assert assd["strong"].difference < 0
    assert assd["strong"].p < 0.01


def test_the_reference_comes_first_wherever_it_was_named(runs):
    table = compare(runs, "strong")
    assert [line.method for line in table.lines][:3] == ["strong", "weak", "alike"]
    assert "difference to strong" in table.to_rows()[0]


def test_csv_holds_every_number_in_full(runs):
    table = compare(runs, "weak")
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [float(line["mean"]) for line in lines] == [line.mean for line in table.lines]


def test_markdown_has_a_head_and_a_line_for_each_row(runs):
    table = compare(runs, "weak")
    text = table.to_markdown().splitlines()
    assert len(text) == len(table.to_rows()) + 1 == len(table.lines) + 2
    assert len({line.count("|") for line in text}) == 1
    assert text[2].startswith("| Dice ↑ | weak | 2 | 24 | 12 | 0.")
    assert all(cell.strip() for line in text for cell in line.strip("|").split("|"))


def test_different_cases_are_refused(runs, tmp_path):
    fewer = make_run(tmp_path / "fewer", 0.01, 1, cases=N - 1)
    with pytest.raises(CersError, match=r"different cases \('c23'"):
        compare({**runs, "fewer": [fewer]}, "weak")


@pytest.mark.parametrize("change", [{"shift": 1}, {"grouped": False}])
def test_different_masks_or_groups_are_refused(runs, tmp_path, change):
    other = make_run(tmp_path / "other", 0.01, 1, **change)
    with pytest.raises(CersError, match="'c0' with different masks or groups"):
        compare({**runs, "other": [other]}, "weak")


def test_different_splits_are_refused_and_other_label_shares_are_not(runs):
    cases = [Case(f"t{i}", Path(f"t{i}.png"), mask=Path(f"t{i}.png")) for i in range(40)]
    split = make_split(cases, strategy="paper", seed=0)
    first, second = runs["weak"]
    save_split(split, first / "split.json")
    save_split(split.with_labelled(0.25), second / "split.json")
    compare(runs, "weak")
    save_split(make_split(cases, strategy="paper", seed=1), second / "split.json")
    with pytest.raises(CersError, match="different splits"):
        compare(runs, "weak")


def test_mistakes_are_named_in_one_line(runs, tmp_path):
    for given, reference, message in [
        (runs, "waek", "did you mean 'weak'"),
        ({"weak": []}, "weak", "has no run folder"),
        ({"weak": [runs["weak"][0]] * 2}, "weak", "names a run folder twice"),
        ({"weak": [tmp_path / "nowhere"]}, "weak", "no per-case table at"),
    ]:
        with pytest.raises(CersError, match=message) as caught:
            compare(given, reference)
        assert "\n" not in str(caught.value)


def test_a_table_without_cases_is_refused(tmp_path):
    write_cases_csv([], tmp_path / "eval" / "cases.csv")
    with pytest.raises(CersError, match="holds no case"):
        compare({"a": [tmp_path]}, "a")


def test_rows_of_one_line_per_method_are_independent_of_file_order(runs):
    before = compare(runs, "weak")
    path = runs["strong"][0] / "eval" / "cases.csv"
    write_cases_csv(read_cases_csv(path)[::-1], path)
    assert replace(before, lines=compare(runs, "weak").lines).to_csv() == before.to_csv()
