import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cers.schedules import learning_rate, sigmoid_ramp


def test_ramp_ends_where_the_papers_do():
    assert sigmoid_ramp(0.0) == pytest.approx(0.0067, abs=5e-5)
    assert sigmoid_ramp(0.5) == pytest.approx(math.exp(-1.25))
    assert sigmoid_ramp(1.0) == 1.0
    assert sigmoid_ramp(-3) == sigmoid_ramp(0)
    assert sigmoid_ramp(7) == 1.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_ramp_never_falls(a, b):
    assert sigmoid_ramp(min(a, b)) <= sigmoid_ramp(max(a, b))
    assert 0 < sigmoid_ramp(a) <= 1


def rates(steps: int, **options) -> list[float]:
    return [learning_rate(step, steps, lr=1e-2, **options) for step in range(steps)]


def test_cosine_runs_from_lr_to_min_lr():
    found = rates(200, min_lr=1e-6)
    assert found[0] == 1e-2
    assert found[100] == pytest.approx((1e-2 + 1e-6) / 2)
    assert found[-1] == pytest.approx(1e-6, abs=1e-6)
    assert learning_rate(200, 200, lr=1e-2, min_lr=1e-6) == pytest.approx(1e-6)
    assert found == sorted(found, reverse=True)


def test_poly_has_power_nine_tenths():
    found = rates(10, schedule="poly")
    assert found == pytest.approx([1e-2 * (1 - t / 10) ** 0.9 for t in range(10)])


def test_constant_stays():
    assert set(rates(10, schedule="constant", min_lr=1e-3)) == {1e-2}


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_warm_up_rises_to_lr_and_the_schedule_follows(schedule):
    found = rates(30, schedule=schedule, warmup_steps=10)
    assert found[:10] == pytest.approx([1e-3 * (i + 1) for i in range(10)])
    assert found[10:] == pytest.approx(rates(20, schedule=schedule))


@given(
    steps=st.integers(1, 50),
    warmup=st.integers(0, 60),
    schedule=st.sampled_from(["cosine", "poly", "constant"]),
)
def test_rates_stay_between_zero_and_lr(steps, warmup, schedule):
    assert all(0 < rate <= 1e-2 * (1 + 1e-12) for rate in rates(steps, warmup_steps=warmup, schedule=schedule))
