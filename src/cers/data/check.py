"""Everything that would go wrong with a dataset, said before training."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cers.config import MaskReading
from cers.data.case import Case
from cers.data.duplicates import GIANT, clusters, same_value
from cers.data.layouts import Scan, scan
from cers.data.pixels import MaskKind, Pixels, read_pixels
from cers.data.problems import Problem, some
from cers.data.splits import Split, overlaps, read_split, straddling, unfit, unplaced
from cers.errors import CersError

Level = Literal["error", "warning", "note"]
_LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class CheckReport:
    """What was found. `identical` and `near_duplicates` are clusters of case ids, `masks` what masks hold."""

    path: str
    layout: str
    counts: dict[str, int]
    masks: list[MaskKind]
    problems: list[Problem]
    identical: list[list[str]]
    near_duplicates: list[list[str]]

    @property
    def errors(self) -> int:
        """How many findings forbid training."""
        return sum(problem.level == "error" for problem in self.problems)

    def to_json(self) -> str:
        """Every finding, for programs; of the masks only how many there are of each kind."""
        values = asdict(self) | {"errors": self.errors}
        values["masks"] = [
            {"values": k.values, "lesion": k.lesion, "masks": len(k.masks), "lesion_share": k.share} for k in self.masks
        ]
        return json.dumps(values, indent=1, ensure_ascii=False)


def check_dataset(
    path: Path,
    layout: str = "auto",
    *,
    negatives: bool = False,
    group_pattern: str | None = None,
    rationales: Path | None = None,
    mask: MaskReading | None = None,
    split: Path | None = None,
    parse_rationale: Callable[[str], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check names, tables, pixels, duplicates and, when given, a split file; dataset arguments as for `scan`.

    `parse_rationale` raises ValueError at a malformed rationale (`cers.cot.rationale.parse_rationale`); without it
    their form is not checked. `progress` hears how many of how many cases are read.

    Raises:
        CersError: there is no dataset to check (as `scan`).
    """
    found = scan(path, layout, negatives=negatives, group_pattern=group_pattern, rationales=rationales)
    pixels = read_pixels(found.cases, mask or MaskReading(), progress)
    identical = same_value(pixels.hashes)
    near = clusters([c for c in found.cases if c.id in pixels.thumbnails], list(pixels.thumbnails.values()))
    problems = [*found.problems, *pixels.problems]
    problems += _check_duplicates(found.cases, pixels.lesions, identical, near)
    problems += _check_texts(found.cases)
    if parse_rationale:
        problems += _malformed(found.cases, parse_rationale)
    if split is not None:
        problems += _check_split_file(split, found.cases, identical, near)
    return CheckReport(
        path=str(path),
        layout=found.layout,
        counts=_counts(found, pixels, identical, near),
        masks=sorted(pixels.kinds.values(), key=lambda kind: -len(kind.masks)),
        problems=sorted(problems, key=lambda problem: _LEVELS.index(problem.level)),
        identical=identical,
        near_duplicates=near,
    )


def _counts(
    found: Scan, pixels: Pixels, identical: Sequence[Sequence[str]], near: Sequence[Sequence[str]]
) -> dict[str, int]:
    cases = found.cases
    return {
        "images": len(cases),
        "readable images": len(pixels.sizes),
        "image sizes": len(set(pixels.sizes.values())),
        "masks": sum(case.mask is not None for case in cases),
        "empty masks": len(pixels.empty),
        "lesion-free images without mask": sum(case.negative and case.mask is None for case in cases),
        "images nobody annotated": sum(not case.annotated for case in cases),
        "classes": len({case.label for case in cases if case.label is not None}),
        "patients": len({case.group for case in cases if case.group is not None}),
        "images without patient": sum(case.group is None for case in cases),
        "reports": found.reports_matched,
        "distinct reports": len({case.report for case in cases if case.report is not None}),
        "reports without image": len(found.reports_unmatched),
        "mask-free rationales": found.rationales_matched,
        "mask-free rationales without image": len(found.rationales_unmatched),
        "mask-informed rationales": found.mask_rationales_matched,
        "mask-informed rationales without image": len(found.mask_rationales_unmatched),
        "byte-identical images": sum(map(len, identical)),
        "near-duplicate images": sum(map(len, near)),
        "near-duplicate clusters": len(near),
        "largest near-duplicate cluster": max(map(len, near), default=0),
    }


