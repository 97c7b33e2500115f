"""What each retrieval strategy picks, on embeddings by which each would pick other cases."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cers.data.case import Batch
from cers.methods.base import Evidence
from cers.methods.evidence import Retriever
from cers.retrieval.pool import KnowledgePool, PoolEntry, PoolShape

#            a    b    c    d    e    f
BY_IMAGE = (0.9, 0.8, 0.7, 0.2, 0.1, 0.0)
BY_COT = (0.1, 0.5, 0.8, 0.9, 0.2, 0.3)
BY_REPORT = (0.3, 0.9, 0.1, 0.2, 0.95, 0.5)


def at(*cosines: float) -> Tensor:
    """Unit vectors (N,2) of these cosines with (1,0)."""
    return torch.tensor([(c, math.sqrt(1 - c * c)) for c in cosines])


def make_pool(cot_known: list[bool] | None = None, n: int = 6) -> KnowledgePool:
    pool = KnowledgePool([PoolEntry(id_) for id_ in "abcdef"[:n]], PoolShape(2, 1, 2, 2))
    pool.fill(
        pool.ids,
        at(*BY_IMAGE[:n])[:, :, None, None],
        cot=at(*BY_COT[:n]),
        cot_known=torch.tensor(cot_known or [True] * n),
        report=at(*BY_REPORT[:n]),
        report_known=torch.ones(n, dtype=torch.bool),
    )
    return pool


def queries(*ids: str, known: bool = True) -> Batch:
    n = len(ids)
    yes = torch.full((n,), known)
    return Batch(
        ids, torch.zeros(n, 3, 4, 4), report=at(1.0).repeat(n, 1) * known, report_known=yes, cot_known=yes,
        groups=(None,) * n,
    )  # fmt: skip


def retrieve(strategy, batch=None, pool=None, *, candidates=3, k=2, fresh=False, cot: Tensor | None = None) -> Evidence:
    batch = queries("q") if batch is None else batch
    image = at(1.0).repeat(len(batch), 1)
    cot = image * batch.cot_known[:, None] if cot is None else cot
    return Retriever(strategy, candidates, k, True)(pool or make_pool(), batch, image, cot, fresh=fresh)


def picked(evidence: Evidence) -> list[str]:
    return ["".join("abcdef"[i] for i in row) for row in evidence.index.tolist()]


@pytest.mark.parametrize(
    ("strategy", "expected", "candidates"),
    [
        ("image", "ab", "ab"),
        ("cot", "dc", "dc"),
        ("report", "eb", "eb"),
        ("image+cot", "cb", "abc"),
        ("image+report", "ba", "abc"),
    ],
)
def test_each_strategy_does_what_it_says(strategy, expected, candidates):
    evidence = retrieve(strategy)
    assert picked(evidence) == [expected]
    assert ["".join("abcdef"[i] for i in row) for row in evidence.candidates.tolist()] == [candidates]
    text = BY_REPORT if "report" in strategy else BY_COT
    rows, every = evidence.index[0], evidence.candidates[0]
    for found, cosines, places in (
        (evidence.image_similarity, BY_IMAGE, rows),
        (evidence.text_similarity, text, rows),
        (evidence.candidate_image_similarity, BY_IMAGE, every),
        (evidence.candidate_text_similarity, text, every),
    ):
        assert torch.allclose(found[0], torch.tensor(cosines)[places], atol=1e-3)


@pytest.mark.parametrize("strategy", ["cot", "report", "image+cot", "image+report", "shuffled-cot", "shuffled-report"])
def test_a_query_without_text_falls_back_on_its_image(strategy):
    evidence = retrieve(strategy, queries("q", known=False))
    assert picked(evidence) == picked(retrieve("image"))
    assert evidence.text_similarity.isnan().all()
    assert not evidence.by_report.any()


@pytest.mark.parametrize(("by_report", "by_cot"), [("report", "cot"), ("image+report", "image+cot")])
def test_a_query_without_report_goes_by_its_rationale(by_report, by_cot):
    batch = replace(queries("p", "q"), report_known=torch.tensor([False, True]))
    found, rationale, report = retrieve(by_report, batch), retrieve(by_cot, batch), retrieve(by_report)
    assert picked(found) == [picked(rationale)[0], picked(report)[0]]
    assert torch.equal(found.text_similarity[0], rationale.text_similarity[0])
    assert found.by_report.tolist() == [False, True]
    assert not rationale.by_report.any()
    assert picked(retrieve(by_report, replace(queries("q"), report=None, report_known=None))) == [picked(rationale)[0]]


@pytest.mark.parametrize("strategy", ["report", "image+report", "shuffled-report"])
def test_a_pool_without_reports_is_compared_by_rationales(strategy):
    pool = make_pool()
    assert retrieve(strategy, pool=pool).by_report.all()
    pool.report_known[:] = False
    evidence = retrieve(strategy, pool=pool)
    assert not evidence.by_report.any()
    assert torch.isin(evidence.text_similarity, torch.tensor(BY_COT).half()).all() or strategy.startswith("shuffled")


def test_one_query_without_text_does_not_change_the_others():
    batch = replace(queries("p", "q"), cot_known=torch.tensor([False, True]))
    assert picked(retrieve("image+cot", batch)) == ["ab", "cb"]
    assert picked(retrieve("cot", batch)) == ["ab", "dc"]


def test_entries_without_rationale_come_last_and_a_pool_without_any_goes_by_image():
    pool = make_pool([True, True, False, True, True, True])
    assert picked(retrieve("image+cot", pool=pool, k=3)) == ["bac"]
    assert picked(retrieve("cot", pool=pool, k=6)) == ["dbfeac"]
    evidence = retrieve("image+cot", pool=pool, k=3)
    assert evidence.text_similarity.isnan().tolist() == [[False, False, True]]
    assert picked(retrieve("image+cot", pool=make_pool([False] * 6))) == ["ab"]


def test_a_run_without_rationales_goes_by_image():
    batch = replace(queries("q"), cot_known=None)
    image = at(1.0)
    found = Retriever("image+cot", 3, 2, True)(make_pool(), batch, image, None, fresh=False)
    assert picked(found) == ["ab"]


def test_random_references_are_fixed_by_id_when_predicting():
    batch = queries(*(f"q{i}" for i in range(40)))
    found = picked(retrieve("random", batch))
    assert found == picked(retrieve("random", batch))
    assert found[7] == picked(retrieve("random", queries("q7")))[0]
    assert len(set(found)) > 15
    assert set("".join(found)) == set("abcdef")
    assert all(len(set(pair)) == 2 for pair in found)


def test_random_references_are_drawn_anew_at_each_training_step_as_its_seed_says():
    batch = queries(*(f"q{i}" for i in range(9)))
    torch.manual_seed(0)
    first, second = (picked(retrieve("random", batch, fresh=True)) for _ in range(2))
    torch.manual_seed(0)
    assert picked(retrieve("random", batch, fresh=True)) == first != second


def test_random_references_are_never_the_query_itself():
    batch = queries(*"abcdef")
    assert all(id_ not in row for id_, row in zip("abcdef", picked(retrieve("random", batch, k=5)), strict=True))
    assert all(id_ not in row for id_, row in zip("abcdef", picked(retrieve("image", batch, k=5)), strict=True))


@pytest.mark.parametrize(("control", "cosines"), [("shuffled-cot", BY_COT), ("shuffled-report", BY_REPORT)])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_shuffled_texts_are_all_dealt_and_every_one_to_another_case(n, control, cosines):
    """Cosines are distinct, so that each tells whose text it is."""
    evidence = retrieve(control, pool=make_pool(n=n), candidates=n, k=n)
    dealt = torch.empty(n).scatter_(0, evidence.index[0], evidence.text_similarity[0])
    own = torch.tensor(cosines[:n])
    assert torch.allclose(dealt.sort().values, own.sort().values, atol=1e-3)
    assert ((dealt - own).abs() > 0.04).all()
    assert torch.equal(evidence.index, retrieve(control, pool=make_pool(n=n), candidates=n, k=n).index)


@pytest.mark.parametrize("control", ["shuffled-cot", "shuffled-report"])
def test_shuffling_keeps_the_candidates_and_ranks_them_by_the_wrong_texts(control):
    evidence = retrieve(control, k=3)
    assert evidence.candidates.tolist() == [[0, 1, 2]]
    assert (evidence.text_similarity.diff() <= 0).all()


def test_shuffled_reports_of_a_query_without_one_are_shuffled_rationales():
    batch = replace(queries("q"), report=None, report_known=None)
    found, rationales = (retrieve(control, batch, k=3) for control in ("shuffled-report", "shuffled-cot"))
    assert torch.equal(found.index, rationales.index)
    assert torch.equal(found.text_similarity, rationales.text_similarity)


def test_cosines_do_not_depend_on_the_length_of_the_queries():
    batch = queries("q")
    long = Retriever("image+cot", 3, 2, True)(make_pool(), batch, 100 * at(1.0), 0.01 * at(1.0), fresh=False)
    assert torch.allclose(long.image_similarity, retrieve("image+cot").image_similarity)
    assert torch.allclose(F.normalize(at(0.3), dim=1), at(0.3))
    assert picked(long) == ["cb"]
