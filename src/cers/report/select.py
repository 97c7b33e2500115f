"""Which cases a report shows."""

import math
from collections.abc import Mapping, Sequence

from cers.evaluate.table import CaseRow, declared_rows


def pick_cases(rows: Sequence[CaseRow], n_each: int) -> list[tuple[str, str]]:
    """Up to `n_each` best, median and worst cases by Dice of the declared branch, as (id, heading), best first.

    A lesion-free case is never among the best: its Dice of 1 shows nothing. Every case is picked once and ties are
    broken by id. Fewer than three cases have no order worth a name; they are headed "example".
    """
    scored = [row for row in declared_rows(rows) if math.isfinite(row.metrics.dice)]
    upwards = sorted(scored, key=lambda row: (row.metrics.dice, row.id))
    if len(upwards) < 3:
        return [(row.id, "example") for row in upwards[:n_each]]
    middle = (len(upwards) - 1) / 2
    orders = {
        "best": [row.id for row in reversed(upwards) if row.metrics.true_area > 0],
        "median": [upwards[i].id for i in sorted(range(len(upwards)), key=lambda i: abs(i - middle))],
        "worst": [row.id for row in upwards],
    }
    picked = _take_turns(orders, n_each)
    return [(case, heading) for heading in orders for case in picked[heading]]


def _take_turns(orders: Mapping[str, Sequence[str]], n_each: int) -> dict[str, list[str]]:
    """The first `n_each` free cases of every order, one at a time, so that no heading takes what another lacks."""
    picked: dict[str, list[str]] = {heading: [] for heading in orders}
    taken: set[str] = set()
    for _ in range(n_each):
        for heading, order in orders.items():
            case = next((case for case in order if case not in taken), None)
            if case is not None:
                taken.add(case)
                picked[heading].append(case)
    return picked