def _check_duplicates(
    cases: Sequence[Case],
    lesions: Mapping[str, str],
    identical: Sequence[Sequence[str]],
    near: Sequence[Sequence[str]],
) -> Iterable[Problem]:
    by_id = {case.id: case for case in cases}
    for cluster in identical:
        classes = sorted({by_id[i].label or "none" for i in cluster})
        more = f", of different classes ({', '.join(classes)})" if len(classes) > 1 else ""
        more += ", with different masks" if len({lesions[i] for i in cluster if i in lesions}) > 1 else ""
        message = f"the same image under {len(cluster)} names: {some(list(cluster))}{more}; keep one"
        yield Problem("warning", "identical-images", str(by_id[cluster[0]].image), message)
    total, largest = sum(map(len, near)), max(map(len, near), default=0)
    unknown = any(case.group is None for case in cases)
    if near and unknown:
        message = (
            f"{total} of {len(cases)} images have a near-duplicate ({len(near)} clusters, largest {largest}) and not "
            "every patient is known; split with --strategy grouped, which keeps clusters on one side"
        )
        yield Problem("warning", "near-duplicates", "images", message)
    if unknown and largest > max(2, GIANT * len(cases)):
        message = f"one cluster holds {largest} of {len(cases)} images, too many to split by; give --group-pattern"
        yield Problem("warning", "giant-cluster", "images", message)
    for cluster in near:
        patients = sorted({group for i in cluster if (group := by_id[i].group) is not None})
        if len(patients) > 1:
            message = f"patients {some(patients)} share a slice; are they one patient, or was a file copied?"
            yield Problem("warning", "shared-slice", some(list(cluster)), message)


def _check_texts(cases: Sequence[Case]) -> Iterable[Problem]:
    reports = Counter(case.report for case in cases if case.report is not None)
    total = sum(reports.values())
    if reports and len(reports) < total:
        (_, most), *_ = reports.most_common(1)
        message = (
            f"{len(reports)} distinct texts for {total} images, one of them for {most}: they tell few images apart"
        )
        yield Problem("note", "shared-reports", "reports", message)
    for kind in ("report", "rationale", "mask_rationale"):
        # Mask-informed rationales are for annotated cases only.
        wanted = [case for case in cases if case.annotated or kind == "rationale"]
        lacking = [case.id for case in wanted if getattr(case, kind) is None]
        if lacking and len(lacking) < len(wanted):
            name = kind.replace("_", "-informed ")
            message = f"{len(lacking)} of {len(wanted)} cases have no {name}: {some(lacking)}"
            yield Problem("note", f"missing-{kind.replace('_', '-')}", name, message)


def _malformed(cases: Sequence[Case], parse: Callable[[str], object]) -> Iterable[Problem]:
    for kind in ("rationale", "mask_rationale"):
        for case in cases:
            text = getattr(case, kind)
            if text is None:
                continue
            try:
                parse(text)
            except ValueError as error:
                kinds = f"malformed-{kind.replace('_', '-')}"
                yield Problem("warning", kinds, case.id, f"{error}; it counts as none until it is written again")


def _check_split_file(
    path: Path, cases: Sequence[Case], identical: Sequence[Sequence[str]], near: Sequence[Sequence[str]]
) -> list[Problem]:
    try:
        split = read_split(path)
    except CersError as error:
        return [Problem("error", "split", str(path), str(error))]
    where = str(path)
    problems = [Problem("error", "split-overlap", where, line) for line in overlaps(split)]
    problems += [Problem("error", "split-misfit", where, line) for line in unfit(split, cases)]
    problems += [Problem("warning", "split-incomplete", where, line) for line in unplaced(split, cases)]
    # By-image splits have these by design; in a grouped one they are a defect.
    level: Level = "error" if split.strategy == "grouped" else "warning"
    if lines := straddling(split, cases):
        message = f"{len(lines)} groups are in more than one part, e.g. {lines[0]}; scores will be too good"
        problems.append(Problem(level, "split-straddle", where, message))
    problems += _across(split, where, "byte-identical", identical, level)
    if not any(p.kind == "split-straddle" for p in problems):
        problems += _across(split, where, "near-duplicate", near, "warning")
    return problems


def _across(split: Split, where: str, kind: str, groups: Sequence[Sequence[str]], level: Level) -> list[Problem]:
    part = {case_id: name for name, ids in split.parts.items() for case_id in ids}
    torn = [group for group in groups if len({part[i] for i in group if i in part}) > 1]
    if not torn:
        return []
    example = ", ".join(f"'{i}' ({part[i]})" for i in torn[0] if i in part)
    message = f"{len(torn)} sets of {kind} images are in more than one part, e.g. {example}; use --strategy grouped"
    return [Problem(level, f"split-{kind}", where, message)]
