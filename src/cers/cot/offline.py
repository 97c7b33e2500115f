"""Writes the rationales of a dataset into a CSV `image,role,cot` that training reads (`data.rationales`).

Every case gets a mask-free text (role `unlabelled`), and only cases of the labelled share a mask-informed one (role
`labelled`): the masks of all others are never opened.
"""

import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cers.config import MaskReading
from cers.cot.describe import describe
from cers.cot.rationale import MalformedRationale, parse_rationale, render
from cers.cot.texts import COLUMNS
from cers.data.case import Case
from cers.data.images import read_image, read_mask_at
from cers.errors import CersError
from cers.files import write_atomic

_SAVE_EVERY = 200

Texts = dict[tuple[str, str], str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AnnotationSummary:
    """How many texts were `written` and how many `kept` from an earlier run, and one line for each `problem`."""

    written: int
    kept: int
    problems: list[str] = field(default_factory=list)


def annotate_offline(
    cases: Sequence[Case],
    labelled_ids: Collection[str],
    out: Path,
    *,
    mask_reading: MaskReading,
    use_report: bool = True,
    modality: str | None = None,
    progress: Progress | None = None,
) -> AnnotationSummary:
    """Describe every case of `cases` without its mask, and those of `labelled_ids` also with it.

    What a well-formed text in `out` already covers is not done again; `progress` is told how many texts of how many
    are done. An image or mask that cannot be read is a problem and gets no text.

    Raises:
        CersError: a labelled id that is no case, `out` is no such table, or the disk is full.
    """
    strangers = sorted(set(labelled_ids) - {case.id for case in cases})
    if strangers:
        raise CersError(f"{len(strangers)} labelled ids are no cases, e.g. '{strangers[0]}'; is it another split?")
    texts, problems = _earlier_texts(out, labelled_ids)
    kept = len(texts)
    tasks = [(case, "unlabelled") for case in cases] + [(case, "labelled") for case in cases if case.id in labelled_ids]
    missing = [(case, role) for case, role in tasks if (case.id, role) not in texts]
    try:
        for done, (case, role) in enumerate(missing, start=1):
            try:
                texts[case.id, role] = _describe(case, role, mask_reading, use_report, modality)
            except (CersError, ValueError) as error:
                problems.append(f"{case.id}: no {role} rationale: {error}")
            if progress is not None:
                progress(done, len(missing))
            if done % _SAVE_EVERY == 0:
                _save(texts, out)
    finally:
        _save(texts, out)
    return AnnotationSummary(len(texts) - kept, kept, problems)


def _describe(case: Case, role: str, reading: MaskReading, use_report: bool, modality: str | None) -> str:
    image = read_image(case.image)
    mask = mask_of(case, image.shape[:2], reading) if role == "labelled" else None
    return render(describe(image, mask=mask, report=case.report, modality=modality, use_report=use_report))


def mask_of(case: Case, shape: tuple[int, ...], reading: MaskReading) -> NDArray[np.bool_]:
    """The mask (H,W) of a labelled case at its image's `shape`; empty for a case known to show no lesion.

    Raises:
        CersError: no mask, one that cannot be read, or one of other proportions.
    """
    if case.mask is None:
        if case.negative:
            return np.zeros(shape, bool)
        raise CersError("labelled but without mask")
    return read_mask_at(case.mask, shape, reading)


def _earlier_texts(out: Path, labelled_ids: Collection[str]) -> tuple[Texts, list[str]]:
    """The texts in `out` that stand: well-formed, and written with the mask only where that is allowed."""
    texts: Texts = {}
    problems: list[str] = []
    for row in _read(out, COLUMNS) if out.exists() else []:
        image, role, text = row["image"], row["role"], row["cot"] or ""
        if role == "labelled" and image not in labelled_ids:
            problems.append(f"{image}: its earlier mask-informed rationale is left out: the case is not labelled")
            continue
        try:
            parse_rationale(text)
            texts[image, role] = text
        except MalformedRationale as error:
            problems.append(f"{image}: its earlier {role} rationale is written anew: {error}")
    return texts, problems


def _read(path: Path, columns: Collection[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except FileNotFoundError:
        raise CersError(f"no file {path}; `cers annotate offline` writes one") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CersError(f"{path} cannot be read as UTF-8 CSV: {error}") from None
    absent = sorted(set(columns) - set(reader.fieldnames or ()))
    if absent:
        raise CersError(f"{path} has no column '{absent[0]}'; expected {','.join(columns)}")
    return rows


def _save(texts: Texts, out: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((image, role, text) for (image, role), text in sorted(texts.items()))
    write_atomic(out, buffer.getvalue())
