import random

from hypothesis import given
from hypothesis import strategies as st

from cers.evaluate.metrics import Metrics
from cers.evaluate.table import CaseRow
from cers.report.select import pick_cases


def row(name: str, dice: float, lesion: bool = True, branch: str = "declared") -> CaseRow:
    return CaseRow(
        name, branch, None, None, "small", Metrics(dice, dice, dice, 0.0, 0.0, dice, 0.0, 1.0, float(lesion))
    )


def rows_of(*dices: float) -> list[CaseRow]:
    return [row(f"c{i}", dice) for i, dice in enumerate(dices)]


def test_best_median_worst_in_this_order() -> None:
    picked = pick_cases(rows_of(0.5, 0.1, 0.9, 0.7, 0.3), 1)
    assert picked == [("c2", "best"), ("c0", "median"), ("c1", "worst")]


def test_only_the_declared_branch_counts() -> None:
    others = [row(f"c{i}", 1 - i / 10, branch="base") for i in range(5)]
    assert pick_cases([*others, *rows_of(0.1, 0.2, 0.3, 0.4, 0.5)], 1)[0] == ("c4", "best")


def test_a_lesion_free_case_is_not_the_best_but_may_be_the_worst() -> None:
    rows = [row("quiet", 1.0, lesion=False), row("alarm", 0.0, lesion=False), *rows_of(0.6, 0.7, 0.8)]
    picked = dict(pick_cases(rows, 1))
    assert picked["c2"] == "best"
    assert picked["alarm"] == "worst"


def test_unmeasured_cases_are_left_out() -> None:
    assert "c0" not in dict(pick_cases(rows_of(float("nan"), 0.1, 0.5, 0.9), 3))


def test_two_cases_are_examples_and_none_is_nothing() -> None:
    assert pick_cases(rows_of(0.4, 0.2), 3) == [("c1", "example"), ("c0", "example")]
    assert pick_cases([], 3) == []


dices = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=3, max_size=14)


@given(dices, st.integers(0, 4), st.randoms(use_true_random=False))
def test_picks_are_distinct_ordered_and_independent_of_row_order(
    values: list[tuple[float, bool]], n_each: int, rng: random.Random
) -> None:
    rows = [row(f"c{i:02}", dice, lesion) for i, (dice, lesion) in enumerate(values)]
    shuffled = rng.sample(rows, len(rows))
    picked = pick_cases(rows, n_each)
    assert picked == pick_cases(shuffled, n_each)
    assert len({case for case, _ in picked}) == len(picked) <= 3 * n_each
    by_id = {r.id: r.metrics for r in rows}
    best = [by_id[case] for case, heading in picked if heading == "best"]
    worst = [by_id[case] for case, heading in picked if heading == "worst"]
    assert all(m.true_area > 0 for m in best)
    assert all(b.dice >= w.dice for b in best for w in worst)
    counts = [sum(h == heading for _, h in picked) for heading in ("best", "median", "worst")]
    assert max(counts) <= n_each
    assert counts[1] == counts[2] == min(n_each, len(rows) // 3)
