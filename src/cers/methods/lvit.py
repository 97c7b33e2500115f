"""LViT: language meets vision transformer (Li et al., TMI 2024, arXiv 2206.14718).

A network of its own that reads the report beside the image, in training and at test time (`nets/lvit.py`). Its authors
released supervised training only; the semi-supervised part follows the paper.

*   Stage "prototype": DiceCE(S(x_l, t_l), y_l).
*   EPI, exponential pseudo-label iteration: every unlabelled image keeps a soft mask P in its own frame, from what the
    prototype says of its clean view (P_0) on: P <- 0.99 P + 0.01 p wherever the image's present view shows it.
*   LV loss: C is the mask of the labelled image whose report is most similar to the unlabelled one's (cosine; the paper
    has hand-made templates for one data set), and L_LV = 1 - cos(p, C). Without reports, or where C is empty, it is 0.
*   Stage "semi": L = DiceCE(S(x_l, t_l), y_l) + DiceCE(S(x_u, t_u), P) + 0.1 L_LV.

P and C move with the image under augmentation. 24 tokens of a report are read where the program reads 10, which cuts
the right lung off nearly every text that names both; `tokens` 10 is its way. No pretrained weights fit this network.
"""

from collections.abc import Iterable, Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cers.data.case import Batch, SemiBatch
from cers.losses import dice_ce, region_mean
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, Stage, StepResult
from cers.nets.lvit import LViTNet


class LViTSettings(Settings):
    """Defaults of the paper, but for the longer texts."""

    width: int = Field(64, ge=8, multiple_of=8, description="channels of the network's finest level")
    tokens: int = Field(24, ge=1, description="tokens of a report that are read; the program: 10")
    prototype_share: float = Field(0.25, gt=0, lt=1, description="share of the steps spent on the prototype")
    momentum: float = Field(0.99, ge=0, le=1, description="beta of EPI, per visit of an image")
    language_vision: float = Field(0.1, ge=0, description="weight of the LV loss")


