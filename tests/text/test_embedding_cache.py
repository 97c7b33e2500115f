import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cers.text import cache as cache_module
from cers.text.base import TextFeatures
from cers.text.cache import EmbeddingCache
from cers.text.tfidf import TfidfEncoder

TEXTS = [f"lesion number {i} of size {i % 7}" for i in range(40)]


class Counting:
    """A real encoder that remembers what it was asked."""

    def __init__(self, encoder: TfidfEncoder) -> None:
        self.encoder = encoder
        self.fingerprint = encoder.fingerprint
        self.width = encoder.width
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> list[TextFeatures]:
        self.asked += texts
        return self.encoder.encode(texts)


@pytest.fixture
def encoder() -> Counting:
    return Counting(TfidfEncoder.fit(TEXTS, width=8))


def assert_same(found: dict[str, TextFeatures], encoder: Counting) -> None:
    for text, expected in zip(found, encoder.encoder.encode(list(found)), strict=True):
        np.testing.assert_array_equal(found[text].tokens, expected.tokens)
        np.testing.assert_array_equal(found[text].pooled, expected.pooled)


def test_encodes_each_distinct_text_once(tmp_path: Path, encoder: Counting) -> None:
    cache = EmbeddingCache(tmp_path, encoder)
    found = cache.features(TEXTS * 80)
    assert set(found) == set(TEXTS)
    assert sorted(encoder.asked) == sorted(TEXTS)
    assert (cache.hits, cache.misses) == (0, 40)
    assert_same(found, encoder)


def test_second_process_reads_what_the_first_wrote(tmp_path: Path, encoder: Counting) -> None:
    EmbeddingCache(tmp_path, encoder).features([*TEXTS, ""])
    encoder.asked.clear()
    cache = EmbeddingCache(tmp_path, encoder)
    found = cache.features(["a new lesion", *TEXTS[::-1], ""])
    assert encoder.asked == ["a new lesion"]
    assert (cache.hits, cache.misses) == (41, 1)
    assert_same(found, encoder)


def test_another_encoder_shares_nothing(tmp_path: Path, encoder: Counting) -> None:
    EmbeddingCache(tmp_path, encoder).features(TEXTS)
    other = Counting(TfidfEncoder.fit(TEXTS, width=3))
    assert EmbeddingCache(tmp_path, other).features(TEXTS[:1])[TEXTS[0]].pooled.shape == (3,)
    assert other.asked == TEXTS[:1]


def test_without_tokens_only_the_pooled_vector_is_kept(tmp_path: Path, encoder: Counting) -> None:
    for _ in range(2):
        found = EmbeddingCache(tmp_path, encoder, tokens=False).features(TEXTS)
        assert all(f.tokens.shape == (0, 8) for f in found.values())
        assert np.stack([f.pooled for f in found.values()]).any(axis=1).all()
    assert len(encoder.asked) == 40
    assert all(len(f.tokens) for f in EmbeddingCache(tmp_path, encoder).features(TEXTS).values())


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "foreign"])
def test_damaged_shard_is_encoded_again(
    tmp_path: Path, encoder: Counting, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD", 10)
    EmbeddingCache(tmp_path, encoder).features(TEXTS)
    shards = sorted(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 4
    content = bytearray(shards[0].read_bytes())
    content[-1] ^= 1
    shards[0].write_bytes(
        {"truncated": bytes(content[:50]), "bit": bytes(content), "empty": b"", "foreign": b"x" * 999}[damage]
    )
    encoder.asked.clear()
    assert_same(EmbeddingCache(tmp_path, encoder).features(TEXTS), encoder)
    assert len(encoder.asked) == 10
    encoder.asked.clear()
    EmbeddingCache(tmp_path, encoder).features(TEXTS)
    assert encoder.asked == []


def _fill(folder: Path, texts: list[str]) -> None:
    EmbeddingCache(folder, TfidfEncoder.fit(TEXTS, width=8)).features(texts)


def test_two_processes_may_write_at_once(tmp_path: Path, encoder: Counting) -> None:
    context = multiprocessing.get_context("spawn")
    parts = (TEXTS[:30], TEXTS[10:])
    processes = [context.Process(target=_fill, args=(tmp_path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert_same(EmbeddingCache(tmp_path, encoder).features(TEXTS), encoder)
    assert encoder.asked == []
    assert not list(tmp_path.rglob("*.tmp"))
