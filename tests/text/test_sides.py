import pytest
from hypothesis import given
from hypothesis import strategies as st

from cers.text.sides import mirrored_words


@pytest.mark.parametrize(
    ("said", "of_the_mirrored"),
    [
        ("all left lung and middle right lung.", "all right lung and middle left lung."),
        ("Right-sided; LEFT lung, leftmost lobe", "Left-sided; RIGHT lung, rightmost lobe"),
        ("lEFT", "right"),
        ("upright view, bilateral, brightly seen, a cleft", "upright view, bilateral, brightly seen, a cleft"),
        ("", ""),
    ],
)
def test_left_becomes_right_and_nothing_else_changes(said: str, of_the_mirrored: str) -> None:
    assert mirrored_words(said) == of_the_mirrored


@given(st.lists(st.sampled_from(["left", "Right", "LEFT", "rightmost", "lung", "bright", " ", "-", "."])).map("".join))
def test_twice_mirrored_is_what_it_was(text: str) -> None:
    assert mirrored_words(mirrored_words(text)) == text
