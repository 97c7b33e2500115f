import numpy as np
import pytest

from cers.cot.audit import agreement, count_flaws, find_flaws, near_identical, vocabulary
from cers.cot.rationale import Rationale, render
from cers.cot.texts import Written

WORDS = np.array([f"word{chr(97 + n)}{chr(97 + m)}" for n in range(8) for m in range(8)])


def rationale(seed: int, texture: str | None = None) -> Rationale:
    rng = np.random.default_rng(seed)
    return Rationale(*(texture if texture and not i else " ".join(rng.choice(WORDS, 6)) + "." for i in range(4)))


def written(image: str, text: str, role: str = "unlabelled", line: int = 2) -> Written:
    assert role in ("labelled", "unlabelled")
    return Written(image, "labelled" if role == "labelled" else "unlabelled", text, f"cot.csv:{line}")


def test_flaws_name_their_text_and_are_counted_by_role() -> None:
    good = render(rationale(0))
    texts = [
        written("a", good),
        written("a", good, line=3),
        written("a", render(rationale(1)), line=4),
        written("b", "I'm sorry, I can't help.", "labelled"),
        written("c", render(rationale(2, "The region at x=12 is bright."))),
        written("d", render(rationale(3, "An axial scan with one large glioma."))),
    ]
    flaws = find_flaws(texts, {"d": "An axial scan with one large glioma."})
    assert [(f.image, f.where, f.kind) for f in flaws] == [
        ("a", "cot.csv:3", "second text"),
        ("a", "cot.csv:4", "second text"),
        ("b", "cot.csv:2", "malformed"),
        ("c", "cot.csv:2", "mentions coordinates"),
        ("d", "cot.csv:2", "copies the report"),
    ]
    assert [f.detail for f in flaws[:2]] == ["repeats cot.csv:2", "contradicts cot.csv:2"]
    assert list(count_flaws(flaws)) == ["malformed", "second text", "copies the report", "mentions coordinates"]
    assert count_flaws(flaws)["malformed"] == {"labelled": 1, "unlabelled": 0}


def test_nearly_the_same_text_is_found_but_not_among_look_alikes() -> None:
    texts = {f"i{n}": rationale(n) for n in range(700)}  # more than one block
    texts["copy"] = rationale(3)
    texts["nearly"] = Rationale(rationale(4).texture + " More.", *list(vars(rationale(4)).values())[1:])
    found = near_identical(texts)
    assert [(image, other) for image, other, _ in found[:2]] == [("copy", "i3"), ("i3", "copy")]
    assert {frozenset(pair[:2]) for pair in found} == {frozenset(("i3", "copy")), frozenset(("i4", "nearly"))}
    assert [round(found[0][2], 9), 0.8 < found[2][2] < 1] == [1, True]
    assert near_identical(texts, [frozenset(("i3", "copy")), frozenset(("i4", "nearly"))]) == []
    assert near_identical({"a": rationale(0)}) == []


def test_vocabulary_tells_boilerplate_from_description() -> None:
    boilerplate = {str(n): rationale(0) for n in range(50)}
    varied = {str(n): rationale(n) for n in range(50)}
    poor, rich = vocabulary(boilerplate), vocabulary(varied)
    assert (poor["distinct_texts"], rich["distinct_texts"]) == (1, 50)
    assert poor["common_share"] == pytest.approx(1)
    assert rich["common_share"] < 1
    assert poor["most_common"][0][1] == 1
    assert rich["tokens"]["median"] == 4 * (6 + 1 + 2)
    assert rich["over_long"] == 0
    assert vocabulary({}) == {"texts": 0}


def test_agreement_is_compared_with_all_pairs_of_different_images() -> None:
    free = {str(n): rationale(n) for n in range(12)} | {"alone": rationale(99)}
    informed = {str(n): Rationale(rationale(n).texture, *[f"{w} one." for w in "xyz"]) for n in range(12)}
    found = agreement(free, informed)
    assert found["texture"][0].tolist() == [1] * 12
    assert found["boundary"][0].tolist() == [0] * 12
    sets = [set(rationale(n).texture.strip(".").split()) for n in range(12)]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j]
    assert found["texture"][1] == pytest.approx(np.mean(pairs))
    assert agreement(free, {}) == {}
