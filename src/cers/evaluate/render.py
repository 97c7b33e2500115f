"""Numbers and tables as people read them."""

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """`value` with a fixed number of digits, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval, or a dash where there is none."""
    return "–" if number(low) == "–" else f"[{number(low)}, {number(high)}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of `rows`, the first of which is its head."""
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
