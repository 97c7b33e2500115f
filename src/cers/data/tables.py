"""Tables of reports and rationales: CSV and Excel files, and one text file per image."""

import csv
import re
import zipfile
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from cers.data.folders import entries, not_read
from cers.data.names import aliases, key
from cers.data.problems import Problem, some
from cers.errors import CersError

_TABLES = (".csv", ".xlsx")
_REPORT_COLUMNS = ("text", "report", "description")
_MASK_FREE = re.compile(r"(no|without)[ _-]*mask|mask[ _-]*free", re.IGNORECASE)
_ROLES = {"labelled": "mask_rationales", "unlabelled": "rationales"}
_SAY_UTF8 = "is not UTF-8; save it again as UTF-8 CSV"


@dataclass(frozen=True)
class Table:
    """Rows as strings by lower-case column name, each with its line number; cells that are missing are empty.

    `ragged` are lines with too many cells, `short` those of a CSV with too few; workbooks leave out empty cells.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]
    ragged: list[int]
    short: list[int]


@dataclass
class Texts:
    """Raw texts by case id; a key that fits no case stays as it is in the table."""

    reports: dict[str, str] = field(default_factory=dict)
    rationales: dict[str, str] = field(default_factory=dict)
    mask_rationales: dict[str, str] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """A `.csv` (comma, semicolon or tab; UTF-8 with or without byte-order mark) or `.xlsx` file.

    Raises:
        CersError: unreadable, not UTF-8 or empty.
    """
    workbook = path.suffix.lower() == ".xlsx"
    lines = _excel_lines(path) if workbook else _csv_lines(path)
    if not lines:
        raise CersError(f"{path} is empty; its first line must name the columns")
    columns = tuple(c.strip().lower() for c in lines[0][1])
    filled = [(n, cells) for n, cells in lines[1:] if any(c.strip() for c in cells)]
    ragged = [n for n, cells in filled if any(c.strip() for c in cells[len(columns) :])]
    last = max((number for number, column in enumerate(columns, start=1) if column), default=0)
    short = [] if workbook else [n for n, cells in filled if len(cells) < last]
    rows = [(n, dict(zip(columns, chain(cells, repeat("")), strict=False))) for n, cells in filled]
    return Table(path, columns, rows, ragged, short)


def repeated_columns(columns: Sequence[str], read: Container[str], where: str) -> list[Problem]:
    """An error for each column among those `read` that is named more than once: only one of them would count."""
    return [
        Problem("error", "repeated-column", where, f"{count} columns are named '{column}'; keep one")
        for column, count in Counter(columns).items()
        if count > 1 and column in read
    ]


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # line ends of Windows become plain ones, inside cells too
            head = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=head.count), strict=True)
            return [(reader.line_num, cells) for cells in reader if cells]
    except UnicodeDecodeError:
        raise CersError(f"{path} {_SAY_UTF8}") from None
    except (OSError, csv.Error) as error:
        raise CersError(f"{path} cannot be read as a table: {error}; look for a quote that is not closed") from None


def _excel_lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        lines = [["" if v is None else str(v) for v in row] for row in sheet.iter_rows(values_only=True)]
        book.close()
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, InvalidFileException):
        raise CersError(f"{path} is not an Excel workbook; save it again as .xlsx or CSV") from None
    return list(enumerate(lines, start=1))


def find_tables(folder: Path, all_of_them: bool = False) -> list[Path]:
    """The text tables in `folder`: every .csv and .xlsx, or only those whose name speaks of text, reports or CoT."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _TABLES
        and not path.name.startswith((".", "~$"))
        and (all_of_them or re.search(r"text|report|cot", path.name, re.IGNORECASE))
    ]


def collect_texts(tables: Sequence[Path], ids: Container[str], problems: list[Problem]) -> Texts:
    """The texts of all `tables` for the cases `ids`. What cannot be read or contradicts itself becomes a problem."""
    texts = Texts()
    for path in tables:
        try:
            table = read_table(path)
        except CersError as error:
            problems.append(Problem("error", "unreadable-table", str(path), str(error)))
            continue
        column = next((c for c in (*_REPORT_COLUMNS, "cot") if c in table.columns), None)
        if column is None or "image" not in table.columns:
            message = f"not read: needs columns image,text or image,cot; found {','.join(table.columns)}"
            problems.append(Problem("warning", "unknown-table", str(path), message))
            continue
        _add(texts, table, ids, problems)
    return texts


