"""What a benchmark computes on: a CERS with a filled pool, a batch, and the texts that belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from cers.data.case import Batch, SemiBatch
from cers.errors import CersError
from cers.methods.base import Setup
from cers.methods.cers import CERS, CERSSettings
from cers.nets.encoder import PyramidEncoder

TEXT_WIDTH = 768
REPORT_WORDS, REPORT_LIMIT = (12, 24), 128
COT_WORDS, COT_LIMIT = (80, 110), 256
FIRST_WORD, WORDS = 5, 1000  # any words will do; 0 is padding


@dataclass(frozen=True)
class Workload:
    """A stage-2 step: `images` labelled and as many unlabelled ones of `size` pixels, a pool of `pool` cases.

    `language` overrides settings of the language models, which are as large as BERT-base.
    """

    encoder: str = "convnext_tiny"
    size: int = 224
    pool: int = 500
    images: int = 4
    language: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text_width(self) -> int:
        """Width of the language models' states."""
        return int(self.language.get("hidden_size", TEXT_WIDTH))


@dataclass(frozen=True)
class Words:
    """Token ids of reports (B,128) and rationales (B,256), 0 behind the end of each text."""

    reports: Tensor
    cots: Tensor

    def part(self, of: slice) -> Self:
        """The texts of some of the images."""
        return type(self)(self.reports[of], self.cots[of])


def make_method(workload: Workload) -> CERS:
    """An untrained CERS in training mode, its pool filled with random features.

    Raises:
        CersError: timm has no such encoder.
    """
    torch.manual_seed(0)
    names = _names(workload.pool)
    setup = Setup(
        encoder=lambda: PyramidEncoder(workload.encoder),
        labelled=[(name, f"patient {row // 3}", None) for row, name in enumerate(names)],
        image_size=workload.size,
        report_width=workload.text_width,
        cot_width=workload.text_width,
    )
    try:
        method = CERS(setup, CERSSettings())
    except ValueError as error:
        raise CersError(f"--encoder: {error}") from None
    for name, parameter in method.named_parameters():
        if name == "fusion.attention.out_proj.weight":  # it starts at zero, and nobody could tell what was retrieved
            nn.init.xavier_uniform_(parameter)
    shape = method.pool.shape
    features = torch.randn(len(names), shape.channels, shape.grid, shape.grid)
    method.pool.fill(
        names, features, cot=torch.randn(len(names), shape.cot), cot_known=torch.ones(len(names), dtype=torch.bool)
    )
    return method


def make_batch(workload: Workload, report: Tensor, report_padding: Tensor, cot: Tensor) -> SemiBatch:
    """Random images with the texts' features: labelled ones, which are in the pool, then unlabelled ones."""
    n, size = workload.images, workload.size
    generator = torch.Generator().manual_seed(1)
    names = (*_names(workload.pool)[:n], *(f"unlabelled {i}" for i in range(n)))
    if workload.pool < n:
        raise CersError(f"--pool must hold the batch's {n} labelled images at least, not {workload.pool} cases")
    images = torch.randn(2 * n, 3, size, size, generator=generator)
    masks = (torch.rand(n, 1, size, size, generator=generator) > 0.9).float()

    def stream(of: slice, masks: Tensor | None) -> Batch:
        return Batch(
            names[of],
            images[of],
            masks,
            report_tokens=report[of],
            report_padding=report_padding[of],
            cot=cot[of],
            cot_known=torch.ones(n, dtype=torch.bool),
            groups=(None,) * n,
        )

    return SemiBatch(stream(slice(0, n), masks), stream(slice(n, None), None))


def random_batch(workload: Workload) -> SemiBatch:
    """A batch with random features in place of the texts'."""
    count, width = 2 * workload.images, workload.text_width
    padding = make_words(workload).reports[:, : REPORT_WORDS[1]] == 0
    return make_batch(workload, torch.randn(*padding.shape, width), padding, torch.randn(count, width))


def make_words(workload: Workload) -> Words:
    """Texts as long as those of the published datasets, one report and one rationale for each image."""
    count = 2 * workload.images
    return Words(_texts(count, REPORT_WORDS, REPORT_LIMIT), _texts(count, COT_WORDS, COT_LIMIT))


def language_model(workload: Workload) -> nn.Module:
    """A BERT with random weights: ids and mask (B,L) to states (B,L,D).

    Raises:
        CersError: the extra `hf` is not installed.
    """
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        raise CersError("the authors' way needs language models; run: pip install 'cers[hf]'") from None
    model: nn.Module = BertModel(BertConfig(**workload.language), add_pooling_layer=False)
    return model


def _texts(count: int, words: tuple[int, int], limit: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(FIRST_WORD, WORDS, (count, limit), generator=generator)
    lengths = torch.randint(words[0], words[1] + 1, (count, 1), generator=generator)
    return ids.masked_fill(torch.arange(limit) >= lengths, 0)


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"case {i:07d}" for i in range(count))
