"""The review page as its reviewer uses it: by keyboard, in a real browser, over reloads."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from cers.cot.review import FORMAT, read_verdicts
from cers.report.review import ReviewCase, render_review
from cers.reviewing import review_results

TEXT = "Texture: {0} </script><b>bold</b>.\nBoundary: {0} sharp.\nContext: {0} near bone.\nSummary: {0} mass."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    mask = np.zeros((120, 90), bool)
    mask[30:60, 20:50] = True
    cases = [
        ReviewCase(
            f"case{i} labelled",
            f"case{i}",
            "labelled",
            TEXT.format(f"Text {i}"),
            rng.integers(0, 255, (120, 90), dtype=np.uint8),
            mask if i != 1 else None,
            f"Report {i}.",
        )
        for i in range(3)
    ]
    path = tmp_path / "review.html"
    path.write_text(render_review(cases, {"format": FORMAT, "sample": str(tmp_path), "of": 3}), encoding="utf-8")
    return path


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


def saved(browser: Browser, folder: Path, reviewer: str) -> Path:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.value(
        f"(() => {{ const i = document.getElementById('reviewer'); i.value = '{reviewer}';"
        "i.dispatchEvent(new Event('input')); })()"
    )
    press(browser, "s")
    path = folder / f"verdicts-{reviewer}.json"
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
    return path


def test_verdicts_by_keyboard_survive_a_reload_and_are_read_back(browser: Browser, file: Path, tmp_path: Path) -> None:
    browser.open(file, 1280)
    assert current(browser) == "case0"
    press(browser, "1213")
    assert current(browser) == "case1"
    press(browser, "1^0")
    press(browser, ">a")
    browser.open(file, 1280)
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
    browser.open(file, 1280)
    press(browser, "n")
    browser.call("Input.insertText", text="no, a 1 s")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    press(browser, ">")
    assert current(browser) == "case1"
    assert checked(browser) == []
    press(browser, "1")
    assert read_verdicts(saved(browser, tmp_path, "Bo")).notes == {"case0 labelled": "no, a 1 s"}


def test_saving_asks_for_a_name(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    press(browser, "1s")
    assert "name first" in browser.value("document.getElementById('message').textContent")
    assert browser.value("document.activeElement.id") == "reviewer"


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


def test_outlines_only_where_the_mask_is_in_use_and_they_hide(browser: Browser, file: Path) -> None:
    browser.open(file, 1280)
    assert browser.value("[...document.querySelectorAll('article')].map(a => a.querySelectorAll('svg').length)") == [
        1,
        0,
        1,
    ]
    visible = "getComputedStyle(document.querySelector('.current svg')).visibility"
    assert browser.value(visible) == "visible"
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
