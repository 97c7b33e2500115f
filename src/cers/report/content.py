"""What a report shows: plain data, gathered by the caller, at the size of each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.data.prediction import Compared


@dataclass(frozen=True)
class ShownReference:
    """A case of the pool: one that was used, or a coarse candidate that the text step rejected.

    `image` (H,W) or (H,W,3) uint8 and `mask` (H,W) bool or None. Similarities are cosines, NaN where a side has no
    such embedding; `attention` is its share of the cross attention. `rationale` is the raw text of the four aspects.

    Raises:
        ValueError: `mask` has not the size of `image`.
    """

    id: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None
    label: str | None = None
    report: str | None = None
    rationale: str | None = None
    image_similarity: float = float("nan")
    text_similarity: float = float("nan")
    attention: float | None = None

    def __post_init__(self) -> None:
        _require_size(self.id, self.image, {"mask": self.mask})


@dataclass(frozen=True)
class ShownCase:
    """A query with its prediction and the evidence behind it.

    `heading` is chosen, best, median, worst or example. `probability`, each of `branches` and `without_evidence` (H,W)
    are in [0, 1]; `truth` (H,W) is None where nobody annotated the image. `references` are in order of rank, `rejected`
    in order of image similarity; both are empty for a method without evidence. `compared` is the kind of text that text
    similarities are of, None where no two texts were compared. `at_least` is the share of the image that the lesion
    covers by what the references say, 0 where they do not.

    Raises:
        ValueError: a map has not the size of `image`.
    """

    id: str
    heading: str
    image: NDArray[np.uint8]
    probability: NDArray[np.float32]
    truth: NDArray[np.bool_] | None = None
    branches: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    without_evidence: NDArray[np.float32] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    label: str | None = None
    report: str | None = None
    rationale: str | None = None
    references: Sequence[ShownReference] = ()
    rejected: Sequence[ShownReference] = ()
    compared: Compared | None = None
    at_least: float = 0.0

    def __post_init__(self) -> None:
        maps = {"probability": self.probability, "truth": self.truth, "without_evidence": self.without_evidence}
        _require_size(self.id, self.image, maps | dict(self.branches))


@dataclass(frozen=True)
class ReportData:
    """Everything `report.html` is made of.

    `config` is the resolved configuration; `summary` what `cers.evaluate.table.summarise` returns, optionally with the
    retrieval quality by strategy under "retrieval"; `log` the rows of log.jsonl; `provenance` short facts by name.
    """

    title: str
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[ShownCase] = ()


def _require_size(case: str, image: NDArray[np.uint8], maps: Mapping[str, NDArray[Any] | None]) -> None:
    for name, values in maps.items():
        if values is not None and values.shape != image.shape[:2]:
            raise ValueError(f"case '{case}': {name} is {values.shape}, its image {image.shape[:2]}")
