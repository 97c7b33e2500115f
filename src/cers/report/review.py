"""The page on which an expert judges rationales: one HTML file that works offline and keeps verdicts in the browser."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.report.evidence import ASPECTS, split_aspects
from cers.report.figures import contour, picture
from cers.report.page import environment

SIDE = 1024
"""Longest side of a picture, pixels: fine enough to judge by, and some 60 of them are still a file to send."""


@dataclass(frozen=True)
class ReviewCase:
    """One text to judge: its `name` in verdict files, its case, and what is shown beside it.

    `image` (H,W) or (H,W,3) uint8; `mask` (H,W) bool of a labelled case, else None.
    """

    name: str
    image_id: str
    role: str
    text: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None
    report: str | None = None


def render_review(cases: Sequence[ReviewCase], header: Mapping[str, Any]) -> str:
    """The page for `cases`, in order; `header` is what every file of verdicts begins with."""
    script = resources.files("cers.report").joinpath("templates/review.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("review.html.j2")
        .render(
            cases=[_content(case) for case in cases],
            aspects=ASPECTS,
            side=SIDE,
            header=json.dumps(dict(header)),
            script=script,
            digest=digest,
        )
    )


def _content(case: ReviewCase) -> dict[str, Any]:
    return {
        "name": case.name,
        "image_id": case.image_id,
        "informed": case.role == "labelled",
        "report": case.report,
        "aspects": split_aspects(case.text),
        "picture": picture(case.image, SIDE),
        "height": case.image.shape[0],
        "width": case.image.shape[1],
        "longest": max(case.image.shape[:2]),
        "outline": None if case.mask is None else contour(case.mask),
    }
