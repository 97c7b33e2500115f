"""The text encoders of one run: made from its settings, written into its folder, read back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import nn

from cers.config import TextConfig
from cers.errors import CersError
from cers.text.base import TextEncoder
from cers.text.registry import load_text_encoder, make_text_encoder, save_text_encoder


@dataclass(frozen=True)
class TextEncoders:
    """Frozen encoders of reports and rationales, None where the run has no such text.

    `cot_upper` makes the upper layers of the rationale encoder where these train; `cot` then ends below them, and
    `whole_cot` is the encoder as it came.
    """

    report: TextEncoder | None
    cot: TextEncoder | None
    cot_upper: Callable[[], nn.Module] | None = None
    whole_cot: TextEncoder | None = None

    @classmethod
    def fit(cls, config: TextConfig, reports: Sequence[str], rationales: Sequence[str], seed: int) -> Self:
        """Encoders by the names in `config`; one that must be fitted is fitted on these training texts.

        Raises:
            CersError: unknown name, a model that cannot be had, or one whose upper layers cannot train.
        """
        report = make_text_encoder(config.report, reports, config.max_report_tokens, seed)
        cot = make_text_encoder(config.cot, rationales, config.max_cot_tokens, seed)
        return cls._cut(report, cot, config.cot_upper_layers)

    @classmethod
    def load(cls, folder: Path, config: TextConfig) -> Self:
        """Those that `save` wrote.

        Raises:
            CersError: they are missing, damaged, or their weights have changed since.
        """
        return cls._cut(
            load_text_encoder(folder / "report"), load_text_encoder(folder / "cot"), config.cot_upper_layers
        )

    def save(self, folder: Path) -> None:
        """Write what `load` needs."""
        save_text_encoder(self.report, folder / "report")
        save_text_encoder(self.whole_cot, folder / "cot")

    @classmethod
    def _cut(cls, report: TextEncoder | None, cot: TextEncoder | None, layers: int) -> Self:
        if cot is None or layers == 0:
            return cls(report, cot, whole_cot=cot)
        split = getattr(cot, "split_upper", None)
        if split is None:
            raise CersError("text.cot_upper_layers needs a transformer as text.cot, e.g. minilm; tfidf has no layers")
        lower, _ = split(layers)
        return cls(report, lower, lambda: split(layers)[1], cot)
