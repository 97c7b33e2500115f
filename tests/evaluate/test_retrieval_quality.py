import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cers.data.case import Case
from cers.errors import CersError
from cers.evaluate.retrieval import retrieval_quality, strategy_rows


def case(name: str, label: str | None = None, group: str | None = None, report: str | None = None) -> Case:
    return Case(name, Path(f"{name}.png"), label=label, group=group, report=report)


def by_id(*cases: Case) -> dict[str, Case]:
    return {c.id: c for c in cases}


POOL = by_id(
    case("a1", "a", "p1", "one small lesion on the left"),
    case("a2", "a", "p2", "two lesions on the right"),
    case("b1", "b", "p3", "one small lesion on the left"),
    case("b2", "b", "p4", None),
    case("x", None, "p5", "nothing"),
)


def test_precision_and_chance_by_hand():
    # q is of patient p1, so a1 may not be retrieved: of a2, b1, b2 one has label a; x has no label.
    found = retrieval_quality([case("q", "a", "p1")], {"q": ["a2", "b1", "x"]}, POOL)
    assert found["class_precision"]["mean"] == pytest.approx(1 / 2)
    assert found["class_chance"]["mean"] == pytest.approx(1 / 3)
    assert found["class_lift"]["mean"] == pytest.approx(1 / 6)
    assert found["class_precision"]["n"] == 1
    assert found["coverage"] == {"count": 3, "of": 5}
    assert found["self_rate"] == found["same_group_rate"] == 0


def test_report_agreement_by_hand():
    query = case("q", report="One small lesion, on the RIGHT.")
    found = retrieval_quality([query], {"q": ["a1", "b2"]}, POOL)
    # Words of the query and a1: 5 in common of 7. a2 shares on, the, right of 8; "nothing" none. b2 has no report.
    assert found["report_agreement"]["mean"] == pytest.approx(5 / 7)
    assert found["report_chance"]["mean"] == pytest.approx((5 / 7 + 3 / 8 + 5 / 7 + 0) / 4)
    assert found["class_precision"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_breaches_of_exclusion_are_counted():
    queries = [case("a1", "a", "p1"), case("q", "a", "p2"), case("free", "a")]
    found = retrieval_quality(queries, {"a1": ["a1", "a2"], "q": ["a2", "b1"], "free": ["x", "x"]}, POOL)
    assert found["self_rate"] == pytest.approx(1 / 6)
    # The query itself is of its own group, too.
    assert found["same_group_rate"] == pytest.approx(2 / 6)


def test_a_query_in_the_pool_is_not_drawn_by_chance():
    pool = by_id(case("q", "a"), case("b", "b"))
    assert retrieval_quality([pool["q"]], {"q": ["b"]}, pool)["class_chance"]["mean"] == 0.0


def test_queries_without_reference_are_not_counted():
    queries = [case("q", "a", "p9"), case("r", "a", "p9"), case("s", "b", "p8")]
    found = retrieval_quality(queries, {"q": ["a1"], "r": [], "s": ["b1"]}, POOL)
    assert (found["n"], found["groups"]) == (2, 2)
    assert found["class_precision"]["n"] == 2


def test_nothing_retrieved_gives_nulls_not_errors():
    found = retrieval_quality([case("q", "a")], {"q": []}, POOL)
    assert found["n"] == 0
    assert found["self_rate"] is None
    assert found["class_lift"]["mean"] is None
    json.dumps(found, allow_nan=False)
    assert retrieval_quality([], {}, {})["coverage"] == {"count": 0, "of": 0}


def random_pool(seed: int, size: int = 60) -> dict[str, Case]:
    rng = np.random.default_rng(seed)
    words = np.array(["small", "large", "left", "right", "one", "two", "sharp", "diffuse"])
    return by_id(
        *(
            case(f"c{i}", str(rng.choice(["a", "b", "c"])), f"p{i // 3}", " ".join(rng.choice(words, 3)))
            for i in range(size)
        )
    )


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_retrieving_everything_allowed_is_chance(seed):
    pool = random_pool(seed, 20)
    everything = {q.id: [r.id for r in pool.values() if r.group != q.group] for q in pool.values()}
    found = retrieval_quality(list(pool.values()), everything, pool)
    for kind in ("class", "report"):
        assert found[f"{kind}_lift"]["mean"] == pytest.approx(0, abs=1e-12)
    assert found["coverage"]["count"] == len(pool)
    assert found["same_group_rate"] == 0


def test_random_references_meet_chance_and_good_ones_exceed_it():
    pool, rng = random_pool(1), np.random.default_rng(2)
    allowed = {q.id: [r for r in pool.values() if r.group != q.group] for q in pool.values()}
    drawn = {name: [str(n) for n in rng.choice([r.id for r in rs], 5)] for name, rs in allowed.items()}
    good = {name: [r.id for r in rs if r.label == pool[name].label][:5] for name, rs in allowed.items()}
    by_strategy = {
        name: retrieval_quality(list(pool.values()), refs, pool) for name, refs in (("random", drawn), ("good", good))
    }
    lift = by_strategy["random"]["class_lift"]
    assert lift["low"] < 0 < lift["high"]
    assert by_strategy["good"]["class_lift"]["low"] > 0.5
    rows = strategy_rows(by_strategy)
    assert {len(row) for row in rows} == {len(rows[0])}
    assert [row[0] for row in rows] == ["strategy", "random", "good"]
    assert rows[2][1:3] == ["60", "1.000"]


def test_mistakes_are_named_in_one_line():
    with pytest.raises(CersError, match="no references for query 'q'"):
        retrieval_quality([case("q")], {}, POOL)
    with pytest.raises(CersError, match=r"'a3' is not in the pool; choose from: a1, a2"):
        retrieval_quality([case("q")], {"q": ["a3"]}, POOL)
