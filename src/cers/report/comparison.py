"""A comparison as one HTML file: forest plot of differences, Dice against labelled share, and every number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cers.evaluate.compare import ComparisonTable, Row
from cers.evaluate.comparison_table import TEXT_MARK, parts
from cers.evaluate.render import interval, number, signed
from cers.report.curves import round_ticks
from cers.report.page import environment

SIGNIFICANT = 0.05
ROW_HEIGHT, BAR_BELOW = 42, 29
"""A row of a forest plot: its name, and the bar below it."""
FOREST_LEFT, FOREST_RIGHT = 24, 440
CURVE_LEFT, CURVE_RIGHT, CURVE_TOP, CURVE_BOTTOM = 52, 560, 14, 340
LABEL_GAP = 15


@dataclass(frozen=True)
class ForestLine:
    """A difference in a forest plot: the x of its mean and interval, and what they are in words."""

    name: str
    y: float
    x: float
    low: float
    high: float
    words: str
    sure: bool


@dataclass(frozen=True)
class Forest:
    """Differences of one section to the reference; ticks are (x, label), `zero` the x of no difference."""

    title: str
    height: int
    zero: float
    ticks: Sequence[tuple[float, str]]
    lines: Sequence[ForestLine]


@dataclass(frozen=True)
class Curve:
    """Dice of one method by labelled share: points (x, y, y of the lower and of the upper end), and its label's y."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    label: float
    words: str

    @property
    def path(self) -> str:
        """The points of an SVG polyline."""
        return " ".join(f"{x},{y}" for x, y, _, _ in self.points)


@dataclass(frozen=True)
class Curves:
    """Dice against labelled share, on a logarithmic axis."""

    curves: Sequence[Curve]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def render_comparison(
    title: str,
    table: ComparisonTable,
    legend: Sequence[str],
    published: Sequence[Sequence[str]] = (),
    protocol: Sequence[str] = (),
) -> str:
    """`table` as a complete HTML document that needs nothing beside it and runs no script."""
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=title,
            reference=table.reference,
            forests=forest_plots(table),
            curves=share_curves(table),
            tables=parts(table),
            legend=legend,
            published=published,
            protocol=protocol,
        )
    )


def render_curves(table: ComparisonTable) -> str | None:
    """Dice against labelled share as an SVG file that needs nothing beside it; None where there is a single share."""
    curves = share_curves(table)
    if curves is None:
        return None
    reads_text = any(row.reads_text for row in table.rows)
    return environment().get_template("figure.svg.j2").render(curves=curves, reads_text=reads_text)


def forest_plots(table: ComparisonTable) -> list[Forest]:
    """One plot per section, all on one axis; none where nothing is compared."""
    tested = [row for row in table.rows if not math.isnan(row.dice.difference)]
    if not tested:
        return []
    ticks = round_ticks([0.0, *(end for row in tested for end in _ends(row))], 5)
    x = _Axis(ticks[0], ticks[-1], FOREST_LEFT, FOREST_RIGHT)
    shown = [(x.place(tick), f"{tick:+.3g}".replace("-", "−") if tick else "0") for tick in ticks]
    plots = []
    for section in dict.fromkeys(row.section for row in tested):
        rows = [row for row in tested if row.section == section]
        lines = [_forest_line(row, ROW_HEIGHT * i + BAR_BELOW, x) for i, row in enumerate(rows)]
        plots.append(Forest(section, ROW_HEIGHT * len(rows), x.place(0.0), shown, lines))
    return plots


def share_curves(table: ComparisonTable) -> Curves | None:
    """Dice of every method that was trained at two shares at least; None where there is none."""
    by_method: dict[str, list[Row]] = {}
    for row in sorted((row for row in table.rows if row.share), key=lambda row: row.share or 0.0):
        by_method.setdefault(row.method, []).append(row)
    courses = [rows for rows in by_method.values() if len({row.share for row in rows}) > 1]
    if not courses:
        return None
    shares = sorted({row.share for rows in courses for row in rows if row.share})
    ticks = round_ticks([end for rows in courses for row in rows for end in _dice_ends(row)], 6)
    x = _Axis(math.log(shares[0]), math.log(shares[-1]), CURVE_LEFT, CURVE_RIGHT)
    y = _Axis(ticks[0], ticks[-1], CURVE_BOTTOM, CURVE_TOP)
    labels = _spread([y.place(rows[-1].dice.mean) for rows in courses])
    return Curves(
        [_curve(rows, x, y, label) for rows, label in zip(courses, labels, strict=True)],
        [(x.place(math.log(share)), f"{100 * share:.3g} %") for share in shares],
        [(y.place(tick), f"{tick:.3g}") for tick in ticks],
    )


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` laid out from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def _curve(rows: Sequence[Row], x: _Axis, y: _Axis, label: float) -> Curve:
    points = []
    for row in rows:
        low, high = _dice_ends(row)
        points.append((x.place(math.log(row.share or 1.0)), y.place(row.dice.mean), y.place(low), y.place(high)))
    words = ", ".join(f"{100 * (row.share or 0):.3g} %: {row.dice.mean:.3f}" for row in rows)
    return Curve(_name(rows[0]), points, label, words)


def _dice_ends(row: Row) -> tuple[float, float]:
    """The ends of the interval of the mean, or the mean itself where there is none."""
    dice = row.dice
    return (dice.mean, dice.mean) if math.isnan(dice.low) else (dice.low, dice.high)


def _spread(wanted: Sequence[float]) -> list[float]:
    """Heights of labels near those wanted, none nearer to the next than a line of text, none below the plot."""
    found = dict.fromkeys(range(len(wanted)), 0.0)
    order = sorted(found, key=lambda i: wanted[i])
    last = -math.inf
    for i in order:
        found[i] = last = max(wanted[i], last + LABEL_GAP)
    last = CURVE_BOTTOM + LABEL_GAP
    for i in reversed(order):  # only labels that were pushed beyond the plot, and those in their way, move up again
        found[i] = last = min(found[i], last - LABEL_GAP)
    return [round(found[i], 1) for i in found]


def _forest_line(row: Row, y: float, x: _Axis) -> ForestLine:
    dice = row.dice
    found = signed(dice.difference), interval(dice.difference_low, dice.difference_high)
    words = " ".join(part for part in found if part != "–")
    low, high = _ends(row)
    sure = dice.p_holm < SIGNIFICANT and (dice.difference_low > 0 or dice.difference_high < 0)
    return ForestLine(
        name=_name(row),
        y=y,
        x=x.place(dice.difference),
        low=x.place(low),
        high=x.place(high),
        words=f"{words}, p {number(dice.p_holm, 3)}",
        sure=sure,
    )


def _ends(row: Row) -> tuple[float, float]:
    """The ends of the interval of the difference, or the difference itself where there is none."""
    dice = row.dice
    low, high = dice.difference_low, dice.difference_high
    return (dice.difference, dice.difference) if math.isnan(low) else (low, high)


def _name(row: Row) -> str:
    return f"{row.method} {TEXT_MARK}" if row.reads_text else row.method
