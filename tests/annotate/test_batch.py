from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from llm_cases import job, write_cases
from llm_server import LlmServer

from cers.annotate.batch import run_batches
from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.data.case import Case
from cers.errors import CersError, Interrupted

PRICE = (100 * 1.75 + 40 * 14) / 1e6 / 2


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("cases"), 8)


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text("gpt-5.2: {input: 1.75, output: 14, batch: 0.5}\n", encoding="utf-8")
    return path


def test_a_batch_is_submitted_waited_for_and_collected(cases: list[Case], tmp_path: Path, prices: Path) -> None:
    with LlmServer(polls_until_done=3) as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url, 2, prices=prices)
        told: list[str] = []
        summary = run_batches(asked, store, poll_seconds=0.01, tell=told.append)
        assert (summary.submitted, summary.done["ok"], summary.waiting) == (10, 10, 0)
        assert summary.cost == pytest.approx(10 * PRICE)
        assert store.spent() == (pytest.approx(10 * PRICE), pytest.approx(0))
        assert len(server.batches) == 1
        assert any("in_progress" in line for line in told)
        assert all(row.attempts == 1 for row in store.rows(state="ok"))
        assert run_batches(asked, store).submitted == 0


def test_what_a_batch_could_not_answer_is_recorded_or_free_again(
    cases: list[Case], tmp_path: Path, prices: Path
) -> None:
    faults = deque(["500", "refuse", "policy", "garbage", "expire"])
    with LlmServer(faults=faults) as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url, prices=prices)
        summary = run_batches(asked, store, poll_seconds=0.01)
        assert {state: n for state, n in summary.done.items() if n} == {
            "ok": 4,
            "failed": 1,
            "refused": 2,
        }
        assert len(server.batches) == 2  # what could not be used was asked for once more
        assert store.counts()["pending"] == 1
        assert store.spent()[1] == pytest.approx(0)
        assert run_batches(asked, store, poll_seconds=0.01).done["ok"] == 2  # the failed one and the expired one
        assert len(server.batches) == 3


def test_a_batch_is_found_again_days_later(cases: list[Case], tmp_path: Path, prices: Path) -> None:
    """Interrupted while waiting; and cut off between its creation and the note of its id."""
    with LlmServer(polls_until_done=10**6) as server:
        asked = job(cases, server.url, prices=prices)

        with AnnotationStore(tmp_path / "s.db") as store, pytest.raises(Interrupted, match="go on at the provider"):
            run_batches(asked, store, poll_seconds=0.01, tell=_interrupt)
        with AnnotationStore(tmp_path / "s.db") as store:
            assert run_annotation(asked, store).written == 0  # not asked about a second time meanwhile
            (batch,) = server.batches.values()
            store._db.execute("UPDATE annotation SET batch = ?", ("127.0.0.1/" + batch["metadata"]["cers"],))
            server.polls_until_done = 1
            summary = run_batches(asked, store, poll_seconds=0.01)
            assert (summary.submitted, summary.done["ok"]) == (0, 8)
        assert len(server.batches) == 1


def test_a_batch_that_was_never_created_frees_its_rows(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url)
        store.add_pending(asked.tasks()[0])
        for row in store.claim(9):
            store.begin(row.key, 1.0, batch="127.0.0.1/cers-lost")
        store.release()
        assert run_batches(asked, store, poll_seconds=0.01).done["ok"] == 8
        assert store.spent()[1] == pytest.approx(0)
        assert all(row.attempts == 1 for row in store.rows())


def test_the_budget_bounds_what_is_submitted(cases: list[Case], tmp_path: Path, prices: Path) -> None:
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url, prices=prices, max_tokens=64)
        summary = run_batches(asked, store, poll_seconds=0.01, max_cost=8 * PRICE)
        assert "dollars" in (summary.stopped or "")
        assert 0 < summary.done["ok"] < 8
        assert store.counts()["pending"] == 8 - summary.done["ok"]


def test_a_server_without_batches_says_so(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        with pytest.raises(CersError, match="batches"):
            run_batches(job(cases, server.url.replace("/v1", "/nothing")), store)
        assert store.spent()[1] == pytest.approx(0)
        assert len(store.claim(9)) == 8


def test_batches_are_collected_whatever_is_asked_for_by_then(cases: list[Case], tmp_path: Path, prices: Path) -> None:
    """Another dataset, another model, another price: days have gone by."""
    others = [replace(case, id=f"other-{case.id}") for case in cases[:3]]
    with LlmServer(polls_until_done=10**6) as server, AnnotationStore(tmp_path / "s.db") as store:
        with pytest.raises(Interrupted):
            run_batches(job(cases, server.url, prices=prices), store, poll_seconds=0.01, tell=_interrupt)
        assert store.spent()[1] > 0
        server.polls_until_done = 1
        prices.write_text("{gpt-5.2: {input: 100, output: 100}, m: {input: 1, output: 1}}", encoding="utf-8")
        summary = run_batches(job(others, server.url, prices=prices, model="m"), store, poll_seconds=0.01)
        assert (summary.done["ok"], summary.submitted) == (11, 3)
        assert store.spent() == (pytest.approx((8 * 140 * 100 + 3 * 140) / 1e6), pytest.approx(0))


def test_a_batch_at_another_host_is_left_alone(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer(polls_until_done=3) as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases[:2], server.url)
        store.add_pending(asked.tasks()[0])
        (row,) = store.claim(1)
        store.begin(row.key, 1.0, batch="api.example.org/batch_1")
        store.submitted("api.example.org/batch_1", "api.example.org/batch_1")
        told: list[str] = []
        assert run_batches(asked, store, poll_seconds=0.01, tell=told.append).submitted == 1
        assert ["at another server" in line for line in told] == [True, *[False] * (len(told) - 1)]
        assert sum("in_progress" in line for line in told) > 1
        assert store.batches() == {"api.example.org/batch_1": 1}


def test_an_answer_is_repaired_in_the_next_batch_and_once_only(cases: list[Case], tmp_path: Path, prices: Path) -> None:
    with LlmServer(faults=deque(["garbage"] * 3)) as server, AnnotationStore(tmp_path / "s.db") as store:
        summary = run_batches(job(cases[:2], server.url, prices=prices), store, poll_seconds=0.01)
        assert (summary.done["ok"], summary.done["invalid"], summary.submitted) == (1, 1, 4)
        assert sorted(row.attempts for row in store.rows()) == [2, 2]
        assert store.spent() == (pytest.approx(4 * PRICE), pytest.approx(0))
        repairs = list(server.batches.values())[1]["input_file_id"]
        assert all(b"exactly four lines" in line for line in server.files[repairs].splitlines())


def _interrupt(line: str) -> None:
    if "in_progress" in line:
        raise KeyboardInterrupt
