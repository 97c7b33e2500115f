"""CERS: CoT-enhanced reasoning segmentation (arXiv 2606.17958).

Stage "warm-up" trains encoder, both decoders and the image-CoT alignment on labelled cases (Eq. 1, 2); they then fill
the knowledge pool. Stage "semi" retrieves for every image by similarity of image and of rationale (2.2), fuses what it
finds into the retrieval decoder (Eq. 3, 4), lets both decoders agree on unlabelled images (Eq. 6, 7) and moves the
pool after the encoder (Eq. 5).

Beyond the paper, off unless turned on: with `reference_masks` references also say where their lesion lay, and what
looked like it (`MaskPrior`); with `reference_sizes`, how large it was at least (`reference_size`); with `strong_views`
the retrieval branch teaches both branches by strong views instead of Eq. 6 (`Lesson`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from cers.data.case import Batch, SemiBatch
from cers.errors import CersError, nearest
from cers.losses import dice_ce, pointing_loss, sharpened_consistency
from cers.methods.alignment import Alignment
from cers.methods.base import Evidence, Method, Prediction, Progress, Settings, Setup, Stage, StepResult
from cers.methods.evidence import Retriever, Strategy
from cers.methods.outline import contradicted, outline
from cers.methods.reference_size import grown
from cers.methods.strong_views import Lesson
from cers.nets.decoders import ResidualUNetDecoder
from cers.nets.mask_prior import SCALES, MaskPrior, mask_prototypes, pointed
from cers.nets.mcam import make_retrieval_decoder
from cers.nets.reference_fusion import ReferenceFusion
from cers.nets.text_attention import ReportAttention
from cers.retrieval.pool import KnowledgePool, PoolEntry, PoolShape
from cers.schedules import sigmoid_ramp

TOKEN_STRIDE = 32
LARGEST_GRID = 7

# Settings that only one state of another reads.
_HEEDED = {
    "pointing": ("reference_masks", True),
    "confidence": ("strong_views", True),
    "cutmix": ("strong_views", True),
    "lesson_dice": ("strong_views", True),
    "consistency_on": ("strong_views", False),
    "temperature": ("strong_views", False),
    "coordinate_gate": ("decoder", "mcam"),
    "multi_scale": ("decoder", "mcam"),
}


class CERSSettings(Settings):
    """Ablations are settings: each default is the paper's side, but for the weight `consistency` (0.003·H·W there)."""

    retrieval: Strategy = Field("image+cot", description="what selects the references")
    k: int = Field(5, ge=1, description="references per image")
    candidates: int = Field(50, ge=1, description="K of the coarse stage")
    exclude_group: bool = Field(True, description="never retrieve from the query's own patient or cluster")
    exclude_self: bool = Field(True, description="false: a labelled image may retrieve itself, as in the authors' code")
    mask_informed_queries: bool = Field(False, description="true: labelled images query by the CoT that saw their mask")
    report: bool = Field(True, description="report text attends into the encoder's features")
    report_norm: bool = Field(True, description="false: without the layer norm that the authors' program has after it")
    decoder: Literal["mcam", "unet", "swin-unet"] = "mcam"
    coordinate_gate: bool = True
    multi_scale: bool = True
    reference_masks: bool = Field(False, description="references also say where their lesion lay")
    pointing: float = Field(0.5, ge=0, description="weight of learning to find lesions by the references' masks alone")
    reference_sizes: bool = Field(
        False, description="an outline below half of its smallest reference grows to that, if validation gains by it"
    )
    output: Literal["retrieval", "base", "both"] = Field("retrieval", description="declared; both: their mean log-odds")
    warmup_share: float = Field(0.3, gt=0, lt=1, description="share of the steps spent in the warm-up")
    warmup_lr_factor: float = Field(1.0, gt=0)
    alignment: float = Field(0.5, ge=0, description="weight of the contrastive loss, Eq. 2")
    embedding: int = Field(512, ge=1, description="width of the space in which image and CoT are aligned")
    consistency: float = Field(
        1.0, ge=0, description="largest weight of Eq. 6, as a mean over pixels; strong views weigh 1"
    )
    strong_views: bool = Field(False, description="instead of Eq. 6, strong views learn what D_R sees in weak ones")
    consistency_on: Literal["unlabelled", "all"] = "unlabelled"
    confidence: float = Field(0.95, ge=0.5, lt=1, description="from which a pixel of a weak view counts")
    cutmix: float = Field(0.5, ge=0, le=1, description="probability that a strong view gets a box of another image")
    lesson_dice: float = Field(0.5, ge=0, description="weight of a Dice loss of strong views, sure or not")
    temperature: float = Field(0.1, gt=0, description="sharpening of Eq. 6")
    pool_momentum: float = Field(0.99, ge=0, le=1, description="Eq. 5, per visit of a case")

    @field_validator(*_HEEDED)
    @classmethod
    def _refuse_idle(cls, value: object, info: ValidationInfo) -> object:
        """A changed setting that nothing reads would look like an ablation without effect."""
        name = str(info.field_name)
        switch, state = _HEEDED[name]
        if value != cls.model_fields[name].default and info.data.get(switch) != state:
            raise ValueError(f"does nothing unless method.settings.{switch}={str(state).lower()}")
        return value


