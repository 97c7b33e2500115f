"""What file names say: the key of a case, its patient and its class."""

import re
import unicodedata
from collections.abc import Callable

from cers.errors import CersError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# One rule per published naming. The group is the patient: Radiopaedia's case number, not one of its several series.
_GROUPS = tuple(
    re.compile(rule)
    for rule in (
        r"(Jun_coronacases_case\d+)_\d+",
        r"(Jun_radiopaedia_\d+)_\d+_\d+_case\d+_\d+",
        r"(Morozov_study_\d+)_\d+",
        r"(bjorke_\d+)",
        r"(?:.*_)?(coronacases_org_\d+)_\d+",
        r"(?:.*_)?(radiopaedia_org_covid-19-pneumonia-\d+)_.+_\d+",
        r"(sub-S[^_]+)(?:_.*)?",
        r"(covid_\d+)",
    )
)
_BRISC = re.compile(r"brisc2025_(?:train|test)_\d+_(gl|me|pi|no)_(?:ax|co|sa)_t1")
_CLASSES = {"gl": "glioma", "me": "meningioma", "pi": "pituitary", "no": "no_tumor"}


def key(name: str) -> str:
    """The stem by which images, masks and table rows find each other: no folder, no image extension, NFC."""
    base = unicodedata.normalize("NFC", re.split(r"[/\\]", name.strip())[-1])
    for suffix in IMAGE_SUFFIXES:
        if base.lower().endswith(suffix):
            return base[: -len(suffix)]
    return base


def aliases(stem: str) -> tuple[str, ...]:
    """The image stems that `stem`, of a mask or a table row, may stand for; the first that exists is meant."""
    return stem, stem.removeprefix("mask_"), re.sub(r"_mask(_\d+)?$", "", stem)


def known_group(stem: str) -> str | None:
    """The patient that a published naming (MosMedData+, QaTa-COV19, medicalsegmentation.com) states, or None."""
    return next((found[1] for rule in _GROUPS if (found := rule.fullmatch(stem))), None)


def known_label(stem: str) -> str | None:
    """The class that a BRISC 2025 name states, or None."""
    found = _BRISC.fullmatch(stem)
    return _CLASSES[found[1]] if found else None


def group_rule(pattern: str) -> Callable[[str], str | None]:
    """A function from stem to what the first group of the regular expression `pattern` finds in it, or None.

    Raises:
        CersError: not a regular expression, or one without a group.
    """
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise CersError(f"data.group_pattern '{pattern}' is not a regular expression: {error}") from None
    if not rule.groups:
        raise CersError(f"data.group_pattern '{pattern}' has no group; put the patient in brackets, e.g. '^(P\\d+)_'")

    def group(stem: str) -> str | None:
        found = rule.search(stem)
        return found[1] if found else None

    return group
