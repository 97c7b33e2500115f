import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest

from cers.evaluate.retrieval import retrieval_quality
from cers.report.evidence import MALFORMED
from cers.report.page import ReportData, ShownCase, number, render_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and a check that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.hidden = 0
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def html(full: ReportData) -> str:
    return render_report(full)


def page_of(case: ShownCase) -> Page:
    return Page(render_report(ReportData("one case", cases=[case])))


def test_headline_says_dice_interval_n_and_missed_lesions(html: str, full: ReportData) -> None:
    overall = full.summary["branches"]["declared"]["all"]
    dice = overall["metrics"]["dice"]
    words = Page(html).words
    assert f"Dice {dice['mean']:.3f} 95 % interval {dice['low']:.3f} to {dice['high']:.3f} mean of 8 cases" in words
    assert "Missed lesions 1 of 8" in words
    assert words.index("Missed lesions") < words.index("Training") < words.index("The 5 retrieved cases")


def test_every_part_of_the_run_is_there(html: str) -> None:
    page = Page(html)
    for text in (
        "glioma",
        "meningioma",
        "retrieval (declared)",
        "image+cot this run",
        "split hash",
        "abc123",
        "1,234",
        "path: phantom",
    ):
        assert text in page.words
    titles = [a.get("aria-label", "") or "" for a in page.all("svg")]
    assert any(t.startswith("Validation Dice") and "kept checkpoint at step 690" in t for t in titles)
    assert any(t.startswith("Training loss") for t in titles)
    assert any(t.startswith("alignment") for t in titles)


def test_each_case_shows_its_evidence(html: str) -> None:
    page = Page(html)
    assert len(page.all("article")) == 9
    # image, prediction, branches, evidence; then twice the query with five others
    assert len(page.all("img")) == 9 * (4 + 6 + 6)
    assert page.words.count("similar images that the text step rejected") == 9
    assert "The evidence added" in page.words
    similar = "retrieved cases are 0.60 to 0.80 similar to the query and the rejected candidates 0.30"
    assert f"By rationale, the {similar}" in page.words
    assert page.words.count("Rationale similarity") == 9 * 2 * 6  # head and five columns, of kept and of rejected
    assert "Text similarity" not in page.words


def test_aspects_stand_in_one_row_in_the_order_of_the_columns(html: str) -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    boundary = next(row for row in rows if '<th scope="row" class="head">Boundary' in row)
    assert re.findall(r"(\w+)</?mark>? ?sharp|(\w+) <mark>sharp", boundary)
    assert [re.sub(r"<.*?>", "", cell).removeprefix("Boundary") for cell in re.findall(r"<td.*?</td>", boundary)] == [
        f"{name} sharp margin." for name in ("Query", "Kept0", "Kept1", "Kept2", "Kept3", "Kept4")
    ]
    assert boundary.count("<mark>sharp</mark>") == 5


