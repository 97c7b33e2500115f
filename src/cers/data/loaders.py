"""Batches: clean ones for evaluation, and an endless, resumable stream of augmented ones for training."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cers.data.augment import augment, view_geometry
from cers.data.cache import ImageCache
from cers.data.case import Batch, Case, SemiBatch, mirrors
from cers.errors import CersError

Pixels = NDArray[np.uint8]
Item = TypeVar("Item")


class TextFields(Protocol):
    """Where batches get their text features from."""

    def fields(self, ids: Sequence[str], mirrored: Sequence[bool] | None = None) -> dict[str, Any]:
        """The text fields of a `Batch` of these cases, of which some are `mirrored`; absent what the run has not."""
        ...


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of cases out of decoded images and encoded texts."""

    cache: ImageCache
    cases: Mapping[str, Case]
    texts: TextFields | None = None

    def clean(self, ids: Sequence[str], *, with_masks: bool = True) -> Batch:
        """The cases as they are; masks only if wanted and every one of them is annotated."""
        masks = [self.cache.mask(i) for i in ids] if self._masked(ids, with_masks) else []
        return self._batch(ids, [self.cache.image(i) for i in ids], masks, [])

    def augmented(
        self,
        ids: Sequence[str],
        *,
        seed: int,
        draws: Sequence[int],
        flips: bool,
        strong_views: int,
        with_masks: bool = True,
    ) -> Batch:
        """The cases in their `draws`-th random view each; masks as in `clean`, words as they fit the view."""
        masked = self._masked(ids, with_masks)
        views, geometry = [], []
        for i, draw in zip(ids, draws, strict=True):
            image, mask = self.cache.image(i), self.cache.mask(i) if masked else None
            views.append(augment(image, mask, seed=seed, draw=draw, case_id=i, flips=flips, strong_views=strong_views))
            geometry.append(view_geometry(image.shape[0], seed=seed, draw=draw, case_id=i, flips=flips))
        images, masks, strong = zip(*views, strict=True)
        moves = torch.from_numpy(np.stack(geometry))
        batch = self._batch(ids, images, masks if masked else (), strong, mirrors(moves))
        return replace(batch, geometry=moves)

    def _masked(self, ids: Sequence[str], with_masks: bool) -> bool:
        return with_masks and all(self.cases[i].annotated for i in ids)

    def _batch(
        self,
        ids: Sequence[str],
        images: Sequence[Pixels],
        masks: Sequence[Pixels | None],
        strong: Sequence[Sequence[Pixels]],
        mirrored: Sequence[bool] | None = None,
    ) -> Batch:
        views = [view for per_case in strong for view in per_case]
        texts = {} if self.texts is None else self.texts.fields(ids, mirrored)
        return Batch(
            ids=tuple(ids),
            images=z_score(np.stack(images)),
            masks=torch.from_numpy(np.stack([m for m in masks if m is not None])).float()[:, None] if masks else None,
            strong=_by_case(z_score(np.stack(views)), len(ids)) if views else None,
            groups=tuple(self.cases[i].group for i in ids),
            **texts,
        )


