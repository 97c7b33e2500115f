"""Whatever goes wrong, in whatever order: every image ends with a good text or a reason, and every call adds up."""

import tempfile
from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from llm_cases import job, write_cases
from llm_server import TOKENS_OUT, LlmServer

from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.data.case import Case

FAULTS = ("429", "503", "500", "cut", "drop", "empty", "half", "garbage", "prose", "refuse", "policy", "400", "quota")
FAULTY_RUN = st.lists(st.sampled_from([*FAULTS, None]), max_size=8)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("cases"), 5)


@settings(
    max_examples=12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink what waits for a server takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(runs=st.lists(st.tuples(FAULTY_RUN, st.integers(0, 5)), min_size=1, max_size=3))
def test_every_sequence_of_faults_and_ends_of_runs_adds_up(
    cases: list[Case], runs: list[tuple[list[str | None], int]]
) -> None:
    """A run meets its faults, and is given up after some texts, as a kill gives it up: its leases stay behind."""
    with tempfile.TemporaryDirectory() as folder, LlmServer(retry_after=0.01) as server:
        path = Path(folder) / "s.db"
        asked = job(cases, server.url, 2, concurrency=2)
        for faults, texts in [*runs, ([], 99), ([], 99)]:
            server.faults = deque(fault or "fine" for fault in faults)
            store = AnnotationStore(path, lease_seconds=0.2)
            if texts < 9:
                store.add_pending(asked.tasks()[0])
                store.claim(texts % 3)  # never released
            with AnnotationStore(path, lease_seconds=0.2) as own:
                run_annotation(asked, own, limit=texts or None, patience=20)
        with AnnotationStore(path) as store:
            rows = list(store.rows())
        check(rows, server, texts=7)


def check(rows: list, server: LlmServer, texts: int) -> None:  # type: ignore[type-arg]
    assert len(rows) == texts
    assert all(row.state in ("ok", "invalid", "refused") for row in rows)  # failures were asked again, without a fault
    assert all((row.rationale is None) == (row.reason is not None) == (row.state != "ok") for row in rows)
    assert sum(row.attempts for row in rows) == len(server.seen)
    paid = [s for s in server.seen if s.delivered and s.fault not in ("empty",)]
    assert sum(row.tokens_in for row in rows) == 100 * len(paid)
    assert sum(row.tokens_out for row in rows) == TOKENS_OUT * len(paid)
    usable = Counter(s.subject for s in paid if s.fault in (None, "fine", "prose", "limit"))
    assert all(count == 1 for count in usable.values())  # nobody pays twice for a good text
    assert len(usable) == sum(row.state == "ok" for row in rows)
