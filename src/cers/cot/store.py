"""The store of an annotation: one SQLite file that says, for every text wanted, what was asked, answered and paid.

One row per image, role, prompt version and model. A row is `pending` until an answer is known to be good (`ok`) or
known to be none: `invalid` (no rationale in it), `refused` (the model declined), `failed` (no answer; the next run asks
again). Only an `ok` row has a rationale. Several processes may share a store on a local disk: each row is leased before
work on it begins, and the lease of a dead process runs out.
"""

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cers.cot.rationale import ASPECTS, MalformedRationale, Rationale, parse_rationale
from cers.cot.records import FAILED, IMPORTED, STATES, Annotation, Key, Outcome, Paid, Role, State, Task
from cers.errors import CersError

LEASE_SECONDS = 30.0
_FEW = 4  # images that may always have changed

_VERSION = 1
_SCHEMA = """
CREATE TABLE annotation (
  image TEXT NOT NULL, role TEXT NOT NULL, prompt TEXT NOT NULL, model TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'ok', 'invalid', 'refused', 'failed')),
  attempts INTEGER NOT NULL DEFAULT 0, raw TEXT, texture TEXT, boundary TEXT, context TEXT, summary TEXT,
  tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0,
  cost REAL NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
  image_hash TEXT, mask_hash TEXT, report_hash TEXT, reason TEXT,
  created REAL NOT NULL, updated REAL NOT NULL,
  at_risk REAL NOT NULL DEFAULT 0, owner TEXT, lease REAL, batch TEXT, batch_dollars REAL NOT NULL DEFAULT 0,
  PRIMARY KEY (image, role, prompt, model),
  CHECK ((state = 'ok') = (texture IS NOT NULL))
) WITHOUT ROWID;
CREATE INDEX annotation_batch ON annotation (batch) WHERE batch IS NOT NULL;
CREATE TABLE consent (host TEXT PRIMARY KEY, given REAL NOT NULL) WITHOUT ROWID;
"""
_FIELDS = (
    "image, role, prompt, model, state, attempts, raw, texture, boundary, context, summary, tokens_in, tokens_out, "
    "cost, seconds, image_hash, mask_hash, report_hash, reason, created, updated, batch"
)
_KEY = "image = ? AND role = ? AND prompt = ? AND model = ?"


