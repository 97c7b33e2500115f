"""The contract between a method and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cers.data.case import Batch, SemiBatch
from cers.errors import CersError
from cers.nets.encoder import PyramidEncoder
from cers.retrieval.pool import KnowledgePool


class Settings(BaseModel):
    """Base of every method's settings: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


@dataclass(frozen=True)
class Setup:
    """All that a method may know of a run before it starts.

    `encoder` makes a fresh encoder with the run's starting weights. `report_width` and `cot_width` are the widths of
    the text embeddings, None where the run has no such text; `image_size` is
    the side of the input, `cot_upper` makes the upper layers of the rationale encoder where these are to train.
    `labelled` are the (id, group, label) of the labelled cases, in the order of the split; `unlabelled` the ids of
    the others, of which it may know nothing more.
    """

    encoder: Callable[[], PyramidEncoder]
    labelled: Sequence[tuple[str, str | None, str | None]]
    image_size: int = 224
    report_width: int | None = None
    cot_width: int | None = None
    cot_upper: Callable[[], nn.Module] | None = None
    seed: int = 0
    unlabelled: Sequence[str] = ()


@dataclass(frozen=True)
class Stage:
    """A named part of the training budget: its share of all steps, and a factor on the learning rate.

    A stage that does not use `unlabelled` images gets labelled ones in their place, so that every step costs the same.
    """

    name: str
    share: float
    lr_factor: float = 1.0
    unlabelled: bool = True


@dataclass(frozen=True)
class Progress:
    """Where a step stands: `step` of `steps` within its stage, both counted from 0."""

    stage: str
    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """Share of the stage that lies behind, in [0, 1)."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True)
class StepResult:
    """A scalar loss to minimise in one optimiser step, and its parts for the log."""

    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What was retrieved for each of B queries, as rows of the pool (`pool_ids` names them).

    `index` (B,k) with `valid` (B,k) False where fewer than k cases could be had; `image_similarity` and
    `text_similarity` (B,k) are cosines; `attention` (B,k) is each reference's share of the cross attention.
    `candidates` (B,K) are the coarse candidates in order of image similarity, with their own two similarities.
    `by_report` (B,) is True where the texts that were compared are reports, else they are rationales.
    `at_least` (B,) is the share of the image that the lesion covers by what the references say, 0 where they do not.
    """

    pool_ids: Sequence[str]
    index: Tensor
    valid: Tensor
    image_similarity: Tensor
    text_similarity: Tensor
    candidates: Tensor
    candidates_valid: Tensor
    candidate_image_similarity: Tensor
    candidate_text_similarity: Tensor
    by_report: Tensor
    attention: Tensor | None = None
    at_least: Tensor | None = None

    def with_attention(self, attention: Tensor | None) -> Self:
        """The same evidence with each reference's share of attention (B,k)."""
        return replace(self, attention=attention)


@dataclass(frozen=True)
class Prediction:
    """`probability` (B,1,H,W) of the declared branch, every branch by name, and the evidence if any was used."""

    probability: Tensor
    branches: Mapping[str, Tensor] = field(default_factory=dict)
    evidence: Evidence | None = None


class Method(nn.Module, ABC):
    """A learning rule that owns its networks, teachers and pool. Everything it must remember is in its state_dict.

    A subclass is built as `Subclass(setup, settings)` and declares whether it `may_read_text` and, in this run,
    `reads_text`, how many `strong_views` of each image it wants, how many results `steps` yields a batch, and its
    `networks` in words. A method with a pool has an `encoder`, whose features fill it.

    Chance inside a method comes from torch's global generators only: before every batch the loop seeds them by the
    run's seed and the number of the step, so that each choice is a function of the two and a resumed run repeats it.
    """

    Settings: ClassVar[type[Settings]]
    encoder: PyramidEncoder
    pool: KnowledgePool | None
    may_read_text: ClassVar[bool] = False
    reads_text: bool = False
    strong_views: int = 0
    optimiser_steps: int = 1
    networks: ClassVar[str] = "1"

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__()
        self.pool = None

    def stages(self) -> tuple[Stage, ...]:
        """The parts of the budget, in order; shares sum to 1."""
        return (Stage("train", 1.0),)

    def start_stage(self, stage: str, labelled: Iterable[Batch]) -> None:
        """Called once before the first step of `stage`, with clean views of the labelled cases."""

    def label_unlabelled(self, stage: str, unlabelled: Iterable[Batch]) -> None:
        """Called once after `start_stage` with clean views of the unlabelled cases, for a first guess at their masks.

        They are made as they are asked for, so that a method which does not ask pays nothing.
        """

    @abstractmethod
    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """Yield one result per optimiser step to take on `batch`."""

    def compare_retrieval(self, batch: Batch) -> Mapping[str, Evidence]:
        """What each retrieval strategy would find for `batch`; nothing for a method without retrieval."""
        return {}

    def fill_pool(self, pool: KnowledgePool, labelled: Iterable[Batch]) -> None:
        """Write the cases of `labelled`, all entries of `pool`, into it; nothing for a method without retrieval."""

    def retrieve_by(self, strategy: str) -> None:
        """Predict with references chosen in another way than the method was trained with, or with `none`.

        Raises:
            CersError: the method has no retrieval, or no such strategy.
        """
        raise CersError("the method of this run retrieves nothing; leave out the retrieval strategy")

    def after_step(self) -> None:
        """Called after each optimiser step: teachers and pools follow here."""

    def after_validation(self, declared: float, branches: Mapping[str, float]) -> float:
        """Called with the validation Dice of the declared branch and of every branch by name; returns what counts.

        A method may choose its answer by it. The choice is part of its state, and of the checkpoint written next.
        """
        return declared

    @abstractmethod
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """Probabilities for `batch`, in eval mode, no gradient; no retrieval if `use_evidence` is False."""
