"""What a run works on: its cases, as far as it may see them, their texts and their batches."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from shlex import quote

from cers.config import RunConfig
from cers.cot.rationale import MalformedRationale, parse_rationale, render
from cers.data.cache import ImageCache
from cers.data.case import Case
from cers.data.layouts import load_cases
from cers.data.loaders import BatchMaker
from cers.data.splits import Split, unfit
from cers.errors import CersError
from cers.text.encoders import TextEncoders
from cers.text.table import TextTable

Decoding = Callable[[int, int], None]


def load_dataset(config: RunConfig, on_warning: Callable[[str], object] | None = None) -> list[Case]:
    """All cases that the configuration names; `on_warning` hears what is doubtful about them.

    Raises:
        CersError: no dataset there, or one with errors.
    """
    data = config.data
    try:
        return load_cases(
            data.path,
            data.layout,
            negatives=data.negatives,
            group_pattern=data.group_pattern,
            rationales=data.rationales,
            on_warning=on_warning,
        )
    except CersError as error:
        if data.path.expanduser().exists():
            raise
        raise CersError(f"{error}; say where it is with data.path=FOLDER") from None


def dataset_cases(config: RunConfig, split: Split) -> list[Case]:
    """All cases that the configuration names, with the groups of the split.

    Raises:
        CersError: no dataset there, or not the one of the split.
    """
    cases = load_dataset(config)
    if wrong := unfit(split, cases):
        raise CersError(
            f"data.path={config.data.path} is not the dataset of this run any more: {wrong[0]}; "
            "restore it, or say where it is with data.path=FOLDER"
        )
    return with_groups(cases, split)


def with_groups(cases: Sequence[Case], split: Split) -> list[Case]:
    """The same cases; a cluster of near-duplicates found by the split counts as a group."""
    return [replace(case, group=split.groups.get(case.id, case.group)) for case in cases]


def training_cases(cases: Sequence[Case], split: Split) -> list[Case]:
    """The cases training may see. Those it must not learn from have neither mask nor mask-informed rationale.

    Validation cases keep the mask they are scored by; test cases are not there at all.
    """
    labelled, unlabelled, val = set(split.labelled), set(split.unlabelled), set(split.val)
    seen = []
    for case in with_groups(cases, split):
        if case.id in labelled:
            seen.append(case)
        elif case.id in val:
            seen.append(replace(case, mask_rationale=None))
        elif case.id in unlabelled:
            seen.append(unannotated(case))
    return seen


def unannotated(case: Case) -> Case:
    """The case as it is before anyone drew its lesion."""
    return replace(case, mask=None, negative=False, mask_rationale=None)


def make_batches(
    config: RunConfig,
    cases: Sequence[Case],
    texts: TextEncoders,
    labelled: Collection[str],
    on_decode: Decoding | None = None,
    *,
    mirrors: bool = False,
) -> BatchMaker:
    """Decoded images and embedded texts of `cases`, with `mirrors` those of mirrored views as well.

    Raises:
        CersError: a file cannot be read, or the masks of `labelled` have all come out empty, or all full.
    """
    cache = ImageCache.build(
        cases, config.data.image_size, config.data.cache / "images", config.data.mask, progress=on_decode
    )
    used = set(labelled)
    _refuse_masks_all_alike(config, cache, [c for c in cases if c.id in used and c.mask and not c.negative])
    table = TextTable(
        cases,
        report=texts.report,
        cot=texts.cot,
        render=rendered,
        cache_folder=config.data.cache / "text",
        labelled=labelled,
        cot_states=texts.cot_upper is not None,
        mirrors=mirrors,
    )
    return BatchMaker(cache, {case.id: case for case in cases}, table)


def _refuse_masks_all_alike(config: RunConfig, cache: ImageCache, outlined: Sequence[Case]) -> None:
    """From such masks nothing is learned, and against others like them a Dice of 1 is no merit."""
    masks = [mask for case in outlined if (mask := cache.mask(case.id)) is not None]
    if not masks or (any(mask.any() for mask in masks) and not all(mask.all() for mask in masks)):
        return
    found = "have no lesion" if not masks[0].any() else "are lesion all over"
    reading = config.data.mask.model_dump(mode="json")
    raise CersError(
        f"all {len(masks)} labelled masks {found} as read with "
        f"{' and '.join(f'data.mask.{name}={json.dumps(value)}' for name, value in reading.items())}; "
        f"run `cers data check {quote(str(config.data.path))}` to see what values they hold"
    )


def fit_texts(
    config: RunConfig, cases: Sequence[Case], split: Split, on_note: Callable[[str], None] | None = None
) -> TextEncoders:
    """Text encoders; what must be fitted is fitted on the well-formed texts of training cases.

    `on_note` is told how many rationales are not well-formed.
    """
    training = {*split.labelled, *split.unlabelled}
    cases = [case for case in cases if case.id in training]
    reports = [case.report for case in cases if case.report]
    rationales = [(case.id, text) for case in cases for text in (case.rationale, case.mask_rationale) if text]
    well_formed, malformed = _well_formed(rationales)
    if malformed and on_note is not None:
        on_note(
            f"{len(malformed)} of {len(rationales)} rationales are malformed and count as none, e.g. {malformed[0]}"
        )
    return TextEncoders.fit(config.text, reports, well_formed, config.seed)


def rendered(text: str) -> str:
    """A rationale as its four aspects.

    Raises:
        MalformedRationale: it has not all four.
    """
    return render(parse_rationale(text))


def _well_formed(rationales: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The rendered texts of the well-formed ones, and a line for each of the others."""
    texts, malformed = [], []
    for case_id, text in rationales:
        try:
            texts.append(rendered(text))
        except MalformedRationale as error:
            malformed.append(f"that of '{case_id}': {error}")
    return texts, malformed
