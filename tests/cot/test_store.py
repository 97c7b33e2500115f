import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest

from cers.cot.rationale import Rationale
from cers.cot.records import Key, Outcome, Paid, Task
from cers.cot.store import AnnotationStore
from cers.errors import CersError

GOOD = Rationale("fine grain.", "smooth rim.", "beside fat.", "a mass.")
OK = Outcome("ok", raw="{}", rationale=GOOD)
PAID = Paid(tokens_in=100, tokens_out=50, cost=0.01, seconds=1.5)


def task(image: str, image_hash: str = "i", report_hash: str | None = None, prompt: str = "v1-a") -> Task:
    return Task(Key(image, "unlabelled", prompt, "m"), image_hash, None, report_hash)


def test_a_row_goes_from_pending_to_ok_and_is_not_wanted_again(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        assert store.add_pending([task("a"), task("b")]) == 2
        (row,) = store.claim(1)
        assert (row.image, row.state, row.rationale) == ("a", "pending", None)
        store.begin(row.key, 0.02)
        assert store.spent() == (0, 0.02)
        store.settle(row.key, 0.02, PAID)
        assert store.spent() == (0.01, 0)
        store.record(row.key, OK)
        assert store.counts() == {"pending": 1, "ok": 1, "invalid": 0, "refused": 0, "failed": 0}
    with AnnotationStore(tmp_path / "s.db") as store:
        assert store.add_pending([task("a"), task("b")]) == 1
        (done,) = store.rows(state="ok")
        assert done.rationale == GOOD
        assert (done.attempts, done.tokens_in, done.tokens_out, done.cost) == (1, 100, 50, 0.01)
        assert [row.image for row in store.claim(9)] == ["b"]


@pytest.mark.parametrize("changed", [task("a", image_hash="other"), task("a", report_hash="r")])
def test_changed_input_is_wanted_again_and_keeps_what_was_paid(tmp_path: Path, changed: Task) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.add_pending([task("a")])
        (row,) = store.claim(1)
        store.settle(row.key, 0, PAID)
        store.record(row.key, OK)
        assert store.add_pending([changed]) == 1
        (row,) = store.rows()
        assert (row.state, row.rationale, row.raw, row.cost) == ("pending", None, None, 0.01)
        (row,) = store.claim(1)
        store.settle(row.key, 0, PAID)
        store.record(row.key, OK)
        assert next(store.rows()).cost == 0.02
        assert store.add_pending([changed]) == 0


def test_an_answer_to_what_has_changed_meanwhile_is_not_taken(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store, AnnotationStore(tmp_path / "s.db") as other:
        store.add_pending([task("a")])
        (row,) = store.claim(1)
        other.add_pending([task("a", image_hash="other")])
        store.settle(row.key, 0, PAID)
        store.record(row.key, OK)
        (row,) = store.rows()
        assert (row.state, row.cost, row.image_hash) == ("pending", 0.01, "other")


def test_another_prompt_is_another_row_and_only_wanted_rows_are_claimed(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.add_pending([task("a")])
        assert store.add_pending([task("a", prompt="v1-b"), task("b", prompt="v1-b")]) == 2
        assert [row.prompt for row in store.claim(9)] == ["v1-b", "v1-b"]
        assert store.counts()["pending"] == 3


@pytest.mark.parametrize(("state", "again"), [("failed", 1), ("invalid", 0), ("refused", 0)])
def test_only_failures_are_asked_again_unless_said_so(tmp_path: Path, state: str, again: int) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.add_pending([task("a")])
        store.record(store.claim(1)[0].key, Outcome(state, raw="no", reason="why"))  # type: ignore[arg-type]
        assert next(store.rows()).reason == "why"
        assert store.add_pending([task("a")]) == again
        assert store.add_pending([task("a")], again=("failed", "invalid", "refused")) == 1


def test_a_failure_is_never_text(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.add_pending([task("a")])
        key = store.claim(1)[0].key
        for wrong in (Outcome("failed", rationale=GOOD), Outcome("ok", raw="text")):
            with pytest.raises(sqlite3.IntegrityError):
                store.record(key, wrong)
        assert store.counts()["pending"] == 1


def test_a_lease_is_exclusive_until_it_runs_out(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    first, second = AnnotationStore(path, lease_seconds=0.2), AnnotationStore(path, lease_seconds=5)
    tasks = [task("a"), task("b")]
    first.add_pending(tasks)
    second.add_pending(tasks)
    assert len(first.claim(2)) == 2
    assert second.claim(2) == []
    first.renew()
    time.sleep(0.25)
    rows = second.claim(2)
    assert len(rows) == 2
    first.settle(rows[0].key, 0, PAID)
    first.record(rows[0].key, OK)  # too late: the row is another's by now, but the money is gone
    late = next(first.rows())
    assert (late.state, late.cost) == ("pending", 0.01)
    second.record(rows[0].key, OK)
    assert next(first.rows()).state == "ok"
    second.release()
    assert [row.image for row in first.claim(2)] == ["b"]


def test_a_process_that_slept_does_not_get_its_own_rows_again(tmp_path: Path) -> None:
    """A laptop closed, a process stopped: the answers to its calls are still on the way, and paid for."""
    with AnnotationStore(tmp_path / "s.db", lease_seconds=0.01) as store:
        store.add_pending([task("a")])
        assert len(store.claim(1)) == 1
        time.sleep(0.02)
        assert store.claim(1) == []


def test_another_dataset_does_not_overwrite_what_was_paid_for(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.add_pending([task(f"case{i}") for i in range(12)])
        for row in store.claim(12):
            store.record(row.key, OK)
        others = [task(f"case{i}", image_hash="other") for i in range(12)]
        with pytest.raises(CersError, match=r"12 of 12 images .* another --store"):
            store.add_pending(others)
        assert store.counts()["ok"] == 12
        assert store.add_pending(others[:4]) == 4  # some may have changed


def test_what_a_batch_brings_counts_once(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store, AnnotationStore(tmp_path / "s.db") as other:
        store.add_pending([task("a"), task("b"), task("c")])
        keys = [row.key for row in store.claim(9)]
        assert [store.begin(key, 1.0, 2.5, batch="mark") for key in keys] == [True, True, False]
        store.submitted("mark", "host/batch")
        for opened in (store, other):
            opened.collect(keys[0], "host/batch", OK, PAID)
        assert store.spent() == (0.01, 1.0)
        other.dissolve("host/batch")
        assert store.spent() == (0.01, 0.0)
        assert [(row.state, row.attempts) for row in store.rows()] == [("ok", 1), ("pending", 0), ("pending", 0)]


def _take_all(path: Path, taken: "multiprocessing.Queue[list[str]]") -> None:
    mine = []
    with AnnotationStore(path) as store:
        store.add_pending([task(f"{i:03}") for i in range(200)])
        while rows := store.claim(3):
            for row in rows:
                mine.append(row.image)
                store.record(row.key, OK)
    taken.put(mine)


def test_processes_never_get_the_same_row(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cers.cot.store"])
    taken: multiprocessing.Queue[list[str]] = context.Queue()
    workers = [context.Process(target=_take_all, args=(tmp_path / "s.db", taken)) for _ in range(2)]
    for worker in workers:
        worker.start()
    images = [image for _ in workers for image in taken.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert sorted(images) == [f"{i:03}" for i in range(200)]


def test_import_keeps_good_texts_and_says_what_is_wrong_with_others(tmp_path: Path) -> None:
    text = "Texture: aa.\nBoundary: bb.\nContext: cc.\nSummary: dd."
    with AnnotationStore(tmp_path / "s.db") as store:
        texts = [("a", "labelled", text), ("a", "unlabelled", text), ("b", "unlabelled", "I'm sorry, I can't.")]
        for _ in range(2):
            taken = store.import_rows(texts, model="gpt-5")  # type: ignore[arg-type]
            assert (taken["ok"], taken["invalid"]) == (2, 1)
        assert len(list(store.rows())) == 3
        (bad,) = store.rows(state="invalid")
        assert "refusal" in (bad.reason or "")
        assert set(store.newest()) == {("a", "labelled"), ("a", "unlabelled")}
        assert [row.role for row in store.rows(role="labelled", model="gpt-5")] == ["labelled"]


def test_newest_takes_the_last_good_text(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        for prompt in ("v1-b", "v1-a"):
            store.add_pending([task("a", prompt=prompt)])
            store.record(store.claim(1)[0].key, OK)
        assert store.newest()["a", "unlabelled"].prompt == "v1-a"
        assert store.newest(model="other") == {}


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CersError, match="no annotation store"):
        AnnotationStore(tmp_path / "absent.db", create=False)
    (tmp_path / "text.db").write_text("hello, this is no database at all" * 50, encoding="utf-8")
    with pytest.raises(CersError, match="cannot be used"):
        AnnotationStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(CersError, match="something else"):
        AnnotationStore(tmp_path / "other.db")
    with AnnotationStore(tmp_path / "s.db") as store:
        store._db.execute("PRAGMA user_version = 99")
    with pytest.raises(CersError, match="newer cers"):
        AnnotationStore(tmp_path / "s.db")
