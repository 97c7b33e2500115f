"""Runs an annotation: many calls at a time, each counted before it is sent and written down when it is answered.

However a run ends, the store says what is done, and the next run goes on from there.
"""

import asyncio
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from cers.annotate.answers import Reading, Reply, read_reply
from cers.annotate.client import AgainError, BusyError, Client, DeclinedError, UnfitError
from cers.annotate.hosts import ensure_allowed, host_of, is_this_machine
from cers.annotate.job import Job, Message
from cers.annotate.prices import FREE, Price, load_prices, price_of, unknown_price
from cers.annotate.prompts import REPAIR
from cers.cot.store import FAILED, ROLES, STATES, Annotation, AnnotationStore, Key, Outcome, Role, State
from cers.errors import CersError, Interrupted

TRIES = 6  # calls for one text before it counts as failed
PATIENCE = 120.0  # seconds without any answer before a run gives up
_LONGEST_WAIT = 60.0
_LONGEST_ASKED = 3600.0
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
    prices = load_prices(job.config.prices)
    price = price_of(job.config.model, prices, local=local)
    if price is None and max_cost is not None:
        raise unknown_price(job.config.model, prices)
    tasks, problems = job.tasks(roles)
    outstanding = store.add_pending(tasks, again)
    total = outstanding if limit is None else min(limit, outstanding)
    summary = RunSummary(problems=problems)
    run = _Run(job, store, price or FREE, total, max_cost, progress, patience, summary)
    try:
        with suppress(asyncio.CancelledError):  # a second Ctrl-C
            asyncio.run(run.run(Client(job.config, url)))
        store.release()
    except sqlite3.Error as error:
        raise CersError(f"{store.path} cannot be written: {error}; free space and run the same command again") from None
    summary.left = store.outstanding()
    if run.interrupted:
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
        patience: float,
        summary: RunSummary,
    ) -> None:
        self.job, self.store, self.price, self.total = job, store, price, total
        self.max_cost, self.progress, self.patience, self.summary = max_cost, progress, patience, summary
        self.interrupted = False
        self.stop = asyncio.Event()
        self.answered = time.monotonic()
        self.resume_at = 0.0
        self.asked = 0.0  # longest wait that the server asked for since its last answer
        self.dearest = 0.0  # dollars of the dearest call so far

    async def run(self, client: Client) -> None:
        """Until everything is done, or something stops it."""
        begun = time.monotonic()
        width = self.job.config.concurrency
        queue: _Queue = asyncio.Queue(width)
        with ThreadPoolExecutor(_ENCODERS, thread_name_prefix="picture") as encoders, self._interruptible():
            async with client:
                heart = asyncio.create_task(self._keep_leases())
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
        while handed < self.total and not self.stop.is_set():
            rows = self.store.claim(min(len(workers), self.total - handed))
            if not rows:  # the rest is another process's, until its lease runs out
                if not self.store.outstanding():
                    break
                await self._sleep(0.5)
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
            if self.stop.is_set():
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
            return self._outcome(first, reading)
        asked = [*messages]
        if first.text:
            asked.append({"role": "assistant", "content": first.text})
        asked.append({"role": "user", "content": REPAIR.format(reason=reading.reason)})
        second = await self._reply(client, key, asked)
        if second is None:
            return self._outcome(first, Reading("pending"))
        if isinstance(second, Outcome):
            return self._outcome(first, Reading(second.state, reason=second.reason))
        return self._outcome(
            replace(
                second,
                tokens_in=first.tokens_in + second.tokens_in,
                tokens_out=first.tokens_out + second.tokens_out,
                seconds=first.seconds + second.seconds,
            ),
            read_reply(second),
        )

    async def _reply(self, client: Client, key: Key, messages: list[Message]) -> Reply | Outcome | None:
        """The answer to `messages`; an outcome without text; or None if the run was stopped before."""
        begun, tried, failed = time.monotonic(), 0, 0
        while True:
            await self._sleep(self.resume_at - time.monotonic())
            dollars = self._most(key)
            if self.stop.is_set() or not self._begin(key, dollars):
                return None
            try:
                reply = await client.ask(messages)
            except AgainError:
                self.store.settle(key, dollars)
                continue
            except BusyError as error:
                tried += 1
                failed += self.answered > begun  # while nobody is answered it is not for this text
                if not error.lost:
                    self.store.settle(key, dollars)
                if failed >= TRIES or not await self._back_off(error, tried):
                    return Outcome("failed", reason=f"{error} (asked {tried} times)")
                continue
            except (DeclinedError, UnfitError) as error:
                self.store.settle(key, dollars)
                return Outcome("refused" if isinstance(error, DeclinedError) else "failed", reason=str(error))
            except CersError as error:
                self.store.settle(key, dollars)
                self._halt(str(error))
                return None
            self.store.settle(key, dollars)
            self.answered, self.asked = time.monotonic(), 0.0
            self.resume_at = max(self.resume_at, self.answered + client.pause)
            return reply

    def _begin(self, key: Key, dollars: float) -> bool:
        if self.store.begin(key, dollars, self.max_cost):
            return True
        self._halt(f"one more call could exceed the {self.max_cost:g} dollars allowed; raise --max-cost to go on")
        return False

    def _most(self, key: Key) -> float:
        """The most that a call can cost: a longest answer, and half as much input again as is estimated."""
        if not (self.price.input or self.price.output):
            return 0.0
        tokens_in, _ = self.job.tokens(key, self.price)
        return max(self.price.cost(3 * tokens_in // 2 + 400, self.job.config.max_tokens), self.dearest)

    async def _back_off(self, error: BusyError, tried: int) -> bool:
        """Wait as the server asks, or exponentially longer with jitter; False when nobody is answered any more."""
        self.asked = max(self.asked, error.wait or 0.0)
        if self.asked > _LONGEST_ASKED:
            self._halt(f"the server asks to wait for {self.asked / 60:.0f} minutes: {error}")
            return False
        silence = time.monotonic() - self.answered
        if silence > self.patience + self.asked:
            self._halt(f"no answer from the server for {silence:.0f} seconds: {error}")
            return False
        wait = error.wait
        if wait is None:
            wait = min(_LONGEST_WAIT, 0.5 * 2**tried) * random.uniform(0.5, 1.0)
        if error.limited:
            self.resume_at = max(self.resume_at, time.monotonic() + wait)
        await self._sleep(wait)
        return True

    def _outcome(self, reply: Reply, reading: Reading) -> Outcome:
        cost = self.price.cost(reply.tokens_in, reply.tokens_out)
        self.dearest = max(self.dearest, cost)
        return Outcome(
            reading.state,
            reply.text,
            reading.rationale,
            reading.reason,
            reply.tokens_in,
            reply.tokens_out,
            cost,
            reply.seconds,
        )

    def _record(self, key: Key, outcome: Outcome) -> None:
        self.store.record(key, outcome)
        self.summary.done[outcome.state] += 1
        self.summary.cost += outcome.cost
        if self.progress is not None:
            self.progress(self.summary.written, self.total, self.summary.cost)

    def _halt(self, why: str) -> None:
        self.summary.stopped = self.summary.stopped or why
        self.stop.set()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), seconds)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self.store.lease_seconds / 4)
            self.store.renew()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C lets calls in flight finish; a second one drops them."""
        loop, main = asyncio.get_running_loop(), asyncio.current_task()

        def interrupt() -> None:
            if self.interrupted and main is not None:
                main.cancel()
            self.interrupted = True
            self.stop.set()

        signals = (signal.SIGINT, signal.SIGTERM)
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or Windows
            for number in signals:
                loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                for number in signals:
                    loop.remove_signal_handler(number)
