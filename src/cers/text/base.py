"""What a text encoder is to the rest of the program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextFeatures:
    """One text: `tokens` (L,D) float32, and `pooled` (D,) float32 of unit length, or zero for unknown words only."""

    tokens: NDArray[np.float32]
    pooled: NDArray[np.float32]


class TextEncoder(Protocol):
    """A frozen text encoder; its `fingerprint` keys the cache."""

    @property
    def fingerprint(self) -> str:
        """Names model, revision and settings."""
        ...

    @property
    def width(self) -> int:
        """D of the features."""
        ...

    def encode(self, texts: Sequence[str]) -> list[TextFeatures]:
        """Features of each of `texts`, in order."""
        ...
