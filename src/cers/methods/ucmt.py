"""UCMT: uncertainty-guided collaborative mean teacher (Shen et al., IJCAI 2023, arXiv 2301.04465).

Two students of different decoder initialisation and one teacher,
theta_T <- a theta_T + (1-a) [c theta_1 + (1-c) theta_2], a = min(1 - 1/(t+1), 0.99). Two optimiser steps a batch:

1.  L = sum_i DiceCE(S_i(x_l), y_l) + 0.1 r(t) (L_cmt + L_cps), with student i on strong view A_i of the unlabelled
    images, hard labels Y_1, Y_2 of the students and Y_T of the teacher on the plain view, l the two-class soft Dice:
    L_cmt = 1/2 [l(S_1, Y_T) + l(S_2, Y_T)],   L_cps = 1/2 [l(S_1, Y_2) + l(S_2, Y_1)].
2.  The same loss after UMIX: in view A_1 of every image the k patches of a 16 x 16 grid that are most uncertain to one
    student, by the entropy of (p_Si + p_T)/2, are overwritten by the k that are most certain to the other, and vice
    versa; labels, or Y_T, move along.

r ramps up over the first fifth of the run. A c of 1/2 would be collaborative; the program has 0.99, and so have we:
halfway between two decoders that started differently lies no network (after 60 steps on four images both students had
a Dice of 0.99 there, and their mean 0.00). The program overwrites in place, so that the second exchange sees the first;
here both read the untouched image. Its second view is drawn on top of the first; here the two are alike. Its unlabelled
stream holds the labelled images as well.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cers.data.case import Batch, SemiBatch
from cers.ema import Teacher
from cers.losses import binary_entropy, dice_ce, two_class_dice
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, StepResult
from cers.nets.unet import UNet
from cers.schedules import sigmoid_ramp

GRID = 16


class UCMTSettings(Settings):
    """Defaults of the paper."""

    consistency: float = Field(0.1, ge=0, description="largest weight of both pseudo-label losses")
    ramp: float = Field(0.2, gt=0, le=1, description="share of the steps over which that weight rises")
    patches: int = Field(2, ge=0, le=GRID**2 // 2, description="k of UMIX, each way")
    share: float = Field(0.99, ge=0, le=1, description="c: share of the first student in the teacher")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher's average")


class UCMT(Method):
    """Two students that label for each other, and a teacher that labels for both."""

    Settings = UCMTSettings
    strong_views = 2
    optimiser_steps = 2
    networks = "2 + teacher"

    def __init__(self, setup: Setup, settings: UCMTSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.first = UNet(setup.encoder())
        self.second = UNet(setup.encoder())
        self.teacher = Teacher(self.first, settings.decay)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step on the views, one on their UMIX."""
        n, plain, views = len(batch.labelled), batch.joined().images, _strong_views(batch)
        weight = self.settings.consistency * sigmoid_ramp(progress.fraction / self.settings.ramp)
        taught = self.teacher(plain).float().sigmoid()
        labels = torch.cat([batch.labelled.required_masks, (taught[n:] > 0.5).float()])
        first = self.first(torch.cat([plain[:n], views[n:, 0]])).float()
        second = self.second(torch.cat([plain[:n], views[n:, 1]])).float()
        yield _result(first, second, labels, n, weight)
        doubts = [binary_entropy((z.detach().sigmoid() + taught) / 2) for z in (first, second)]
        source = umix_source(doubts[0], doubts[1], self.settings.patches)
        mixed, labels = move_patches(views[:, 0], source), move_patches(labels, source)
        yield _result(self.first(mixed).float(), self.second(mixed).float(), labels, n, weight)

    def after_step(self) -> None:
        """The teacher follows both students, after each of the two steps."""
        self.teacher.update(self.first, self.second, self.settings.share)

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """The declared branch `teacher`, and the students."""
        nets = {"teacher": self.teacher, "first": self.first, "second": self.second}
        branches = {name: net(batch.images).float().sigmoid() for name, net in nets.items()}
        return Prediction(branches["teacher"], branches)


def _strong_views(batch: SemiBatch) -> Tensor:
    """Both strong views (B,2,3,H,W) of labelled and unlabelled images."""
    strong = batch.joined().strong
    if strong is None:
        raise ValueError("UCMT needs two strong views of every image")
    return strong


def _result(first: Tensor, second: Tensor, labels: Tensor, n: int, weight: float) -> StepResult:
    """The loss of one step: labels of the first `n` images are true, the others the teacher's."""
    segmentation = dice_ce(first[:n], labels[:n]) + dice_ce(second[:n], labels[:n])
    logs = {"segmentation": segmentation.detach()}
    if len(first) == n:
        return StepResult(segmentation, logs)
    first, second, labels = first[n:], second[n:], labels[n:]
    taught = (two_class_dice(first, labels) + two_class_dice(second, labels)) / 2
    cross = (two_class_dice(first, (second > 0).float()) + two_class_dice(second, (first > 0).float())) / 2
    return StepResult(
        segmentation + weight * (taught + cross), logs | {"taught": taught.detach(), "cross": cross.detach()}
    )


def umix_source(first: Tensor, second: Tensor, k: int) -> Tensor:
    """Which of its 256 patches each patch of an image is to be read from, (B,256).

    `first` and `second` (B,1,H,W) are each student's uncertainty: the k patches most uncertain to the one become those
    most certain to the other, both ways; at most 2k patches change.
    """
    doubts = [F.avg_pool2d(d, _patch(d))[:, :, :GRID, :GRID].flatten(1) for d in (first, second)]
    source = torch.arange(GRID**2, device=first.device).repeat(len(first), 1)
    for mine, other in (doubts, doubts[::-1]):
        worst, best = mine.topk(k, dim=1).indices, other.topk(k, dim=1, largest=False).indices
        source.scatter_(1, worst, best)
    return source


def move_patches(maps: Tensor, source: Tensor) -> Tensor:
    """`maps` (B,C,H,W) with every patch read from the patch that `source` names; pixels beyond the grid stay."""
    b, c = maps.shape[:2]
    h, w = _patch(maps)
    grid = maps[:, :, : GRID * h, : GRID * w].reshape(b, c, GRID, h, GRID, w)
    patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(b, GRID**2, -1)
    moved = patches.gather(1, source[..., None].expand_as(patches)).reshape(b, GRID, GRID, c, h, w)
    mixed = maps.clone()
    mixed[:, :, : GRID * h, : GRID * w] = moved.permute(0, 3, 1, 4, 2, 5).reshape(b, c, GRID * h, GRID * w)
    return mixed


def _patch(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2] // GRID, maps.shape[3] // GRID
