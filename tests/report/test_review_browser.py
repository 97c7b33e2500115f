"""The review page as its reviewer uses it: by keyboard, in a real browser, over reloads."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from cers.cot.review import FORMAT, read_verdicts
from cers.report.review import ReviewCase, render_review
from cers.reviewing import review_results

TEXT = "Texture: {0} </script><b>bold</b>.\nBoundary: {0} sharp.\nContext: {0} near bone.\nSummary: {0} mass."


def case(number: int, shape: tuple[int, int] = (120, 90), report: str = "A report.") -> ReviewCase:
    mask = np.zeros(shape, bool)
    mask[30:60, 20:50] = True
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    text = TEXT.format(f"Text {number}")
    return ReviewCase(
        f"case{number} labelled", f"case{number}", "labelled", text, image, mask if number != 1 else None, report
    )


def page_of(cases: Sequence[ReviewCase], folder: Path) -> Path:
    path = folder / "review.html"
    header = {"format": FORMAT, "sample": str(folder), "of": len(cases)}
    path.write_text(render_review(cases, header), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return page_of([case(i) for i in range(3)], tmp_path)


def begin(browser: Browser, file: Path, reviewer: str, width: int = 1280, height: int = 900) -> None:
    """Opens the page as a new tab would, and gives a name."""
    browser.open(file, width)
    browser.value("sessionStorage.clear()")
    reopen(browser, file, width)
    size(browser, width, height)
    enter(browser, reviewer)


def reopen(browser: Browser, file: Path, width: int = 1280) -> None:
    """Loads the page again, and waits until it is the new one that answers."""
    browser.value("window.left = true")
    browser.open(file, width)
    deadline = time.monotonic() + 20
    while not browser.value("!window.left && document.readyState === 'complete'"):
        assert time.monotonic() < deadline, "the page did not load"
        time.sleep(0.02)


def size(browser: Browser, width: int, height: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)


def enter(browser: Browser, reviewer: str) -> None:
    browser.value("document.getElementById('reviewer').select()")
    browser.call("Input.insertText", text=reviewer)
    browser.press("Enter", "\r")


def press(browser: Browser, keys: str) -> None:
    names = {"<": "ArrowLeft", ">": "ArrowRight", "^": "ArrowUp", "v": "ArrowDown"}
    for key in keys:
        name = names.get(key, key)
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=name, **({} if key in names else {"text": key}))
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=name)


def current(browser: Browser) -> str:
    shown = "[...document.querySelectorAll('article')].filter(a => a.getBoundingClientRect().height > 0)"
    names = browser.value(f"{shown}.map(a => a.dataset.name)")
    assert len(names) == 1
    return str(names[0]).split()[0]


def checked(browser: Browser) -> list[str]:
    return list(browser.value("[...document.querySelectorAll('input:checked')].map(i => i.name + ' ' + i.value)"))


def wait_for_message(browser: Browser, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in (message := browser.value("document.getElementById('message').textContent")):
        assert time.monotonic() < deadline, f"the page says '{message}'"
        time.sleep(0.02)


def message(browser: Browser) -> str:
    return str(browser.value("document.getElementById('message').textContent"))


def saved(browser: Browser, folder: Path, reviewer: str, key: str = "s") -> Path:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    path = folder / f"verdicts-{reviewer}.json"
    path.unlink(missing_ok=True)
    browser.press("Enter", "\r") if key == "Enter" else press(browser, key)
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
    return path


@contextmanager
def another_tab(browser: Browser, file: Path) -> Iterator[None]:
    """A second tab of the page; the browser drives it inside the block."""
    first, browser._session = browser._session, None
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    browser._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    try:
        browser.call("Page.enable")
        browser.open(file, 1280)
        yield
    finally:
        browser._session = first
        browser.call("Target.closeTarget", targetId=target)


def test_verdicts_by_keyboard_survive_a_reload_and_are_read_back(browser: Browser, file: Path, tmp_path: Path) -> None:
    begin(browser, file, "Ada")
    assert current(browser) == "case0"
    press(browser, "1213")
    assert current(browser) == "case1"
    press(browser, "1^0")
    press(browser, ">a")
    reopen(browser, file)
    kept = checked(browser)
    assert kept[:4] == ["1-texture right", "1-boundary wrong", "1-context right", "1-summary unsure"]
    assert kept[4:] == [f"3-{aspect} right" for aspect in ("texture", "boundary", "context", "summary")]
    assert browser.value("document.getElementById('done').textContent") == "2"
    read = read_verdicts(saved(browser, tmp_path, "Ada"))
    assert read.verdicts["case0 labelled"]["boundary"] == "wrong"
    assert set(read.verdicts) == {"case0 labelled", "case2 labelled"}
    found = review_results([tmp_path / "verdicts-Ada.json"])["reviewers"]["Ada"]
    assert [found["all four"][verdict] for verdict in ("right", "wrong", "unsure")] == [1, 1, 0]
    assert browser.complaints() == []


def test_a_note_takes_letters_that_are_keys_elsewhere(browser: Browser, file: Path, tmp_path: Path) -> None:
    begin(browser, file, "Bo")
    press(browser, "n")
    browser.call("Input.insertText", text="no, a 1 s")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    press(browser, ">")
    assert current(browser) == "case1"
    assert checked(browser) == []
    press(browser, "1")
    assert read_verdicts(saved(browser, tmp_path, "Bo")).notes == {"case0 labelled": "no, a 1 s"}


def test_a_saved_file_is_taken_up_again_and_a_strange_one_refused(browser: Browser, file: Path, tmp_path: Path) -> None:
    browser.open(file, 1280)
    header = json.loads(browser.value("document.body.dataset.header"))
    found = header | {"reviewer": "Cy", "verdicts": {"case1 labelled": {"texture": "wrong", "odd": "x"}}, "notes": {}}
    for content, answer in ((found, "Opened"), (found | {"sample": "another"}, "another review page")):
        (tmp_path / "in.json").write_text(json.dumps(content), encoding="utf-8")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        node = browser.call("DOM.querySelector", nodeId=root, selector="#open")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "in.json")])
        wait_for_message(browser, answer)
        assert checked(browser) == ["2-texture wrong"]
        assert browser.value("document.getElementById('reviewer').value") == "Cy"


def test_outlines_only_where_the_mask_is_in_use_and_they_hide(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    assert browser.value("[...document.querySelectorAll('article')].map(a => a.querySelectorAll('svg').length)") == [
        1,
        0,
        1,
    ]
    visible = "getComputedStyle(document.querySelector('.current svg')).visibility"
    assert browser.value(visible) == "visible"
    enter(browser, "Di")
    press(browser, "o")
    assert browser.value(visible) == "hidden"


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_nothing_overflows_nothing_is_fetched(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []
    gap = "document.querySelector('.current').getBoundingClientRect().top - document.querySelector('.top')"
    assert browser.value(f"{gap}.getBoundingClientRect().bottom") >= 0
    inside = "document.getElementById('save').getBoundingClientRect().bottom"
    assert browser.value(f"{inside} <= document.querySelector('.top').getBoundingClientRect().bottom")
    assert "</script><b>bold</b>." in browser.value("document.querySelector('.current fieldset p').textContent")
    assert browser.complaints() == []


def test_dark_is_dark_and_paper_shows_every_text(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    for scheme, dark in (("light", False), ("dark", True)):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert (max(browser.value(ground)) < 60) is dark
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    shown = "[...document.querySelectorAll('article')].filter(a => a.getBoundingClientRect().height > 100).length"
    assert browser.value(shown) == 3
    browser.call("Emulation.setEmulatedMedia", media="screen", features=[])


def test_a_second_reviewer_starts_with_none_of_the_firsts_verdicts(browser: Browser, file: Path) -> None:
    begin(browser, file, "Ada")
    press(browser, "12n")
    browser.call("Input.insertText", text="Ada's note")
    begin(browser, file, "Bo")
    assert checked(browser) == []
    assert browser.value("document.querySelector('textarea').value") == ""
    press(browser, "3")
    enter(browser, "ada")
    assert checked(browser) == ["1-texture right", "1-boundary wrong"]
    enter(browser, "Bo")
    assert checked(browser) == ["1-texture unsure"]


def test_nothing_is_judged_or_shown_before_a_name_is_given(browser: Browser, file: Path) -> None:
    begin(browser, file, "Ada")
    press(browser, "1")
    with another_tab(browser, file):
        assert checked(browser) == []
        browser.value("document.activeElement.blur()")
        press(browser, "1s")
        assert checked(browser) == []
        assert browser.value("document.activeElement.id") == "reviewer"
        assert "name" in message(browser)
        enter(browser, "Cy")
        assert message(browser) == "Nothing judged by Cy yet."
        press(browser, "1")
        assert checked(browser) == ["1-texture right"]


def test_two_tabs_add_up(browser: Browser, file: Path, tmp_path: Path) -> None:
    begin(browser, file, "Ada")
    with another_tab(browser, file):
        enter(browser, "Ada")
        press(browser, ">1")
    press(browser, "2")
    assert sorted(checked(browser)) == ["1-texture wrong", "2-texture right"]
    assert current(browser) == "case0"
    assert set(read_verdicts(saved(browser, tmp_path, "Ada")).verdicts) == {"case0 labelled", "case1 labelled"}


def test_a_tab_shows_what_another_one_adds(browser: Browser, file: Path) -> None:
    begin(browser, file, "Ada")
    with another_tab(browser, file):
        enter(browser, "Ada")
        press(browser, "1")
    wait_for_message(browser, "Not saved")
    assert checked(browser) == ["1-texture right"]


def test_the_message_says_where_one_stands(browser: Browser, file: Path, tmp_path: Path) -> None:
    begin(browser, file, "Ada")
    press(browser, "1")
    assert message(browser) == "Not saved to a file yet."
    saved(browser, tmp_path, "Ada")
    assert message(browser) == "Saved as verdicts-Ada.json."
    press(browser, "1")
    assert message(browser) == "verdicts-Ada.json is out of date: save again."
    press(browser, ">>1111")
    assert current(browser) == "case0"
    assert message(browser) == "Still to judge: 1, 2."
    press(browser, "aa")
    assert message(browser) == "All judged. Save the file now."
    saved(browser, tmp_path, "Ada")
    assert message(browser) == "All judged. Saved as verdicts-Ada.json."


@pytest.mark.parametrize("last", ["click", "a", "1"])
def test_the_last_verdict_is_answered_however_it_is_given(browser: Browser, file: Path, last: str) -> None:
    begin(browser, file, "Ada")
    press(browser, "aa" + "111")
    if last == "click":
        browser.value("document.querySelectorAll('article')[2].querySelector('[name$=summary]').click()")
    else:
        press(browser, last)
    assert message(browser) == "All judged. Save the file now."


def test_in_the_name_field_letters_are_letters_and_enter_saves(browser: Browser, file: Path, tmp_path: Path) -> None:
    begin(browser, file, "Ada")
    press(browser, "1")
    browser.value("document.getElementById('reviewer').focus()")
    press(browser, "s2a")
    assert "Saved" not in message(browser)
    assert checked(browser) == ["1-texture right"]
    enter(browser, "Ada")
    browser.value("document.getElementById('reviewer').focus()")
    assert set(read_verdicts(saved(browser, tmp_path, "Ada", "Enter")).verdicts) == {"case0 labelled"}


def test_digits_work_on_azerty_and_letters_under_caps_lock(browser: Browser, file: Path) -> None:
    begin(browser, file, "Ada")
    for key, code in (("&", "Digit1"), ("2", "Numpad2"), ("End", "Numpad1"), ("é", "Digit2")):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code)
    assert checked(browser) == ["1-texture right", "1-boundary wrong", "1-context wrong"]
    press(browser, "A")
    assert "1-summary right" in checked(browser)


def box(browser: Browser, selector: str) -> dict[str, float]:
    return dict(browser.value(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()"))


def test_at_768_lines_the_meanings_the_whole_image_and_all_aspects_are_seen_at_once(
    browser: Browser, tmp_path: Path
) -> None:
    shapes = [(512, 512), (512, 96), (500, 1600)]
    begin(browser, page_of([case(i, shape) for i, shape in enumerate(shapes)], tmp_path), "Ada", 1366, 768)
    for number, (height, width) in enumerate(shapes):
        top, guide, image = box(browser, ".top"), box(browser, "#guide"), box(browser, ".current img")
        assert top["bottom"] <= guide["top"] < guide["bottom"] <= box(browser, ".current")["top"] < 180, number
        assert guide["bottom"] <= image["top"] < image["bottom"] <= 768, number
        assert image["width"] / image["height"] == pytest.approx(width / height, rel=0.02)
        assert box(browser, ".current fieldset:last-of-type")["bottom"] <= 768, number
        press(browser, ">")


def test_a_large_picture_is_fine_and_says_what_it_was_reduced_to(browser: Browser, tmp_path: Path) -> None:
    begin(browser, page_of([case(0, (1200, 1600)), case(1, (1024, 1024))], tmp_path), "Ada")
    browser.value("Promise.all([...document.images].map(i => i.decode()))")
    assert browser.value("[...document.images].map(i => i.naturalWidth)") == [1024, 1024]
    captions = browser.value("[...document.querySelectorAll('.seen p')].map(p => p.textContent)")
    assert ["Shown at 1024 of 1600 px." in caption for caption in captions] == [True, False]


def test_a_long_report_does_not_hide_what_is_judged(browser: Browser, tmp_path: Path) -> None:
    begin(browser, page_of([case(0, report="word " * 300), case(1)], tmp_path), "Ada", 1366, 500)
    for _ in range(4):
        active = box(browser, ".active")
        assert box(browser, ".top")["bottom"] <= active["top"] < active["bottom"] <= 500
        press(browser, "1")
    press(browser, "<")
    browser.value("window.scrollTo(0, document.body.scrollHeight)")
    press(browser, "2")
    assert "out of view" in message(browser)
    assert "1-texture right" in checked(browser)
    press(browser, "2")
    assert "1-texture wrong" in checked(browser)


def test_on_a_phone_the_image_stays_in_view(browser: Browser, tmp_path: Path) -> None:
    begin(browser, page_of([case(0, (512, 512)), case(1, (512, 96))], tmp_path), "Ada", 375, 700)
    for _ in range(8):
        image, active = box(browser, ".current img"), box(browser, ".active")
        assert 0 <= image["top"] < image["bottom"] <= active["top"] < active["bottom"] <= 700
        assert image["height"] <= 0.4 * 700 + 1
        press(browser, "1")
    assert box(browser, "#message")["bottom"] <= 700
