import math
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cers.config import MaskReading
from cers.data.cache import ImageCache
from cers.data.case import Batch, Case, SemiBatch
from cers.data.loaders import (
    BatchMaker,
    evaluation_batches,
    restore,
    steps_per_epoch,
    training_batches,
    z_score,
)
from cers.errors import CersError
from cers.text.table import TextTable
from cers.text.tfidf import TfidfEncoder

SIDE = 32
IDS = [f"c{i:02d}" for i in range(12)]
LABELLED, UNLABELLED = IDS[:5], IDS[5:]


class Rows:
    """A table of text features in which the row of case `cNN` is NN."""

    def fields(self, ids: Sequence[str], mirrored: Sequence[bool] | None = None) -> dict[str, Any]:
        return {"cot": torch.tensor([[float(i[1:])] for i in ids]), "cot_known": torch.ones(len(ids), dtype=torch.bool)}


class LabelledOnly(ImageCache):
    """Fails as soon as the mask of an unlabelled case is wanted."""

    def mask(self, case_id: str) -> Any:
        assert case_id in LABELLED, f"the mask of unlabelled {case_id} was asked for"
        return super().mask(case_id)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> BatchMaker:
    """Unlabelled cases have a mask file that is garbage, and their `Case` names it."""
    folder = tmp_path_factory.mktemp("loaders")
    rng = np.random.default_rng(0)
    cases = []
    for i in IDS:
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (40, 48), dtype=np.uint8))
        mask = folder / f"{i}_mask.png"
        cv2.imwrite(str(mask), np.uint8(255) * (rng.random((40, 48)) < 0.5).astype(np.uint8))
        if i in UNLABELLED:
            mask.write_bytes(b"garbage")
        cases.append(Case(i, folder / f"{i}.png", mask, group=f"g{int(i[1:]) // 3}"))
    visible = [case if case.id in LABELLED else replace(case, mask=None) for case in cases]
    cache = LabelledOnly.build(visible, SIDE, folder / "cache", MaskReading())
    return BatchMaker(cache, {case.id: case for case in cases}, Rows())


def run(maker: BatchMaker, steps: int, *, after: tuple[int, int] = (0, 0), **other: Any) -> list[SemiBatch]:
    """Batches `after` so many labelled and unlabelled images."""
    settings: dict[str, Any] = {
        "batch_labelled": 4,
        "batch_unlabelled": 3,
        "seed": 7,
        "labelled_before": after[0],
        "unlabelled_before": after[1],
        "flips": True,
        "strong_views": 2,
        "workers": 0,
    }
    streams = {"labelled": LABELLED, "unlabelled": UNLABELLED}
    merged = streams | settings | other
    return list(training_batches(maker, steps=steps, **merged))


