"""The audit of written rationales: what is wrong with them, and how much they say about their own images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.cot.audit import Flaw, agreement, count_flaws, find_flaws, near_identical, vocabulary
from cers.cot.rationale import ASPECTS, Rationale, render
from cers.cot.records import ROLES, Role
from cers.cot.texts import Written, usable
from cers.data.case import Case
from cers.data.duplicates import near_duplicates
from cers.data.partition import group_names
from cers.errors import CersError, nearest
from cers.evaluate.information import differences, first_within, outcomes, summarised
from cers.evaluate.statistics import bootstrap_interval, group_index
from cers.text.base import TextEncoder
from cers.text.registry import make_text_encoder

MAX_TOKENS = 256
"""Of a rationale that its encoder reads: as in training."""

_ENCODED_AT_A_TIME = 256
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Audit:
    """What was found. `summary` is fit for JSON; `outranks` says per image how well its rationale finds its partner.

    `found_instead` names the image whose mask-informed text the mask-free one of an image resembles most.
    """

    texts: Sequence[Written]
    flaws: Sequence[Flaw]
    summary: Mapping[str, Any]
    outranks: Mapping[str, float]
    found_instead: Mapping[str, str]

    @property
    def malformed(self) -> int:
        """How many texts are no rationale."""
        return sum(flaw.kind == "malformed" for flaw in self.flaws)


def audit(
    texts: Sequence[Written],
    cases: Sequence[Case] = (),
    *,
    encoder: str = "tfidf",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Audit `texts`; the `cases` they are about add reports, classes, and look-alikes found in their images.

    Raises:
        CersError: no text at all, none that fits a case, an unknown encoder, or an image that cannot be read.
    """
    if not texts:
        raise CersError("no rationale to audit; `cers annotate` writes some")
    reports = {case.id: case.report for case in cases if case.report}
    groups = _look_alikes(texts, cases, progress)
    rationales = {role: usable(texts, role) for role in ROLES}
    flaws = [*find_flaws(texts, reports), *_copies(texts, rationales, _sets(groups))]
    both = [image for image in rationales["unlabelled"] if image in rationales["labelled"]]
    summary: dict[str, Any] = {
        "texts": {role: sum(text.role == role for text in texts) for role in ROLES},
        "flaws": count_flaws(flaws),
        "vocabulary": {role: vocabulary(rationales[role]) for role in ROLES},
        "agreement": _agreement(rationales["unlabelled"], rationales["labelled"], groups),
    }
    outranks, instead = {}, {}
    if len(both) > 1:
        info, rank, top = _information(rationales, both, cases, groups, encoder, seed)
        summary["information"] = info
        outranks, instead = dict(zip(both, rank, strict=True)), dict(zip(both, (both[t] for t in top), strict=True))
    return Audit(texts, flaws, summary, outranks, instead)


def _look_alikes(
    texts: Sequence[Written], cases: Sequence[Case], progress: Callable[[int, int], None] | None
) -> Mapping[str, str]:
    """The group of every case that has a text: patients, and clusters of near-duplicate images."""
    if not cases:
        return {}
    named = {text.image for text in texts}
    present = [case for case in cases if case.id in named]
    if not present:
        missing = next(iter(named))
        raise CersError(f"no rationale is about an image of the dataset; {nearest(missing, (c.id for c in cases))}")
    return group_names(present, near_duplicates(present, progress=progress))


def _copies(
    texts: Sequence[Written], rationales: Mapping[Role, Mapping[str, Rationale]], alike: Sequence[frozenset[str]]
) -> list[Flaw]:
    """Texts that are nearly those of other images, most alike first."""
    where = {(text.image, text.role): text.where for text in reversed(texts)}
    found = [(role, *copy) for role in ROLES for copy in near_identical(rationales[role], alike)]
    return [
        Flaw(image, role, where[image, role], "nearly the text of another", f"{other} ({share:.2f})", other)
        for role, image, other, share in sorted(found, key=lambda copy: -copy[3])
    ]


def _sets(groups: Mapping[str, str]) -> list[frozenset[str]]:
    members: dict[str, list[str]] = {}
    for image, group in groups.items():
        members.setdefault(group, []).append(image)
    return [frozenset(images) for images in members.values() if len(images) > 1]


