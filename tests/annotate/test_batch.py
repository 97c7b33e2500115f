from collections import deque
from pathlib import Path

import pytest
from llm_cases import job, write_cases
from llm_server import LlmServer

from cers.annotate.batch import run_batches
from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.data.case import Case
from cers.errors import CersError

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
            "ok": 3,
            "failed": 1,
            "refused": 2,
            "invalid": 1,
        }
        assert store.counts()["pending"] == 1
        assert store.spent()[1] == pytest.approx(0)
        assert run_batches(asked, store, poll_seconds=0.01).done["ok"] == 2  # the failed one and the expired one
        assert len(server.batches) == 2


def test_a_batch_is_found_again_days_later(cases: list[Case], tmp_path: Path, prices: Path) -> None:
    """Interrupted while waiting; and cut off between its creation and the note of its id."""
    with LlmServer(polls_until_done=10**6) as server:
        asked = job(cases, server.url, prices=prices)

        def interrupt(line: str) -> None:
            if "in_progress" in line:
                raise KeyboardInterrupt

        with AnnotationStore(tmp_path / "s.db") as store, pytest.raises(BaseException, match="go on at the provider"):
            run_batches(asked, store, poll_seconds=0.01, tell=interrupt)
        with AnnotationStore(tmp_path / "s.db") as store:
            assert run_annotation(asked, store).written == 0  # not asked about a second time meanwhile
            (batch,) = server.batches.values()
            store._db.execute("UPDATE annotation SET batch = ?", (batch["metadata"]["cers"],))
            server.polls_until_done = 1
            summary = run_batches(asked, store, poll_seconds=0.01)
            assert (summary.submitted, summary.done["ok"]) == (0, 8)
        assert len(server.batches) == 1


def test_a_batch_that_was_never_created_frees_its_rows(cases: list[Case], tmp_path: Path) -> None:
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        asked = job(cases, server.url)
        store.add_pending(asked.tasks()[0])
        keys = [row.key for row in store.claim(9)]
        store.enter_batch(keys, "cers-lost")
        store.release()
        assert run_batches(asked, store, poll_seconds=0.01).done["ok"] == 8


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
