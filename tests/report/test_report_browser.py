from pathlib import Path

import pytest
from browser import Browser

from cers.report.page import ReportData, render_report


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
