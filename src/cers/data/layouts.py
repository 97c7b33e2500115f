"""A dataset on disk as cases, whatever its layout. Names and tables are read here, pixels never."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from cers.data.case import Case
from cers.data.folders import child, list_images, subfolders, without_repeats
from cers.data.manifest import find_manifest
from cers.data.names import group_rule, known_group, known_label
from cers.data.problems import Problem, shortened, some
from cers.data.readers import LAYOUTS, LVIT_FOLDERS, negative_cases
from cers.data.tables import Texts, add_text_files, collect_rationales, collect_texts, find_tables
from cers.errors import CersError, nearest
from cers.files import AnyPath


@dataclass(frozen=True)
class Scan:
    """A dataset as found: its cases, what is wrong, and how many texts found an image.

    `*_matched` count cases with such a text; `*_unmatched` are the keys of table rows that fit no image.
    `rationales` are mask-free, `mask_rationales` were written with the mask in sight.
    """

    layout: str
    cases: list[Case]
    problems: list[Problem]
    reports_matched: int
    reports_unmatched: list[str]
    rationales_matched: int
    rationales_unmatched: list[str]
    mask_rationales_matched: int
    mask_rationales_unmatched: list[str]


def scan(
    path: AnyPath,
    layout: str = "auto",
    *,
    negatives: bool = False,
    group_pattern: str | None = None,
    rationales: AnyPath | None = None,
) -> Scan:
    """Everything about the dataset at `path`. A bad file among many becomes a `Problem`, not an exception.

    `negatives` adds BRISC's lesion-free images; `group_pattern` replaces the patients that published names state;
    `rationales`, a CSV image,cot[,role], replaces the dataset's own rationales of both kinds.

    Raises:
        CersError: no such path, unknown layout, nothing found, a `group_pattern` that is none or fits no name, or
            unreadable `rationales`.
    """
    path = Path(path).expanduser()
    name, root = _locate(path, layout)
    problems: list[Problem] = []
    cases = LAYOUTS[name].read(root, problems)
    if negatives:
        cases += negative_cases(root, problems)
    cases = without_repeats(cases, problems)
    if not cases:
        reason = "".join(f": {p.message}" for p in sorted(problems, key=lambda p: p.level != "error")[:1])
        raise CersError(f"{path} holds no image that layout '{name}' can read{reason}")
    cases = _named(cases, group_pattern, problems)
    ids = {case.id for case in cases}
    own = Texts() if name == "manifest" else _texts(root, ids, problems)
    if rationales is not None:
        cases = [replace(case, rationale=None, mask_rationale=None) for case in cases]
        new = collect_rationales(Path(rationales), ids, problems)
        own = replace(own, rationales=new.rationales, mask_rationales=new.mask_rationales)
    return _assemble(name, cases, own, problems, str(root))


def load_cases(
    path: AnyPath,
    layout: str = "auto",
    *,
    negatives: bool = False,
    group_pattern: str | None = None,
    rationales: AnyPath | None = None,
    on_warning: Callable[[str], object] | None = None,
) -> list[Case]:
    """The cases of a dataset without errors; arguments as for `scan`. `on_warning` hears each warning, one line.

    Raises:
        CersError: as `scan`, and at the first problem of level `error`.
    """
    found = scan(path, layout, negatives=negatives, group_pattern=group_pattern, rationales=rationales)
    if error := next((p for p in found.problems if p.level == "error"), None):
        raise CersError(f"{error.where}: {error.message}; run `cers data check {quote(str(path))}` for all problems")
    for problem in found.problems:
        if on_warning and problem.level == "warning":
            on_warning(f"{problem.where}: {problem.message}")
    return found.cases


def _locate(path: Path, layout: str) -> tuple[str, Path]:
    """The layout's name and the folder it starts at; archives often unpack into a folder within a folder."""
    if not path.exists():
        siblings = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else "give the folder or manifest of a dataset"
        raise CersError(f"no dataset at {path}; {hint}")
    if layout not in ("auto", *LAYOUTS):
        raise CersError(f"unknown data.layout '{layout}'; {nearest(layout, ['auto', *LAYOUTS])}")
    if path.is_file() and find_manifest(path) is None:
        raise CersError(f"{path} is no table that can be read; save it as CSV or Parquet, or give a folder")
    wanted = list(LAYOUTS) if layout == "auto" else [layout]
    level = [path]
    for _ in range(3):
        hits = [(name, root) for root in level for name in wanted if LAYOUTS[name].fits(root)]
        roots = {root: name for name, root in reversed(hits)}
        if len(roots) == 1:
            root, name = roots.popitem()
            return name, root
        if roots:
            raise CersError(f"{path} holds several datasets; name one: {some(sorted(str(r) for r in roots))}")
        level = [sub for root in level if root.is_dir() for sub in subfolders(root)]
    above = path.absolute().parent
    if list_images(path, []) and any(LAYOUTS[name].fits(above) for name in wanted):
        raise CersError(f"{path} is only a part of a dataset; give the folder above, {above}")
    needs = "; ".join(f"{name} needs {LAYOUTS[name].needs}" for name in wanted)
    raise CersError(f"no dataset found at {path}: {needs}")


