import json
import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter, deque
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from llm_cases import job, write_cases
from llm_server import LlmServer

from cers.annotate.job import Job
from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.data.case import Case
from cers.errors import CersError, Interrupted


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("cases"), 12)


def test_every_text_is_asked_for_once_and_written_down(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        told: list[int] = []
        summary = run_annotation(job(cases, server.url, 4), store, progress=lambda *told_of: told.append(told_of[0]))
        assert (summary.done["ok"], summary.left, summary.stopped) == (16, 0, None)
        assert told == list(range(1, 17))
        assert len(server.seen) == 16
        assert len({seen.subject for seen in server.seen}) == 16
        rows = list(store.rows(state="ok"))
        assert Counter(row.role for row in rows) == {"unlabelled": 12, "labelled": 4}
        assert all((row.attempts, row.tokens_in, row.tokens_out) == (1, 100, 40) for row in rows)
        assert len({row.rationale for row in rows}) == 16
        assert run_annotation(job(cases, server.url, 4), store).written == 0
        assert len(server.seen) == 16
        assert store.spent() == (0.0, 0.0) or store.spent()[1] == pytest.approx(0.0)


@pytest.mark.parametrize("fault", ["429", "503", "500", "slow", "cut", "drop", "empty"])
def test_a_passing_fault_is_survived(cases: list[Case], tmp_path: Path, fault: str) -> None:
    with LlmServer(faults=deque([fault] * 2)) as server, AnnotationStore(tmp_path / "s.db") as store:
        summary = run_annotation(job(cases, server.url, timeout=2 if fault == "slow" else 60), store)
        assert summary.done["ok"] == 12
        assert len(server.seen) == 14 == sum(row.attempts for row in store.rows())
        assert server.counts["delivered"] - 2 * (fault == "empty") == 12


def test_retry_after_holds_everybody_back(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer(faults=deque(["429"]), retry_after=0.6) as server, AnnotationStore(tmp_path / "s.db") as store:
        begun = time.monotonic()
        assert run_annotation(job(cases, server.url, concurrency=2), store).done["ok"] == 12
        assert time.monotonic() - begun >= 0.6
        assert len(server.seen) == 13
    with LlmServer(faults=deque(["limit"])) as server, AnnotationStore(tmp_path / "t.db") as store:
        begun = time.monotonic()
        run_annotation(job(cases, server.url, concurrency=1), store)
        assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize(
    ("faults", "state", "calls"),
    [
        (["half"], "ok", 2),
        (["garbage"], "ok", 2),
        (["prose"], "ok", 1),
        (["half", "garbage"], "invalid", 2),
        (["refuse"], "refused", 1),
        (["garbage", "refuse"], "refused", 2),
        (["policy"], "refused", 1),
        (["400"], "failed", 1),
        (["long", "long"], "failed", 2),
        (["surrogate"], "ok", 1),
        (["parts"], "ok", 1),
        (["deep"], "ok", 2),
    ],
)
def test_an_answer_is_repaired_once_or_recorded_for_what_it_is(
    cases: list[Case], tmp_path: Path, faults: list[str], state: str, calls: int
) -> None:
    with LlmServer(faults=deque(faults)) as server, AnnotationStore(tmp_path / "s.db") as store:
        run_annotation(job(cases[:1], server.url), store)
        (row,) = store.rows()
        assert (row.state, row.attempts, len(server.seen)) == (state, calls, calls)
        assert (row.rationale is not None) == (state == "ok") == (row.reason is None)
        assert row.tokens_in == 100 * server.counts["delivered"]
        if calls == 2 and "long" not in faults:
            assert "exactly four lines" in server.seen[1].body["messages"][-1]["content"]


def test_a_server_that_knows_less_is_asked_in_another_way(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer(schema=False, limit_field="max_completion_tokens") as server:
        with AnnotationStore(tmp_path / "s.db") as store:
            assert run_annotation(job(cases, server.url, concurrency=1), store).done["ok"] == 12
        assert len(server.seen) == 14
        assert "response_format" not in server.seen[-1].body
        assert server.seen[-1].body["max_completion_tokens"] == 500
    with LlmServer() as server, AnnotationStore(tmp_path / "t.db") as store:
        run_annotation(job(cases[:1], server.url, extra={"seed": 3}), store)
        (seen,) = server.seen
        assert seen.body["response_format"]["json_schema"]["strict"] is True
        assert (seen.body["seed"], seen.body["max_tokens"]) == (3, 500)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("401", "OPENAI_API_KEY"), ("404", "model"), ("quota", "quota is used up"), ("redirect", "redirects")],
)
def test_what_no_waiting_mends_stops_the_run_and_loses_nothing(
    cases: list[Case], tmp_path: Path, fault: str, says: str
) -> None:
    with LlmServer(faults=deque([fault] * 8)) as server, AnnotationStore(tmp_path / "s.db") as store:
        summary = run_annotation(job(cases, server.url, concurrency=2), store)
        assert says in (summary.stopped or "")
        assert "sk-very-secret" not in (summary.stopped or "")
        assert summary.left == 12
        assert len(server.seen) <= 2
        server.faults.clear()
        assert run_annotation(job(cases, server.url), store).done["ok"] == 12


def test_a_dead_network_ends_the_run_and_the_next_one_goes_on(cases: list[Case], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, f"http://127.0.0.1:{port}/v1")
        summary = run_annotation(asked, store, patience=0.5)
        assert "no answer from the server" in (summary.stopped or "")
        assert store.spent() == (0.0, pytest.approx(0.0))
        with LlmServer(port=port):
            assert run_annotation(asked, store).done["ok"] == 12


def test_a_server_that_dies_half_way_and_comes_back(cases: list[Case], tmp_path: Path) -> None:
    server = LlmServer(delay=0.05)
    server.start()

    def restart() -> None:
        time.sleep(0.15)
        server.kill()
        time.sleep(0.3)
        server.start()

    disturbance = threading.Thread(target=restart)
    disturbance.start()
    with AnnotationStore(tmp_path / "s.db") as store:
        summary = run_annotation(job(cases, server.url, concurrency=2), store)
        assert summary.done["ok"] == 12
    disturbance.join()
    server.kill()


def test_no_call_is_begun_that_could_cost_more_than_allowed(cases: list[Case], tmp_path: Path) -> None:
    one = (100 * 1.75 + 40 * 14) / 1e6
    prices = tmp_path / "prices.yaml"
    prices.write_text("gpt-5.2: {input: 1.75, output: 14}\n", encoding="utf-8")
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url, prices=prices, max_tokens=64)
        summary = run_annotation(asked, store, max_cost=6 * one)
        assert "dollars" in (summary.stopped or "")
        assert 0 < summary.done["ok"] < 6
        assert summary.cost == pytest.approx(summary.done["ok"] * one) == pytest.approx(store.spent()[0])
        assert run_annotation(asked, store, max_cost=1.0).done["ok"] == 12 - summary.done["ok"]
        unpriced = job(cases, "http://192.0.2.1/v1", model="unheard-of")
        with pytest.raises(CersError, match="no price"):
            run_annotation(unpriced, store, max_cost=1.0, allow_remote="192.0.2.1")


