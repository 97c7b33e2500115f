"""The command line as tests run it: in this process, or in one of its own that may be killed at any moment."""

import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from cers.cli.main import main

# The server imports what is slow to import once, and every command is a fork of it.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["cers.cli.main", "cers.run", "cers.evaluation", "cers.cli.train"])


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str


def cers(*arguments: str | Path) -> Done:
    """`cers …` in this process: starting Python anew each time takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["cers", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def succeeds(*arguments: str | Path) -> Done:
    done = cers(*arguments)
    assert done.status == 0, done.stderr
    return done


def refused(*arguments: str | Path) -> str:
    """The one line in which `cers …` says what is wrong."""
    return one_line(cers(*arguments))


def one_line(done: Done) -> str:
    assert done.status == 2, done
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cers:")]
    assert done.stderr.splitlines()[-1] == line, done.stderr
    assert line.startswith("cers: error: ")
    return line


class Command:
    """`cers …` in a process of its own.

    It kills itself (SIGKILL) right before the `count`-th time that it does `event` (a name of Python's table of audit
    events) to a file whose name matches `name`; no file of it may grow beyond `largest` bytes.
    """

    def __init__(
        self,
        log: Path,
        *arguments: str | Path,
        die_at: tuple[str, str, int] | None = None,
        largest: int | None = None,
    ) -> None:
        self.log = log
        self.process = FORKSERVER.Process(target=_begin, args=(str(log), [str(a) for a in arguments], die_at, largest))
        self.process.start()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> Done:
        """How it ended; a signal counts as its negative number."""
        self.process.join(120)
        assert self.process.exitcode is not None, "still running"
        texts = [self.log.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".out", ".err")]
        return Done(self.process.exitcode, *texts)

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.process.is_alive(), self.wait()
            assert time.monotonic() < deadline
            time.sleep(0.002)


def _begin(log: str, arguments: list[str], die_at: tuple[str, str, int] | None, largest: int | None) -> None:
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(Path(log).with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if die_at is not None:
        _die_at(*die_at)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["cers", *arguments]
    main()


def _die_at(event: str, name: str, count: int) -> None:
    left = count

    def watch(seen: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if seen == event and re.search(name, str(arguments[0])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
