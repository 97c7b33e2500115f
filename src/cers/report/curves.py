"""Training curves: rows of log.jsonl as line charts, ready to be drawn as inline SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

Row = Mapping[str, Any]
Points = Mapping[int, float]

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 408, 14, 198
MAX_POINTS = 240
_NOTHING = 1e-12
NOT_CURVES = {"kind", "step", "steps", "stage", "epoch"}


@dataclass(frozen=True)
class Line:
    """One curve: the `points` of an SVG polyline, and its last value in words."""

    name: str
    points: str
    last: str


@dataclass(frozen=True)
class Chart:
    """A line chart of WIDTH x HEIGHT. Ticks are (position, label); `stages` are (x, name) of where each starts.

    `best` is the x and the step of the kept checkpoint, None where there is none.
    """

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    stages: Sequence[tuple[float, str]] = ()
    best: tuple[float, int] | None = None


@dataclass(frozen=True)
class _Course:
    """The steps of the whole run, which every chart shares, and where its stages start if it has several."""

    first: int
    last: int
    stages: Mapping[str, int]


def validation_chart(log: Sequence[Row]) -> Chart | None:
    """Validation Dice of every branch with the kept checkpoint marked, or None without any validation."""
    rows = [row for row in log if row.get("kind") == "validation" and isinstance(row.get("dice"), Mapping)]
    names = dict.fromkeys(name for row in rows for name in row["dice"])
    series = {name: _points((row.get("step"), row["dice"].get(name)) for row in rows) for name in names}
    best = next((row["step"] for row in reversed(rows) if row.get("best") and "step" in row), None)
    return _draw("Validation Dice", series, _course(log), best)


def training_charts(log: Sequence[Row]) -> list[Chart]:
    """The loss, then every other number logged with the steps, one chart each."""
    rows = [row for row in log if row.get("kind") == "step"]
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in NOT_CURVES]
    names.sort(key=lambda name: name != "loss")
    course, titles = _course(log), {"loss": "Training loss", "lr": "Learning rate"}
    points = {name: _binned(_points((row.get("step"), row.get(name)) for row in rows)) for name in names}
    charts = (_draw(titles.get(name, name), {name: points[name]}, course) for name in names)
    return [chart for chart in charts if chart is not None]


def _points(pairs: Iterable[tuple[Any, Any]]) -> Points:
    """Finite values by step, in order; a step that a resumed run logged twice counts once, the later time."""
    found = {
        step: float(value)
        for step, value in pairs
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value)
    }
    return dict(sorted(found.items()))


def _binned(points: Points) -> Points:
    """At most MAX_POINTS points, each the mean of its neighbours."""
    bins = min(MAX_POINTS, len(points))
    if bins == len(points):
        return points
    steps = np.array_split(np.array(list(points)), bins)
    values = np.array_split(np.array(list(points.values())), bins)
    return {int(s.mean()): float(v.mean()) for s, v in zip(steps, values, strict=True)}


def _course(log: Sequence[Row]) -> _Course:
    rows = [row for row in log if isinstance(row.get("step"), int)]
    stages: dict[str, int] = {}
    for row in rows:
        name = str(row.get("stage", ""))
        stages[name] = min(row["step"], stages.get(name, row["step"]))
    steps = [row["step"] for row in rows] or [0]
    return _Course(min(steps), max(*steps, min(steps) + 1), stages if len(stages) > 1 else {})


def _draw(title: str, series: Mapping[str, Points], course: _Course, best: int | None = None) -> Chart | None:
    series = {name: points for name, points in series.items() if points}
    values = [value for points in series.values() for value in points.values()]
    if not values:
        return None
    y_ticks = round_ticks(values, 4)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - course.first) / (course.last - course.first) * (RIGHT - LEFT)
        return round(x, 1), round(BOTTOM - (value - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)

    def line(name: str, points: Points) -> Line:
        placed = (place(step, value) for step, value in points.items())
        return Line(name, " ".join(f"{x},{y}" for x, y in placed), _short(list(points.values())[-1]))

    x_ticks = MaxNLocator(4, integer=True).tick_values(course.first, course.last)
    return Chart(
        title,
        [line(name, points) for name, points in series.items()],
        x_ticks=[(place(tick, y_low)[0], f"{tick:,.0f}") for tick in x_ticks if course.first <= tick <= course.last],
        y_ticks=[(place(course.first, tick)[1], _short(tick)) for tick in y_ticks],
        stages=[(place(start, y_low)[0], name) for name, start in course.stages.items()],
        best=None if best is None else (place(best, y_low)[0], best),
    )


def round_ticks(values: Sequence[float], count: int) -> list[float]:
    """Some `count` round numbers around all `values`; values that are all the same come to lie in the middle."""
    low, high = min(values), max(values)
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=_NOTHING):
        margin = 0.1 * (abs(high) if abs(high) > _NOTHING else 1.0)
        low, high = low - margin, high + margin
    ticks = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [0.0 if abs(tick) < _NOTHING else float(tick) for tick in ticks]


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