class AnnotationStore:
    """The store in the file `path`, made if absent; use it as a context manager, from one thread.

    Raises:
        CersError: no such folder, no store of annotations, or one of a newer version.
    """

    def __init__(self, path: str | Path, *, lease_seconds: float = LEASE_SECONDS, create: bool = True) -> None:
        self.path = Path(path)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.lease_seconds = lease_seconds
        if not create and not self.path.is_file():
            raise CersError(f"no annotation store {self.path}; `cers annotate run` makes one")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise CersError(f"{self.path} cannot be used as annotation store: {error}; name another file") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(sqlite3.Error):
            self.release()
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise CersError(
                f"{self.path} cannot be written: {error}; mend that and run the same command again"
            ) from None

    def add_pending(self, tasks: Iterable[Task], again: Collection[State] = FAILED) -> int:
        """Want these texts; returns how many are still to be written. `claim` hands out these and no others.

        A row whose image, mask or report has changed since becomes pending anew, and so does one whose state is in
        `again`. What was paid for it stays in its sums.

        Raises:
            CersError: most images of the rows that are done are others now, as if the store were of another dataset.
        """
        now = time.time()
        wanted = [(*t.key, t.image_hash, t.mask_hash, t.report_hash) for t in tasks]
        states = ", ".join("?" * len(again))
        with self._transaction():
            self._db.execute("DELETE FROM wanted")
            self._db.executemany("INSERT OR IGNORE INTO wanted VALUES (?, ?, ?, ?, ?, ?, ?)", wanted)
            self._refuse_strangers()
            self._db.execute(
                "INSERT INTO annotation"
                " (image, role, prompt, model, image_hash, mask_hash, report_hash, created, updated)"
                " SELECT *, ?, ? FROM wanted WHERE true ON CONFLICT DO NOTHING",
                (now, now),
            )
            self._db.execute(
                "UPDATE annotation SET state = 'pending', raw = NULL, texture = NULL, boundary = NULL, context = NULL,"
                " summary = NULL, reason = NULL, batch = NULL, batch_dollars = 0, owner = NULL,"
                " updated = ?, image_hash = w.image_hash, mask_hash = w.mask_hash, report_hash = w.report_hash"
                " FROM wanted w"
                " WHERE (annotation.image, annotation.role, annotation.prompt, annotation.model)"
                " = (w.image, w.role, w.prompt, w.model) AND ((annotation.image_hash, ifnull(annotation.mask_hash, ''),"
                " ifnull(annotation.report_hash, '')) IS NOT (w.image_hash, ifnull(w.mask_hash, ''),"
                f" ifnull(w.report_hash, '')) OR state IN ({states}))",
                (now, *again),
            )
            return self.outstanding()

    def outstanding(self) -> int:
        """How many of the wanted texts are pending and in no batch, whoever holds them."""
        where = f"{_WANTED} AND state = 'pending' AND batch IS NULL"
        return int(self._db.execute(f"SELECT count(*) FROM annotation {where}").fetchone()[0])

    def claim(self, n: int) -> list[Annotation]:
        """Lease up to `n` wanted pending rows that nobody holds; two processes never get the same one.

        A process does not get its own rows again even if it slept past their lease: it is still at work on them.
        """
        now = time.time()
        with self._transaction():
            rows = self._select(
                f"{_WANTED} AND state = 'pending' AND batch IS NULL AND (owner IS NULL OR (owner != ? AND lease < ?))"
                " ORDER BY image, role LIMIT ?",
                (self.owner, now, n),
            )
            self._db.executemany(
                f"UPDATE annotation SET owner = ?, lease = ? WHERE {_KEY}",
                [(self.owner, now + self.lease_seconds, *row.key) for row in rows],
            )
        return rows

    def renew(self) -> None:
        """Keep the leases of this process alive; to be called well within every `lease_seconds`."""
        self._db.execute(
            "UPDATE annotation SET lease = ? WHERE owner = ?", (time.time() + self.lease_seconds, self.owner)
        )

    def release(self, keys: Iterable[Key] | None = None) -> None:
        """Give leases back, of `keys` or of everything this process holds."""
        if keys is None:
            self._db.execute("UPDATE annotation SET owner = NULL, lease = NULL WHERE owner = ?", (self.owner,))
        else:
            self._db.executemany(
                f"UPDATE annotation SET owner = NULL, lease = NULL WHERE {_KEY} AND owner = ?",
                [(*key, self.owner) for key in keys],
            )

    def begin(self, key: Key, dollars: float = 0.0, max_cost: float | None = None, *, batch: str | None = None) -> bool:
        """Count a call before it is sent, with the most it can cost; False, and not counted, beyond `max_cost`.

        So a call whose answer is lost in a crash was counted, and its price stays at risk until `settle`. With `batch`
        the call becomes part of it, and what comes of it is told to `collect` or `dissolve`.
        """
        with self._transaction():
            if max_cost is not None and sum(self.spent()) + dollars > max_cost:
                return False
            self._db.execute(
                "UPDATE annotation SET attempts = attempts + 1, at_risk = at_risk + ?1, batch = ?2,"
                " batch_dollars = CASE WHEN ?2 IS NULL THEN 0 ELSE ?1 END"
                " WHERE image = ?3 AND role = ?4 AND prompt = ?5 AND model = ?6",
                (dollars, batch, *key),
            )
        return True

    def settle(self, key: Key, dollars: float, paid: Paid = Paid()) -> None:  # noqa: B008
        """The server has answered a call begun with `dollars`: what it really cost is known, or is nothing."""
        self._db.execute(
            "UPDATE annotation SET at_risk = at_risk - ?, tokens_in = tokens_in + ?, tokens_out = tokens_out + ?,"
            f" cost = cost + ?, seconds = seconds + ? WHERE {_KEY}",
            (dollars, *paid, *key),
        )

    def spent(self) -> tuple[float, float]:
        """Dollars paid according to the servers' token counts, and dollars at most paid for answers not received."""
        paid, at_risk = self._db.execute("SELECT total(cost), total(at_risk) FROM annotation").fetchone()
        return paid, max(at_risk, 0.0)

    def record(self, key: Key, outcome: Outcome) -> None:
        """Write down what came of a row that this process holds, and let go of it.

        Nothing happens where it no longer holds the row: another process does, or the image has changed.
        """
        self._db.execute(
            f"UPDATE annotation SET {_OUTCOME} WHERE {_KEY} AND state = 'pending' AND owner = ?",
            (*_values(outcome), *key, self.owner),
        )

    def submitted(self, mark: str, batch: str) -> None:
        """The provider took the batch that was begun as `mark`; from now on it is called `batch`."""
        self._db.execute(
            "UPDATE annotation SET batch = ?, owner = NULL, lease = NULL WHERE batch = ? AND state = 'pending'",
            (batch, mark),
        )

    def collect(self, key: Key, batch: str, outcome: Outcome, paid: Paid | None = Paid()) -> None:  # noqa: B008
        """Write down what `batch` brought for a row, once; `paid` None: it was charged, and nobody knows how much."""
        self._db.execute(
            f"UPDATE annotation SET {_OUTCOME}, tokens_in = tokens_in + ?, tokens_out = tokens_out + ?,"
            " cost = cost + ?, seconds = seconds + ?, at_risk = at_risk - CASE WHEN ? THEN batch_dollars ELSE 0 END,"
            f" batch = NULL, batch_dollars = 0 WHERE {_KEY} AND state = 'pending' AND batch = ?",
            (*_values(outcome), *(paid or Paid()), paid is not None, *key, batch),
        )

    def dissolve(self, batch: str, *, charged: bool = False) -> int:
        """Free the rows that still wait for `batch`; returns how many. Unless `charged`, they count as never asked."""
        undo = "" if charged else "attempts = attempts - 1, at_risk = at_risk - batch_dollars,"
        found = self._db.execute(
            f"UPDATE annotation SET {undo} batch = NULL, batch_dollars = 0, owner = NULL, lease = NULL"
            " WHERE batch = ? AND state = 'pending'",
            (batch,),
        )
        return found.rowcount

    def batches(self) -> dict[str, int]:
        """Batches that rows wait for, with their number; those that a living process is about to submit left out."""
        found = self._db.execute(
            "SELECT batch, count(*) FROM annotation WHERE batch IS NOT NULL AND state = 'pending'"
            " AND (owner IS NULL OR lease < ?) GROUP BY batch ORDER BY batch",
            (time.time(),),
        )
        return dict(found.fetchall())

    def allow(self, host: str) -> None:
        """Note that the user allowed sending to `host`."""
        self._db.execute("INSERT OR IGNORE INTO consent VALUES (?, ?)", (host, time.time()))

    def allowed(self) -> dict[str, float]:
        """The hosts that may be sent to, with the time (seconds since 1970) at which the user allowed it."""
        return dict(self._db.execute("SELECT host, given FROM consent").fetchall())

    def rows(
        self,
        *,
        state: State | None = None,
        role: Role | None = None,
        model: str | None = None,
        batch: str | None = None,
    ) -> Iterator[Annotation]:
        """The rows with these properties, by image, role, prompt version and model."""
        wanted = {"state": state, "role": role, "model": model, "batch": batch}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        yield from self._select(
            (f"WHERE {where} " if where else "") + "ORDER BY image, role, prompt, model", [*given.values()]
        )

    def newest(self, *, model: str | None = None) -> dict[tuple[str, Role], Annotation]:
        """For each image and role the `ok` row written last."""
        found = sorted(self.rows(state="ok", model=model), key=lambda row: row.updated)
        return {(row.image, row.role): row for row in found}

    def counts(self) -> dict[State, int]:
        """How many rows are in each state."""
        found = dict(self._db.execute("SELECT state, count(*) FROM annotation GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def import_rows(self, texts: Iterable[tuple[str, Role, str]], model: str) -> dict[State, int]:
        """Take over texts (image id, role, text) that `model` wrote elsewhere, at no cost.

        A text that is no rationale becomes `invalid`, with the reason. Returns how many of each state were taken over;
        a text that is there already counts again but is not written again.
        """
        now = time.time()
        taken: dict[State, int] = dict.fromkeys(STATES, 0)
        with self._transaction():
            for image, role, text in texts:
                state, aspects, reason = _parsed(text)
                taken[state] += 1
                self._db.execute(
                    "INSERT INTO annotation (image, role, prompt, model, state, raw, texture, boundary, context,"
                    " summary, reason, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET state = excluded.state, raw = excluded.raw, texture = excluded.texture,"
                    " boundary = excluded.boundary, context = excluded.context, summary = excluded.summary,"
                    " reason = excluded.reason, updated = excluded.updated WHERE raw IS NOT excluded.raw",
                    (image, role, IMPORTED, model, state, text, *aspects, reason, now, now),
                )
        return taken

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(
            "CREATE TEMP TABLE wanted (image, role, prompt, model, image_hash, mask_hash, report_hash,"
            " PRIMARY KEY (image, role, prompt, model)) WITHOUT ROWID"
        )
        with self._transaction():
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if version > _VERSION:
                raise CersError(f"{self.path} was written by a newer cers (store version {version}); update cers")
            if version == 0:
                if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise CersError(f"{self.path} is a database of something else; name another file")
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _refuse_strangers(self) -> None:
        known, changed = self._db.execute(
            "SELECT count(*), total(a.image_hash != w.image_hash) FROM annotation a JOIN wanted w"
            " USING (image, role, prompt, model) WHERE a.state != 'pending'"
        ).fetchone()
        if changed > max(_FEW, known / 2):
            raise CersError(
                f"{changed:.0f} of {known} images are not those that {self.path} was written about; "
                "for another dataset name another --store"
            )

    def _select(self, where: str, values: Sequence[Any] = ()) -> list[Annotation]:
        return [_annotation(row) for row in self._db.execute(f"SELECT {_FIELDS} FROM annotation {where}", values)]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # after some failures, as of the disk, SQLite has rolled back itself
                self._db.execute("ROLLBACK")
            raise


_OUTCOME = (
    "state = ?, raw = ?, texture = ?, boundary = ?, context = ?, summary = ?, reason = ?, updated = ?, owner = NULL,"
    " lease = NULL"
)
_WANTED = "WHERE (image, role, prompt, model) IN (SELECT image, role, prompt, model FROM wanted)"


def _values(outcome: Outcome) -> tuple[Any, ...]:
    """For the places in `_OUTCOME`."""
    aspects = astuple(outcome.rationale) if outcome.rationale else (None,) * len(ASPECTS)
    return outcome.state, outcome.raw, *aspects, outcome.reason, time.time()


def _annotation(row: Sequence[Any]) -> Annotation:
    aspects = row[7:11]
    values = [*row[:7], None if aspects[0] is None else Rationale(*aspects), *row[11:]]
    return Annotation(*values)


def _parsed(text: str) -> tuple[State, Sequence[str | None], str | None]:
    try:
        return "ok", astuple(parse_rationale(text)), None
    except MalformedRationale as error:
        return "invalid", (None,) * len(ASPECTS), str(error)
