import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path

import pytest
from llm_cases import job, write_cases
from llm_server import LlmServer

from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.data.case import Case
from cers.errors import CersError


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
        summary = run_annotation(job(cases, server.url), store)
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
        if calls == 2:
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


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from llm_cases import job, write_cases
from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.errors import Interrupted
cases = write_cases(Path({folder!r}), 40)
with AnnotationStore({store!r}, lease_seconds=2.0) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(run_annotation(job(cases, {url!r}, concurrency=4), store).written)
    except Interrupted as stop:
        print(stop)
"""


def _processes(n: int, tmp_path: Path, url: str) -> "list[subprocess.Popen[str]]":
    """`n` runs on one store that begin at the same time."""
    folders = {"tests": str(Path(__file__).parent), "folder": str(tmp_path / "cases"), "store": str(tmp_path / "s.db")}
    command = [sys.executable, "-c", _SCRIPT.format(**folders, url=url)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ) for _ in range(n)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with LlmServer(delay=0.1) as server:
        (process,) = _processes(1, tmp_path, server.url)
        while len(server.seen) < 10:
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        assert len(server.seen) < 30
        if number == signal.SIGINT:
            assert "the same command goes on with the other" in output
        with AnnotationStore(tmp_path / "s.db") as store:
            run_annotation(job(write_cases(tmp_path / "cases", 40), server.url, concurrency=4), store)
            rows = list(store.rows())
        assert [row.state for row in rows] == ["ok"] * 40
        repeated = len(server.seen) - 40
        assert repeated <= (4 if number == signal.SIGKILL else 0)  # those whose answers were on the way
        # A call is counted before it is sent, so a kill in between counts one that the server has never seen.
        assert len(server.seen) <= sum(row.attempts for row in rows) <= len(server.seen) + (4 if repeated else 0)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    with LlmServer(delay=0.05) as server:
        processes = _processes(2, tmp_path, server.url)
        written = [int(process.communicate(timeout=60)[0]) for process in processes]
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
        kept = json.dumps([str(row) for row in store.rows()]) + str(summary) + caplog.text
    assert "hush" not in kept
    assert b"hush" not in (tmp_path / "s.db").read_bytes()