def _named(cases: list[Case], pattern: str | None, problems: list[Problem]) -> list[Case]:
    """`cases` with the patient and the class that their names state, where the layout did not."""
    group = known_group if pattern is None else group_rule(pattern)
    cases = [
        replace(
            case,
            group=(case.group if pattern is None else None) or group(case.id),
            label=case.label or known_label(case.id),
        )
        for case in cases
    ]
    nameless = [case.id for case in cases if case.group is None]
    if pattern is not None and len(nameless) == len(cases):
        what = f"data.group_pattern '{pattern}' (--group-pattern) finds no patient in any of {len(cases)} names"
        raise CersError(f"{what}, e.g. '{nameless[0]}'; it is held against names without folder and suffix")
    if pattern is not None and nameless:
        message = f"{len(nameless)} of {len(cases)} names have no patient under '{pattern}': {some(nameless)}"
        problems.append(Problem("warning", "group-pattern", "data.group_pattern", message))
    return cases


def _texts(root: Path, ids: set[str], problems: list[Problem]) -> Texts:
    tables = find_tables(root)
    for folder in filter(None, (child(root, name) for name in LVIT_FOLDERS.values())):
        tables += find_tables(folder)
    reports = child(root, "reports")
    if reports is None:
        return collect_texts(tables, ids, problems)
    texts = collect_texts(tables + find_tables(reports, all_of_them=True), ids, problems)
    add_text_files(reports, texts, ids, problems)
    return texts


def _assemble(name: str, cases: list[Case], texts: Texts, problems: list[Problem], where: str) -> Scan:
    cases = [
        replace(
            case,
            report=texts.reports.get(case.id, case.report),
            rationale=texts.rationales.get(case.id, case.rationale),
            mask_rationale=texts.mask_rationales.get(case.id, case.mask_rationale),
        )
        for case in cases
    ]
    ids = {case.id for case in cases}
    alone: list[list[str]] = []
    kinds = {"report": texts.reports, "rationale": texts.rationales, "mask-informed rationale": texts.mask_rationales}
    for kind, store in kinds.items():
        unmatched = [k for k in store if k not in ids]
        alone.append(unmatched)
        if unmatched:
            hint = f"; {nearest(unmatched[0], ids)}" if len(unmatched) == len(store) else ""
            message = f"{len(unmatched)} of {len(store)} {kind}s fit no image, e.g. {some(unmatched)}{hint}"
            problems.append(Problem("warning" if hint else "note", "unmatched-text", kind, message))
    return Scan(
        layout=name,
        cases=cases,
        problems=shortened(problems, where),
        reports_matched=sum(case.report is not None for case in cases),
        reports_unmatched=alone[0],
        rationales_matched=sum(case.rationale is not None for case in cases),
        rationales_unmatched=alone[1],
        mask_rationales_matched=sum(case.mask_rationale is not None for case in cases),
        mask_rationales_unmatched=alone[2],
    )
