"""What a trained run says about one case, at the size of its own image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Compared = Literal["report", "rationale"]


@dataclass(frozen=True)
class Reference:
    """A retrieved case of the pool. Similarities are cosines, NaN where a side has no such embedding.

    `attention` is its share of the cross attention, averaged over heads and positions; None where none was computed.
    """

    id: str
    image_similarity: float
    text_similarity: float
    attention: float | None = None


@dataclass(frozen=True)
class CasePrediction:
    """`probability` (H,W) of the declared branch and of each branch by name, float32 in [0, 1].

    `references` were used, in order of rank; `rejected` are coarse candidates, by image similarity, that the fine step
    dropped. `at_least` is the share of the image that the lesion covers by what the references say, 0 where they do
    not. `compared` is the kind of text that text similarities are of, None where no two texts were compared.
    `without_evidence` (H,W) is the same branch with retrieval switched off, where asked for.
    """

    id: str
    probability: NDArray[np.float32]
    branches: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    references: Sequence[Reference] = ()
    rejected: Sequence[Reference] = ()
    at_least: float = 0.0
    compared: Compared | None = None
    without_evidence: NDArray[np.float32] | None = None
