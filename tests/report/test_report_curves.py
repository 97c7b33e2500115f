import math

import pytest

from cers.report.curves import (
    BOTTOM,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    Chart,
    round_ticks,
    training_charts,
    validation_chart,
)


def steps(values: list[float], key: str = "loss", **more: object) -> list[dict]:
    return [{"kind": "step", "step": i, "stage": "train", key: v, **more} for i, v in enumerate(values)]


def points(chart: Chart, line: int = 0) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (p.split(",") for p in chart.lines[line].points.split())]


def test_a_falling_loss_falls_inside_the_frame() -> None:
    (chart,) = training_charts(steps([3.0, 2.0, 1.0]))
    xs, ys = zip(*points(chart), strict=True)
    assert xs == (LEFT, (LEFT + RIGHT) / 2, RIGHT)
    assert ys[0] < ys[1] < ys[2]
    assert all(TOP <= y <= BOTTOM for y in ys)
    assert chart.lines[0].last == "1"


def test_points_stand_where_the_ticks_say() -> None:
    (chart,) = training_charts(steps([0.0, 1.0, 2.0]))
    ticks = {label: y for y, label in chart.y_ticks}
    assert [y for _, y in points(chart)] == [ticks["0"], ticks["1"], ticks["2"]]


def test_the_loss_comes_first_and_every_part_has_its_chart() -> None:
    log = [{"kind": "step", "step": 0, "stage": "a", "lr": 1e-4, "alignment": 2.0, "loss": 1.0}]
    log += [{"kind": "step", "step": 5, "stage": "b", "loss": 0.5, "consistency": 1.0}, {"kind": "note", "text": "?"}]
    charts = training_charts(log)
    assert [c.title for c in charts] == ["Training loss", "Learning rate", "alignment", "consistency"]
    assert {tuple(c.stages) for c in charts} == {((LEFT, "a"), (RIGHT, "b"))}
    assert charts[1].lines[0].last == "1e-4"


def test_a_single_stage_is_not_named() -> None:
    assert training_charts(steps([1.0, 2.0]))[0].stages == []


def test_numbers_that_are_none_are_left_out() -> None:
    log = steps([1.0, math.nan, math.inf, 2.0])
    log += [
        {"kind": "step", "step": 9, "loss": None},
        {"kind": "step", "loss": 7.0},
        {"kind": "step", "step": 9, "loss": "x"},
    ]
    (chart,) = training_charts(log)
    assert len(points(chart)) == 2
    assert training_charts(steps([math.nan])) == []


def test_a_resumed_run_counts_a_step_once() -> None:
    (chart,) = training_charts([*steps([1.0, 2.0, 3.0]), *steps([1.0, 2.0, 1.0])])
    assert len(points(chart)) == 3
    assert chart.lines[0].last == "1"


def test_long_logs_are_averaged_not_cut() -> None:
    (chart,) = training_charts(steps([float(i % 2) for i in range(10_000)]))
    drawn = points(chart)
    assert len(drawn) == MAX_POINTS
    assert drawn[-1][0] > RIGHT - 2
    assert all(0.4 < float(label) < 0.6 for _, label in chart.y_ticks)


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.1 + 0.2, 0.3], [0.5], [1e-4, 1e-4], [-2e-17, 3e-16]])
def test_ticks_of_equal_values_are_round_and_around_them(values: list[float]) -> None:
    ticks = round_ticks(values, 4)
    assert ticks[0] < values[0] < ticks[-1]
    assert all(len(f"{tick:.15g}") <= 8 for tick in ticks)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.0], [-1e-9, 1e9]])
def test_flat_short_and_wild_curves(values: list[float]) -> None:
    (chart,) = training_charts(steps(values))
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in points(chart))


def test_validation_marks_the_last_best_step() -> None:
    log = [
        {"kind": "validation", "step": s, "stage": "t", "dice": {"base": d, "retrieval": d / 2}, "best": best}
        for s, d, best in [(0, 0.2, True), (10, 0.6, True), (20, 0.4, False)]
    ]
    chart = validation_chart(log)
    assert chart is not None
    assert [line.name for line in chart.lines] == ["base", "retrieval"]
    assert chart.best == ((LEFT + RIGHT) / 2, 10)


def test_validation_with_parts_missing() -> None:
    log = [
        {"kind": "validation", "step": 1, "dice": {"base": 0.5}},
        {"kind": "validation", "step": 2, "dice": {"retrieval": None}},
        {"kind": "validation", "step": 3},
    ]
    chart = validation_chart(log)
    assert chart is not None
    assert [line.name for line in chart.lines] == ["base"]
    assert chart.best is None
    assert validation_chart([]) is None
