"""The page of an audit in a real browser: it fits, shows its images, asks for nothing and runs nothing."""

from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from cers.report.audit import AuditPage, WorstCase, WorstText, render_audit

TEXT = "Texture: bright.\nBoundary: <img src=x onerror=document.title='run'> sharp.\nContext: {0}.\nSummary: ö."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    texts = [WorstText(f"text {i}", TEXT.format("beside a vessel" + " and on" * 40 * i)) for i in range(3)]
    cases = [WorstCase("a" * 80, "why", texts, "<b>report</b>", "glioma"), WorstCase("gone", "no image", texts[:1])]
    tables = {"Flaws": ([["kind", "N"], ["malformed", "2"]], "A text may have several.")}
    page = AuditPage("Audit of rationales", {"Texts": ("1,234", "of two kinds")}, tables, {"Malformed": cases})
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8)
    path = tmp_path / "audit.html"
    path.write_text(render_audit(page, lambda name: None if name == "gone" else pixels), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_stands_alone(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width)
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith("data:")] == [file.as_uri()]
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.value("document.title") == "Audit of rationales"
    assert browser.value("[...document.images].map(image => image.naturalWidth)") == [90]
    assert browser.value("[...document.images].every(image => image.alt.length > 0)")
    assert browser.value("document.querySelectorAll('article.case').length") == 2
    assert "<b>report</b>" in browser.value("document.body.innerText")
    assert browser.value("document.querySelector('a.skip').hash") == "#worst"
    widths = browser.value(
        "[...document.querySelector('.texts tr').cells].map(cell => cell.getBoundingClientRect().width)"
    )
    assert widths[0] < 0.7 * min(widths[1:])
    assert min(widths[1:]) > 150
