import os
import pty
import subprocess
import sys

import pytest

from cers.cli.console import PLAIN_SECONDS, counted, progress, say, say_json, say_table

BAR = """
from cers.cli.console import progress
with progress("training", 3) as advance:
    for i in range(3):
        advance(note=f"loss {i}")
"""


def test_results_go_to_stdout_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]not markup[/bold] " + "x" * 300
    say(line)
    assert capsys.readouterr().out == line + "\n"


def test_table_shows_every_cell_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(("case", "dice"), [("a" * 90, 0.5), ("b", None)], title="Per case")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["Per", "case"], ["case", "dice"], ["a" * 90, "0.5000"], ["b", "–"]]


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        say_json({"dice": float("nan")})


def test_progress_without_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 3) as advance:
        advance(2)
        advance(note="loss 0.1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training 3/3 loss 0.1\n"


def test_the_first_call_tells_how_much_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("scoring") as count:
        assert capsys.readouterr().err == ""
        for done in (100, 200, 388):
            count(done, 388, f"case {done}")
    assert capsys.readouterr().err == "scoring 388/388 case 388\n"


def test_a_log_gets_a_line_every_few_seconds_at_most(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1000))  # each look at the clock is a second later
    monkeypatch.setattr("cers.cli.console.time.monotonic", lambda: next(seconds))
    with counted("scoring") as count:
        for done in range(1, 101):
            count(done, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"scoring {PLAIN_SECONDS:.0f}/200"
    assert 2 <= len(lines) <= 100 / PLAIN_SECONDS


def test_nothing_to_count_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("scoring"):
        pass
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar_on_stderr() -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", BAR], stderr=follower, stdout=subprocess.PIPE, env=environment, check=True, timeout=30
    )
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert done.stdout == b""
    assert "training" in shown
    assert "━" in shown
