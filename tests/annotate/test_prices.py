from cers.annotate.prices import text_tokens


def test_characters_beyond_ascii_count_as_tokens() -> None:
    """A bound that is worked out from a Chinese report must not be four times too low."""
    assert text_tokens("a report of forty characters, more or so") == 10
    assert text_tokens("左额叶见一不规则强化肿块") == 12
