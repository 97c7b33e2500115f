from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cers.cot.rationale import (
    ASPECTS,
    MalformedRationale,
    Rationale,
    audit_rationale,
    parse_rationale,
    render,
)

PARTS = ("mixed signal.", "sharp rim.", "near vessels.", "A ring-like mass.")
EXPECTED = Rationale(*PARTS)

ANSWERS = {
    "plain": "Texture: {}\nBoundary: {}\nContext: {}\nSummary: {}",
    "trailing spaces and blank lines": "Texture: {}  \n\nBoundary: {}  \n\n Context: {}\t\nSummary: {}  \n\n",
    "windows line ends": "Texture: {}\r\nBoundary: {}\r\nContext: {}\r\nSummary: {}\r\n",
    "bold": "**Texture**: {}\n**Boundary**: {}\n**Context**: {}\n**Summary**: {}",
    "bold with colon": "**Texture:** {}\n**Boundary:** {}\n**Context:** {}\n**Summary:** {}",
    "numbered dashes": "1. Texture - {}\n2. Boundary – {}\n3. Context — {}\n4) Summary - {}",
    "numbered bold": "1. **Texture**: {}\n2. **Boundary**: {}\n3. **Context**: {}\n4. **Summary**: {}",
    "bullets": "- Texture: {}\n- Boundary: {}\n* Context: {}\n• Summary: {}",
    "shouting": "TEXTURE: {}\nBOUNDARY: {}\nCONTEXT: {}\nSUMMARY: {}",
    "sections": "## Texture\n{}\n\n## Boundary\n\n{}\n## Context\n{}\n## Summary\n{}",
    "bare heading lines": "Texture\n{}\nBoundary\n{}\nContext\n{}\nSummary\n{}",
    "byte-order mark": "\ufeffTexture: {}\nBoundary: {}\nContext: {}\nSummary: {}",
    "mojibake mark and dash": "ï»¿Texture â€“ {}\nBoundary â€“ {}\nContext â€“ {}\nSummary â€“ {}",
    "one line": "Texture: {} Boundary: {} Context: {} Summary: {}",
    "one line bold": "**Texture:** {} **Boundary:** {} **Context:** {} **Summary:** {}",
    "qualified": "Texture (signal): {}\nBoundaries: {}\nContext: {}\nConcise summary: {}",
    "preamble and closing": "Sure:\n\nTexture: {}\nBoundary: {}\nContext: {}\nSummary: {}\n\nLet me know.",
    "json": '{{"texture": "{}", "boundary": "{}", "context": "{}", "summary": "{}"}}',
    "fenced json": '```json\n{{"Texture": "{}", "Boundary": "{}",\n"Context": "{}", "Summary": "{}"}}\n```',
    "nested json": 'Here it is: {{"cot": {{"texture": ["{}"], "boundary": "{}", "context": "{}", "summary": "{}"}}}}',
}


@pytest.mark.parametrize("shape", ANSWERS)
def test_reads_what_language_models_return(shape: str) -> None:
    assert parse_rationale(ANSWERS[shape].format(*PARTS)) == EXPECTED


def test_order_does_not_matter() -> None:
    lines = [f"{name}: {part}" for name, part in zip(ASPECTS, PARTS, strict=True)]
    assert parse_rationale("\n".join(reversed(lines))) == EXPECTED


