"""Writing files so that a kill leaves either the old content or the new, and one process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cers.errors import CersError

AnyPath = Path | str
LOCK = ".lock"


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` (text as UTF-8) to a temporary name beside `path`, then rename it.

    Raises:
        CersError: the folder cannot be written or the disk is full; what stood at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        hint = "mend its permissions" if isinstance(error, PermissionError) else "free space"
        raise CersError(f"cannot write {path}: {error.strerror}; {hint} or choose another folder") from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for this process: two that train into one would spoil each other's files.

    Raises:
        CersError: another process holds it, or nothing can be written there.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CersError(
            f"another process is training {folder}; wait for it, or name another folder with --out"
        ) from None
    except OSError as error:
        raise CersError(f"cannot write {folder}: {error.strerror}; name another folder with --out") from None
    try:
        yield
    finally:
        lock.release()
