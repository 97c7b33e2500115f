"""Annotation through a provider's Batch API: half the price, answers within a day, resumed after days.

The store says which batch a row waits for, and at which host. A batch gets its own mark, written down before it is
created, so that one whose creation was cut off is found again by that mark instead of being paid for twice.
"""

import asyncio
import hashlib
import json
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import IO, Any

import openai
from openai.types import Batch

from cers.annotate.answers import Reply, outcome_of, read_reply
from cers.annotate.client import POLICY, BusyError, Client, reply_of
from cers.annotate.hosts import ensure_allowed, host_of, is_this_machine
from cers.annotate.job import Job, most_dollars
from cers.annotate.pace import keep_leases
from cers.annotate.prices import Price, price_to_pay
from cers.annotate.prompts import repair
from cers.cot.records import FAILED, ROLES, STATES, Annotation, Key, Outcome, Paid, Role, State
from cers.cot.store import AnnotationStore
from cers.errors import CersError, Interrupted

LARGEST_FILE = 190_000_000  # bytes; providers take 200 MB
MOST_REQUESTS = 50_000
_MARK = "cers-"
_OVER = ("completed", "expired", "cancelled", "failed")

Told = Callable[[str], None]


@dataclass
class BatchSummary:
    """Texts collected by state, texts submitted, batches still running, and why no more was submitted, if so."""

    done: dict[State, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    submitted: int = 0
    waiting: int = 0
    cost: float = 0.0
    stopped: str | None = None
    problems: list[str] = field(default_factory=list)


def run_batches(
    job: Job,
    store: AnnotationStore,
    *,
    roles: Collection[Role] = ROLES,
    again: Collection[State] = FAILED,
    limit: int | None = None,
    max_cost: float | None = None,
    allow_remote: str | None = None,
    poll_seconds: float = 60.0,
    tell: Told = lambda *_: None,
) -> BatchSummary:
    """Collect what earlier batches have brought, submit what is missing, and wait until all batches are over.

    Raises:
        CersError: host not allowed, no key, no price where `max_cost` needs one, or the server knows no batches.
        Interrupted: Ctrl-C; the provider goes on, and the same command collects later.
    """
    url = ensure_allowed(job.config, store, allow_remote)
    local = is_this_machine(host_of(url))
    price = price_to_pay(job.config.model, job.config.prices, local=local, bounded=max_cost is not None)
    tasks, problems = job.tasks(roles)
    store.add_pending(tasks, again)
    run = _Batches(job, store, Client(job.config, url), price, max_cost, tell, BatchSummary(problems=problems))
    try:
        asyncio.run(run.run(limit, poll_seconds))
    except KeyboardInterrupt:
        waiting = len(store.batches())
        raise Interrupted(f"{waiting} batches go on at the provider; the same command collects them") from None
    except (openai.OpenAIError, OSError) as error:
        raise CersError(f"batches: {run.client.clean(str(error))}; run the same command again") from None
    finally:
        store.release()
    return run.summary


class _Batches:
    def __init__(
        self,
        job: Job,
        store: AnnotationStore,
        client: Client,
        price: Price,
        max_cost: float | None,
        tell: Told,
        summary: BatchSummary,
    ) -> None:
        self.job, self.store, self.client, self.price = job, store, client, price
        self.max_cost, self.tell, self.summary = max_cost, tell, summary
        self.local = is_this_machine(client.api.base_url.host)
        self.at = f"{client.api.base_url.host}/"  # how batches of this host begin in the store
        self.price_of = cache(lambda model: price_to_pay(model, job.config.prices, local=self.local, bounded=False))
        self.unusable = 0  # answers since the last batch that are to be repaired

    async def run(self, limit: int | None, poll_seconds: float) -> None:
        """Everything once; `limit` bounds the texts submitted."""
        async with self.client:
            heart = asyncio.create_task(keep_leases(self.store))
            try:
                self._tell_of_others()
                await self._adopt()
                await self._collect()
                wanted = self.store.outstanding() if limit is None else limit
                while wanted or self.summary.waiting:
                    self.unusable = 0
                    await self._submit_all(wanted)
                    while await self._collect():
                        await asyncio.sleep(poll_seconds)
                    wanted = self.unusable
            finally:
                heart.cancel()

    def _tell_of_others(self) -> None:
        """Batches at other servers are left alone."""
        for batch in self.store.batches():
            if not batch.startswith(self.at):
                self.tell(f"batch {batch}: at another server; name that as base_url to collect it")

    async def _adopt(self) -> None:
        """Find the batches whose creation was cut off; rows of those that were never created are free again."""
        marks = [batch for batch in self._batches() if batch.startswith(_MARK)]
        if not marks:
            return
        created = {(b.metadata or {}).get("cers"): b.id async for b in self._listed()}
        for mark in marks:
            if mark in created:
                self.store.submitted(self.at + mark, self.at + created[mark])
            else:
                self.store.dissolve(self.at + mark)

    def _batches(self) -> list[str]:
        """Ids of the batches at this host that rows wait for."""
        return [batch.removeprefix(self.at) for batch in self.store.batches() if batch.startswith(self.at)]

    async def _listed(self) -> AsyncIterator[Batch]:
        async for batch in self.client.api.batches.list(limit=100):
            yield batch

    async def _submit_all(self, wanted: int) -> None:
        while wanted > 0 and (count := await self._submit(wanted)):
            self.summary.submitted += count
            wanted -= count

    async def _submit(self, wanted: int) -> int:
        """Submit one batch of at most `wanted` texts; returns how many."""
        mark = f"{_MARK}{uuid.uuid4().hex}"
        with tempfile.TemporaryFile() as file:
            try:
                count = await self._write(file, mark, min(wanted, MOST_REQUESTS))
                if not count:
                    return 0
                file.seek(0)
                uploaded = await self.client.api.files.create(file=(f"{mark}.jsonl", file), purpose="batch")
            except BaseException:
                self.store.dissolve(self.at + mark)
                raise
        try:
            batch = await self.client.api.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"cers": mark},
            )
        except openai.APIStatusError as error:
            if error.status_code < 500:  # it says that there is none; after anything else there may be one
                self.store.dissolve(self.at + mark)
            raise
        self.store.submitted(self.at + mark, self.at + batch.id)
        self.tell(f"batch {batch.id}: {count} texts submitted")
        return count

    async def _write(self, file: IO[bytes], mark: str, most: int) -> int:
        """Write requests to `file` until it or the budget is full, each begun as part of `mark`; returns how many."""
        count = 0
        while count < most and file.tell() < LARGEST_FILE and not self.summary.stopped:
            rows = self.store.claim(min(64, most - count))
            if not rows:
                break
            for row in rows:
                if self.summary.stopped or not await self._write_one(file, mark, row):
                    self.store.release([row.key])
                else:
                    count += 1
        return count

    async def _write_one(self, file: IO[bytes], mark: str, row: Annotation) -> bool:
        try:
            messages = await asyncio.to_thread(self.job.request, row.key)
            most = most_dollars(self.job, row.key, self.price, batch=True)
        except CersError as error:
            self.store.record(row.key, Outcome("failed", reason=str(error)))
            self.summary.done["failed"] += 1
            return False
        if row.raw is not None:
            messages = repair(messages, row.raw, row.reason)
            most += self.price.cost(self.job.config.max_tokens, 0, batch=True)
        if not self.store.begin(row.key, most, self.max_cost, batch=self.at + mark):
            self.summary.stopped = f"more could exceed the {self.max_cost:g} dollars allowed; raise --max-cost to go on"
            return False
        line = {
            "custom_id": _custom_id(row.key),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": self.client.body(messages),
        }
        file.write(json.dumps(line).encode("utf-8") + b"\n")
        return True

    async def _collect(self) -> int:
        """Take in what finished batches have brought; returns how many are still running."""
        running = 0
        for id in self._batches():
            if id.startswith(_MARK):
                continue
            try:
                batch = await self.client.api.batches.retrieve(id)
            except openai.NotFoundError:
                freed = self.store.dissolve(self.at + id, charged=True)
                self.tell(f"batch {id}: the provider does not know it any more; its {freed} texts are free again")
                continue
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                self.tell(f"batch {id}: {self.client.clean(str(error))}")
                running += 1
                continue
            if batch.status in _OVER:
                await self._take_in(batch)
            else:
                running += 1
                counts = batch.request_counts
                done = f" {counts.completed + counts.failed}/{counts.total}" if counts else ""
                self.tell(f"batch {id}: {batch.status}{done}")
        self.summary.waiting = running
        return running

    async def _take_in(self, batch: Batch) -> None:
        name = self.at + batch.id
        rows = {_custom_id(row.key): row for row in self.store.rows(batch=name, state="pending")}
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            content = await self.client.api.files.content(file_id)
            for line in content.text.splitlines():
                with suppress(ValueError):
                    result = json.loads(line)
                    if row := rows.get(result.get("custom_id")):
                        self._take(row, result, name)
        left = self.store.dissolve(name)  # what it did not get to
        why = "; ".join(error.message or "" for error in (batch.errors.data or [])) if batch.errors else ""
        why = self.client.clean(why)
        self.tell(f"batch {batch.id}: {batch.status}, {len(rows) - left} answers {why}".rstrip())
        if batch.status == "failed" and left == len(rows):
            raise CersError(f"the provider refused batch {batch.id}: {why or 'no reason given'}")

    def _take(self, row: Annotation, result: dict[str, Any], batch: str) -> None:
        outcome, reply = self._outcome(result)
        if outcome.state == "invalid" and row.raw is None:  # asked once more, in the next batch
            outcome = replace(outcome, state="pending")
            self.unusable += 1
        paid: Paid | None = Paid()
        if reply:
            cost = self.price_of(row.model).cost(reply.tokens_in, reply.tokens_out, batch=True)
            paid = Paid(reply.tokens_in, reply.tokens_out, cost) if reply.counted else None
            self.summary.cost += cost
        self.store.collect(row.key, batch, outcome, paid)
        self.summary.done[outcome.state] += outcome.state != "pending"

    def _outcome(self, result: dict[str, Any]) -> tuple[Outcome, Reply | None]:
        """What a line of a result file says, and the reply in it."""
        response = result.get("response") or {}
        body = response.get("body") or {}
        if response.get("status_code") != 200:
            error = body.get("error") or result.get("error") or {}
            reason = self.client.clean(f"{response.get('status_code', '')} {error.get('message', error)}")
            refused = error.get("code") in POLICY
            return Outcome("refused" if refused else "failed", reason=reason.strip()), None
        try:
            reply = reply_of(body, 0.0)
        except BusyError as error:
            return Outcome("failed", reason=str(error)), None
        return outcome_of(reply, read_reply(reply)), reply


def _custom_id(key: Key) -> str:
    return hashlib.sha256("\n".join(key).encode("utf-8")).hexdigest()[:40]
