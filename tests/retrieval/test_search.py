import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cers.retrieval.search import cosine_similarity, two_stage_search

# Few distinct values, so that ties abound; -0.0 and 0.0 are one of them.
VALUES = np.array([-1.0, -0.5, -0.0, 0.0, 0.25, 0.25000003, 1.0, 3.0e-39], np.float32)


def plain_search(coarse, fine, allowed, candidates, k):
    """Row by row: sort the allowed cases, keep K; sort these by the fine similarity, keep k. Ties go to the lower."""
    by_coarse, by_fine = [], []
    for i in range(len(coarse)):
        rows = sorted((r for r in range(coarse.shape[1]) if allowed[i, r]), key=lambda r: (-coarse[i, r], r))
        rows = rows[: k if fine is None else max(candidates, k)]
        by_coarse.append(rows)
        by_fine.append(rows if fine is None else sorted(rows, key=lambda r: (-fine[i, r], r))[:k])
    return by_coarse, by_fine


def at(similarity: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda rows: similarity.gather(1, rows)


def listed(rows: torch.Tensor, valid: torch.Tensor) -> list[list[int]]:
    """The valid rows of each query; the rest must stand at the end and repeat row 0."""
    found = []
    for row, ok in zip(rows.tolist(), valid.tolist(), strict=True):
        count = sum(ok)
        assert ok == [True] * count + [False] * (len(ok) - count)
        assert not any(row[count:])
        found.append(row[:count])
    return found


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 4),
    n=st.integers(1, 12),
    candidates=st.integers(1, 15),
    k=st.integers(1, 8),
    with_fine=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
def test_search_is_a_plain_sort(seed, queries, n, candidates, k, with_fine, share):
    rng = np.random.default_rng(seed)
    coarse, fine = rng.choice(VALUES, (2, queries, n))
    allowed = rng.random((queries, n)) < share
    found = two_stage_search(
        torch.from_numpy(coarse),
        at(torch.from_numpy(fine)) if with_fine else None,
        torch.from_numpy(allowed),
        candidates=candidates,
        k=k,
    )
    by_coarse, by_fine = plain_search(coarse, fine if with_fine else None, allowed, candidates, k)
    assert found.index.shape == found.valid.shape == (queries, k)
    assert listed(found.candidates, found.candidates_valid) == by_coarse
    assert listed(found.index, found.valid) == by_fine
    assert torch.equal(found.candidates.gather(1, found.place), found.index)


def one(coarse, fine, allowed=None, **sizes):
    coarse, fine = torch.tensor([coarse]), None if fine is None else torch.tensor([fine])
    allowed = torch.ones_like(coarse, dtype=torch.bool) if allowed is None else torch.tensor([allowed])
    found = two_stage_search(coarse, None if fine is None else at(fine), allowed, **sizes)
    return listed(found.candidates, found.candidates_valid)[0], listed(found.index, found.valid)[0]


def test_hard_negatives_fall_and_dissimilar_images_never_rise():
    """Row 0 looks alike but reads otherwise; row 3 reads alike but looks otherwise."""
    assert one([0.9, 0.8, 0.7, 0.1], [0.1, 0.9, 0.8, 1.0], candidates=3, k=2) == ([0, 1, 2], [1, 2])


def test_ties_go_to_the_smaller_id():
    assert one([0.5] * 6, None, candidates=9, k=3)[1] == [0, 1, 2]
    assert one([0.5] * 6, [0.1, 0.1, 0.1, 0.1, 0.9, 0.9], candidates=4, k=3) == ([0, 1, 2, 3], [0, 1, 2])


def test_small_pools_keep_their_first_case():
    """With fewer allowed cases than candidates, the empty places must not strike out row 0."""
    assert one([0.9, 0.8, 0.7], [0.9, 0.1, 0.2], [True, True, False], candidates=50, k=5) == ([0, 1], [0, 1])
    assert one([0.9], [0.9], candidates=50, k=5) == ([0], [0])


def test_fewer_candidates_than_references_are_topped_up():
    assert one([4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0], candidates=1, k=3) == ([0, 1, 2], [2, 1, 0])


def test_nothing_allowed_finds_nothing():
    assert one([0.3, 0.4], [0.3, 0.4], [False, False], candidates=5, k=2) == ([], [])


def test_what_cannot_be_known_ranks_last_and_nothing_known_keeps_the_coarse_order():
    nan = float("nan")
    assert one([0.9, 0.8, 0.7], [nan, 0.1, -0.9], candidates=3, k=3)[1] == [1, 2, 0]
    assert one([0.7, 0.9, 0.8], [nan, nan, nan], candidates=3, k=3)[1] == [1, 2, 0]
    assert one([0.7, 0.9, 0.8], [nan, nan, 0.5], [True, True, False], candidates=3, k=3)[1] == [1, 0]


def test_cosine_is_that_of_numpy_and_ignores_the_querys_length():
    rng = np.random.default_rng(0)
    query, pool = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    expected = query @ pool.T / np.linalg.norm(query, axis=1, keepdims=True)
    q, p = torch.from_numpy(query).float(), torch.from_numpy(pool).float()
    assert np.allclose(cosine_similarity(q, p), expected, atol=1e-6)
    assert torch.allclose(cosine_similarity(100 * q, p), cosine_similarity(q, p), atol=1e-6)
    assert torch.equal(cosine_similarity(torch.zeros(1, 8), p), torch.zeros(1, 5))


def test_cosine_of_some_rows_is_that_of_all():
    query, pool = torch.randn(3, 96), torch.nn.functional.normalize(torch.randn(20, 96), dim=1)
    pool[11] = pool[4]
    rows = torch.randint(20, (3, 7))
    rows[:, 0], rows[:, 6] = 4, 11
    found = cosine_similarity(query, pool, rows)
    assert torch.allclose(found, cosine_similarity(query, pool).gather(1, rows), atol=1e-6)
    assert torch.equal(found[:, 0], found[:, 6])


def test_cosine_stays_exact_under_autocast():
    query, pool = torch.randn(4, 64), torch.nn.functional.normalize(torch.randn(9, 64), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_similarity(query, pool), cosine_similarity(query, pool.clone()))
        found = cosine_similarity(query, pool)
    assert found.dtype == torch.float32
    assert torch.equal(found, cosine_similarity(query, pool))


@pytest.mark.parametrize(("n", "limit"), [(1_000, 1e-3), (10_000, 10e-3)])
def test_sixteen_queries_are_searched_in_milliseconds(n, limit):
    """CPU time of the best of many runs, so that a busy machine does not matter."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.rand(2, 16, n, generator=generator)
    allowed = torch.rand(16, n, generator=generator) > 0.01
    best = float("inf")
    for _ in range(15):
        started = time.thread_time()
        two_stage_search(coarse, at(fine), allowed, candidates=50, k=5)
        best = min(best, time.thread_time() - started)
    assert best <= limit
