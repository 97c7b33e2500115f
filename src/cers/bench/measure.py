"""Timing in CPU seconds, which other programs on the machine hardly disturb, and in wall seconds beside them."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("cers", "torch", "timm", "transformers", "monai", "numpy", "opencv-python-headless")

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """Medians over `repeats`, in seconds."""

    cpu_s: float
    wall_s: float
    repeats: int


def measure(function: Callable[[], object], repeats: int) -> Timing:
    """`function` run once to warm up, then timed `repeats` times."""
    function()
    cpu, wall = [], []
    for _ in range(repeats):
        started = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    return Timing(statistics.median(cpu), statistics.median(wall), repeats)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block torch computes with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def seconds(timing: Timing) -> dict[str, float | int]:
    """A timing for JSON."""
    return asdict(timing)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
