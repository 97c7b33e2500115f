import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cers.evaluate import statistics
from cers.evaluate.statistics import (
    bootstrap_interval,
    combine_seeds,
    difference_interval,
    holm,
    paired_permutation,
)

law = settings(max_examples=50)
numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=30)
pvalue_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@law
@given(numbers)
def test_interval_holds_within_the_data(values):
    found = bootstrap_interval(values, n=200)
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [bootstrap_interval(rng.normal(3.0, 2.0, 60), n=400, seed=i) for i in range(400)]
    coverage = np.mean([interval.low <= 3.0 <= interval.high for interval in found])
    assert 0.91 <= coverage <= 0.98


def test_only_resampling_groups_covers_clustered_data():
    rng = np.random.default_rng(2)
    groups = [f"p{i}" for i in range(40) for _ in range(10)]
    by_case = by_group = 0
    for trial in range(200):
        values = np.repeat(rng.normal(0, 1, 40), 10) + rng.normal(0, 0.3, 400)
        case = bootstrap_interval(values, n=300, seed=trial)
        group = bootstrap_interval(values, groups, n=300, seed=trial)
        by_case += case.low <= 0 <= case.high
        by_group += group.low <= 0 <= group.high
    assert by_group / 200 >= 0.90
    assert by_case / 200 <= 0.70


def test_groups_of_one_case_are_cases():
    values = np.random.default_rng(0).random(30)
    alone = bootstrap_interval(values, [None] * 30)
    assert alone == bootstrap_interval(values) == bootstrap_interval(values, [f"g{i}" for i in range(30)])


def test_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_blocks_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values)
    p = paired_permutation(values, values[::-1])
    monkeypatch.setattr(statistics, "_BLOCK", 1000)
    assert bootstrap_interval(values) == whole
    assert paired_permutation(values, values[::-1]) == p


@pytest.mark.parametrize(("values", "groups"), [([0.5], None), ([0.5, 0.5, 0.5], ["a", "a", "a"])])
def test_one_independent_unit_has_a_mean_but_no_interval(values, groups):
    found = bootstrap_interval(values, groups)
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_nothing_has_neither_mean_nor_interval():
    assert all(math.isnan(value) for value in bootstrap_interval([]))


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(3)
    p = [paired_permutation(*rng.normal(size=(2, 25)), n=400, seed=i) for i in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) <= 0.05) <= 0.09


def test_p_agrees_with_the_exact_permutation_test():
    a, b = np.random.default_rng(5).normal([[0.6], [0.0]], 1.0, (2, 9))
    exact = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired_permutation(a, b, n=20_000) == pytest.approx(exact, abs=0.015)


def test_flipping_whole_groups_is_more_careful():
    rng = np.random.default_rng(6)
    shift = np.repeat(rng.normal(0.3, 1, 8), 20)
    a = shift + rng.normal(0, 0.2, 160)
    groups = [f"p{i // 20}" for i in range(160)]
    assert paired_permutation(a, np.zeros(160), groups) > 10 * paired_permutation(a, np.zeros(160))


def test_groups_bound_p_from_below():
    p = paired_permutation(np.ones(100), np.zeros(100), ["one"] * 50 + ["two"] * 50)
    assert p == pytest.approx(0.5, abs=0.03)


def test_p_is_smallest_for_a_plain_difference_and_one_for_none():
    rng = np.random.default_rng(7)
    a = rng.random(40)
    assert paired_permutation(a + 1, a, n=999) == pytest.approx(1 / 1000)
    assert paired_permutation(a, a, n=999) == 1.0


@law
@given(numbers)
def test_p_does_not_depend_on_the_order_of_the_two(values):
    other = np.roll(values, 1)
    assert paired_permutation(values, other, n=99) == paired_permutation(other, values, n=99)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        paired_permutation([1, 2], [1])
    with pytest.raises(ValueError, match="2 values but 1 groups"):
        bootstrap_interval([1, 2], ["a"])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, 0.9, 0.6]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([]) == []


@law
@given(pvalue_lists)
def test_holm_only_raises_keeps_the_order_and_never_beats_bonferroni(raw):
    found = holm(raw)
    assert all(r <= f <= min(1.0, r * len(raw)) + 1e-12 for r, f in zip(raw, found, strict=True))
    in_order = [f for _, f in sorted(zip(raw, found, strict=True))]
    assert in_order == sorted(in_order)


def test_seeds_are_averaged_per_case():
    found = combine_seeds([[1.0, 3.0], [2.0, 6.0]])
    assert found.per_case.tolist() == [1.5, 4.5]
    assert found.mean == 3.0
    assert found.spread == pytest.approx(math.sqrt(2))
    assert math.isnan(combine_seeds([[1.0, 3.0]]).spread)


def test_only_the_interval_over_seeds_covers_what_another_seed_would_give():
    rng = np.random.default_rng(8)
    both = cases = 0
    for trial in range(200):
        seeds = rng.normal(0.0, 0.02, (3, 1))
        a = seeds + rng.normal(0.0, 0.1, 60) + rng.normal(0.0, 0.03, (3, 60))
        zero = np.zeros((3, 60))
        found = difference_interval(a, zero, paired_seeds=True, n=200, seed=trial)
        alone = bootstrap_interval(a.mean(axis=0), n=200, seed=trial)
        both += found.low <= 0 <= found.high
        cases += alone.low <= 0 <= alone.high
    assert both / 200 >= 0.93
    assert cases / 200 <= 0.90


def test_with_one_seed_the_interval_is_that_over_cases():
    rng = np.random.default_rng(9)
    a, b = rng.random((2, 1, 30))
    found = difference_interval(a, b, paired_seeds=True)
    assert found == pytest.approx(bootstrap_interval(a[0] - b[0]))


def test_pairing_seeds_takes_away_what_both_share():
    rng = np.random.default_rng(10)
    shared = rng.normal(0, 0.2, (4, 1))
    a, b = shared + 0.1 + rng.normal(0, 0.01, (4, 50)), shared + rng.normal(0, 0.01, (4, 50))
    paired, apart = (difference_interval(a, b, paired_seeds=p) for p in (True, False))
    assert paired.mean == apart.mean == pytest.approx(0.1, abs=0.01)
    assert paired.low > 0
    assert apart.low < 0


def test_unpaired_seeds_follow_welch():
    rng = np.random.default_rng(11)
    a, b = rng.normal(0, 1, (5, 1)) + np.zeros((5, 8)), rng.normal(0, 3, (4, 1)) + np.zeros((4, 8))
    found = difference_interval(a, b, paired_seeds=False)
    welch = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


def test_a_single_seed_is_taken_to_vary_as_the_others_do():
    rng = np.random.default_rng(12)
    held = cases = 0
    for trial in range(300):
        a, b = (rng.normal(0, 0.1, (s, 1)) + rng.normal(0, 0.1, (s, 40)) for s in (4, 1))
        found = difference_interval(a, b, paired_seeds=False, n=200, seed=trial)
        alone = bootstrap_interval(a.mean(axis=0) - b[0], n=200, seed=trial)
        held += found.low <= 0 <= found.high
        cases += alone.low <= 0 <= alone.high
    assert 0.92 <= held / 300 <= 0.99
    assert cases / 300 <= 0.5


def test_difference_of_other_cases_or_unpaired_numbers_of_seeds_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        difference_interval(np.zeros((2, 3)), np.zeros((2, 4)), paired_seeds=False)
    with pytest.raises(ValueError, match="differ in shape"):
        difference_interval(np.zeros((2, 3)), np.zeros((1, 3)), paired_seeds=True)
