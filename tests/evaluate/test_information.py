import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cers.evaluate.information import aspect_rows, first_within, information_rows, outcomes, summarised

MEASURES = ("first", "first_of_50", "outranks", "class", "look_alike")


def unit(rows: NDArray) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def vectors(n: int, seed: int = 0, width: int = 64) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(n, width)))


def nobody(n: int) -> list[None]:
    return [None] * n


def test_a_perfect_text_finds_its_partner_and_an_empty_one_finds_what_chance_finds() -> None:
    own = vectors(60)
    found, chance = outcomes(own, own, nobody(60), nobody(60))
    assert found["first"].tolist() == [1] * 60
    assert found["outranks"].tolist() == [1] * 60
    same = np.repeat(own[:1], 60, axis=0)
    found, chance = outcomes(same, same, ["a", "b"] * 30, [str(i // 3) for i in range(60)])
    for name in MEASURES:
        np.testing.assert_allclose(found[name], chance[name], atol=1e-12)
    assert chance["first"][0] == pytest.approx(1 / 60)
    assert chance["first_of_50"][0] == pytest.approx(1 / 50)
    assert chance["look_alike"][0] == pytest.approx(2 / 59)


@settings(max_examples=15)
@given(st.integers(2, 90), st.integers(0, 5))
def test_texts_unrelated_to_their_images_find_what_chance_finds(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = []
    for draw in range(30):
        answers = vectors(n, draw)
        found, chance = outcomes(vectors(n, 1000 + draw), answers, nobody(n), nobody(n))
        means.append([np.mean(found[name] - chance[name]) for name in MEASURES[:3]])
        shuffled = rng.permutation(n)
        again, _ = outcomes(vectors(n, 1000 + draw)[shuffled], answers[shuffled], nobody(n), nobody(n))
        np.testing.assert_allclose(again["outranks"], found["outranks"][shuffled])
    spread = np.std(means, axis=0) / np.sqrt(30) + 1e-9
    assert (np.abs(np.mean(means, axis=0)) < 5 * spread).all()


def test_first_of_50_is_what_drawing_49_others_gives() -> None:
    rng = np.random.default_rng(0)
    answers = vectors(120, 1)
    queries = unit(answers + 2.0 * vectors(120, 2))
    expected = outcomes(queries, answers, nobody(120), nobody(120))[0]["first_of_50"]
    similar = queries @ answers.T
    drawn = np.zeros(120)
    for _ in range(1500):
        for i in range(120):
            others = rng.choice(119, 49, replace=False)
            others += others >= i
            drawn[i] += similar[i, others].max() < similar[i, i]
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_allclose(expected, drawn / 1500, atol=0.06)


def test_class_counts_neither_the_partner_nor_its_look_alikes() -> None:
    axes = np.eye(8, dtype=np.float32)
    answers = unit(np.stack([axes[0], axes[0] + 0.1 * axes[1], axes[0] + 0.2 * axes[2], *axes[3:8]]))
    labels = ["a", "a", "b", "b", "b", "b", "b", "b"]
    found, chance = outcomes(answers, answers, labels, ["p", "p", *map(str, range(6))])
    assert found["class"][0] == 0
    assert chance["class"][0] == 0
    assert found["look_alike"][0] == 1
    assert np.isnan(found["look_alike"][2])
    assert chance["look_alike"][0] == pytest.approx(1 / 7)


def test_unknown_classes_are_left_out() -> None:
    found, chance = outcomes(vectors(6), vectors(6), [None, "a", "a", None, "b", "b"], nobody(6))
    assert np.isnan(found["class"][[0, 3]]).all()
    assert chance["class"][1] == pytest.approx(1 / 3)


def test_equal_reports_ask_only_among_themselves() -> None:
    own = vectors(5)
    found, chance = first_within(own, own[[1, 0, 2, 3, 4]], ["x", "x", "y", "y", "z"])
    assert found[:4].tolist() == [0, 0, 1, 1]
    assert chance[:4].tolist() == [0.5] * 4
    assert np.isnan(found[4])


def test_summary_pairs_what_is_found_with_chance() -> None:
    summary = summarised(np.array([1.0, 0.5, np.nan]), np.array([0.5, 0.5, 0.5]), ["a", "b", "c"])
    assert (summary["n"], summary["mean"], summary["chance"]) == (2, 0.75, 0.5)
    assert summary["lift"]["mean"] == 0.25
    assert summarised(np.array([np.nan]), np.array([0.5]), ["a"]) == {"n": 0}


def test_tables_leave_out_what_could_not_be_measured() -> None:
    found, chance = outcomes(vectors(5), vectors(5), nobody(5), nobody(5))
    part = {name: summarised(found[name], chance[name], nobody(5)) for name in found}
    summary = {"rationale": part, "by_aspect": {"texture": part}}
    assert [row[0] for row in information_rows(summary)[1:]] == [
        "own partner first",
        "own partner first of 50",
        "others that the partner outranks",
    ]
    assert len(aspect_rows(summary)[0]) == 4
