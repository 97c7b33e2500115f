"""The table of retrieval strategies and its sentence, from real measures of generated references."""

from pathlib import Path

import pytest

from cers.data.case import Case
from cers.evaluate.retrieval import retrieval_quality
from cers.report.page import ReportData, render_report
from cers.report.retrieval import meaning, strategies

POOL = {
    f"{label}{i}": Case(f"{label}{i}", Path(), label=label, group=f"p-{label}{i}", report=f"one {label} seen")
    for label in "ab"
    for i in range(12)
}
QUERIES = [Case(f"q{label}{i}", Path(), label=label, report=f"a {label} seen") for label in "ab" for i in range(10)]


def quality(wanted: str, queries: list[Case] = QUERIES) -> dict:
    """References of the query's own class ("same"), of the other ("other") or one of each ("both")."""
    found = {}
    for query in queries:
        other = "b" if query.id[1] == "a" else "a"
        labels = {"same": [query.id[1]] * 2, "other": [other] * 2, "both": ["a", "b"]}[wanted]
        found[query.id] = [f"{label}{i}" for i, label in enumerate(labels)]
    return retrieval_quality(queries, found, POOL)


def words(qualities: dict, own: str | None) -> str:
    return meaning(strategies(qualities, own))


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [
        ("same", "100 % of the cases that “image+cot” retrieves have the query's class, against 50 % for cases drawn "
         "at random: more alike than chance explains."),
        ("other", "less alike than chance explains."),
        ("both", "no difference that chance could not explain."),
    ],
)  # fmt: skip
def test_the_sentence_says_whether_it_beats_chance(wanted: str, verdict: str) -> None:
    assert words({"random": quality("both"), "image+cot": quality(wanted)}, "image+cot").endswith(verdict)


def test_the_sentence_falls_back_on_reports_and_then_gives_up() -> None:
    reports = [Case(q.id, q.image, report=q.report) for q in QUERIES]
    bare = [Case(q.id, q.image) for q in QUERIES]
    assert words({"cot": quality("same", reports)}, "cot").startswith("Reports of the cases that “cot” retrieves share")
    assert "cannot be judged" in words({"cot": quality("same", bare)}, "cot")
    assert words({"cot": quality("same")}, "image") == ""
    assert words({}, None) == ""


def test_one_case_is_too_few_for_a_verdict() -> None:
    assert "too few independent cases" in words({"cot": quality("same", QUERIES[:1])}, "cot")


def test_the_page_shows_every_strategy_and_marks_the_own_one() -> None:
    qualities = {"image": quality("both"), "image+cot": quality("same")}
    config = {"method": {"name": "cers", "settings": {"retrieval": "image+cot", "k": 2}}}
    html = render_report(ReportData("run", config, {"retrieval": qualities}))
    assert html.count('class="own"') == 1
    own = html.split('class="own"')[1].split("</tr>")[0]
    for text in ("image+cot", "this run", "1.000", "N 20", "0.500", "4 of 24", "0.000"):
        assert text in own
    assert "Class precision@2" in html
    assert "{&#39;" not in html
    assert "mean" not in own


def test_a_run_without_retrieval_has_no_such_section() -> None:
    assert 'id="retrieval"' not in render_report(ReportData("run", {"method": {"settings": {}}}))