class LViT(Method):
    """The network, a soft mask for each unlabelled image, and the labelled images' masks and reports.

    `contrastive` is for each unlabelled image the row of the most similar report's mask, -1 where there is none.
    """

    Settings = LViTSettings
    may_read_text = True
    pseudo_labels: Tensor
    masks: Tensor
    contrastive: Tensor
    reports: Tensor
    report_known: Tensor

    def __init__(self, setup: Setup, settings: LViTSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.reads_text = setup.report_width is not None
        self.network = LViTNet(settings.width, setup.image_size, setup.report_width, settings.tokens)
        self._rows = {id_: row for row, id_ in enumerate(setup.unlabelled)}
        self._labelled_rows = {entry[0]: row for row, entry in enumerate(setup.labelled)}
        labelled, side = len(self._labelled_rows), setup.image_size
        self.register_buffer("pseudo_labels", torch.zeros(len(self._rows), side, side, dtype=torch.float16))
        self.register_buffer("masks", torch.zeros(labelled, side, side, dtype=torch.bool))
        self.register_buffer("contrastive", torch.full((len(self._rows),), -1))
        self.register_buffer("reports", torch.zeros(labelled, setup.report_width or 0), persistent=False)
        self.register_buffer("report_known", torch.zeros(labelled, dtype=torch.bool), persistent=False)
        self._seen: tuple[Tensor, Tensor] | None = None

    def stages(self) -> tuple[Stage, ...]:
        """The prototype on labels, then pseudo-labels as well; both count inside the budget."""
        share = self.settings.prototype_share
        return (Stage("prototype", share, unlabelled=False), Stage("semi", 1 - share))

    @torch.no_grad()
    def start_stage(self, stage: str, labelled: Iterable[Batch]) -> None:
        """Before stage "semi": keep masks and reports of the labelled images."""
        if stage != "semi":
            return
        for batch in labelled:
            rows = self._row_numbers(batch, self._labelled_rows)
            self.masks[rows] = F.interpolate(batch.required_masks, size=self.masks.shape[1:])[:, 0] > 0.5
            if batch.report is not None and batch.report_known is not None and self.reports.shape[1]:
                self.reports[rows] = F.normalize(batch.report.float(), dim=1)
                self.report_known[rows] = batch.report_known

    @torch.no_grad()
    def label_unlabelled(self, stage: str, unlabelled: Iterable[Batch]) -> None:
        """Before stage "semi": P_0 is what the prototype says, C the mask of the most similar report."""
        if stage != "semi":
            return
        training = self.training
        self.eval()
        for batch in unlabelled:
            probability = self._logits(batch).float().sigmoid()
            first = F.interpolate(probability, size=self.pseudo_labels.shape[1:], mode="bilinear")[:, 0]
            rows = self._row_numbers(batch, self._rows)
            self.pseudo_labels[rows] = first.half()
            self.contrastive[rows] = self._most_similar(batch)
        self.train(training)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step on labels, in stage "semi" on pseudo-labels as well."""
        if progress.stage == "prototype" or batch.unlabelled is None:
            loss = dice_ce(self._logits(batch.labelled), batch.labelled.required_masks)
            yield StepResult(loss, {"segmentation": loss.detach()})
            return
        n, others = len(batch.labelled), batch.unlabelled
        logits = self._logits(batch.joined()).float()
        segmentation = dice_ce(logits[:n], batch.labelled.required_masks)
        probability = logits[n:].sigmoid()
        pseudo = dice_ce(logits[n:], self._iterated_labels(others, probability.detach()))
        language = self._language_vision_loss(others, probability)
        loss = segmentation + pseudo + self.settings.language_vision * language
        logs = {"segmentation": segmentation.detach(), "pseudo": pseudo.detach(), "language": language.detach()}
        yield StepResult(loss, logs)

    def after_step(self) -> None:
        """The pseudo-labels of the step's images take their place (EPI)."""
        if self._seen is not None:
            rows, labels = self._seen
            self.pseudo_labels[rows] = labels
            self._seen = None

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """The single branch `network`, which reads the report."""
        probability = self._logits(batch).float().sigmoid()
        return Prediction(probability, {"network": probability})

    def _logits(self, batch: Batch) -> Tensor:
        tokens, padding = (batch.report_tokens, batch.report_padding) if self.reads_text else (None, None)
        logits: Tensor = self.network(batch.images, tokens, padding)
        return logits

    def _iterated_labels(self, batch: Batch, probability: Tensor) -> Tensor:
        """P of the batch's images after this prediction, in their present views."""
        rows = self._row_numbers(batch, self._rows)
        labels = iterate(self.pseudo_labels[rows].float()[:, None], probability, batch.geometry, self.settings.momentum)
        self._seen = rows, labels[:, 0].half()
        return into_view(labels, batch.geometry, batch.size)

    def _language_vision_loss(self, batch: Batch, probability: Tensor) -> Tensor:
        """Mean L_LV of the images that have a contrastive label with a lesion in it."""
        rows = self.contrastive[self._row_numbers(batch, self._rows)]
        if not (rows >= 0).any():
            return probability.new_zeros(())
        label = into_view(self.masks[rows.clamp(min=0)][:, None].float(), batch.geometry, batch.size)
        counts = (rows >= 0) & (label.flatten(1).sum(dim=1) > 0)
        return region_mean(language_vision(probability, label), counts)

    def _most_similar(self, batch: Batch) -> Tensor:
        """The labelled rows whose reports are nearest to those of clean images, -1 without (B,)."""
        if batch.report is None or batch.report_known is None or not self.reads_text or not self.report_known.any():
            return torch.full((len(batch),), -1, device=self.masks.device)
        similarity = batch.report.float() @ self.reports.T
        nearest = similarity.masked_fill(~self.report_known, -torch.inf).argmax(dim=1)
        return torch.where(batch.report_known, nearest, -1)

    def _row_numbers(self, batch: Batch, rows: dict[str, int]) -> Tensor:
        return torch.tensor([rows[id_] for id_ in batch.ids], device=self.masks.device)


def language_vision(probability: Tensor, label: Tensor) -> Tensor:
    """1 - cos(vec p, vec C) of each image (B,): 0 where the two are proportional."""
    return 1 - F.cosine_similarity(probability.flatten(1), label.flatten(1), dim=1)


def iterate(labels: Tensor, probability: Tensor, geometry: Tensor | None, momentum: float) -> Tensor:
    """P <- beta P + (1-beta) p, for `labels` (B,1,S,S) in the images' own frame and `probability` in their views.

    What a view does not show stays as it was.
    """
    size = (labels.shape[2], labels.shape[3])
    grid = F.affine_grid(_or_identity(geometry, labels), [len(labels), 1, *size], align_corners=False)
    shown = (grid.abs() <= 1).all(dim=3)[:, None]
    seen = F.grid_sample(probability.float(), grid, padding_mode="border", align_corners=False)
    return torch.where(shown, momentum * labels + (1 - momentum) * seen, labels)


def into_view(labels: Tensor, geometry: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Maps (B,1,S,S) in the images' own frame as their views show them, (B,1,*size); 0 comes in from outside."""
    matrix = _or_identity(geometry, labels)
    last = matrix.new_tensor([0.0, 0.0, 1.0]).expand(len(matrix), 1, 3)
    back = torch.linalg.inv(torch.cat([matrix, last], dim=1))[:, :2]
    grid = F.affine_grid(back, [len(labels), 1, *size], align_corners=False)
    return F.grid_sample(labels, grid, align_corners=False)


def _or_identity(geometry: Tensor | None, like: Tensor) -> Tensor:
    if geometry is not None:
        return geometry.float()
    return torch.eye(2, 3, device=like.device).repeat(len(like), 1, 1)
