"""The page of an audit: what was counted and measured, and the worst cases with their images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cers.report.evidence import mark_shared, split_aspects
from cers.report.figures import SMALL, picture
from cers.report.page import environment

Shown = Callable[[str], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class WorstText:
    """One text of a case, under a `title`; it is shown by aspect where it has any."""

    title: str
    text: str


@dataclass(frozen=True)
class WorstCase:
    """A case that deserves a look: why (`note`), whose image, its report and its texts."""

    image: str
    note: str
    texts: Sequence[WorstText]
    report: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class AuditPage:
    """What the page shows. `tables` are by title, head first; `worst` are cases by what is wrong with them."""

    title: str
    facts: Mapping[str, tuple[str, str]]
    tables: Mapping[str, tuple[Sequence[Sequence[str]], str]]
    worst: Mapping[str, Sequence[WorstCase]] = field(default_factory=dict)


def render_audit(page: AuditPage, image_of: Shown) -> str:
    """`page` as one HTML document; `image_of` gives the pixels (H,W) or (H,W,3) of a case, or None."""
    pictures: dict[str, Mapping[str, Any] | None] = {}
    for case in (case for cases in page.worst.values() for case in cases):
        if case.image not in pictures:
            pictures[case.image] = _picture(image_of(case.image))
    return environment().get_template("audit.html.j2").render(page=page, pictures=pictures, by_aspect=_by_aspect)


def _picture(pixels: NDArray[np.uint8] | None) -> Mapping[str, Any] | None:
    if pixels is None:
        return None
    return {"uri": picture(pixels, SMALL), "width": pixels.shape[1], "height": pixels.shape[0]}


def _by_aspect(case: WorstCase) -> dict[str, list[str | Markup]]:
    """A row for each aspect, a cell for each text; words that the first text uses as well are marked."""
    parts = [split_aspects(text.text) for text in case.texts]
    names = list(dict.fromkeys(name for part in parts for name in part))
    first = parts[0] if parts else {}
    return {
        name: [
            mark_shared(part.get(name, "–"), first.get(name, "")) if i else part.get(name, "–")
            for i, part in enumerate(parts)
        ]
        for name in names
    }
