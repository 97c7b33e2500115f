import os
import pty
import subprocess
import sys

import pytest

from cers.cli.console import progress, say, say_json, say_table

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
