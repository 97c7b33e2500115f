import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cers.evaluate.agreement import cohen_kappa, proportion

VERDICT = st.sampled_from(["right", "wrong", "unsure"])


def test_wilson_interval_of_a_textbook_case_and_at_the_ends() -> None:
    low, high = proportion(81, 263)[1:]  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert proportion(100, 100).high == 1
    assert 0.96 < proportion(100, 100).low < 0.97
    assert math.isnan(proportion(0, 0).mean)


def test_kappa_of_a_textbook_table() -> None:
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    kappa = cohen_kappa(first, second, [str(i) for i in range(50)])
    assert kappa.mean == pytest.approx(0.4)
    assert kappa.low < 0.4 < kappa.high


@given(st.lists(st.tuples(VERDICT, VERDICT), min_size=2, max_size=40))
def test_kappa_is_symmetric_and_one_only_for_the_same(pairs: list[tuple[str, str]]) -> None:
    first, second = zip(*pairs, strict=True)
    units = [str(i // 2) for i in range(len(pairs))]
    kappa = cohen_kappa(first, second, units, n=20)
    assert kappa == pytest.approx(cohen_kappa(second, first, units, n=20), nan_ok=True)
    if first == second:
        assert math.isnan(kappa.mean) if len(set(first)) == 1 else kappa.mean == pytest.approx(1)
    else:
        assert kappa.mean < 1


def test_verdicts_of_one_case_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    first = [str(v) for v in np.repeat(rng.choice(["right", "wrong"], 25), 4)]
    second = [str(v) for v in np.repeat(rng.choice(["right", "wrong"], 25), 4)]
    apart = cohen_kappa(first, second, [str(i) for i in range(100)])
    together = cohen_kappa(first, second, [str(i // 4) for i in range(100)])
    assert together.mean == apart.mean
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="units"):
        cohen_kappa(["right"], ["right"], [])
