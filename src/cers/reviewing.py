"""An expert's review of rationales: the page to judge them on, and what the verdicts come to."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.config import MaskReading
from cers.cot.offline import mask_of
from cers.cot.rationale import ASPECTS
from cers.cot.review import FORMAT, VERDICTS, Verdicts, draw_sample, name_of, read_verdicts, sample_hash
from cers.cot.texts import Written
from cers.data.case import Case
from cers.data.images import read_image
from cers.errors import CersError, nearest
from cers.evaluate.agreement import cohen_kappa, proportion
from cers.files import write_atomic
from cers.report.review import ReviewCase, render_review


@dataclass(frozen=True)
class ReviewSummary:
    """How many texts are to be `reviewed`, how many of them are shown with the lesion `outlined`, and problems."""

    reviewed: int
    outlined: int
    problems: list[str] = field(default_factory=list)


def write_review(
    texts: Sequence[Written],
    cases: Sequence[Case],
    out: Path,
    *,
    labelled_ids: Collection[str] = (),
    mask_reading: MaskReading | None = None,
    n: int = 100,
    seed: int = 0,
) -> ReviewSummary:
    """Write the page on which an expert judges `n` of `texts`; only masks of `labelled_ids` are opened and outlined.

    Raises:
        CersError: no text about any of the cases, an image that cannot be read, or `out` cannot be written.
    """
    known = {case.id: case for case in cases}
    about = [text for text in texts if text.image in known]
    if not about:
        first = texts[0].image if texts else ""
        raise CersError(f"no rationale is about an image of the dataset; {nearest(first, known)}")
    sample = draw_sample(about, n, seed)
    problems: list[str] = []
    shown = [_shown(text, known[text.image], labelled_ids, mask_reading or MaskReading(), problems) for text in sample]
    write_atomic(out, render_review(shown, {"format": FORMAT, "sample": sample_hash(sample), "of": len(sample)}))
    return ReviewSummary(len(sample), sum(case.mask is not None for case in shown), problems)


def _shown(
    text: Written, case: Case, labelled_ids: Collection[str], reading: MaskReading, problems: list[str]
) -> ReviewCase:
    image = read_image(case.image)
    mask: NDArray[np.bool_] | None = None
    if case.id in labelled_ids:
        try:
            mask = mask_of(case, image.shape[:2], reading)
        except CersError as error:
            problems.append(f"{case.id}: shown without outline: {error}")
    return ReviewCase(name_of(text), case.id, text.role, text.text, image, mask, case.report)


def review_results(paths: Sequence[Path]) -> dict[str, Any]:
    """What the verdict files of one or more reviewers of one sample say, fit for JSON.

    `reviewers` holds per reviewer and aspect, and for "all four", how many verdicts are `right`, `wrong` and `unsure`
    and the `accuracy` `{mean, low, high, n}`: the share of right among right and wrong. "all four" is right where all
    aspects of a text are, and wrong where one is wrong. `agreement` holds per pair of reviewers and aspect, and for all
    `verdicts` together, `same` (the share that agrees), `kappa` with its interval, and `n`.

    Raises:
        CersError: a file is none of verdicts, two are of different samples or of one reviewer, or none has a verdict.
    """
    files = [read_verdicts(path) for path in paths]
    for path, file in zip(paths[1:], files[1:], strict=True):
        if file.sample != files[0].sample:
            raise CersError(f"{path} is about another sample than {paths[0]}; review pages of the same texts compare")
    names = [file.reviewer for file in files]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise CersError(f"two files are by reviewer '{doubled[0]}'; give each reviewer a name of their own on the page")
    if not any(any(given.values()) for file in files for given in file.verdicts.values()):
        raise CersError(f"{paths[0]} holds no verdict yet; judge some texts on the page and save again")
    return {
        "of": files[0].of,
        "reviewers": {file.reviewer: _accuracy(file) for file in files},
        "agreement": {f"{a.reviewer} and {b.reviewer}": _agreement(a, b) for a, b in combinations(files, 2)},
        "notes": {file.reviewer: dict(file.notes) for file in files if file.notes},
    }


def _accuracy(file: Verdicts) -> dict[str, Any]:
    by_aspect = {aspect: [v[aspect] for v in file.verdicts.values() if aspect in v] for aspect in ASPECTS}
    by_aspect["all four"] = [_overall(given) for given in file.verdicts.values() if len(given) == len(ASPECTS)]
    result = {}
    for name, given in by_aspect.items():
        counts = {verdict: given.count(verdict) for verdict in VERDICTS}
        judged = counts["right"] + counts["wrong"]
        result[name] = {**counts, "accuracy": {**proportion(counts["right"], judged).as_json(), "n": judged}}
    return result


def _overall(given: Mapping[str, str]) -> str:
    found = set(given.values())
    return "wrong" if "wrong" in found else "unsure" if "unsure" in found else "right"


def _agreement(first: Verdicts, second: Verdicts) -> dict[str, Any]:
    pairs = list(_pairs(first, second))
    parts = {aspect: [pair for pair in pairs if pair[1] == aspect] for aspect in ASPECTS} | {"verdicts": pairs}
    result = {}
    for name, part in parts.items():
        texts, _, ours, theirs = zip(*part, strict=True) if part else ((), (), (), ())
        same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(part) if part else None
        result[name] = {"same": same, "kappa": cohen_kappa(ours, theirs, texts).as_json(), "n": len(part)}
    return result


def _pairs(first: Verdicts, second: Verdicts) -> Iterator[tuple[str, str, str, str]]:
    """Text, aspect and both verdicts, where both reviewers gave one."""
    for text, given in first.verdicts.items():
        for aspect, verdict in given.items():
            if aspect in (other := second.verdicts.get(text, {})):
                yield text, aspect, verdict, other[aspect]