def test_an_answer_that_may_have_been_charged_stays_at_risk(cases: list[Case], tmp_path: Path) -> None:
    """A gateway that gave up, and a server that does not count tokens: the bound must not be passed unseen."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("gpt-5.2: {input: 1.75, output: 14}\n", encoding="utf-8")
    with LlmServer(faults=deque(["uncounted"] * 12)) as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url, prices=prices, max_tokens=64)
        assert run_annotation(asked, store, max_cost=0.01).stopped
        assert 1 <= len(server.seen) <= 10
        assert 0.005 < sum(store.spent()) <= 0.01
    with LlmServer(faults=deque(["504"])) as server, AnnotationStore(tmp_path / "t.db") as store:
        run_annotation(job(cases[:1], server.url, prices=prices), store)
        assert store.spent()[1] > 0


def test_what_was_paid_is_kept_when_the_run_dies_before_the_repair(cases: list[Case], tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("gpt-5.2: {input: 1.75, output: 14}\n", encoding="utf-8")
    with LlmServer(faults=deque(["garbage", "quota"])) as server, AnnotationStore(tmp_path / "s.db") as store:
        run_annotation(job(cases[:1], server.url, prices=prices), store)
        (row,) = store.rows()
        assert (row.state, row.attempts, row.tokens_in, row.tokens_out) == ("pending", 2, 100, 40)
        assert row.cost == pytest.approx((100 * 1.75 + 40 * 14) / 1e6)


def test_a_server_that_asks_for_no_wait_is_not_hammered(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer(faults=deque(["now"] * 500)) as server, AnnotationStore(tmp_path / "s.db") as store:
        run_annotation(job(cases[:1], server.url), store, patience=0.3)
        assert len(server.seen) <= 3


def test_an_image_that_cannot_be_read_is_a_reason_and_not_a_call(cases: list[Case], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(cases[0].image.read_bytes()[:40])
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        summary = run_annotation(
            job([*cases[:2], Case("broken", broken), Case("gone", tmp_path / "no.png")], server.url), store
        )
        assert (summary.done["ok"], summary.done["failed"]) == (2, 1)
        assert summary.problems == [f"gone: no unlabelled rationale: {tmp_path / 'no.png'}: No such file or directory"]
        assert len(server.seen) == 2


# One server of forks, so that the packages are loaded once for all processes of these tests.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["cers.annotate.run"])


def _run(asked: Job, store: Path, line: Connection) -> None:
    with AnnotationStore(store, lease_seconds=2.0) as opened:
        line.send("ready")
        line.recv()
        try:
            line.send(run_annotation(asked, opened).written)
        except Interrupted as stop:
            line.send(str(stop))


def _processes(n: int, asked: Job, store: Path) -> list[tuple[ForkServerProcess, Connection]]:
    """`n` runs on one store that begin at the same time, and the line on which each says what came of it."""
    started = []
    for _ in range(n):
        ours, theirs = _FORKS.Pipe()
        process = _FORKS.Process(target=_run, args=(asked, store, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    for _, line in started:
        assert line.recv() == "ready"
    for _, line in started:
        line.send("go")
    return started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with LlmServer(delay=0.1) as server:
        asked = job(write_cases(tmp_path / "cases", 40), server.url, concurrency=4)
        ((process, line),) = _processes(1, asked, tmp_path / "s.db")
        while len(server.seen) < 10:
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid or 0, number)
        process.join(30)
        assert len(server.seen) < 30
        if number == signal.SIGINT:
            assert "the same command goes on with the other" in line.recv()
        with AnnotationStore(tmp_path / "s.db") as store:
            run_annotation(asked, store)
            rows = list(store.rows())
        assert [row.state for row in rows] == ["ok"] * 40
        repeated = len(server.seen) - 40
        assert repeated <= (4 if number == signal.SIGKILL else 0)  # those whose answers were on the way
        # A call is counted before it is sent, so a kill in between counts one that the server has never seen.
        assert len(server.seen) <= sum(row.attempts for row in rows) <= len(server.seen) + (4 if repeated else 0)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    with LlmServer(delay=0.05) as server:
        asked = job(write_cases(tmp_path / "cases", 40), server.url, concurrency=4)
        written = [line.recv() for _, line in _processes(2, asked, tmp_path / "s.db")]
        assert sum(written) == 40 == len(server.seen)
        assert all(written)
        assert len({seen.subject for seen in server.seen}) == 40


def test_the_key_is_in_the_header_and_nowhere_else(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-hush-1234567890")
    caplog.set_level("DEBUG")
    with LlmServer(faults=deque(["401"])) as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url, key_variable="MY_KEY")
        summary = run_annotation(asked, store)
        run_annotation(asked, store)
        assert server.seen[-1].headers["authorization"] == "Bearer sk-hush-1234567890"
        monkeypatch.setenv("MY_KEY", "deadbeef-hush\n")  # as read from a file
        run_annotation(
            job([*cases, *write_cases(tmp_path / "more", 1, size=40)], server.url, key_variable="MY_KEY"), store
        )
        assert server.seen[-1].headers["authorization"] == "Bearer deadbeef-hush"
        monkeypatch.setenv("MY_KEY", "deadbeef\nhush")
        with pytest.raises(CersError, match="holds characters") as said:
            run_annotation(asked, store)
        assert "hush" not in str(said.value)
        kept = json.dumps([str(row) for row in store.rows()]) + str(summary) + caplog.text
    assert "hush" not in kept
    assert b"hush" not in (tmp_path / "s.db").read_bytes()


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LlmServer() as server:
        asked = job(write_cases(tmp_path / "cases", 40), server.url)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, limits[1]))
            with pytest.raises(CersError, match="cannot be written"), _short_lived(tmp_path) as store:
                run_annotation(asked, store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with _short_lived(tmp_path) as store:
            run_annotation(asked, store)
            assert store.counts()["ok"] == 40


def _short_lived(folder: Path) -> AnnotationStore:
    """A store whose leases, which cannot be given back on a full disk, run out soon."""
    return AnnotationStore(folder / "s.db", lease_seconds=0.5)
