"""Which cases a report shows."""

import math
from collections.abc import Sequence

from cers.evaluate.table import CaseRow, declared_rows

HEADINGS = ("best", "median", "worst")


def pick_cases(rows: Sequence[CaseRow], n_each: int) -> list[tuple[str, str]]:
    """Up to `n_each` best, median and worst cases by Dice of the declared branch, as (id, heading), best first.

    A lesion-free case is never among the best: its Dice of 1 shows nothing. Every case is picked once and ties are
    broken by id. Fewer than three cases have no order worth a name; they are headed "example".
    """
    scored = [row for row in declared_rows(rows) if math.isfinite(row.metrics.dice)]
    upwards = sorted(scored, key=lambda row: (row.metrics.dice, row.id))
    if len(upwards) < len(HEADINGS):
        return [(row.id, "example") for row in upwards[:n_each]]
    n = min(n_each, len(upwards) // len(HEADINGS))
    worst = upwards[:n]
    best = [row for row in reversed(upwards[n:]) if row.metrics.true_area > 0][:n]
    rest = [row for row in upwards if row not in worst and row not in best]
    middle = (len(rest) - 1) / 2
    nearest = sorted(range(len(rest)), key=lambda i: abs(i - middle))[:n]
    groups = zip(HEADINGS, (best, [rest[i] for i in nearest], worst), strict=True)
    return [(row.id, heading) for heading, group in groups for row in group]
