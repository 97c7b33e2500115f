"""What a store of rationales holds: rows, what they are about, and what comes of the calls for them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from cers.cot.rationale import Rationale

Role = Literal["labelled", "unlabelled"]
State = Literal["pending", "ok", "invalid", "refused", "failed"]
STATES: tuple[State, ...] = get_args(State)
ROLES: tuple[Role, ...] = get_args(Role)

FAILED: tuple[State, ...] = ("failed",)
IMPORTED = "imported"  # the prompt version of texts that were written elsewhere


class Key(NamedTuple):
    """What a row is about: image id, role, prompt version and model."""

    image: str
    role: Role
    prompt: str
    model: str


@dataclass(frozen=True)
class Task:
    """A text that is wanted, with hashes of what it is to be written from; None for what there is not."""

    key: Key
    image_hash: str
    mask_hash: str | None = None
    report_hash: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of the calls for a row. A `pending` one has an answer that is still to be repaired."""

    state: State
    raw: str | None = None
    rationale: Rationale | None = None
    reason: str | None = None


class Paid(NamedTuple):
    """What one answer took: tokens as the server counted them, US dollars, seconds."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Annotation:
    """One row. `rationale` is there in state `ok` only, `reason` in `invalid`, `refused` and `failed`.

    `attempts` counts calls begun; tokens, `cost` (US dollars) and `seconds` are sums over them. `created` and `updated`
    are seconds since 1970. `batch` names the provider's batch that the row waits for.
    """

    image: str
    role: Role
    prompt: str
    model: str
    state: State
    attempts: int
    raw: str | None
    rationale: Rationale | None
    tokens_in: int
    tokens_out: int
    cost: float
    seconds: float
    image_hash: str | None
    mask_hash: str | None
    report_hash: str | None
    reason: str | None
    created: float
    updated: float
    batch: str | None

    @property
    def key(self) -> Key:
        """What the row is about."""
        return Key(self.image, self.role, self.prompt, self.model)
