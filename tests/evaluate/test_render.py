"""Numbers as people read them."""

from cers.evaluate.render import counted, interval, number, percent, signed


def test_below_zero_is_a_minus_and_nothing_has_no_sign() -> None:
    assert [number(value) for value in (-0.5, -0.0001, 0.0, None, float("nan"))] == [
        "−0.500",
        "0.000",
        "0.000",
        "–",
        "–",
    ]
    assert [signed(value) for value in (-0.5, -0.0001, 0.5)] == ["−0.500", "+0.000", "+0.500"]
    assert interval(-0.5, -0.0001) == "[−0.500, 0.000]"


def test_one_is_singular() -> None:
    assert [counted(n, "pixel") for n in (0, 1, 1234)] == ["0 pixels", "1 pixel", "1,234 pixels"]


def test_a_share_in_percent() -> None:
    assert (percent(0.5), percent(0.1966, 1)) == ("50 %", "19.7 %")
