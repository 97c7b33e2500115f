import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cers.errors import CersError
from cers.retrieval.pool import KnowledgePool, PoolEntry, PoolShape

IDS = ("c", "a", "d", "b")
SHAPE = PoolShape(channels=6, grid=2, cot=5, report=3)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def entries() -> list[PoolEntry]:
    return [PoolEntry("c", "p1"), PoolEntry("a", "p1"), PoolEntry("d", None, "tumour"), PoolEntry("b", "p2")]


def filled_pool() -> KnowledgePool:
    pool = KnowledgePool(entries(), SHAPE)
    known = torch.tensor([True, True, False, True])
    pool.fill(IDS, rand(4, 6, 4, 4), cot=rand(4, 5, seed=1), cot_known=known, report=rand(4, 3), report_known=~known)
    return pool


def constant(*vectors: list[float]) -> torch.Tensor:
    """Features (B,C,2,2) whose every pixel is the given vector."""
    return torch.tensor(vectors)[:, :, None, None].expand(-1, -1, 2, 2)


def test_rows_are_in_order_of_id_whatever_the_order_of_the_split():
    pool = KnowledgePool(entries(), SHAPE)
    assert pool.ids == ("a", "b", "c", "d")
    assert pool.rows(["d", "x", "a"]).tolist() == [3, -1, 0]
    assert pool.entries[3] == ("d", None, "tumour")
    assert KnowledgePool(list(reversed(entries())), SHAPE).ids == pool.ids
    assert len(pool) == 4


def test_fill_writes_each_case_into_its_row():
    pool, features = filled_pool(), rand(4, 6, 4, 4)
    for place, id_ in enumerate(IDS):
        row = pool.row_of(id_)
        mean = features[place].mean(dim=(1, 2))
        assert torch.allclose(pool.image[row], mean / mean.norm(), atol=1e-6)
        quarters = features[place].unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(3, 4))  # (C,2,2)
        assert torch.allclose(pool.tokens[row].float(), quarters.flatten(1).T, atol=2e-3)
        assert torch.allclose(pool.cot[row].float(), F.normalize(rand(4, 5, seed=1)[place], dim=0), atol=1e-3)
    assert pool.cot_known.tolist() == [True, True, True, False]
    assert pool.report_known.tolist() == [False, False, False, True]
    assert pool.filled.all()


def test_a_case_outside_the_pool_cannot_be_filled_in():
    with pytest.raises(KeyError, match="x"):
        KnowledgePool(entries(), SHAPE).fill(["x"], rand(1, 6, 2, 2))


def test_a_query_gets_neither_itself_nor_its_group():
    pool = filled_pool()
    ids, groups = ("a", "d", "new", "stranger"), ("p1", None, "p2", "p9")
    assert pool.allowed(ids, groups).tolist() == [
        [False, True, False, True],
        [True, True, True, False],
        [True, False, True, True],
        [True, True, True, True],
    ]
    assert pool.allowed(ids, groups, exclude_group=False).tolist()[0] == [False, True, True, True]
    assert pool.allowed(ids, ()).tolist()[0] == [False, True, True, True]


def test_cases_without_group_do_not_exclude_each_other():
    pool = KnowledgePool([PoolEntry("a"), PoolEntry("b"), PoolEntry("c")], SHAPE)
    pool.fill(["a", "b", "c"], rand(3, 6, 2, 2))
    assert pool.allowed(["a"], [None]).tolist() == [[False, True, True]]


def test_only_filled_rows_may_be_retrieved():
    pool = KnowledgePool(entries(), SHAPE)
    assert not pool.allowed(["new"], [None]).any()
    pool.fill(["b"], rand(1, 6, 2, 2))
    assert pool.allowed(["new"], [None]).tolist() == [[False, True, False, False]]


def test_momentum_zero_takes_the_new_and_one_keeps_the_old():
    pool, fresh, features = filled_pool(), filled_pool(), rand(4, 6, 4, 4, seed=7)
    before = {k: v.clone() for k, v in pool.state_dict().items()}
    pool.update(IDS, features, 1.0)
    assert torch.allclose(pool.image, before["image"], atol=1e-6)
    assert torch.equal(pool.tokens, before["tokens"])
    pool.update(IDS, features, 0.0)
    fresh.fill(IDS, features)
    assert torch.allclose(pool.image, fresh.image, atol=1e-6)
    assert torch.allclose(pool.tokens, fresh.tokens, rtol=1e-3)
    assert all(torch.equal(pool.state_dict()[k], before[k]) for k in ("cot", "report", "cot_known", "report_known"))


