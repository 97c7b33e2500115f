from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from cers.report.page import ReportData, ShownCase, render_report


@pytest.fixture(scope="module")
def file(full: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(full), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_nothing_overflows_nothing_is_fetched_nothing_complains(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    decoded = "Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)"
    assert browser.value(decoded) == 9 * 16
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_six_branches_have_six_curves_that_differ_in_colour_and_in_dash(
    browser: Browser, full: ReportData, tmp_path: Path, scheme: str
) -> None:
    dice = {f"branch {i}": 0.1 * i for i in range(6)}
    log = [{"kind": "validation", "step": step, "stage": "a", "dice": dice, "best": True} for step in (0, 9)]
    path = tmp_path / "curves.html"
    path.write_text(render_report(replace(full, log=log, cases=())), encoding="utf-8")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(path, 1280)
    for style in ("stroke", "strokeDasharray"):
        found = f"[...document.querySelectorAll('.chart polyline')].map(line => getComputedStyle(line).{style})"
        assert len(set(browser.value(found))) == 6
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_on_a_phone_a_recalled_case_fits_beside_the_query(browser: Browser, file: Path) -> None:
    browser.open(file, 375)
    right = "document.querySelector('.evidence thead tr').cells[{}].getBoundingClientRect().right"
    room = browser.value("document.querySelector('.scroll:has(.evidence)').getBoundingClientRect().right")
    assert browser.value(right.format(2)) <= room + 1
    assert browser.value(right.format(3)) > room


def test_a_tall_image_and_a_long_report_leave_room_for_the_rest(
    browser: Browser, case: ShownCase, tmp_path: Path
) -> None:
    probability = np.zeros((900, 90), np.float32)
    tall = ShownCase(
        "tall", "chosen", np.zeros((900, 90), np.uint8), probability, report="Nothing in particular. " * 200
    )
    path = tmp_path / "tall.html"
    others = replace(tall, references=case.references, rejected=case.rejected)
    path.write_text(render_report(ReportData("tall", cases=[others])), encoding="utf-8")
    browser.open(path, 375)
    assert browser.value("document.querySelector('article').getBoundingClientRect().height") < 3500


def test_details_open_with_the_keyboard(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    height = "document.querySelector('.case details .evidence').getBoundingClientRect().height"
    browser.value("document.querySelector('.case details summary').focus()")
    before = browser.value("document.documentElement.scrollHeight")
    browser.press("Enter", "\r")
    assert browser.value("document.querySelector('.case details').open") is True
    assert browser.value(height) > 300
    assert browser.value("document.documentElement.scrollHeight") > before + 300


def test_aspects_of_one_row_are_level_and_outlines_cover_their_picture(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    tops = (
        "[...document.querySelector('.evidence tbody tr:nth-child(5)').cells].map(c => c.getBoundingClientRect().top)"
    )
    assert len(set(browser.value(tops))) == 1
    sizes = (
        "[...document.querySelectorAll('.panels .picture')].map(p => ['img', 'svg'].map(t => {"
        "const r = p.querySelector(t).getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height].map(Math.round).join()}))"
    )
    assert all(image == outline for image, outline in browser.value(sizes))


def test_the_dark_scheme_is_dark_and_paper_shows_what_is_folded(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    for scheme, dark in (("light", False), ("dark", True)):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert (max(browser.value(ground)) < 60) is dark
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    folded = "document.querySelector('.case details').getBoundingClientRect().height"
    printed = browser.value(folded)
    browser.call("Emulation.setEmulatedMedia", media="screen", features=[])
    assert printed > browser.value(folded) + 100