def test_aspect_may_span_lines_and_name_another_aspect() -> None:
    text = "Texture: mixed\n  signal. Context: none here\nBoundary: sharp\nrim.\nContext: vessels.\nSummary: mass."
    assert parse_rationale(text) == Rationale("mixed signal. Context: none here", "sharp rim.", "vessels.", "mass.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty text"),
        (" \ufeff\n", "empty text"),
        ("Texture: a mass.\nBoundary: sharp.", "missing context, summary"),
        ("Texture: aa\nTexture: bb\nBoundary: cc\nContext: dd\nSummary: ee", "more than one 'texture'"),
        ("Texture: aa\nBoundary:\nContext: dd\nSummary: ee", "'boundary' is empty"),
        ("Texture: aa\nBoundary: N/A\nContext: dd\nSummary: ee", "'boundary' is empty"),
        ("I'm sorry, but I can't assist with that.", "refusal"),
        ("I cannot analyse medical images.", "refusal"),
        ("Texture: I'm unable to view it.\nBoundary: bb\nContext: cc\nSummary: dd", "'texture' is a refusal"),
        ("RateLimitError: 429 too many requests", "error message"),
        ("Error code: 500 - {'error': {'message': 'overloaded'}}", "error message"),
        ('{"texture": "aa", "boundary": "bb", "context": "cc"}', "missing summary"),
        ('{"texture": "aa", "texture": "bb", "boundary": "b2", "context": "cc", "summary": "dd"}', "more than one"),
        ("A heterogeneous mass with sharp borders.", "missing texture, boundary, context, summary"),
    ],
)
def test_malformed_text_is_named(text: str, reason: str) -> None:
    with pytest.raises(MalformedRationale, match=reason):
        parse_rationale(text)


def _well_formed(parts: tuple[str, str, str, str]) -> bool:
    try:
        Rationale(*parts)
    except MalformedRationale:
        return False
    return True


HOSTILE = st.lists(
    st.sampled_from(
        [
            "Texture:",
            "Boundary - ",
            "\n",
            "{",
            "}",
            '"',
            "**",
            "- ",
            "?",
            "\ufffd",
            "â€“",
            "Ã©",
            "```",
            "a mass",
            "\ufeff",
            "\r",
        ]
    ),
    max_size=8,
).map("".join)
PART = st.one_of(st.text(max_size=40), HOSTILE, HOSTILE.map(lambda s: s + "lesion"))


@given(st.tuples(PART, PART, PART, PART).filter(_well_formed))
def test_parse_undoes_render(parts: tuple[str, str, str, str]) -> None:
    rationale = Rationale(*parts)
    assert parse_rationale(render(rationale)) == rationale


@given(st.one_of(st.text(), HOSTILE))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        rationale = parse_rationale(text)
    except MalformedRationale:
        assert audit_rationale(text)[0].startswith("malformed: ")
    else:
        assert all(getattr(rationale, name) for name in ASPECTS)


def test_encoding_damage_is_mended() -> None:
    rationale = Rationale("ring?enhancing “paving\ufffd?; noisy", "grayâ€“white", "what is it?", "mass.")
    assert rationale.texture == "ring-enhancing “paving; noisy"
    assert rationale.boundary == "gray–white"
    assert rationale.context == "what is it?"


def test_audit_passes_a_good_text() -> None:
    assert audit_rationale(render(EXPECTED), "An axial MRI scan with one large glioma lesion.") == []


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"texture": "word " * 130 + "."}, "over-long"),
        ({"context": "Centred at (120, 88) px."}, "coordinates"),
        ({"context": "Bounding box touches the rim."}, "coordinates"),
        ({"texture": "The highlighted area is bright."}, "drawing"),
        ({"summary": "An axial MRI scan with one large glioma lesion."}, "copies the report"),
        ({"summary": "A mass whose margin is"}, "cut off"),
        ({"texture": "mixed “paving\ufffd? signal."}, "encoding"),
    ],
)
def test_audit_names_the_flaw(change: dict[str, str], flaw: str) -> None:
    parts = dict(zip(ASPECTS, PARTS, strict=True)) | change
    text = "\n".join(f"{name}: {part}" for name, part in parts.items())
    flaws = audit_rationale(text, "An axial MRI scan with one large glioma lesion.")
    assert len(flaws) == 1
    assert flaw in flaws[0]


def test_published_rationales() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "brisc2025" / "reports"
    if not folder.is_dir():
        pytest.skip("the BRISC reports are not on this machine (../shared/data/brisc2025/reports)")
    table = pd.read_csv(folder / "cot_output_gpt5_no_mask.csv", encoding="utf-8-sig")
    malformed = []
    for image, text in zip(table["image"], table["cot"], strict=True):
        try:
            parse_rationale(text)
        except MalformedRationale:
            malformed.append(image)
    assert len(table) == 3933
    assert malformed == ["brisc2025_train_00444_gl_co_t1", "brisc2025_train_04506_pi_sa_t1"]