def test_tokens_and_prototypes_arrive_in_small_steps_too():
    """In half precision a step of 1 % is mostly less than the last digit; 1 - 0.99^300 = 95 % of the way is due."""
    torch.manual_seed(0)
    pool = KnowledgePool([PoolEntry("a")], PoolShape(channels=64, grid=2, prototypes=64))
    start, goal = rand(1, 64, 2, 2) + 4, rand(1, 64, 2, 2, seed=1) + 4
    pool.fill(["a"], start, prototypes=start.flatten(2).mT[:, :3])
    for _ in range(300):
        pool.update(["a"], goal, 0.99, goal.flatten(2).mT[:, :3])
    for kept, first, last in (
        (pool.tokens[0].float(), start.flatten(2).mT[0], goal.flatten(2).mT[0]),
        (pool.prototypes[0].float(), start.flatten(2).mT[0, :3], goal.flatten(2).mT[0, :3]),
    ):
        expected = last + 0.99**300 * (first - last)
        assert (kept - expected).abs().max() < 0.05
        assert abs(float((kept - expected).mean())) < 0.005


@pytest.mark.parametrize("length", [1.0, 152.0, 0.01])
def test_a_step_turns_the_embedding_by_the_papers_angle_whatever_the_features_length(length):
    """From e1 towards e2 with momentum .99 by arctan(.01/.99): old and new are mixed at equal scales (Eq. 5)."""
    pool = KnowledgePool([PoolEntry("a")], PoolShape(channels=2, grid=1))
    pool.fill(["a"], constant([length, 0.0]))
    pool.update(["a"], constant([0.0, length]), 0.99)
    angle = math.atan2(float(pool.image[0, 1]), float(pool.image[0, 0]))
    assert angle == pytest.approx(math.atan(0.01 / 0.99), rel=1e-4)
    assert angle == pytest.approx(math.atan(0.0101), rel=1e-3)
    assert pool.tokens[0, 0].tolist() == pytest.approx([0.99 * length, 0.01 * length], rel=2e-3)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), momentum=st.floats(0, 1), steps=st.integers(1, 4), scale=st.sampled_from([1e-3, 1e3]))
def test_embeddings_stay_on_the_unit_sphere(seed, momentum, steps, scale):
    pool = filled_pool()
    for step in range(steps):
        pool.update(IDS, scale * rand(4, 6, 3, 3, seed=seed + step), momentum)
    for rows, rounding in ((pool.image, 1e-5), (pool.cot, 1e-3), (pool.report, 1e-3)):
        assert torch.allclose(rows.float().norm(dim=1), torch.ones(4), atol=rounding)


def test_update_moves_the_cases_of_the_step_only():
    pool, before = filled_pool(), filled_pool()
    pool.update(["x", "b", "y"], rand(3, 6, 4, 4, seed=3), 0.5)
    assert (pool.image != before.image).any(dim=1).tolist() == [False, True, False, False]
    alone = filled_pool()
    alone.update(["b"], rand(3, 6, 4, 4, seed=3)[1:2], 0.5)
    assert torch.equal(pool.image, alone.image)
    assert torch.allclose(pool.tokens, alone.tokens, rtol=1e-3)  # rounded by chance
    pool.update(["x"], rand(1, 6, 4, 4), 0.5)
    assert torch.equal(pool.image, alone.image)


def test_of_a_case_drawn_twice_the_last_view_counts():
    twice, once, features = filled_pool(), filled_pool(), rand(3, 6, 4, 4, seed=3)
    twice.update(["b", "a", "b"], features, 0.5)
    once.update(["a", "b"], features[1:], 0.5)
    assert torch.equal(twice.image, once.image)
    assert torch.allclose(twice.tokens, once.tokens, rtol=1e-3)


def test_nothing_in_the_pool_carries_a_gradient():
    pool, features = filled_pool(), rand(4, 6, 4, 4).requires_grad_()
    cot = rand(4, 5).requires_grad_()
    pool.fill(IDS, features * 2, cot=cot * 2, cot_known=torch.ones(4, dtype=torch.bool))
    pool.update(IDS, features * 3, 0.5)
    pooled, tokens = pool.summarise(features)
    assert not any(t.requires_grad for t in (*pool.buffers(), pooled, tokens))
    assert list(pool.parameters()) == []


def test_a_case_takes_at_most_80_kilobytes():
    def per_case(shape: PoolShape) -> int:
        return sum(b.nbytes for b in KnowledgePool([PoolEntry("a")], shape).buffers())

    assert per_case(PoolShape(channels=768, grid=7)) <= 80_000
    assert per_case(PoolShape(channels=768, grid=7, cot=512, report=768)) <= 84_000


def test_features_of_another_size_are_pooled_to_the_grid():
    pooled, tokens = KnowledgePool(entries(), PoolShape(channels=6, grid=7)).summarise(rand(2, 6, 5, 9))
    assert tokens.shape == (2, 49, 6)
    assert torch.allclose(pooled, rand(2, 6, 5, 9).mean(dim=(2, 3)))