def collect_rationales(path: Path, ids: Container[str], problems: list[Problem]) -> Texts:
    """The rationales of one CSV `image,cot[,role]`: mask-free but for rows of role `labelled`.

    Raises:
        CersError: unreadable, or without these columns.
    """
    if not path.is_file():
        raise CersError(f"no file {path}; data.rationales names a CSV with the columns image,cot")
    table = read_table(path)
    if not {"image", "cot"} <= set(table.columns):
        raise CersError(f"{path} needs the columns image,cot; found {','.join(table.columns)}")
    texts = Texts()
    _add(texts, table, ids, problems, cot="rationales")
    return texts


def add_text_files(folder: Path, texts: Texts, ids: Container[str], problems: list[Problem]) -> None:
    """Add the reports in `folder/<stem>.txt` to `texts`. What is neither that nor a table becomes a problem."""
    ignored: Counter[str] = Counter()
    blank: list[str] = []
    for path in (Path(entry.path) for entry in entries(folder)):
        kind = "subfolder" if path.is_dir() else path.suffix.lower() or path.name
        if kind in _TABLES:
            continue
        if kind != ".txt":
            ignored[kind] += 1
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            problems.append(Problem("error", "unreadable-table", str(path), f"{path.name} {_SAY_UTF8}"))
            continue
        case = _owner(path.stem, ids)
        if not text.strip():
            blank.append(case)
        elif texts.reports.setdefault(case, text) != text:
            message = f"'{case}' has another report in a table; keep one of the two"
            problems.append(Problem("error", "contradicting-rows", str(path), message))
    problems += not_read(folder, ignored, "texts are .txt, .csv or .xlsx")
    if blank:
        message = f"{len(blank)} text files without text: {some(blank)}"
        problems.append(Problem("warning", "empty-text", str(folder), message))


def _owner(name: str, ids: Container[str]) -> str:
    stem = key(name)
    return next((a for a in aliases(stem) if a in ids), stem)


def _add(texts: Texts, table: Table, ids: Container[str], problems: list[Problem], cot: str | None = None) -> None:
    where = str(table.path)
    problems += repeated_columns(table.columns, ("image", *_REPORT_COLUMNS, "cot", "role"), where)
    if table.ragged:
        lines = ", ".join(map(str, table.ragged[:5]))
        message = f"more cells than columns in line {lines}; put texts that hold a comma in double quotes"
        problems.append(Problem("error", "ragged-rows", where, message))
    report = next((c for c in _REPORT_COLUMNS if c in table.columns), None)
    if report:
        _fill(texts.reports, [(row["image"], row[report]) for _, row in table.rows], where, ids, problems)
    if "cot" not in table.columns:
        return
    for target in ("rationales", "mask_rationales"):
        default = cot or _ROLES[role_of_table(table.path)]
        rows = [(row["image"], row["cot"]) for _, row in table.rows if _role(row, default) == target]
        _fill(getattr(texts, target), rows, where, ids, problems)
    unknown = sorted({r for _, row in table.rows if (r := row.get("role", "").strip()) and r not in _ROLES})
    if unknown:
        message = f"unknown role {some(unknown)}; choose from: labelled, unlabelled"
        problems.append(Problem("error", "unknown-role", where, message))


def role_of_table(path: Path) -> Literal["labelled", "unlabelled"]:
    """What the name of a table of rationales says: `mask`, without `no` before it, means the mask was in sight."""
    return "labelled" if "mask" in path.name.lower() and not _MASK_FREE.search(path.name) else "unlabelled"


def _role(row: dict[str, str], default: str) -> str:
    return _ROLES.get(row.get("role", "").strip(), default)


def _fill(
    store: dict[str, str], rows: list[tuple[str, str]], where: str, ids: Container[str], problems: list[Problem]
) -> None:
    empty: list[str] = []
    repeated: list[str] = []
    contradicting: list[str] = []
    for name, text in rows:
        case = _owner(name, ids)
        if not text.strip() or not case:
            empty.append(case)
        elif case not in store:
            store[case] = text
        else:
            (repeated if store[case].strip() == text.strip() else contradicting).append(case)
    if contradicting:
        message = f"{len(contradicting)} rows contradict an earlier text of {some(contradicting)}; keep one each"
        problems.append(Problem("error", "contradicting-rows", where, message))
    if repeated:
        problems.append(Problem("warning", "repeated-rows", where, f"{len(repeated)} rows repeat: {some(repeated)}"))
    if empty:
        problems.append(Problem("warning", "empty-text", where, f"{len(empty)} rows without text: {some(empty)}"))
