from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cers.errors import CersError
from cers.text.tfidf import TfidfEncoder

TEXTS = [
    "two large lesions in the left lung",
    "one small lesion in the right lung",
    "one large lesion in the left lung",
    "bilateral infection, six infected areas",
    "a small glioma with irregular boundary",
]


def test_tokens_sum_to_the_pooled_vector() -> None:
    encoder = TfidfEncoder.fit(TEXTS)
    for features in encoder.encode(TEXTS):
        total = features.tokens.sum(axis=0)
        np.testing.assert_allclose(total / np.linalg.norm(total), features.pooled, atol=1e-6)
        assert features.tokens.dtype == features.pooled.dtype == np.float32
        assert np.linalg.norm(features.pooled) == pytest.approx(1, abs=1e-6)


def test_training_tokens_have_unit_mean_square() -> None:
    tokens = np.concatenate([f.tokens for f in TfidfEncoder.fit(TEXTS).encode(TEXTS)])
    assert np.mean(np.square(tokens)) == pytest.approx(1, rel=1e-4)


def test_similar_texts_are_closer_than_unlike_ones() -> None:
    left, right, _, bilateral, glioma = (f.pooled for f in TfidfEncoder.fit(TEXTS).encode(TEXTS))
    assert left @ right > max(left @ bilateral, left @ glioma)


def test_keeps_the_heaviest_terms_and_the_pooled_vector_of_all() -> None:
    full, cut = TfidfEncoder.fit(TEXTS), TfidfEncoder.fit(TEXTS, max_tokens=3)
    (a,), (b,) = full.encode(TEXTS[:1]), cut.encode(TEXTS[:1])
    assert len(a.tokens) > 3
    np.testing.assert_array_equal(a.tokens[:3], b.tokens)
    np.testing.assert_array_equal(a.pooled, b.pooled)
    assert full.fingerprint != cut.fingerprint


def test_order_and_repetition_of_the_corpus_do_not_matter() -> None:
    assert TfidfEncoder.fit(TEXTS).fingerprint == TfidfEncoder.fit(TEXTS[::-1] * 3).fingerprint
    assert TfidfEncoder.fit(TEXTS).fingerprint != TfidfEncoder.fit(TEXTS[:-1]).fingerprint


def test_text_without_a_known_word_is_zero() -> None:
    (features,) = TfidfEncoder.fit(TEXTS).encode(["zzz"])
    assert features.tokens.shape == (0, TfidfEncoder.fit(TEXTS).width)
    assert not features.pooled.any()


@pytest.mark.parametrize("corpus", [["lesion"], ["lesion", "lesion"], ["one lesion"], ["a", "b"]])
def test_tiny_corpora_clip_the_width(corpus: list[str]) -> None:
    encoder = TfidfEncoder.fit(corpus)
    assert encoder.width == len(set(corpus))
    assert np.linalg.norm(encoder.encode(corpus)[0].pooled) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("corpus", [[], [""], ["..."]])
def test_refuses_a_corpus_without_words(corpus: list[str]) -> None:
    with pytest.raises(CersError, match="no words to fit TF-IDF on"):
        TfidfEncoder.fit(corpus)


@settings(max_examples=25)
@given(st.lists(st.text(), max_size=4))
def test_reloaded_encoder_gives_the_same_bits(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("encoder")
    encoder = TfidfEncoder.fit([*TEXTS, "naïve 漢字 T1"], width=4, seed=3)
    encoder.save(folder)
    again = TfidfEncoder.load(folder)
    assert again.fingerprint == encoder.fingerprint
    assert (again.width, again.max_tokens) == (encoder.width, encoder.max_tokens)
    for a, b in zip(encoder.encode([*TEXTS, *texts]), again.encode([*TEXTS, *texts]), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.pooled, b.pooled)


@pytest.mark.parametrize("name", ["vocabulary.json", "tfidf.safetensors"])
def test_damaged_files_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    TfidfEncoder.fit(TEXTS).save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(CersError, match="cannot be read") as error:
        TfidfEncoder.load(tmp_path)
    assert "\n" not in str(error.value)