def test_one_small_file_that_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert len(html.encode()) < 6_000_000
    assert not page.all("script")
    assert not page.all("link")
    assert all((a["src"] or "").startswith("data:image/") for a in page.all("img"))
    assert all((a["href"] or "").startswith("#") for a in page.all("a"))
    assert not re.search(r"https?:|url\(|@import|srcset", html)
    policies = [a.get("content") for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_has_words_and_every_link_a_target(html: str) -> None:
    page = Page(html)
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-hidden") == "true" or a.get("aria-label") for a in page.all("svg"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)


def test_headings_skip_no_level(html: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(html).tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_texts_are_escaped_wherever_they_come_from(case: ShownCase) -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(2)> homogeneous 'a' \"b\" & c"
    reference = replace(case.references[0], id=evil, label=evil, report=evil, rationale=f"Texture: {evil}")
    bad = replace(
        case, id=evil, heading=evil, label=evil, report=evil, rationale=f"Texture: {evil}", metrics={evil: 1.0}
    )
    bad = replace(
        bad,
        references=[reference],
        rejected=[reference],
        branches={evil: case.probability, f"2{evil}": case.probability / 2},
    )
    quality = retrieval_quality([], {}, {})
    log = [{"kind": "step", "step": i, "stage": f"{evil}{i}", evil: 1.0} for i in range(2)]
    log += [{"kind": "validation", "step": 1, "stage": evil, "dice": {evil: 0.5}, "best": True}]
    html = render_report(
        ReportData(
            evil,
            {"method": {"settings": {"retrieval": evil, "k": evil}}},
            {"retrieval": {evil: quality}},
            log,
            {evil: evil},
            [bad],
        )
    )
    page = Page(html)
    assert not page.all("script")
    assert all("onerror" not in a for _, a in page.tags)
    assert evil in page.text


def test_unknown_similarity_is_a_dash(case: ShownCase) -> None:
    nan = float("nan")
    unknown = replace(case.references[0], image_similarity=nan, text_similarity=nan, attention=None)
    page = page_of(replace(case, references=[unknown], rejected=[], compared=None))
    assert "The 1 retrieved case beside the query" in page.words
    assert page.words.count("similarity–") == 2
    assert "nan" not in page.words.lower()
    assert "Share of attention" not in page.words


def test_a_method_without_evidence_has_none_of_its_parts(supervised: ShownCase) -> None:
    page = page_of(supervised)
    assert len(page.all("img")) == 2
    for absent in ("evidence", "retrieved", "rejected", "similarity", "Branches", "Underlined"):
        assert absent not in page.words


def test_missing_truth_and_missing_texts(case: ShownCase) -> None:
    bare = replace(case.references[0], mask=None, label=None, report=None, rationale=None)
    page = page_of(
        replace(case, truth=None, label=None, report=None, rationale=None, metrics={}, references=[bare], rejected=[])
    )
    assert "Nobody annotated this image" in page.words
    assert "Texture" not in page.words
    assert "None" not in page.words
    assert "Dice" not in page.words


def test_empty_masks(case: ShownCase) -> None:
    empty = np.zeros_like(case.probability)
    nothing = replace(case, probability=empty, truth=empty > 0, branches={"retrieval": empty, "base": empty})
    page = page_of(replace(nothing, without_evidence=empty))
    assert "The model outlines no lesion here. The annotators saw no lesion here." in page.words
    assert "The outline is the same with the evidence switched off." in page.words
    assert "annotation (empty)" in page.words


def test_a_case_that_its_references_answer_says_so(case: ShownCase) -> None:
    words = "The retrieved cases answer here, not the decoder"
    alone = np.clip(1 - case.probability, 0, 1).astype(np.float32)
    branches = {**case.branches, "references": alone}
    assert words not in page_of(replace(case, branches=branches)).words
    assert words in page_of(replace(case, branches=branches, probability=alone)).words


def test_a_case_whose_outline_grew_to_the_size_of_its_references_says_so(case: ShownCase) -> None:
    words = "the smallest lesion among the retrieved cases covers 2.3 % of its image"
    sized = replace(case, at_least=0.0231, branches={**case.branches, "sized": case.probability})
    assert words not in page_of(sized).words  # the decoder outlined as much by itself
    smaller = {name: branch * 0.4 for name, branch in case.branches.items()}
    enlarged = replace(sized, branches={**smaller, "sized": case.probability})
    assert words in page_of(enlarged).words
    not_heeded = replace(enlarged, probability=smaller["retrieval"])
    assert words not in page_of(not_heeded).words


def test_a_malformed_rationale_is_shown_as_not_used(case: ShownCase) -> None:
    refusal, part = "I cannot help with this image.", "Texture: homogeneous signal."
    others = [replace(case.references[0], rationale=part)]
    words = page_of(replace(case, rationale=refusal, references=others, rejected=[])).words
    assert f"{MALFORMED} {MALFORMED}{refusal} {MALFORMED}{part}" in words
    assert "Texture " not in words
    assert MALFORMED not in page_of(case).words


def test_without_a_text_to_compare_no_text_step_is_told_of(case: ShownCase) -> None:
    others = [replace(other, text_similarity=float("nan")) for other in (*case.references, *case.rejected)]
    silent = replace(case, references=others[:5], rejected=others[5:], compared=None, report=None, rationale=None)
    words = page_of(silent).words
    assert "5 further similar images" in words
    assert "rejected" not in words.lower()
    assert "Nothing usable was written of this image, so the cases were recalled by the image alone." in words
    assert "Nothing usable was written" in page_of(replace(silent, rationale="I cannot help.")).words
    assert "None of its texts could be compared, so" in page_of(replace(silent, report="One lesion.")).words


def test_a_reference_without_lesion_says_so(case: ShownCase) -> None:
    reference = case.references[0]
    healthy = replace(reference, mask=np.zeros(reference.image.shape, bool))
    page = page_of(replace(case, references=[healthy], rejected=[]))
    assert "kept0 glioma annotated: no lesion" in page.words
    assert "Reference; annotated: no lesion" in [image["alt"] for image in page.all("img")]
    assert "annotated: no lesion" not in page_of(case).words


def test_long_texts_scroll_in_a_place_of_their_own(case: ShownCase) -> None:
    assert not [a for a in page_of(case).all("div") if a.get("class") == "long"]
    page = page_of(replace(case, report="Nothing in particular. " * 200))
    long = [a for a in page.all("div") if a.get("class") == "long"]
    assert len(long) == 3  # above the pictures, and beside both kinds of candidates
    assert all(a["tabindex"] == "0" and a["aria-label"] == "Report" for a in long)


def test_measures_and_branches_are_told(html: str, full: ReportData) -> None:
    words = Page(html).words
    assert "base is the plain decoder, without references; retrieval is the decoder that reads references." in words
    assert "HD955.0 pixels" in words
    assert "the image's diagonal where one outline is missing" in words
    declared = {"declared": full.summary["branches"]["declared"]}
    assert "A branch is" not in Page(render_report(ReportData("one", summary={"branches": declared}))).words


def test_one_is_said_in_the_singular(case: ShownCase) -> None:
    more = case.probability.copy()
    more[0, 0] = 1
    one = replace(case, probability=more, without_evidence=case.probability, branches={"base": case.probability})
    one = replace(one, rejected=case.rejected[:1])
    words = page_of(one).words
    assert "The evidence added 1 pixel to the outline" in words
    assert "1 pixel decided differently" in words
    assert "1 similar image that the text step rejected" in words


def test_an_empty_run_renders() -> None:
    words = Page(render_report(ReportData("empty"))).words
    assert "This run has not been evaluated yet." in words
    assert "No training steps were logged." in words


def test_summary_without_intervals(full: ReportData) -> None:
    unknown = {"mean": None, "low": None, "high": None}
    part = full.summary["branches"]["declared"]["all"] | {"n": 1, "groups": 1}
    part["metrics"] = dict.fromkeys(part["metrics"], unknown)
    branch = {"all": part, "by_class": {}, "by_size": {}}
    words = Page(render_report(ReportData("one", summary={"branches": {"declared": branch}}))).words
    assert "Dice – mean of 1 case " in words
    assert "interval" not in words


def test_colour_images(case: ShownCase) -> None:
    coloured = replace(case, image=np.repeat(case.image[..., None], 3, axis=2))
    assert len(page_of(coloured).all("img")) == 4 + 6 + 6


def test_a_map_of_another_size_is_refused(case: ShownCase) -> None:
    with pytest.raises(ValueError, match=r"case 'query': truth is \(10, 10\), its image \(300, 300\)"):
        replace(case, truth=np.zeros((10, 10), bool))
    with pytest.raises(ValueError, match="case 'kept0': mask"):
        replace(case.references[0], mask=np.zeros((10, 10), bool))


def test_numbers_for_readers() -> None:
    values = [0.12345, 21.68, 1234, True, None, float("nan"), "text", -0.5, -0.0001]
    assert [number(v) for v in values] == ["0.123", "21.7", "1,234", "True", "–", "–", "text", "−0.500", "0.000"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_text_have_contrast(scheme: str) -> None:
    css = resources.files("cers.report").joinpath("templates/colours.css").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    colours = blocks[0] | (blocks[1] if scheme == "dark" else {})
    for text in ("ink", "quiet", "accent"):
        for ground in ("paper", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5
    for line in ("s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(colours[line], colours["paper"]) >= 3


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
