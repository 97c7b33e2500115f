"""Writing files so that a kill at any moment leaves either the old content or the new."""

import os
from contextlib import suppress
from pathlib import Path

from cers.errors import CersError

AnyPath = Path | str


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
