"""Annotation through a provider's Batch API: half the price, answers within a day, resumed after days.

The store says which batch a row waits for. A batch gets its own mark, written down before it is created, so that one
whose creation was cut off is found again by that mark instead of being paid for twice.
"""

import asyncio
import hashlib
import json
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import openai
from openai.types import Batch

from cers.annotate.answers import Reading, read_reply
from cers.annotate.client import BusyError, Client, reply_of
from cers.annotate.hosts import ensure_allowed, host_of, is_this_machine
from cers.annotate.job import Job
from cers.annotate.prices import FREE, Price, load_prices, price_of, unknown_price
from cers.cot.store import FAILED, ROLES, STATES, Annotation, AnnotationStore, Key, Outcome, Role, State
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
    price = price_of(job.config.model, load_prices(job.config.prices), local=local)
    if price is None and max_cost is not None:
        raise unknown_price(job.config.model, load_prices(job.config.prices))
    tasks, problems = job.tasks(roles)
    store.add_pending(tasks, again)
    run = _Batches(job, store, Client(job.config, url), price or FREE, max_cost, tell, BatchSummary(problems=problems))
    try:
        asyncio.run(run.run(limit, poll_seconds))
    except KeyboardInterrupt:
        waiting = len(store.batches())
        raise Interrupted(f"{waiting} batches go on at the provider; the same command collects them") from None
    except openai.OpenAIError as error:
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

    async def run(self, limit: int | None, poll_seconds: float) -> None:
        """Everything once; `limit` bounds the texts submitted."""
        async with self.client:
            await self._adopt()
            await self._collect()
            wanted = self.store.outstanding() if limit is None else limit
            while self.summary.submitted < wanted and (rows := await self._submit(wanted - self.summary.submitted)):
                self.summary.submitted += rows
            while await self._collect():
                await asyncio.sleep(poll_seconds)

    async def _adopt(self) -> None:
        """Find the batches whose creation was cut off; rows of those that were never created are free again."""
        marks = [batch for batch in self.store.batches() if batch.startswith(_MARK)]
        if not marks:
            return
        created = {(b.metadata or {}).get("cers"): b.id async for b in self._listed()}
        for mark in marks:
            if mark not in created:
                self._free(row.key for row in self.store.rows(batch=mark, state="pending"))
            self.store.submitted(mark, created.get(mark))

    async def _listed(self) -> AsyncIterator[Batch]:
        async for batch in self.client.api.batches.list(limit=100):
            yield batch

    async def _submit(self, wanted: int) -> int:
        """Submit one batch of at most `wanted` texts; returns how many."""
        mark = f"{_MARK}{uuid.uuid4().hex}"
        with tempfile.TemporaryFile() as file:
            keys = await self._write(file, min(wanted, MOST_REQUESTS))
            if not keys:
                return 0
            file.seek(0)
            try:
                uploaded = await self.client.api.files.create(file=(f"{mark}.jsonl", file), purpose="batch")
            except BaseException:
                self._free(keys)
                raise
        self.store.renew()
        self.store.enter_batch(keys, mark)
        batch = await self.client.api.batches.create(
            input_file_id=uploaded.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"cers": mark},
        )
        self.store.submitted(mark, batch.id)
        self.tell(f"batch {batch.id}: {len(keys)} texts submitted")
        return len(keys)

    async def _write(self, file: IO[bytes], most: int) -> list[Key]:
        """Write requests to `file` until it is full or the budget is; returns what they ask for."""
        keys: list[Key] = []
        while len(keys) < most and file.tell() < LARGEST_FILE and not self.summary.stopped:
            rows = self.store.claim(min(64, most - len(keys)))
            if not rows:
                break
            for row in rows:
                if self.summary.stopped or not await self._write_one(file, row):
                    self.store.release([row.key])
                else:
                    keys.append(row.key)
            self.store.renew()
        return keys

    async def _write_one(self, file: IO[bytes], row: Annotation) -> bool:
        try:
            messages = await asyncio.to_thread(self.job.request, row.key)
        except CersError as error:
            self._record(row.key, Outcome("failed", reason=str(error)), None)
            return False
        if not self.store.begin(row.key, self._most(row.key), self.max_cost):
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

    def _most(self, key: Key) -> float:
        if not (self.price.input or self.price.output):
            return 0.0
        tokens_in, _ = self.job.tokens(key, self.price)
        return self.price.cost(3 * tokens_in // 2 + 400, self.job.config.max_tokens, batch=True)

    def _free(self, keys: Iterable[Key]) -> None:
        """The calls for `keys` were counted but will not be charged."""
        for key in keys:
            self.store.settle(key, self._most(key))

    async def _collect(self) -> int:
        """Take in what finished batches have brought; returns how many are still running."""
        running = 0
        for id in self.store.batches():
            if id.startswith(_MARK):
                continue
            try:
                batch = await self.client.api.batches.retrieve(id)
            except openai.NotFoundError:
                self.tell(f"batch {id}: the provider does not know it any more; its texts are free again")
                self.store.submitted(id, None)
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
        rows = {_custom_id(row.key): row.key for row in self.store.rows(batch=batch.id, state="pending")}
        total = len(rows)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            content = await self.client.api.files.content(file_id)
            for line in content.text.splitlines():
                with suppress(ValueError):
                    result = json.loads(line)
                    if key := rows.pop(result.get("custom_id"), None):
                        self._record(key, self._outcome(result), batch.id)
        self._free(rows.values())  # what it did not get to
        self.store.submitted(batch.id, None)
        why = "; ".join(error.message or "" for error in (batch.errors.data or [])) if batch.errors else ""
        self.tell(f"batch {batch.id}: {batch.status}, {total - len(rows)} answers {self.client.clean(why)}".rstrip())
        if batch.status == "failed" and total == len(rows):
            raise CersError(f"the provider refused batch {batch.id}: {self.client.clean(why) or 'no reason given'}")

    def _outcome(self, result: dict[str, Any]) -> Outcome:
        response = result.get("response") or {}
        body = response.get("body") or {}
        if response.get("status_code") != 200:
            error = body.get("error") or result.get("error") or {}
            reason = self.client.clean(f"{response.get('status_code', '')} {error.get('message', error)}")
            refused = error.get("code") in ("content_policy_violation", "content_filter")
            return Outcome("refused" if refused else "failed", reason=reason.strip())
        try:
            reply = reply_of(body, 0.0)
        except BusyError as error:
            return Outcome("failed", reason=str(error))
        reading: Reading = read_reply(reply)
        cost = self.price.cost(reply.tokens_in, reply.tokens_out, batch=True)
        return Outcome(
            reading.state, reply.text, reading.rationale, reading.reason, reply.tokens_in, reply.tokens_out, cost, 0.0
        )

    def _record(self, key: Key, outcome: Outcome, batch: str | None) -> None:
        if batch:
            self.store.settle(key, self._most(key))
        self.store.record(key, outcome, batch)
        self.summary.done[outcome.state] += 1
        self.summary.cost += outcome.cost


def _custom_id(key: Key) -> str:
    return hashlib.sha256("\n".join(key).encode("utf-8")).hexdigest()[:40]
