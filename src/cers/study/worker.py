"""One run of a study in a process of its own: trained from where it stands, then scored."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from filelock import FileLock, Timeout

from cers.config import RunConfig
from cers.errors import CersError, Interrupted
from cers.evaluate.scored import outdated
from cers.evaluation import evaluate, evaluation_folder
from cers.run import resume, train

Ending = Literal["done", "busy", "stopped", "failed"]


@dataclass(frozen=True)
class Job:
    """What a worker is to do. `lock` is held while it works, so that no other process does the same run."""

    config: RunConfig
    folder: Path
    part: str
    lock: Path
    log: Path
    threads: int


@dataclass(frozen=True)
class Told:
    """What a worker says of its work: `done` of `total` steps trained, or of `total` cases scored."""

    phase: Literal["training", "scoring"]
    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """How a worker ended, and why in one line where it failed."""

    how: Ending
    why: str = ""


def begin(folder: Path, function: Callable[..., None], *arguments: Any) -> None:
    """`function(*arguments)` in the working folder of the study, where relative paths of its settings count from."""
    os.chdir(folder)
    function(*arguments)


def work(job: Job, pipe: Connection) -> None:
    """Do `job`; tell `pipe` of progress and of the end. Its other end closed, by hand or by death, means stop."""
    _set_apart(job.log, job.threads, pipe)
    tell = _teller(pipe)
    tell(_outcome(lambda: _locked(job, tell)))


def serve(function: Callable[..., Any], argument: Any, log: Path, threads: int, pipe: Connection) -> None:
    """Send what `function(argument)` returns, or how it failed: for work that needs a process of its own."""
    _set_apart(log, threads, pipe)
    tell = _teller(pipe)

    def answer() -> None:
        tell(function(argument))

    tell(_outcome(answer))


def _set_apart(log: Path, threads: int, pipe: Connection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()  # Ctrl-C in the terminal is for the study, which asks its workers to stop once
    _log_to(log)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    threading.Thread(target=_stop_when_closed, args=(pipe,), daemon=True).start()


def _outcome(function: Callable[[], None]) -> Ended:
    try:
        function()
    except Timeout:
        return Ended("busy")
    except (Interrupted, KeyboardInterrupt):
        return Ended("stopped")
    except CersError as error:
        return Ended("failed", " ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        return Ended("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Ended("done")


def _locked(job: Job, tell: Callable[[Any], None]) -> None:
    job.lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(job.lock, timeout=0):
        _train(job, tell)
        _score(job, tell)


def _train(job: Job, tell: Callable[[Any], None]) -> None:
    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            tell(Told("training", row["step"], row["steps"]))

    if (job.folder / "run.json").is_file():
        return
    if (job.folder / "config.yaml").is_file():
        resume(job.folder, _places(job), on_row=on_row)
    else:
        train(job.config, job.folder, on_row=on_row)


def _score(job: Job, tell: Callable[[Any], None]) -> None:
    def on_case(done: int, total: int) -> None:
        tell(Told("scoring", done, total))

    scores = evaluation_folder(job.folder, job.part)
    if not (scores / "summary.json").is_file() or outdated(scores):
        evaluate(job.folder, _places(job), part=job.part, on_case=on_case)


def _places(job: Job) -> list[str]:
    """Where the data are now, for a run that began elsewhere."""
    data = job.config.data
    return [f"data.path={json.dumps(str(data.path))}", f"data.cache={json.dumps(str(data.cache))}"]


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))


def _teller(pipe: Connection) -> Callable[[Any], None]:
    def tell(message: Any) -> None:
        with contextlib.suppress(OSError):  # the study is gone, and `_stop_when_closed` knows it
            pipe.send(message)

    return tell


def _stop_when_closed(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)
