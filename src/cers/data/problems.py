"""What is wrong with a dataset, one line each."""

from dataclasses import dataclass
from typing import Literal


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
