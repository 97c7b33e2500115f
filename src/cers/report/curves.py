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
NOT_CURVES = {"kind", "step", "stage", "epoch"}


@dataclass(frozen=True)
class Line:
    """One curve: the `points` of an SVG polyline, and its last value in words."""

    name: str
    points: str
    last: str


@dataclass(frozen=True)
class Chart:
    """A line chart of WIDTH x HEIGHT. Ticks are (position, label); `stages` are (x, name) of where each starts.

    `best` is the x and the step of the kept check point, None where there is none.
    """

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    stages: Sequence[tuple[float, str]] = ()
    best: tuple[float, int] | None = None


def validation_chart(log: Sequence[Row]) -> Chart | None:
    """Validation Dice of every branch with the kept check point marked, or None without any validation."""
    rows = [row for row in log if row.get("kind") == "validation" and isinstance(row.get("dice"), Mapping)]
    names = dict.fromkeys(name for row in rows for name in row["dice"])
    series = {name: _points((row.get("step"), row["dice"].get(name)) for row in rows) for name in names}
    best = next((row["step"] for row in reversed(rows) if row.get("best") and "step" in row), None)
    return _draw("Validation Dice", series, _stages(log), best)


def training_charts(log: Sequence[Row]) -> list[Chart]:
    """The loss, then every other number logged with the steps, one chart each."""
    rows = [row for row in log if row.get("kind") == "step"]
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in NOT_CURVES]
    names.sort(key=lambda name: name != "loss")
    stages, titles = _stages(log), {"loss": "Training loss", "lr": "Learning rate"}
    points = {name: _binned(_points((row.get("step"), row.get(name)) for row in rows)) for name in names}
    charts = (_draw(titles.get(name, name), {name: points[name]}, stages) for name in names)
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


def _stages(log: Sequence[Row]) -> dict[str, int]:
    """The first step of every stage; empty where the run has only one."""
    starts: dict[str, int] = {}
    for row in log:
        if isinstance(row.get("step"), int) and isinstance(row.get("stage"), str):
            starts[row["stage"]] = min(row["step"], starts.get(row["stage"], row["step"]))
    return starts if len(starts) > 1 else {}


def _draw(title: str, series: Mapping[str, Points], stages: Mapping[str, int], best: int | None = None) -> Chart | None:
    series = {name: points for name, points in series.items() if points}
    steps = [step for points in series.values() for step in points]
    values = [value for points in series.values() for value in points.values()]
    if not values:
        return None
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(min(values), max(values))
    y_low, y_high = float(y_ticks[0]), float(y_ticks[-1])

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - x_low) / (x_high - x_low) * (RIGHT - LEFT)
        return round(x, 1), round(BOTTOM - (value - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)

    def line(name: str, points: Points) -> Line:
        placed = (place(step, value) for step, value in points.items())
        return Line(name, " ".join(f"{x},{y}" for x, y in placed), _short(list(points.values())[-1]))

    x_ticks = [tick for tick in MaxNLocator(4, integer=True).tick_values(x_low, x_high) if x_low <= tick <= x_high]
    return Chart(
        title,
        [line(name, points) for name, points in series.items()],
        x_ticks=[(place(tick, y_low)[0], f"{tick:,.0f}") for tick in x_ticks],
        y_ticks=[(place(x_low, tick)[1], _short(tick)) for tick in y_ticks],
        stages=[(place(max(start, x_low), y_low)[0], name) for name, start in stages.items()],
        best=None if best is None else (place(best, y_low)[0], best),
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.0e}".replace("e-0", "e-")
