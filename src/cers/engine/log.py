"""The log of a run: JSON lines always, TensorBoard on request."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cers.errors import CersError
from cers.files import write_atomic

Row = dict[str, Any]
OnRow = Callable[[Row], None]


class RunLog:
    """Appends rows to `log.jsonl`, each flushed, and hands them on to `on_row` and TensorBoard."""

    def __init__(self, folder: Path, *, keep_until: int, tensorboard: bool, on_row: OnRow | None = None) -> None:
        self.path = folder / "log.jsonl"
        kept = [row for row in read_log(self.path) if row["step"] <= keep_until]
        write_atomic(self.path, "".join(_line(row) for row in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._on_row = on_row
        self._board = _tensorboard(folder) if tensorboard else None

    def write(self, row: Row) -> None:
        """Append one row; it must have `kind` and `step`."""
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise CersError(f"cannot write {self.path}: {error.strerror}; free space, then resume the run") from None
        if self._on_row is not None:
            self._on_row(row)
        if self._board is not None:
            for name, value in _scalars(row):
                self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Close the files."""
        with suppress(OSError):  # each row was flushed; what a full disk refused is not worth a second failure
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[Row]:
    """The rows of a log; a line cut off by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _line(row: Row) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean, ensure_ascii=False) + "\n"


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CersError(
            "train.tensorboard needs the package tensorboard; run `pip install 'cers[tensorboard]'`"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
