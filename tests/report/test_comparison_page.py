"""The page of a comparison: its plots, and the page in a browser."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from cers.evaluate.compare import Comparison, ComparisonTable, Row
from cers.evaluate.comparison_table import legend
from cers.evaluate.metrics import METRICS
from cers.evaluate.scored import Costs
from cers.report.comparison import CURVE_BOTTOM, LABEL_GAP, forest_plots, render_comparison, render_curves, share_curves

METHODS = ("supervised", "bcp", "ucmt", "lvit", "a method <b>with a long name</b>", "cers")


def row(method: str, share: float, shift: float) -> Row:
    mean = 0.5 + 0.1 * share + shift
    line = Comparison(f"{share:.0%}", "dice", method, 3, 40, 20, mean, 0.01, mean - 0.03, mean + 0.03)
    if method != "supervised":
        line = replace(line, pairs=3, difference=shift, difference_low=shift - 0.05, difference_high=shift + 0.05)
        line = replace(line, p=0.001, p_holm=0.01)
    lines = {metric.name: replace(line, metric=metric.name) for metric in METRICS}
    return Row(line.section, method, method in ("lvit", "cers"), share, Costs(parameters=1e6), lines)


@pytest.fixture(scope="module")
def table() -> ComparisonTable:
    rows = [row(name, share, i * 0.015) for share in (0.02, 0.25, 1.0) for i, name in enumerate(METHODS)]
    return ComparisonTable("supervised", tuple(rows), ("Something to know.",))


def test_differences_lie_where_the_axis_says(table):
    plots = forest_plots(table)
    assert [plot.title for plot in plots] == ["2%", "25%", "100%"]
    for line in plots[0].lines:
        assert line.low < line.x < line.high
    ticks = {label: x for x, label in plots[0].ticks}
    assert ticks["0"] == plots[0].zero
    assert [line.sure for line in plots[0].lines] == [False, False, False, True, True]


def test_without_any_difference_the_axis_has_round_numbers():
    none = [replace(row(name, 1.0, 0.0)) for name in METHODS]
    for each in none[1:]:
        each.by_metric["dice"] = replace(each.dice, difference=1e-17, difference_low=0.0, difference_high=2e-17)
    (plot,) = forest_plots(ComparisonTable("supervised", tuple(none)))
    assert [label for _, label in plot.ticks] == ["−0.1", "−0.05", "0", "+0.05", "+0.1"]
    assert all(line.x == plot.zero for line in plot.lines)


def test_curves_run_from_the_smallest_to_the_largest_share_and_labels_keep_apart(table):
    curves = share_curves(table)
    assert [label for _, label in curves.x_ticks] == ["2 %", "25 %", "100 %"]
    for curve in curves.curves:
        xs = [x for x, *_ in curve.points]
        assert xs == [x for x, _ in curves.x_ticks] == sorted(xs)
        assert all(high < y < low for _, y, low, high in curve.points)
    labels = sorted(curve.label for curve in curves.curves)
    assert min(b - a for a, b in pairwise(labels)) >= LABEL_GAP - 0.1


def test_a_label_keeps_to_its_curve_where_others_are_crowded():
    low, high = -0.3, 0.3
    crowd = [row(f"m{i}", share, low) for share in (0.02, 1.0) for i in range(12)]
    alone = [row("alone", share, high) for share in (0.02, 1.0)]
    curves = {c.name: c for c in share_curves(ComparisonTable("m0", (*crowd, *alone))).curves}
    assert curves["alone"].label == curves["alone"].points[-1][1]
    assert max(c.label for c in curves.values()) <= CURVE_BOTTOM


def test_without_shares_or_differences_there_are_no_plots(table):
    alone = ComparisonTable("supervised", tuple(r for r in table.rows if r.method == "supervised" and r.share == 1.0))
    assert forest_plots(alone) == []
    assert share_curves(alone) is None
    assert render_curves(alone) is None
    assert "<svg" not in render_comparison("t", alone, legend(alone))


def test_a_browser_shows_it_without_overflow_or_complaint(table, browser, tmp_path):
    file: Path = tmp_path / "table.html"
    published = [["labelled", "method", "ours", "theirs"], ["25%", "cers", "50 / 40", "80 / 70"]]
    page = render_comparison("A <b>study</b>", table, legend(table), published, ["Ours: smaller."])
    file.write_text(page, encoding="utf-8")
    for width in (375, 1280):
        browser.open(file, width)
        text = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"
        assert min(browser.value(text)) > 11
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelectorAll('svg').length") == 4
        assert browser.value("document.querySelectorAll('b').length") == 0
    outside = (
        "[...document.querySelectorAll('svg')].filter(s => [...s.querySelectorAll('*')].some(e => {"
        "const a = e.getBoundingClientRect(), b = s.getBoundingClientRect();"
        "return a.right > b.right + 1 || a.left < b.left - 1 || a.bottom > b.bottom + 1 || a.top < b.top - 1}))"
        ".length"
    )
    assert browser.value(outside) == 0
    apart = (
        "[...document.querySelectorAll('.plot g:has(.name)')].every(g => "
        "g.querySelector('.name').getBoundingClientRect().bottom <= "
        "g.querySelector('.dot').getBoundingClientRect().top + 1)"
    )
    assert browser.value(apart) is True
    dashes = "e => getComputedStyle(e).strokeDasharray + getComputedStyle(e).stroke"
    groups = "[...document.querySelectorAll('g:has(polyline)')]"
    assert browser.value(f"new Set({groups}.map(g => ({dashes})(g.querySelector('line.curve')))).size") == len(METHODS)
    told = f"{groups}.every(g => new Set([...g.querySelectorAll('.curve')].map({dashes})).size == 1)"
    assert browser.value(told) is True
    assert browser.complaints() == []


def test_the_curves_alone_are_a_picture_with_the_colours_of_the_page(table, browser, tmp_path):
    file: Path = tmp_path / "curves.svg"
    file.write_text(render_curves(table), encoding="utf-8")
    browser.open(file, 880)
    names = browser.value("[...document.querySelectorAll('.label')].map(e => e.textContent).join('|')").split("|")
    assert [name.removesuffix(" †") for name in names] == list(METHODS)
    strokes = "[...document.querySelectorAll('polyline')].map(e => getComputedStyle(e).stroke)"
    assert browser.value(f"new Set({strokes}).size") == len(METHODS)
    assert browser.value("document.querySelector('.label').getBoundingClientRect().height") < 30
    assert browser.complaints() == []
