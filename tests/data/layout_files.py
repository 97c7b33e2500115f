"""Datasets of empty files, for readers that look at names and tables only."""

import csv
from pathlib import Path

import openpyxl

from cers.data.case import Case
from cers.data.layouts import Scan


def touch(root: Path, *names: str) -> None:
    """Files without content: scanning reads names only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def table(path: Path, *rows: tuple[str, ...], bom: bool = False, end: str = "\r\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file, lineterminator=end).writerows(rows)
    return path


def excel(path: Path, *rows: tuple[str, ...]) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    book.save(path)


def by_id(cases: list[Case]) -> dict[str, Case]:
    return {case.id: case for case in cases}


def kinds(found: Scan, level: str = "error") -> list[str]:
    assert all("\n" not in p.message for p in found.problems)
    return [p.kind for p in found.problems if p.level == level]
