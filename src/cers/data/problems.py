"""What is wrong with a dataset, one line each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Of each kind this many are listed: a wrong folder is one mistake, not 4,000.
LISTED = 20


@dataclass(frozen=True)
class Problem:
    """One finding. An `error` forbids training, a `warning` may surprise, a `note` only informs.

    `kind` is a short name to count by, `where` the file or folder, `message` one line with what to do.
    """

    level: Literal["error", "warning", "note"]
    kind: str
    where: str
    message: str


def some(names: list[str], shown: int = 3) -> str:
    """The first few of `names`, quoted, for a line that must stay short."""
    return ", ".join(f"'{n}'" for n in names[:shown]) + (" …" if len(names) > shown else "")


def shortened(problems: Sequence[Problem], where: str) -> list[Problem]:
    """The first problems of each level and kind, then one line that counts the rest."""
    seen: Counter[tuple[Literal["error", "warning", "note"], str]] = Counter()
    kept = []
    for problem in problems:
        seen[problem.level, problem.kind] += 1
        if seen[problem.level, problem.kind] <= LISTED:
            kept.append(problem)
    rest = {kind: count - LISTED for kind, count in seen.items() if count > LISTED}
    return kept + [
        Problem(level, kind, where, f"{count} more of the same kind") for (level, kind), count in rest.items()
    ]
