"""Doing a plan's runs, one after the other or several at once, each in a process of its own."""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cers.errors import CersError
from cers.study.plan import Plan, PlannedRun
from cers.study.worker import Ended, Job, Told, begin, work

WORKER_MODULES = ["cers.study.worker"]
LOOK_AGAIN = 2.0  # seconds between looks at runs that another process does
PATIENCE = 120.0  # seconds that a worker may take to save itself


@dataclass
class Progress:
    """How a study stands; what is shown while it goes on.

    `failed` holds the reason by key. `seconds` and `steps` by family say how fast its runs go, with all that belongs
    to them.
    """

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    current: dict[str, Told] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def left(self, runs: Sequence[PlannedRun], jobs: int) -> float | None:
        """Seconds until `runs` are done, by the pace of their family, or of all where it is not known yet."""
        steps, seconds = sum(self.steps.values()), sum(self.seconds.values())
        if not steps:
            return None
        total = 0.0
        for run in runs:
            known = self.steps.get(run.family)
            pace = self.seconds[run.family] / known if known else seconds / steps
            told = self.current.get(run.key)
            behind = 0 if told is None else run.steps if told.phase == "scoring" else told.done
            total += pace * (run.steps - behind)
        return total / min(jobs, max(1, len(runs)))


@dataclass
class _Worker:
    run: PlannedRun
    process: BaseProcess
    pipe: Connection
    started: float
    first: int | None = None
    ended: Ended | None = None


OnChange = Callable[[PlannedRun, Progress, "Ended | None"], None]


def do_runs(
    plan: Plan, *, jobs: int = 1, threads: int = 1, seconds: float | None = None, on_change: OnChange | None = None
) -> Progress:
    """Train and score every run of `plan` that is not done yet, `jobs` at once, with `threads` threads each.

    A run that another process works on is waited for, and taken over should that process die. A run that fails is
    noted and the others go on. After `seconds` the runs under way save themselves and it ends, to be gone on with.

    Raises:
        KeyboardInterrupt: Ctrl-C, once every worker has saved itself.
    """
    return _Runner(plan, jobs, threads, seconds, on_change).run()


class _Runner:
    """The queue, the runs of other processes, and our own workers."""

    def __init__(self, plan: Plan, jobs: int, threads: int, seconds: float | None, on_change: OnChange | None) -> None:
        self.plan, self.jobs, self.threads, self.on_change = plan, jobs, threads, on_change
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.queue = deque(run for run in plan.runs if not plan.is_done(run))
        self.progress = Progress(len(plan.runs), len(plan.runs) - len(self.queue))
        self.elsewhere: list[PlannedRun] = []
        self.workers: list[_Worker] = []

    def run(self) -> Progress:
        try:
            while (self.queue or self.elsewhere or self.workers) and not self.progress.stopped:
                self._fill()
                self._listen()
                self.progress.stopped = self.deadline is not None and time.monotonic() >= self.deadline
        finally:
            self._stop()
        return self.progress

    def _fill(self) -> None:
        """Start workers on free runs; a run that another process holds is looked at again later."""
        while self.queue and len(self.workers) < self.jobs:
            run = self.queue.popleft()
            if self.plan.is_done(run):  # by another process, meanwhile
                self._finish(run, Ended("done"))
            elif _is_free(self.plan, run):
                self.workers.append(_start(self.plan, run, self.threads))
            else:
                self.elsewhere.append(run)

    def _listen(self) -> None:
        if not self.workers:
            time.sleep(LOOK_AGAIN if self.elsewhere else 0)
            self._look_again()
            return
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes), timeout=1.0):
            self._hear(pipes[pipe])  # type: ignore[index]
        for worker in [w for w in self.workers if w.ended is not None]:
            self.workers.remove(worker)
            worker.process.join()
            self._account(worker)
            if worker.ended is not None and worker.ended.how == "busy":
                self.elsewhere.append(worker.run)
            else:
                self._finish(worker.run, worker.ended or Ended("failed"))
        if len(self.workers) < self.jobs:
            self._look_again()

    def _look_again(self) -> None:
        self.queue.extend(self.elsewhere)
        self.elsewhere.clear()

    def _hear(self, worker: _Worker) -> None:
        try:
            message: Any = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.ended = Ended("failed", _death(worker.process.exitcode))
            return
        if isinstance(message, Ended):
            worker.ended = message
            return
        if message.phase == "training" and worker.first is None:
            worker.first = message.done - 1
        self.progress.current[worker.run.key] = message
        self._tell(worker.run, None)

    def _account(self, worker: _Worker) -> None:
        """The pace of what was trained from end to end in this process."""
        self.progress.current.pop(worker.run.key, None)
        if worker.ended and worker.ended.how == "done" and worker.first == 0:
            family, spent = worker.run.family, time.monotonic() - worker.started
            self.progress.seconds[family] = self.progress.seconds.get(family, 0.0) + spent
            self.progress.steps[family] = self.progress.steps.get(family, 0) + worker.run.steps

    def _finish(self, run: PlannedRun, how: Ended) -> None:
        if how.how == "done":
            self.progress.done += 1
        else:
            self.progress.failed[run.key] = how.why or how.how
        self._tell(run, how)

    def _tell(self, run: PlannedRun, how: Ended | None) -> None:
        if self.on_change is not None:
            self.on_change(run, self.progress, how)

    def _stop(self) -> None:
        """Ask our workers to save themselves; kill the one that does not."""
        for worker in self.workers:
            worker.pipe.close()
        limit = time.monotonic() + PATIENCE
        for worker in self.workers:
            worker.process.join(max(0.0, limit - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers = []


def remaining(plan: Plan, progress: Progress) -> list[PlannedRun]:
    """The runs that are neither done nor failed."""
    return [run for run in plan.runs if run.key not in progress.failed and not plan.is_done(run)]


@contextmanager
def process_for(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that runs `target(*arguments, pipe)`, and our end of its pipe; it is gone when the block ends."""
    process, ours = _launch(target, *arguments)
    try:
        yield process, ours
    finally:
        ours.close()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


def _start(plan: Plan, run: PlannedRun, threads: int) -> _Worker:
    job = Job(run.config, plan.folder(run), plan.study.part, plan.lock(run), plan.log(run), threads)
    return _Worker(run, *_launch(work, job), time.monotonic())


def _launch(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    context = _context()
    ours, theirs = context.Pipe()
    process = context.Process(target=begin, args=(Path.cwd(), target, *arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def _context() -> Any:
    """Forks of a server that has imported everything, and never looked for CUDA, which would not survive a fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WORKER_MODULES)
    return context


def _is_free(plan: Plan, run: PlannedRun) -> bool:
    lock = plan.lock(run)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False
    except OSError as error:
        raise CersError(f"cannot write {lock}: {error.strerror}; choose another --out") from None


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return f"its process ended with status {code}"
