"""What there is to choose from: every registered method in a row."""

import sys
from dataclasses import dataclass

import torch

from cers.errors import CersError
from cers.methods.base import Setup
from cers.methods.registry import METHODS, create_method
from cers.nets.encoder import PyramidEncoder

TEXT_WIDTH = 768  # of the language models that read reports and rationales


@dataclass(frozen=True)
class Overview:
    """A method with its default settings.

    `paper` is the first line of its file, `networks` what is trained or follows, `stages` their shares of the budget.
    `reads_text` says whether its predictions depend on a text, `parameters` counts those that training changes.
    """

    name: str
    paper: str
    networks: str
    stages: dict[str, float]
    optimiser_steps: int
    reads_text: bool
    parameters: int


def overview(encoder: str = "convnext_tiny") -> list[Overview]:
    """Every method on `encoder`, in a run with reports and rationales. Nothing is downloaded or computed.

    Raises:
        CersError: timm has no such encoder.
    """
    with torch.device("meta"):
        try:
            PyramidEncoder(encoder)
        except ValueError as error:
            raise CersError(str(error)) from None
        return [_describe(name, encoder) for name in METHODS]


def _describe(name: str, encoder: str) -> Overview:
    setup = Setup(
        lambda: PyramidEncoder(encoder), [("case", None, None)], report_width=TEXT_WIDTH, cot_width=TEXT_WIDTH
    )
    method = create_method(name, {}, setup)
    paper = (sys.modules[type(method).__module__].__doc__ or "").splitlines()[0].rstrip(".")
    return Overview(
        name,
        paper,
        method.networks,
        {stage.name: stage.share for stage in method.stages()},
        method.optimiser_steps,
        method.reads_text,
        sum(p.numel() for p in method.parameters() if p.requires_grad),
    )