def assert_same(first: Batch | None, second: Batch | None) -> None:
    assert (first is None) == (second is None)
    if first is None or second is None:
        return
    for f in fields(Batch):
        a, b = getattr(first, f.name), getattr(second, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, f.name


def assert_same_run(first: list[SemiBatch], second: list[SemiBatch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert_same(a.labelled, b.labelled)
        assert_same(a.unlabelled, b.unlabelled)


def test_batch_has_the_declared_shapes(maker: BatchMaker) -> None:
    batch = run(maker, 1)[0]
    assert batch.labelled.images.shape == (4, 3, SIDE, SIDE)
    assert batch.labelled.images.dtype == torch.float32
    assert batch.labelled.required_masks.shape == (4, 1, SIDE, SIDE)
    assert set(batch.labelled.required_masks.unique().tolist()) == {0.0, 1.0}
    assert batch.labelled.strong is not None
    assert batch.labelled.strong.shape == (4, 2, 3, SIDE, SIDE)
    assert batch.labelled.cot is not None
    assert batch.labelled.cot[:, 0].tolist() == [float(i[1:]) for i in batch.labelled.ids]
    assert batch.labelled.groups == tuple(f"g{int(i[1:]) // 3}" for i in batch.labelled.ids)
    assert batch.unlabelled is not None
    assert len(batch.unlabelled) == 3
    assert run(maker, 1, strong_views=0)[0].labelled.strong is None


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_sees_what_the_uninterrupted_saw(maker: BatchMaker, workers: int) -> None:
    whole = run(maker, 9)
    for first_step in (0, 1, 6):
        seen = (4 * first_step, 3 * first_step)
        assert_same_run(run(maker, 9 - first_step, after=seen, workers=workers), whole[first_step:])


def test_no_view_comes_twice_when_the_batch_size_changes(maker: BatchMaker) -> None:
    """As between stages: 7 labelled images a step without unlabelled ones, then 4 beside them."""
    first = run(maker, 5, batch_labelled=7, unlabelled=[])
    second = run(maker, 5, after=(35, 0))
    views = Counter(image.numpy().tobytes() for batch in [*first, *second] for image in batch.labelled.images)
    assert set(views.values()) == {1}
    rounds = Counter(i for batch in [*first, *second] for i in batch.labelled.ids)
    assert set(rounds.values()) == {11}


def test_runs_of_other_seeds_differ(maker: BatchMaker) -> None:
    first, second = run(maker, 4), run(maker, 4, seed=8)
    assert any(a.labelled.ids != b.labelled.ids for a, b in zip(first, second, strict=True))


def test_unlabelled_batches_never_carry_masks(maker: BatchMaker) -> None:
    assert all(maker.cases[i].mask is not None for i in UNLABELLED)
    for batch in run(maker, 6):
        assert batch.unlabelled is not None
        assert batch.unlabelled.masks is None
        assert set(batch.unlabelled.ids) <= set(UNLABELLED)
        assert set(batch.labelled.ids) <= set(LABELLED)


def test_cases_that_are_labelled_lose_their_masks_in_the_unlabelled_stream(maker: BatchMaker) -> None:
    for batch in run(maker, 3, unlabelled=IDS):
        assert batch.labelled.masks is not None
        assert batch.unlabelled is not None
        assert batch.unlabelled.masks is None


@pytest.mark.parametrize("other", [{"unlabelled": []}, {"batch_unlabelled": 0}])
def test_no_unlabelled_stream(maker: BatchMaker, other: dict[str, Any]) -> None:
    assert all(batch.unlabelled is None for batch in run(maker, 3, **other))


def test_no_labelled_case_is_a_users_mistake(maker: BatchMaker) -> None:
    with pytest.raises(CersError, match=r"data\.labelled"):
        run(maker, 1, labelled=[])


def test_a_short_stream_is_cycled_in_full_rounds(maker: BatchMaker) -> None:
    batches = run(maker, 5, batch_labelled=8)
    seen = [i for batch in batches for i in batch.labelled.ids]
    rounds = [seen[k : k + 5] for k in range(0, len(seen), 5)]
    assert all(sorted(r) == LABELLED for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert set(Counter(seen).values()) == {8}


def test_a_case_twice_in_a_batch_is_seen_in_two_views(maker: BatchMaker) -> None:
    batch = run(maker, 1, batch_labelled=8)[0].labelled
    twins = [k for k, i in enumerate(batch.ids) if batch.ids.count(i) == 2]
    first = twins[0]
    second = next(k for k in twins[1:] if batch.ids[k] == batch.ids[first])
    assert not torch.equal(batch.images[first], batch.images[second])


@pytest.mark.parametrize("flips", [False, True])
def test_a_mirrored_view_is_told_in_mirrored_words(tmp_path: Path, flips: bool) -> None:
    picture = np.zeros((SIDE, SIDE), np.uint8)
    picture[12:20, 5:11] = 255
    cv2.imwrite(str(tmp_path / "a1.png"), picture)
    said = ["left lung", "right lung"]
    case = Case("a", tmp_path / "a1.png", report=said[0])
    cache = ImageCache.build([case], SIDE, tmp_path / "cache", MaskReading())
    encoder = TfidfEncoder.fit(said, width=2)
    texts = TextTable(
        [case], report=encoder, cot=None, render=str, cache_folder=tmp_path / "text", labelled=[], mirrors=True
    )
    maker = BatchMaker(cache, {"a": case}, texts)
    batch = maker.augmented(["a"] * 20, seed=0, draws=range(20), flips=flips, strong_views=0)
    halves = batch.images.sum(dim=(1, 2)).unflatten(1, (2, SIDE // 2)).sum(dim=2)
    lies_right = halves[:, 1] > halves[:, 0]
    left, right = (torch.from_numpy(features.pooled) for features in encoder.encode(said))
    assert not torch.allclose(left, right)
    assert batch.report is not None
    torch.testing.assert_close(batch.report, torch.where(lies_right[:, None], right, left))
    assert set(lies_right.tolist()) == ({False, True} if flips else {False})


def test_workers_tell_where_they_failed(maker: BatchMaker) -> None:
    broken = replace(maker, cases={**maker.cases, "absent": Case("absent", Path("absent.png"))})
    with pytest.raises(KeyError, match=r"(?s)Traceback.*in augmented.*absent"):
        run(broken, 2, unlabelled=["absent"], workers=1)


def test_maker_works_in_another_process(maker: BatchMaker) -> None:
    plain = replace(maker, texts=None)
    assert_same(pickle.loads(pickle.dumps(plain)).clean(LABELLED), plain.clean(LABELLED))


def test_evaluation_keeps_the_order_and_the_pixels(maker: BatchMaker) -> None:
    batches = list(evaluation_batches(maker, LABELLED, 2))
    assert [batch.ids for batch in batches] == [("c00", "c01"), ("c02", "c03"), ("c04",)]
    assert torch.equal(batches[1].images[1:], z_score(maker.cache.image("c03")[None]))
    mask = maker.cache.mask("c03")
    assert mask is not None
    assert torch.equal(batches[1].required_masks[1, 0], torch.from_numpy(mask.astype(np.float32)))
    assert all(b.masks is None for b in evaluation_batches(maker, IDS, 4, with_masks=False))
    assert list(evaluation_batches(maker, [], 4)) == []


def test_one_case_without_annotation_leaves_the_batch_without_masks(maker: BatchMaker) -> None:
    cases = dict(maker.cases) | {"c05": replace(maker.cases["c05"], mask=None)}
    assert replace(maker, cases=cases).clean(["c00", "c05"]).masks is None


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))),
    st.booleans(),
)
@settings(max_examples=80)
def test_z_score_is_a_z_score(images: np.ndarray, colour: bool) -> None:
    if colour:
        images = np.stack([images, images[:, ::-1] // 2, np.full_like(images, 200)], axis=-1)
    scored = z_score(images)
    assert scored.shape == (len(images), 3, *images.shape[1:3])
    assert torch.isfinite(scored).all()
    planes = images.reshape(len(images), *images.shape[1:3], -1)
    for b in range(len(images)):
        for c in range(3):
            values = planes[b, ..., c % planes.shape[-1]]
            if values.min() == values.max():
                assert (scored[b, c] == 0).all()
            else:
                assert scored[b, c].mean().item() == pytest.approx(0, abs=1e-4)
                assert scored[b, c].std(correction=0).item() == pytest.approx(1, rel=1e-4)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 20), st.integers(0, 20))
def test_an_epoch_passes_the_longer_stream(labelled: int, unlabelled: int, b_l: int, b_u: int) -> None:
    steps = steps_per_epoch(labelled, unlabelled, b_l, b_u)
    assert steps * b_l >= labelled
    assert steps * b_u >= unlabelled or b_u == 0
    assert steps == max(math.ceil(labelled / b_l), math.ceil(unlabelled / b_u) if b_u else 0)


def test_restore_is_bilinear_and_inverts_nothing_but_the_size() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(16, axis=0)
    restored = restore(ramp, (20, 64))
    assert restored.shape == (20, 64)
    assert restored.dtype == np.float32
    assert np.all(np.diff(restored, axis=1) >= 0)
    np.testing.assert_allclose(
        restored[:, 8:-8], np.broadcast_to((np.arange(8, 56) + 0.5) / 60 - 1 / 30, (20, 48)), atol=1e-3
    )
    np.testing.assert_array_equal(restore(ramp, (16, 16)), ramp)