class Decoded(NamedTuple):
    """Logits (B,1,H,W) of both branches, each reference's share of the attention, and where their masks point."""

    retrieval: Tensor
    base: Tensor
    attention: Tensor | None
    margins: list[Tensor] | None


class CERS(Method):
    """Shared encoder, base decoder, retrieval decoder, and the pool they look things up in."""

    Settings = CERSSettings
    may_read_text = True
    networks = "1, two decoders, pool"
    pool: KnowledgePool
    size_gain: Tensor

    def __init__(self, setup: Setup, settings: CERSSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.strong_views = int(settings.strong_views)
        self.encoder = setup.encoder()
        channels = self.encoder.channels
        report_width = setup.report_width if settings.report else None
        self.report_attention = (
            ReportAttention(channels, report_width, norm=settings.report_norm) if report_width else None
        )
        self.base_decoder = ResidualUNetDecoder(channels)
        self.retrieval_decoder = make_retrieval_decoder(
            settings.decoder, channels, settings.coordinate_gate, settings.multi_scale
        )
        self.fusion = ReferenceFusion(channels[-1]) if settings.retrieval != "none" else None
        self.mask_prior = MaskPrior(channels) if self.fusion is not None and settings.reference_masks else None
        self.alignment = Alignment(channels[-1], setup.cot_width, settings.embedding, setup.cot_upper)
        self.pool = KnowledgePool([PoolEntry(*entry) for entry in setup.labelled], self._pool_shape(setup))
        self.register_buffer("size_gain", torch.zeros(()))
        self._taught = {entry.label for entry in self.pool.entries}
        self.retriever = Retriever(
            settings.retrieval, settings.candidates, settings.k, settings.exclude_group, settings.exclude_self
        )
        by_text = "cot" in settings.retrieval or "report" in settings.retrieval
        reads_cot = bool(setup.cot_width) and (settings.alignment > 0 or by_text)
        reads_report = bool(setup.report_width) and (settings.report or "report" in settings.retrieval)
        self.reads_text = reads_cot or reads_report
        self._seen: tuple[tuple[str, ...], Tensor, Tensor | None] | None = None

    def stages(self) -> tuple[Stage, ...]:
        """Warm-up on labelled cases, then semi-supervised learning; both count inside the budget."""
        share = self.settings.warmup_share
        return (
            Stage("warm-up", share, lr_factor=self.settings.warmup_lr_factor, unlabelled=False),
            Stage("semi", 1 - share),
        )

    @torch.no_grad()
    def start_stage(self, stage: str, labelled: Iterable[Batch]) -> None:
        """Before stage "semi": write every labelled case into the pool, from its clean view."""
        self.alignment.forget()
        self.size_gain.zero_()
        if stage == "semi":
            self.fill_pool(self.pool, labelled)

    @torch.no_grad()
    def fill_pool(self, pool: KnowledgePool, labelled: Iterable[Batch]) -> None:
        """Write cases into `pool`, whose CoT entries saw the mask (the mask-free ones stand in where there is none)."""
        training = self.training
        self.eval()
        for batch in labelled:
            features = self.encoder(batch.images)
            cot, known = self.alignment.mask_informed(batch)
            pool.fill(
                batch.ids,
                features[-1],
                cot=cot,
                cot_known=known,
                report=batch.report,
                report_known=batch.report_known,
                prototypes=self._prototypes(batch, features),
                area=batch.required_masks.mean(dim=(1, 2, 3)) if self.settings.reference_sizes else None,
            )
        self.train(training)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step of the warm-up (Eq. 2) or of the semi-supervised stage (Eq. 7)."""
        if progress.stage == "warm-up":
            yield self._warm_up_step(batch.labelled)
        else:
            yield self._semi_step(batch, progress)

    def after_step(self) -> None:
        """The pool follows the encoder by the features of the step itself (Eq. 5)."""
        if self._seen is not None:
            ids, features, prototypes = self._seen
            self.pool.update(ids, features, self.settings.pool_momentum, prototypes)
            self._seen = None

    def after_validation(self, declared: float, branches: Mapping[str, float]) -> float:
        """Sizes of references answer from now on if what they brought in the stage so far adds up to a gain.

        All its validations count, since one alone may hold no outline that they would change.
        """
        if "sized" not in branches:
            return declared
        self.size_gain += branches["sized"] - branches[self.settings.output]
        return branches["sized" if self.size_gain > 0 else self.settings.output]

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """Branches `retrieval` and `base`, the declared one being `settings.output`; and what references say alone.

        With `output` "both" a branch of that name is the mean of their log-odds.

        With `reference_sizes` branch `sized` is the declared one, grown where it is much smaller than its references;
        it is the answer if validation images were the better for it.
        Branch `references` is there with `reference_masks`. Where most references are of a class of which training had
        no mask, in a pool that was extended since, it is outlined along the image, and the answer where it prefers that
        place to the one outlined otherwise.
        """
        features = self.encoder(batch.images)
        evidence = self._retrieve(batch, features[-1]) if use_evidence else None
        decoded = self._decode(batch, features, evidence, need_attention=True)
        logits = {"retrieval": decoded.retrieval.float(), "base": decoded.base.float()}
        if self.settings.output == "both":
            logits["both"] = (logits["retrieval"] + logits["base"]) / 2
        branches = {name: values.sigmoid() for name, values in logits.items()}
        probability = branches[self.settings.output]
        if evidence is not None and evidence.at_least is not None:
            branches["sized"] = grown(logits[self.settings.output], evidence.at_least).sigmoid()
            if self.size_gain > 0:
                probability = branches["sized"]
        if evidence is not None and decoded.margins is not None:
            asked, said = self._asks_for_new_knowledge(evidence), pointed(decoded.margins, batch.size)
            branches["references"] = theirs = _said_by_references(batch, said, asked)
            doubted = asked & contradicted(probability, theirs, said)
            probability = torch.where(doubted[:, None, None, None], theirs, probability)
        return Prediction(probability, branches, evidence and evidence.with_attention(decoded.attention))

    def _asks_for_new_knowledge(self, evidence: Evidence) -> Tensor:
        """Which queries (B,) have most of their references from classes that no mask in training showed."""
        new = [e.label is not None and e.label not in self._taught for e in self.pool.entries]
        of_new_class = torch.tensor(new, device=evidence.index.device)[evidence.index] & evidence.valid
        return 2 * of_new_class.sum(dim=1) > evidence.valid.sum(dim=1)

    def retrieve_by(self, strategy: str) -> None:
        """Choose references by another strategy from now on."""
        known: dict[str, Strategy] = {name: name for name in get_args(Strategy) if self.fusion is not None}
        if strategy not in known:
            raise CersError(f"no retrieval strategy '{strategy}' in this run; {nearest(strategy, known)}")
        self.retriever = replace(self.retriever, strategy=known[strategy])

    @torch.no_grad()
    def compare_retrieval(self, batch: Batch) -> Mapping[str, Evidence]:
        """What every strategy would find with this encoder and pool."""
        pooled = self.encoder(batch.images)[-1].mean(dim=(2, 3))
        cot = self._query_rationales(batch)
        strategies = [name for name in get_args(Strategy) if name != "none"] if self.fusion is not None else []
        return {
            name: replace(self.retriever, strategy=name)(self.pool, batch, pooled, cot, fresh=False)
            for name in strategies
        }

    def _warm_up_step(self, labelled: Batch) -> StepResult:
        features = self.encoder(labelled.images)
        segmentation = self._segmentation_loss(self._decode(labelled, features, None), labelled.required_masks)
        alignment = self.alignment.loss(labelled, features[-1])
        loss = segmentation + self.settings.alignment * alignment
        return StepResult(loss, {"segmentation": segmentation.detach(), "alignment": alignment.detach()})

    def _semi_step(self, batch: SemiBatch, progress: Progress) -> StepResult:
        n, masks = len(batch.labelled), batch.labelled.required_masks
        lesson = self._lesson(batch.unlabelled)
        joined = batch.joined() if lesson is None else _studied(batch, lesson).joined()
        features = self.encoder(joined.images)
        prototypes = self._prototypes(batch.labelled, [feature[:n] for feature in features])
        self._seen = (batch.labelled.ids, features[-1][:n].detach(), prototypes)
        decoded = self._decode(joined, features, self._retrieve(joined, features[-1]))
        loss = self._segmentation_loss(decoded, masks)
        logs = {"segmentation": loss.detach()}
        if decoded.margins is not None:
            pointing = pointing_loss([margin[:n] for margin in decoded.margins], masks)
            loss = loss + self.settings.pointing * pointing
            logs["pointing"] = pointing.detach()
        first = 0 if self.settings.consistency_on == "all" else n
        if first < len(joined):
            consistency, weight = self._consistency(decoded, lesson, first, progress)
            loss = loss + weight * consistency
            logs["consistency"] = consistency.detach()
        return StepResult(loss, logs)

    def _consistency(
        self, decoded: Decoded, lesson: Lesson | None, first: int, progress: Progress
    ) -> tuple[Tensor, float]:
        """What both branches, or a strong view and its lesson, disagree on from image `first` on, and its weight."""
        retrieval, base = decoded.retrieval[first:], decoded.base[first:]
        if lesson is not None:
            dice = self.settings.lesson_dice
            return lesson.loss(retrieval, dice) + lesson.loss(base, dice), 1.0
        weight = self.settings.consistency * sigmoid_ramp(progress.fraction)
        return sharpened_consistency(retrieval, base, self.settings.temperature), weight

    @torch.no_grad()
    def _lesson(self, unlabelled: Batch | None) -> Lesson | None:
        """What the retrieval branch, with its references, sees in the weak views."""
        if unlabelled is None or unlabelled.strong is None:
            return None
        features = self.encoder(unlabelled.images)
        taught = self._decode(unlabelled, features, self._retrieve(unlabelled, features[-1])).retrieval
        # Otherwise torch 2.8 goes on with its casts of the weights to half precision, which have no gradient.
        torch.clear_autocast_cache()
        return Lesson.of(unlabelled.strong, taught.float().sigmoid(), self.settings.confidence, self.settings.cutmix)

    def _segmentation_loss(self, decoded: Decoded, masks: Tensor) -> Tensor:
        """That of both decoders on the labelled images, which come first."""
        return dice_ce(decoded.retrieval[: len(masks)], masks) + dice_ce(decoded.base[: len(masks)], masks)

    def _query_rationales(self, batch: Batch) -> Tensor | None:
        if self.settings.mask_informed_queries:
            return self.alignment.mask_informed(batch)[0]
        return self.alignment.mask_free(batch)

    @torch.no_grad()
    def _retrieve(self, batch: Batch, features: Tensor) -> Evidence | None:
        if (
            self.fusion is None or self.retriever.strategy == "none" or not self.pool.filled.any()
        ):  # in the warm-up there is nothing to retrieve yet
            return None
        return self.retriever(
            self.pool, batch, features.mean(dim=(2, 3)), self._query_rationales(batch), fresh=self.training
        )

    def _decode(
        self, batch: Batch, features: list[Tensor], evidence: Evidence | None, need_attention: bool = False
    ) -> Decoded:
        attended = features
        if self.report_attention is not None:
            attended = self.report_attention(features, batch.report_tokens, batch.report_padding)
        reference, attention = self._fuse(features[-1], evidence, need_attention)
        base = self.base_decoder(attended, batch.size)
        margins = None
        if self.mask_prior is not None and evidence is not None:
            margins = self.mask_prior.margins(features, self.pool.prototypes[evidence.index], evidence.valid)
            attended = self.mask_prior(attended, margins)
        return Decoded(self.retrieval_decoder(attended, reference, batch.size), base, attention, margins)

    @torch.no_grad()
    def _prototypes(self, batch: Batch, features: list[Tensor]) -> Tensor | None:
        if self.mask_prior is None or batch.masks is None:
            return None
        return mask_prototypes(features, batch.masks)

    def _fuse(
        self, feature: Tensor, evidence: Evidence | None, need_attention: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The reference path of D_R and each reference's share of the attention (Eq. 3)."""
        if self.fusion is None:
            return None, None
        if evidence is None:
            return self.fusion.alone(feature), None
        fused: tuple[Tensor, Tensor | None] = self.fusion(
            feature, self.pool.tokens[evidence.index], evidence.valid, need_attention=need_attention
        )
        return fused

    def _pool_shape(self, setup: Setup) -> PoolShape:
        grid = min(LARGEST_GRID, math.ceil(setup.image_size / TOKEN_STRIDE))
        cot = self.settings.embedding if setup.cot_width else 0
        prototypes = sum(self.encoder.channels[SCALES]) if self.mask_prior is not None else 0
        return PoolShape(
            self.encoder.channels[-1],
            grid,
            cot,
            setup.report_width or 0,
            prototypes,
            areas=self.settings.reference_sizes,
        )


def _studied(batch: SemiBatch, lesson: Lesson) -> SemiBatch:
    """The batch with the lesson's images in the place of the unlabelled ones; their words stay."""
    assert batch.unlabelled is not None
    return replace(batch, unlabelled=replace(batch.unlabelled, images=lesson.images))


def _said_by_references(batch: Batch, said: Tensor, asked: Tensor) -> Tensor:
    """Probability of lesion by the references alone (B,1,H,W); along the edges of the image where they are `asked`."""
    probability = said.sigmoid()
    probability[asked] = outline(batch.images[asked], said[asked])
    return probability