def _agreement(
    free: Mapping[str, Rationale], informed: Mapping[str, Rationale], groups: Mapping[str, str]
) -> dict[str, Any]:
    units = [groups.get(image) for image in free if image in informed]
    return {
        name: {**bootstrap_interval(own, units).as_json(), "n": len(own), "chance": chance if len(own) > 1 else None}
        for name, (own, chance) in agreement(free, informed).items()
    }


def _information(
    rationales: Mapping[Role, Mapping[str, Rationale]],
    images: Sequence[str],
    cases: Sequence[Case],
    groups: Mapping[str, str],
    encoder: str,
    seed: int,
) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.intp]]:
    """The summary, and per image the share its partner outranks and the row whose text is found first."""
    case_of = {case.id: case for case in cases}
    known = [case_of.get(image) for image in images]
    labels, units = [case.label if case else None for case in known], [groups.get(image) for image in images]
    free, informed = ([rationales[role][image] for image in images] for role in ("unlabelled", "labelled"))
    queries, answers = _encoded([render(r) for r in free], [render(r) for r in informed], encoder, seed)
    found, chance = outcomes(queries, answers, labels, units)
    summary: dict[str, Any] = {
        "encoder": encoder,
        "n": len(images),
        "groups": len(np.unique(group_index(units))),
        "rationale": {name: summarised(found[name], chance[name], units) for name in found},
        "by_aspect": {},
    }
    for aspect in ASPECTS:
        own, luck = outcomes(
            *_encoded([getattr(r, aspect) for r in free], [getattr(r, aspect) for r in informed], encoder, seed),
            labels,
            units,
        )
        summary["by_aspect"][aspect] = {name: summarised(own[name], luck[name], units) for name in own}
    summary |= _beyond_report(
        [case.report if case else None for case in known], (queries, answers), labels, units, encoder, seed
    )
    return summary, found["outranks"], _top(queries, answers)


def _beyond_report(
    reports: Sequence[str | None],
    vectors: tuple[Vectors, Vectors],
    labels: Sequence[str | None],
    groups: Sequence[str | None],
    encoder: str,
    seed: int,
) -> dict[str, Any]:
    """What reports find in place of rationales, and what rationales find among cases whose reports are the same."""
    rows = [i for i, report in enumerate(reports) if report]
    if len(rows) < 2:
        return {}
    texts = [str(reports[i]) for i in rows]
    label, group = [labels[i] for i in rows], [groups[i] for i in rows]
    queries, answers = (v[rows] for v in vectors)
    ours, _ = outcomes(queries, answers, label, group)
    said, _ = _encoded(texts, texts, encoder, seed)
    theirs, chance = outcomes(said, said, label, group)
    return {
        "report": {name: summarised(theirs[name], chance[name], group) for name in theirs},
        "beyond_report": differences(ours, theirs, group),
        "first_among_equal_reports": summarised(*first_within(queries, answers, texts), group),
        "distinct_reports": len(set(texts)),
    }


def _encoded(first: Sequence[str], second: Sequence[str], name: str, seed: int) -> tuple[Vectors, Vectors]:
    encoder = make_text_encoder(name, [*first, *second], MAX_TOKENS, seed)
    if encoder is None:
        raise CersError(f"text encoder '{name}' compares nothing; use tfidf or minilm")
    return _pooled(encoder, first), _pooled(encoder, second)


def _pooled(encoder: TextEncoder, texts: Sequence[str]) -> Vectors:
    """(N,D) of `texts`, without their tokens, which would not fit into memory."""
    parts = [
        np.stack([features.pooled for features in encoder.encode(texts[start : start + _ENCODED_AT_A_TIME])])
        for start in range(0, len(texts), _ENCODED_AT_A_TIME)
    ]
    return np.concatenate(parts)


def _top(queries: Vectors, answers: Vectors) -> NDArray[np.intp]:
    blocks = (queries[s : s + _ENCODED_AT_A_TIME] @ answers.T for s in range(0, len(queries), _ENCODED_AT_A_TIME))
    return np.concatenate([block.argmax(axis=1) for block in blocks])