def test_a_saved_pool_comes_back_whole(tmp_path):
    pool = filled_pool()
    pool.save(tmp_path / "pool", "net-1")
    for loaded in (KnowledgePool.load(tmp_path / "pool"), KnowledgePool.load(tmp_path / "pool", encoder="net-1")):
        assert loaded.entries == pool.entries
        assert loaded.shape == pool.shape
        assert loaded.state_dict().keys() == pool.state_dict().keys()
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in pool.state_dict().items())
        assert torch.equal(loaded.allowed(["a"], ["p1"]), pool.allowed(["a"], ["p1"]))
    assert sorted(p.name for p in (tmp_path / "pool").iterdir()) == ["manifest.json", "pool.safetensors"]


def test_a_pool_without_texts_and_with_foreign_letters_comes_back(tmp_path):
    pool = KnowledgePool([PoolEntry("Läsion-甲", "Зал")], PoolShape(channels=4, grid=1))
    pool.fill(["Läsion-甲"], rand(1, 4, 2, 2))
    pool.save(tmp_path, "net")
    assert KnowledgePool.load(tmp_path).entries == pool.entries


def refused(folder: Path, *parts: str, encoder: str | None = "net-1") -> None:
    with pytest.raises(CersError) as raised:
        KnowledgePool.load(folder, encoder)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in (str(folder), "`cers pool build`", *parts)), message


def test_a_pool_of_another_encoder_is_refused(tmp_path):
    filled_pool().save(tmp_path, "net-2")
    refused(tmp_path, "net-1", "net-2")


@pytest.mark.parametrize("missing", ["manifest.json", "pool.safetensors", ""])
def test_a_missing_file_is_named(tmp_path, missing):
    if missing:
        filled_pool().save(tmp_path, "net-1")
        (tmp_path / missing).unlink()
    refused(tmp_path, "holds no knowledge pool", missing)


@pytest.mark.parametrize("name", ["manifest.json", "pool.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_torn_file_is_refused(tmp_path, name, keep):
    filled_pool().save(tmp_path, "net-1")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(keep * len(content))])
    refused(tmp_path, "not a readable pool")


def change(**values):
    return lambda manifest: manifest | values


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: {k: v for k, v in m.items() if k != "encoder"}, "encoder"),
        (lambda m: {k: v for k, v in m.items() if k != "entries"}, "entries"),
        (lambda _: [], "list indices"),
        (lambda _: None, "NoneType"),
        (change(shape={"channels": 6}), "grid"),
        (change(shape={"channels": 7, "grid": 2, "cot": 5, "report": 3}), "size mismatch"),
        (change(entries=[["a", None, None]]), "size mismatch"),
        (change(entries=[["a", "b", "c", "d"]]), "arguments"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, edit, reason):
    filled_pool().save(tmp_path, "net-1")
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    refused(tmp_path, "not a readable pool", reason)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    filled_pool().save(tmp_path, "net-1")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "not a readable pool")


def test_a_case_is_found_by_its_id_and_a_wrong_one_gets_a_hint():
    pool = KnowledgePool([PoolEntry("case-1"), PoolEntry("case-2")], SHAPE)
    assert pool.row_of("case-2") == 1
    with pytest.raises(CersError, match="'case-22' is not in the pool of 2 cases; did you mean 'case-2'"):
        pool.row_of("case-22")


def test_areas_are_kept_where_asked_for(tmp_path):
    pool = KnowledgePool(entries(), PoolShape(channels=6, grid=2, areas=True))
    pool.fill(IDS, rand(4, 6, 4, 4), area=torch.tensor([0.1, 0.2, 0.3, 0.0]))
    assert pool.area[pool.row_of("d")] == pytest.approx(0.3)
    pool.save(tmp_path, "e")
    assert torch.equal(KnowledgePool.load(tmp_path).area, pool.area)
    assert "area" not in KnowledgePool(entries(), SHAPE).state_dict()


def test_prototypes_are_kept_where_asked_for_and_move_with_the_features(tmp_path):
    pool = KnowledgePool(entries(), PoolShape(channels=6, grid=2, prototypes=7))
    first, second = rand(4, 3, 7, seed=2), rand(4, 3, 7, seed=3)
    pool.fill(IDS, rand(4, 6, 4, 4), prototypes=first)
    assert torch.allclose(pool.prototypes[pool.row_of("d")].float(), first[2], atol=2e-3)
    pool.update(("d", "x", "c"), rand(3, 6, 4, 4), 0.75, second[:3])
    for id_, place, step in (("d", 2, 0), ("c", 0, 2)):
        expected = 0.75 * first[place] + 0.25 * second[step]
        assert torch.allclose(pool.prototypes[pool.row_of(id_)].float(), expected, atol=4e-3)
    pool.save(tmp_path, "e")
    assert torch.equal(KnowledgePool.load(tmp_path).prototypes, pool.prototypes)
    assert "prototypes" not in KnowledgePool(entries(), SHAPE).state_dict()
