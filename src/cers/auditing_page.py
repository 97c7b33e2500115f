"""The page of an audit, gathered: its figures, its tables, and the cases most worth a look."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.auditing import Audit
from cers.cot.audit import Flaw
from cers.cot.rationale import Rationale, render
from cers.cot.records import ROLES, Role
from cers.cot.texts import usable
from cers.data.case import Case
from cers.data.images import read_image
from cers.errors import CersError
from cers.evaluate.information import AMONG, aspect_rows, information_rows
from cers.evaluate.render import interval, number, percent
from cers.files import write_atomic
from cers.report.audit import AuditPage, WorstCase, WorstText, render_audit

ROLE_NAMES: Mapping[str, str] = {"labelled": "mask-informed", "unlabelled": "mask-free"}
_MALFORMED_SHOWN = 30
_FLAWS_SHOWN = 6
_VAGUE_SHOWN = 12


def write_audit_page(audit: Audit, cases: Sequence[Case], path: Path, title: str) -> None:
    """Write `audit` as one HTML file; the `cases` add images, reports and classes. Masks are not shown.

    Raises:
        CersError: the file cannot be written.
    """
    known = {case.id: case for case in cases}
    page = AuditPage(title, _facts(audit), _tables(audit), _worst(audit, known))

    def image_of(name: str) -> NDArray[np.uint8] | None:
        try:
            return read_image(known[name].image) if name in known else None
        except CersError:
            return None

    write_atomic(path, render_audit(page, image_of))


def flaw_rows(audit: Audit) -> list[list[str]]:
    """A table, head first: how many texts of each role have which flaw."""
    rows = [["flaw", *(f"{ROLE_NAMES[role]} (N {audit.summary['texts'][role]})" for role in ROLES)]]
    return rows + [[kind, *(str(count[role]) for role in ROLES)] for kind, count in audit.summary["flaws"].items()]


def vocabulary_rows(audit: Audit) -> list[list[str]]:
    """A table, head first: length and wealth of the wording by role."""
    found = {ROLE_NAMES[role]: audit.summary["vocabulary"][role] for role in ROLES}
    columns = [(name, _wording(v)) for name, v in found.items() if v["texts"]]
    rows = [["", *(name for name, _ in columns)]]
    return rows + [[kind, *(column[kind] for _, column in columns)] for kind in (columns[0][1] if columns else ())]


def _wording(found: Mapping[str, Any]) -> dict[str, str]:
    lengths, (opening, share) = found["tokens"], found["most_common"][0]
    return {
        "well-formed texts": str(found["texts"]),
        "distinct texts": str(found["distinct_texts"]),
        "words and marks, median": f"{lengths['median']:.0f}",
        "5th to 95th percentile": f"{lengths['p5']:.0f} to {lengths['p95']:.0f}",
        "different words": str(found["words"]),
        "of these in under 1 % of the texts": str(found["rare_words"]),
        "share of a text's words that half of all texts use": number(found["common_share"]),
        "most frequent opening": f"{opening} ({percent(share)})",
    }


def agreement_rows(audit: Audit) -> list[list[str]]:
    """A table, head first: words that the two rationales of an image share, beside those of different images."""
    rows = [["aspect", "same image", "95 % interval", "different images", "N"]]
    for name, found in audit.summary["agreement"].items():
        row = ["whole rationale" if name == "all" else name, number(found["mean"])]
        rows.append([*row, interval(found["low"], found["high"]), number(found["chance"]), str(found["n"])])
    return rows


def _facts(audit: Audit) -> dict[str, tuple[str, str]]:
    facts = {
        "Texts": (
            f"{len(audit.texts):,}",
            ", ".join(f"{n:,} {ROLE_NAMES[r]}" for r, n in audit.summary["texts"].items()),
        ),
        "Malformed": (f"{audit.malformed:,}", "texts that are no rationale of four aspects"),
    }
    if information := audit.summary.get("information"):
        first, outranks = (information["rationale"][name] for name in ("first_of_50", "outranks"))
        facts[f"Own partner first of {AMONG}"] = (
            percent(first["mean"], 1),
            f"chance {percent(first['chance'], 1)}; N {first['n']:,}: how often a mask-free text finds its own image's "
            "mask-informed one",
        )
        facts["Outranked others"] = (
            percent(outranks["mean"], 1),
            "chance 50 %: share of others its own partner outranks",
        )
    return facts


def _tables(audit: Audit) -> dict[str, tuple[list[list[str]], str]]:
    tables = {}
    if information := audit.summary.get("information"):
        tables["What a rationale says about its own image"] = (
            information_rows(information),
            "Each mask-free text searches all mask-informed ones. Look-alikes are images of one patient and "
            "near-duplicates; they and the own partner do not count for the class. Intervals are over groups of them.",
        )
        tables["Which aspect says it"] = (aspect_rows(information), "The same with one aspect alone.")
    if audit.summary["agreement"]:
        tables["Agreement of the two rationales"] = (
            agreement_rows(audit),
            "Share of words (of both texts together) that stand in both.",
        )
    tables["Wording"] = (vocabulary_rows(audit), "Richness is no virtue by itself: words must go with what is seen.")
    if audit.summary["flaws"]:
        tables["Flaws"] = (flaw_rows(audit), "A text may have several.")
    return tables


def _worst(audit: Audit, known: Mapping[str, Case]) -> dict[str, list[WorstCase]]:
    texts = {(text.image, text.role, text.where): text.text for text in audit.texts}
    rationales = {role: usable(audit.texts, role) for role in ROLES}
    worst: dict[str, list[WorstCase]] = {}
    kinds: dict[str, list[Flaw]] = {}
    for flaw in audit.flaws:
        kinds.setdefault(flaw.kind, []).append(flaw)
    for kind in audit.summary["flaws"]:
        shown = kinds[kind][: _MALFORMED_SHOWN if kind == "malformed" else _FLAWS_SHOWN]
        worst[_heading(kind.capitalize(), len(shown), len(kinds[kind]))] = [
            _flawed(flaw, texts[flaw.image, flaw.role, flaw.where], rationales[flaw.role], known) for flaw in shown
        ]
    vague = sorted((outranks, image) for image, outranks in audit.outranks.items() if outranks < 1)
    if shown_vague := [image for _, image in vague[:_VAGUE_SHOWN]]:
        worst[_heading("Says least about its own image", len(shown_vague), len(vague))] = [
            _vague(image, audit, rationales, known) for image in shown_vague
        ]
    return worst


def _heading(name: str, shown: int, found: int) -> str:
    return f"{name} ({shown:,})" if shown == found else f"{name} ({shown:,} of {found:,})"


def _flawed(flaw: Flaw, text: str, rationales: Mapping[str, Rationale], known: Mapping[str, Case]) -> WorstCase:
    """The text with its flaw, beside that of the other image which it nearly is."""
    shown = [WorstText(ROLE_NAMES[flaw.role], text)]
    if flaw.other is not None:
        shown.append(WorstText(f"text of {flaw.other}", render(rationales[flaw.other])))
    return _case(flaw.image, f"{flaw} ({flaw.where})", shown, known)


def _vague(
    image: str, audit: Audit, rationales: Mapping[Role, Mapping[str, Rationale]], known: Mapping[str, Case]
) -> WorstCase:
    other = audit.found_instead[image]
    note = (
        f"Its partner outranks only {percent(audit.outranks[image], 1)} of the other texts; first is that of {other}."
    )
    shown = [
        WorstText("mask-free", render(rationales["unlabelled"][image])),
        WorstText("its partner, mask-informed", render(rationales["labelled"][image])),
        WorstText(f"found first: {other}", render(rationales["labelled"][other])),
    ]
    return _case(image, note, shown, known)


def _case(image: str, note: str, texts: Sequence[WorstText], known: Mapping[str, Case]) -> WorstCase:
    case = known.get(image)
    return WorstCase(image, note, texts, case.report if case else None, case.label if case else None)
