import sqlite3
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cers.cli.annotate import app
from cers.errors import CersError

sys.path.insert(0, str(Path(__file__).parents[1] / "annotate"))
from llm_server import LlmServer

RUNNER = CliRunner()


@pytest.fixture
def server() -> Iterator[LlmServer]:
    with LlmServer() as running:
        yield running


def call(command: str, scans: Path, split_file: Path, store: Path, *more: str) -> Result:
    return RUNNER.invoke(app, [command, str(scans), *more, "--split", str(split_file), "--store", str(store)])


def test_plan_run_status_on_one_store(scans: Path, split_file: Path, tmp_path: Path, server: LlmServer) -> None:
    store, base = tmp_path / "s.db", f"base_url={server.url}"
    result = call("plan", scans, split_file, store, base, "modality=MR")
    assert result.exit_code == 0, result.output
    assert "as batch $0." in result.stdout
    assert not store.exists()
    assert not server.seen
    result = call("run", scans, split_file, store, base, "modality=MR", "--limit", "3")
    assert result.exit_code == 0, result.output
    assert len(server.seen) == 3
    server.faults = deque(["garbage", "garbage"])
    result = call("run", scans, split_file, store, base, "modality=MR", "--limit", "1")
    assert "1 texts are invalid or were refused; `--again` asks for them anew" in result.stderr
    result = call("run", scans, split_file, store, base, "modality=MR", "--max-cost", "5")
    assert "0 texts left" in result.stdout
    result = call("plan", scans, split_file, store, base, "modality=MR")
    assert "as measured" in result.stdout
    again = call("run", scans, split_file, store, base, "modality=MR", "--again", "--role", "unlabelled")
    assert again.exit_code == 0
    result = RUNNER.invoke(app, ["status", str(store)])
    assert "gpt-5.2" in result.stdout
    assert "paid $" in result.stdout
    with sqlite3.connect(store) as db:
        states = dict(db.execute("SELECT state, count(*) FROM annotation GROUP BY state"))
    assert set(states) <= {"ok", "invalid"}
    assert states["ok"] >= 24


def test_batch_from_the_command_line(scans: Path, split_file: Path, tmp_path: Path, server: LlmServer) -> None:
    result = call("run", scans, split_file, tmp_path / "s.db", f"base_url={server.url}", "--batch")
    assert result.exit_code == 0, result.output
    assert "0 left" in result.stdout
    assert len(server.batches) == 1


def test_nothing_leaves_this_machine_unasked(scans: Path, split_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    result = call("run", scans, split_file, store, "base_url=https://llm.invalid/v1")
    assert isinstance(result.exception, CersError)
    assert "--allow-remote llm.invalid" in str(result.exception)
    result = call("run", scans, split_file, store, "base_url=https://llm.invalid/v1", "--allow-remote", "other.invalid")
    assert "names 'other.invalid'" in str(result.exception)
    key = "key_variable=CERS_TEST_NO_KEY"
    result = call(
        "run", scans, split_file, store, "base_url=https://llm.invalid/v1", key, "--allow-remote", "llm.invalid"
    )
    assert "CERS_TEST_NO_KEY" in str(result.exception)
    assert "sent to llm.invalid" in result.stderr
    # Allowed once, it stays allowed for this store, and that can be looked up.
    result = call("run", scans, split_file, store, "base_url=https://llm.invalid/v1", key)
    assert "CERS_TEST_NO_KEY" in str(result.exception)
    assert "llm.invalid was allowed on" in RUNNER.invoke(app, ["status", str(store)]).stdout


def test_show_writes_what_would_be_sent(scans: Path, split_file: Path, tmp_path: Path) -> None:
    import json

    labelled = json.loads(split_file.read_text(encoding="utf-8"))["labelled"][0]
    common = ["show", str(scans), "target=tumour", "--split", str(split_file), "--out", str(tmp_path / "r")]
    result = RUNNER.invoke(app, [*common, "--image", labelled])
    assert result.exit_code == 0, result.output
    assert sorted(p.suffix for p in (tmp_path / "r").iterdir()) == [".jpg", ".jpg", ".txt", ".txt"]
    assert "tumour" in (tmp_path / "r" / f"{labelled}.labelled.txt").read_text(encoding="utf-8")
    assert "no case" in str(RUNNER.invoke(app, [*common, "--image", "x"]).exception)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["modell=x"], "did you mean 'model'"),
        (["base_url=ftp://x"], "is no address"),
        (["base_url=http://u:secret@localhost/v1"], "must not hold"),
        (["base_url=http://u:secret@localhost:nowhere"], "must not hold"),
        (["prices=no.yaml"], "cannot be read as price table"),
        (["--role", "labeled"], "did you mean 'labelled'"),
        (["--config", "no.yaml"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(scans: Path, split_file: Path, tmp_path: Path, more: list[str], says: str) -> None:
    result = call("plan", scans, split_file, tmp_path / "s.db", *more)
    assert isinstance(result.exception, CersError)
    assert says in str(result.exception)
    assert "secret" not in str(result.exception)


def test_prices_prints_a_table_that_can_be_read_back(tmp_path: Path) -> None:
    from cers.annotate.prices import load_prices

    result = RUNNER.invoke(app, ["prices"])
    (tmp_path / "p.yaml").write_text(result.stdout, encoding="utf-8")
    assert load_prices(tmp_path / "p.yaml") == load_prices()


def test_status_of_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["status", str(tmp_path / "no.db")])
    assert "cers annotate run" in str(result.exception)
