"""What an annotation will take: calls, tokens, dollars and time, worked out without a call."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from cers.annotate.hosts import host_of, is_this_machine, server_url
from cers.annotate.job import Job
from cers.annotate.prices import FREE, Price, load_prices, price_of
from cers.cot.records import FAILED, ROLES, Annotation, Key, Role, State, Task
from cers.cot.store import AnnotationStore

_ENOUGH = 5  # answers in the store from which on their means replace the estimates


@dataclass(frozen=True)
class RolePlan:
    """Texts of one role: those `done` already, the `calls` to make, and about how many tokens they take."""

    role: Role
    done: int
    calls: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Plan:
    """The work of a run. Dollars are None where the price is unknown; `measured`: tokens are means of real answers."""

    roles: tuple[RolePlan, ...]
    cost: float | None
    batch_cost: float | None
    seconds: float
    measured: bool
    problems: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Calls to make, without repairs and repetitions."""
        return sum(role.calls for role in self.roles)


def plan_annotation(
    job: Job,
    store: AnnotationStore | None = None,
    *,
    roles: Collection[Role] = ROLES,
    again: Collection[State] = FAILED,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """What `run_annotation` with these arguments would do.

    Raises:
        CersError: an unreadable price table or server address.
    """
    local = is_this_machine(host_of(server_url(job.config)))
    price = price_of(job.config.model, load_prices(job.config.prices), local=local)
    tasks, problems = job.tasks(roles, progress)
    known = {row.key: row for row in store.rows(model=job.config.model)} if store else {}
    plans = [_role_plan(role, [t for t in tasks if t.key.role == role], job, price, known, again) for role in roles]
    answered = _answered(known)
    tokens_in, tokens_out = sum(p.tokens_in for p in plans), sum(p.tokens_out for p in plans)
    calls = sum(p.calls for p in plans)
    each = (
        sum(row.seconds for row in answered) / len(answered)
        if answered
        else (price or Price(input=0, output=0)).seconds
    )
    return Plan(
        roles=tuple(plans),
        cost=price.cost(tokens_in, tokens_out) if price else None,
        batch_cost=price.cost(tokens_in, tokens_out, batch=True) if price else None,
        seconds=calls * each / job.config.concurrency,
        measured=bool(answered),
        problems=problems,
    )


def _role_plan(
    role: Role,
    tasks: list[Task],
    job: Job,
    price: Price | None,
    known: dict[Key, Annotation],
    again: Collection[State],
) -> RolePlan:
    missing = [task.key for task in tasks if not _stands(known.get(task.key), task, again)]
    answered = [row for row in _answered(known) if row.role == role]
    if answered:
        sent = sum(row.tokens_in for row in answered) * len(missing) // len(answered)
        got = sum(row.tokens_out for row in answered) * len(missing) // len(answered)
    else:
        counts = [job.tokens(key, price or FREE) for key in missing]
        sent, got = sum(c[0] for c in counts), sum(c[1] for c in counts)
    return RolePlan(role, len(tasks) - len(missing), len(missing), sent, got)


def _stands(row: Annotation | None, task: Task, again: Collection[State]) -> bool:
    if row is None or row.state == "pending" or row.state in again:
        return False
    return (row.image_hash, row.mask_hash, row.report_hash) == (task.image_hash, task.mask_hash, task.report_hash)


def _answered(known: dict[Key, Annotation]) -> list[Annotation]:
    rows = [row for row in known.values() if row.state == "ok" and row.tokens_in]
    return rows if len(rows) >= _ENOUGH else []
