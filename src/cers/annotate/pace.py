"""When a run calls, waits, and gives up: rate limits, back-off with jitter, a silent server, and Ctrl-C."""

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cers.annotate.client import BusyError
from cers.cot.store import AnnotationStore

PATIENCE = 120.0  # seconds without any answer before a run gives up
_LONGEST_WAIT = 60.0
_LONGEST_ASKED = 3600.0


class Pace:
    """The pace of all calls of a run together. `why` says why it stopped, if it did so by itself."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.why: str | None = None
        self.interrupted = False
        self.last_answer = time.monotonic()
        self._stop = asyncio.Event()
        self._resume_at = 0.0
        self._asked = 0.0  # longest wait that the server asked for since its last answer

    @property
    def stopped(self) -> bool:
        """Whether no further call is to begin."""
        return self._stop.is_set()

    def halt(self, why: str) -> None:
        """Begin no further call."""
        self.why = self.why or why
        self._stop.set()

    async def turn(self) -> bool:
        """Wait until the rate limit allows a call; False if the run has stopped."""
        await self.sleep(self._resume_at - time.monotonic())
        return not self.stopped

    def answered(self, pause: float) -> None:
        """The server has answered, and asks for a `pause` (seconds) before the next call."""
        self.last_answer, self._asked = time.monotonic(), 0.0
        self._resume_at = max(self._resume_at, self.last_answer + pause)
        self._bounded(pause, "its rate limit")

    async def back_off(self, error: BusyError, tried: int) -> bool:
        """Wait as the server asks, or exponentially longer with jitter; False when nobody is answered any more."""
        self._asked = max(self._asked, error.wait or 0.0)
        if not self._bounded(self._asked, str(error)):
            return False
        silence = time.monotonic() - self.last_answer
        if silence > self.patience + self._asked:
            self.halt(f"no answer from the server for {silence:.0f} seconds: {error}")
            return False
        # A server that asks for no wait at all (Retry-After: 0) would be asked without end.
        wait = error.wait or min(_LONGEST_WAIT, 0.5 * 2 ** min(tried, 9)) * random.uniform(0.5, 1.0)
        if error.limited:
            self._resume_at = max(self._resume_at, time.monotonic() + wait)
        await self.sleep(wait)
        return True

    async def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C lets calls in flight finish; a second one drops them."""
        loop, main = asyncio.get_running_loop(), asyncio.current_task()

        def interrupt() -> None:
            if self.interrupted and main is not None:
                main.cancel()
            self.interrupted = True
            self._stop.set()

        signals = (signal.SIGINT, signal.SIGTERM)
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or Windows
            for number in signals:
                loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                for number in signals:
                    loop.remove_signal_handler(number)

    def _bounded(self, wait: float, reason: str) -> bool:
        if wait > _LONGEST_ASKED:
            self.halt(f"the server asks to wait for {wait / 60:.0f} minutes: {reason}")
        return wait <= _LONGEST_ASKED


async def keep_leases(store: AnnotationStore) -> None:
    """Keep what this process holds in `store`, until cancelled."""
    while True:
        await asyncio.sleep(store.lease_seconds / 4)
        store.renew()
