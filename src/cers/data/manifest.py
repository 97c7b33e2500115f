"""A dataset given as one table: a row per image, CSV or Parquet."""

import os
import re
from pathlib import Path

from cers.data.case import Case
from cers.data.names import key
from cers.data.problems import Problem
from cers.data.tables import read_table, repeated_columns
from cers.errors import CersError, nearest

_SUFFIXES = (".csv", ".parquet")
_COLUMNS = ("image", "mask", "report", "cot", "mask_cot", "group", "label", "part")
_TEXTS = ("report", "cot", "mask_cot")
_PATIENT = re.compile("patient|subject|person")
_PARTS = ("train", "val", "test")
_LONG = 200  # characters of a cell beyond which it is no file's name but, say, a report in the wrong column


def find_manifest(path: Path) -> Path | None:
    """`path` itself if it is a table, or manifest.csv (with a column `image`) or manifest.parquet in that folder."""
    if path.is_file():
        return path if path.suffix.lower() in _SUFFIXES else None
    table = path / "manifest.csv"
    if table.is_file():
        with table.open(encoding="utf-8-sig", errors="replace") as file:
            # Other datasets ship a manifest.csv of their own kind.
            return table if "image" in re.split(r"[,;\t]", file.readline().strip().lower().replace('"', "")) else None
    table = path / "manifest.parquet"
    return table if table.is_file() else None


def read_manifest(path: Path, problems: list[Problem]) -> list[Case]:
    """The cases of the table `find_manifest(path)`; its relative file names count from the table's own folder.

    Columns: image, and optionally mask, report, cot (mask-free rationale), mask_cot (mask-informed), group, label and
    part (train, val or test). An empty cell means not known.

    Raises:
        CersError: unreadable table, or no column `image`.
    """
    path = find_manifest(path) or path
    columns, rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path, problems)
    if "image" not in columns:
        raise CersError(f"{path} has no column 'image'; found {','.join(columns)}")
    problems += repeated_columns(columns, _COLUMNS, str(path))
    for column in columns:
        if column not in _COLUMNS:
            patients = "group" not in columns and _PATIENT.search(column)
            hint = "if it names the patient, call it 'group'" if patients else nearest(column, _COLUMNS)
            message = f"column '{column}' is not read; {hint}"
            problems.append(Problem("warning", "unknown-column", str(path), message))
    return [case for line, row in rows if (case := _case(path, line, row, problems))]


def _csv_rows(path: Path, problems: list[Problem]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    table = read_table(path)
    for line in table.ragged:
        message = "more cells than columns; put texts that hold a comma in double quotes"
        problems.append(Problem("error", "ragged-rows", f"{path}:{line}", message))
    for line in table.short:
        message = "fewer cells than columns; those at the end count as empty, as where Excel has left them out"
        problems.append(Problem("warning", "short-rows", f"{path}:{line}", message))
    return list(table.columns), table.rows


def _parquet_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    import pandas as pd  # slow to import, and needed for Parquet only

    try:
        frame = pd.read_parquet(path)
        if any(frame.index.names):  # a column that pandas has set apart
            frame = frame.reset_index(allow_duplicates=True)
    except (OSError, ValueError) as error:
        raise CersError(f"{path} is not a Parquet table: {' '.join(str(error).split())}") from None
    frame.columns = [str(c).strip().lower() for c in frame.columns]
    texts = frame.convert_dtypes().astype("string").fillna("")
    rows = [dict(zip(texts.columns, map(str, row), strict=True)) for row in texts.itertuples(index=False)]
    return list(texts.columns), list(enumerate(rows, start=1))


def _case(table: Path, line: int, row: dict[str, str], problems: list[Problem]) -> Case | None:
    known = {c: text if c in _TEXTS else text.strip() for c in _COLUMNS if (text := row.get(c, "")).strip()}
    where = f"{table}:{line}"
    image = _existing(table, known.get("image"), where, problems)
    mask = _existing(table, known.get("mask"), where, problems) if "mask" in known else None
    part = known.get("part")
    if part not in (None, *_PARTS):
        problems.append(Problem("error", "unknown-part", where, f"part '{part}'; choose from: {', '.join(_PARTS)}"))
    if image is None:
        return None
    return Case(
        id=key(image.name),
        image=image,
        mask=mask,
        report=known.get("report"),
        rationale=known.get("cot"),
        mask_rationale=known.get("mask_cot"),
        group=known.get("group"),
        label=known.get("label"),
        part=part,
    )


def _existing(table: Path, name: str | None, where: str, problems: list[Problem]) -> Path | None:
    if name is None:
        problems.append(Problem("error", "missing-file", where, "the row names no image"))
        return None
    path = table.parent / name
    if os.path.isfile(path):  # before Python 3.14 `path.is_file()` fails on names that are too long
        return path
    shown = name if len(name) <= _LONG else f"{name[:_LONG]}…"
    message = f"no file {shown}; relative names count from {table.parent}"
    problems.append(Problem("error", "missing-file", where, message))
    return None