def z_score(images: Pixels) -> Tensor:
    """8-bit images (B,H,W) or (B,H,W,3) as (B,3,H,W) float32 of mean 0 and deviation 1 per image and channel.

    A constant image becomes 0. Sums of 8-bit values are exact, so the result does not depend on the number of threads.
    """
    planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    values = planes.astype(np.float32)
    mean = planes.mean(axis=(2, 3), dtype=np.float64, keepdims=True)
    variance = np.square(planes, dtype=np.uint16).mean(axis=(2, 3), dtype=np.float64, keepdims=True) - mean**2
    deviation = np.sqrt(np.maximum(variance, 0))
    values -= mean.astype(np.float32)
    values /= np.where(deviation > 0, deviation, 1).astype(np.float32)
    return torch.from_numpy(values).repeat(1, 3 // planes.shape[1], 1, 1)


def _by_case(views: Tensor, cases: int) -> Tensor:
    return views.reshape(cases, -1, *views.shape[1:])


def evaluation_batches(
    maker: BatchMaker, ids: Sequence[str], batch_size: int, *, with_masks: bool = True
) -> Iterator[Batch]:
    """Clean batches over `ids` in their order; the last may be smaller."""
    for start in range(0, len(ids), batch_size):
        yield maker.clean(ids[start : start + batch_size], with_masks=with_masks)


def steps_per_epoch(n_labelled: int, n_unlabelled: int, batch_labelled: int, batch_unlabelled: int) -> int:
    """Steps in which the longer stream passes once, the shorter being cycled (methods.md 1.5)."""
    unlabelled = -(-n_unlabelled // batch_unlabelled) if batch_unlabelled else 0
    return max(-(-n_labelled // batch_labelled), unlabelled)


def training_batches(
    maker: BatchMaker,
    labelled: Sequence[str],
    unlabelled: Sequence[str],
    *,
    batch_labelled: int,
    batch_unlabelled: int,
    seed: int,
    labelled_before: int,
    unlabelled_before: int,
    steps: int,
    flips: bool,
    strong_views: int,
    workers: int = 0,
) -> Iterator[SemiBatch]:
    """The next `steps` batches, after so many images were drawn from either stream.

    What a step sees is a function of these counts and `seed` alone: no view comes twice, whatever the batch sizes
    before, and a resumed run goes on bit for bit, with any number of `workers` (processes that make batches ahead of
    the loop; 0 makes each when it is asked for).

    Raises:
        CersError: there is no labelled case.
    """
    if not labelled:
        raise CersError("no labelled case to train on; raise data.labelled or run `cers data check`")
    dataset = _Steps(
        maker,
        _Stream(tuple(labelled), batch_labelled, labelled_before, seed, 0),
        _Stream(tuple(unlabelled), batch_unlabelled, unlabelled_before, seed, 1)
        if unlabelled and batch_unlabelled
        else None,
        steps,
        flips,
        strong_views,
    )
    return iter(
        DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_unchanged, worker_init_fn=_begin_worker)
    )


@dataclass(frozen=True)
class _Stream:
    """An endless sequence of permutations of `ids`, cut into batches from its `first` place on."""

    ids: tuple[str, ...]
    batch_size: int
    first: int
    seed: int
    number: int

    def batch(self, index: int) -> tuple[list[str], list[int]]:
        """The ids of a batch, and how often each was drawn before: a case returns once per permutation."""
        start = self.first + index * self.batch_size
        positions = range(start, start + self.batch_size)
        draws = [position // len(self.ids) for position in positions]
        orders = {epoch: _permutation(len(self.ids), self.seed, self.number, epoch) for epoch in set(draws)}
        chosen = [self.ids[orders[d][p % len(self.ids)]] for p, d in zip(positions, draws, strict=True)]
        return chosen, draws


@lru_cache(maxsize=16)
def _permutation(length: int, seed: int, stream: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed % 2**64, stream, epoch]).permutation(length)


@dataclass(frozen=True)
class _Steps(Dataset[SemiBatch]):
    """One item per training step. Masks of the unlabelled stream are never asked for."""

    maker: BatchMaker
    labelled: _Stream
    unlabelled: _Stream | None
    steps: int
    flips: bool
    strong_views: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> SemiBatch:
        labelled = self._make(self.labelled, index, with_masks=True)
        if self.unlabelled is None:
            return SemiBatch(labelled)
        return SemiBatch(labelled, self._make(self.unlabelled, index, with_masks=False))

    def _make(self, stream: _Stream, index: int, *, with_masks: bool) -> Batch:
        ids, draws = stream.batch(index)
        return self.maker.augmented(
            ids,
            seed=stream.seed,
            draws=draws,
            flips=self.flips,
            strong_views=self.strong_views,
            with_masks=with_masks,
        )


def _unchanged(item: Item) -> Item:
    return item


def _begin_worker(_: int) -> None:
    """Workers are the parallelism: threads inside them would only compete, and a forked thread pool is dead.

    Ctrl-C reaches every process of a terminal, but only the training loop decides what it means.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def restore(probability: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (S,S) at the original `size` (height, width), bilinear."""
    values = probability.astype(np.float32, copy=False)
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
