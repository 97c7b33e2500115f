"""Runs an annotation: many calls at a time, each counted before it is sent and written down when it is answered.

However a run ends, the store says what is done, and the next run goes on from there.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cers.annotate.answers import Reply, outcome_of, read_reply
from cers.annotate.client import AgainError, BusyError, Client, DeclinedError, UnfitError
from cers.annotate.hosts import ensure_allowed, host_of, is_this_machine
from cers.annotate.job import Job, Message, most_dollars
from cers.annotate.pace import PATIENCE, Pace, keep_leases
from cers.annotate.prices import Price, price_to_pay
from cers.annotate.prompts import repair
from cers.cot.records import FAILED, ROLES, STATES, Annotation, Key, Outcome, Paid, Role, State
from cers.cot.store import AnnotationStore
from cers.errors import CersError, Interrupted

TRIES = 6  # calls for one text before it counts as failed
_ENCODERS = 2

Progress = Callable[[int, int, float], None]
_Queue = asyncio.Queue[tuple[Annotation, asyncio.Future[list[Message] | CersError]] | None]


@dataclass
class RunSummary:
    """What a run did: texts by state, dollars paid, why it stopped early (None if it did not), unreadable cases."""

    done: dict[State, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    left: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    stopped: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def written(self) -> int:
        """Texts that this run is done with."""
        return sum(count for state, count in self.done.items() if state != "pending")


def run_annotation(
    job: Job,
    store: AnnotationStore,
    *,
    roles: Collection[Role] = ROLES,
    again: Collection[State] = FAILED,
    limit: int | None = None,
    max_cost: float | None = None,
    allow_remote: str | None = None,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> RunSummary:
    """Have the texts of `job` written that `store` does not have yet; those in a state of `again` once more.

    `max_cost` bounds what the whole store has cost, in US dollars. `limit` bounds the texts of this run. `progress` is
    told how many of how many texts are done, and the dollars the run has paid.

    Raises:
        CersError: host not allowed, no key, no price where `max_cost` needs one.
        Interrupted: Ctrl-C; calls in flight were waited for.
    """
    url = ensure_allowed(job.config, store, allow_remote)
    local = is_this_machine(host_of(url))
    price = price_to_pay(job.config.model, job.config.prices, local=local, bounded=max_cost is not None)
    tasks, problems = job.tasks(roles)
    outstanding = store.add_pending(tasks, again)
    total = outstanding if limit is None else min(limit, outstanding)
    summary = RunSummary(problems=problems)
    pace = Pace(patience)
    run = _Run(job, store, price, total, max_cost, progress, pace, summary)
    with suppress(asyncio.CancelledError):  # a second Ctrl-C
        asyncio.run(run.run(Client(job.config, url)))
    store.release()
    summary.left, summary.stopped = store.outstanding(), pace.why
    if pace.interrupted:
        raise Interrupted(f"{summary.written} texts done; the same command goes on with the other {summary.left}")
    return summary


class _Run:
    """The state of one run; everything but the drawing of pictures happens in one thread."""

    def __init__(
        self,
        job: Job,
        store: AnnotationStore,
        price: Price,
        total: int,
        max_cost: float | None,
        progress: Progress | None,
        pace: Pace,
        summary: RunSummary,
    ) -> None:
        self.job, self.store, self.price, self.total = job, store, price, total
        self.max_cost, self.progress, self.pace, self.summary = max_cost, progress, pace, summary
        self.dearest = 0.0  # dollars of the dearest call so far

    async def run(self, client: Client) -> None:
        """Until everything is done, or something stops it."""
        begun = time.monotonic()
        width = self.job.config.concurrency
        queue: _Queue = asyncio.Queue(width)
        with ThreadPoolExecutor(_ENCODERS, thread_name_prefix="picture") as encoders, self.pace.interruptible():
            async with client:
                heart = asyncio.create_task(keep_leases(self.store))
                workers = [asyncio.create_task(self._work(client, queue)) for _ in range(width)]
                try:
                    await self._feed(queue, encoders, workers)
                    await asyncio.gather(*workers)
                finally:
                    for task in (heart, *workers):
                        task.cancel()
                    encoders.shutdown(cancel_futures=True)
        self.summary.seconds = time.monotonic() - begun

    async def _feed(
        self,
        queue: _Queue,
        encoders: ThreadPoolExecutor,
        workers: "list[asyncio.Task[None]]",
    ) -> None:
        """Claim rows and draw their pictures, always a little ahead of the calls; then tell the workers to end."""
        loop = asyncio.get_running_loop()
        handed = 0
        while handed < self.total and not self.pace.stopped:
            rows = self.store.claim(min(len(workers), self.total - handed))
            if not rows:  # the rest is another process's, until its lease runs out
                if not self.store.outstanding():
                    break
                await self.pace.sleep(0.5)
            for row in rows:
                picture = loop.run_in_executor(encoders, self._drawn, row.key)
                await self._put(queue, (row, picture), workers)
                handed += 1
        for _ in workers:
            await self._put(queue, None, workers)

    def _drawn(self, key: Key) -> list[Message] | CersError:
        try:
            return self.job.request(key)
        except CersError as error:
            return error

    async def _put(self, queue: "asyncio.Queue[Any]", item: Any, workers: "list[asyncio.Task[None]]") -> None:
        """Put `item`, unless a worker has died, whose error is then raised."""
        putting = asyncio.create_task(queue.put(item))
        await asyncio.wait({putting, *workers}, return_when=asyncio.FIRST_COMPLETED)
        for worker in workers:
            if worker.done():
                worker.result()
        await putting

    async def _work(self, client: Client, queue: _Queue) -> None:
        while (item := await queue.get()) is not None:
            row, picture = item
            if self.pace.stopped:
                picture.cancel()
                continue
            messages = await picture
            if isinstance(messages, CersError):  # of this case alone: its image or mask
                outcome: Outcome | None = Outcome("failed", reason=str(messages))
            else:
                outcome = await self._annotate(client, row.key, messages)
            if outcome is not None:
                self._record(row.key, outcome)

    async def _annotate(self, client: Client, key: Key, messages: list[Message]) -> Outcome | None:
        """Ask, and once more if the answer cannot be used; None if the run was stopped before there was one."""
        first = await self._reply(client, key, messages)
        if not isinstance(first, Reply):
            return first
        reading = read_reply(first)
        if reading.state != "invalid":
            return outcome_of(first, reading)
        second = await self._reply(client, key, repair(messages, first.text, reading.reason))
        if isinstance(second, Reply):
            return outcome_of(second, read_reply(second))
        return second and Outcome(second.state, first.text, reason=second.reason)

    async def _reply(self, client: Client, key: Key, messages: list[Message]) -> Reply | Outcome | None:
        """The answer to `messages`; an outcome without text; or None if the run was stopped before."""
        begun, tried, failed = time.monotonic(), 0, 0
        while await self.pace.turn():
            dollars = self._most(key, repairs=len(messages) > 1)
            if not self._begin(key, dollars):
                return None
            try:
                reply = await client.ask(messages)
            except AgainError:
                self.store.settle(key, dollars)
            except BusyError as error:
                tried += 1
                failed += self.pace.last_answer > begun  # while nobody is answered it is not for this text
                if not error.lost:
                    self.store.settle(key, dollars)
                if failed >= TRIES or not await self.pace.back_off(error, tried):
                    return Outcome("failed", reason=f"{error} (asked {tried} times)")
            except (DeclinedError, UnfitError) as error:
                self.store.settle(key, dollars)
                return Outcome("refused" if isinstance(error, DeclinedError) else "failed", reason=str(error))
            except CersError as error:
                self.store.settle(key, dollars)
                self.pace.halt(str(error))
            else:
                self._pay(key, dollars, reply)
                self.pace.answered(client.pause)
                return reply
        return None

    def _begin(self, key: Key, dollars: float) -> bool:
        if self.store.begin(key, dollars, self.max_cost):
            return True
        self.pace.halt(f"one more call could exceed the {self.max_cost:g} dollars allowed; raise --max-cost to go on")
        return False

    def _most(self, key: Key, *, repairs: bool) -> float:
        """The most that a call can cost: a longest answer, and half as much input again as is estimated."""
        if not (self.price.input or self.price.output):
            return 0.0
        dollars = most_dollars(self.job, key, self.price)
        if repairs:  # the first answer is sent back
            dollars += self.price.cost(self.job.config.max_tokens, 0)
        return max(dollars, self.dearest)

    def _pay(self, key: Key, dollars: float, reply: Reply) -> None:
        """Write down at once what an answer took; of one that does not say, what it may have cost stays at risk."""
        cost = self.price.cost(reply.tokens_in, reply.tokens_out)
        paid = Paid(reply.tokens_in, reply.tokens_out, cost, reply.seconds)
        self.store.settle(key, dollars if reply.counted else 0.0, paid)
        self.dearest = max(self.dearest, cost)
        self.summary.cost += cost

    def _record(self, key: Key, outcome: Outcome) -> None:
        self.store.record(key, outcome)
        self.summary.done[outcome.state] += 1
        if self.progress is not None:
            self.progress(self.summary.written, self.total, self.summary.cost)
