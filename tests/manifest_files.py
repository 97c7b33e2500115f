"""Changing the table of a dataset on disk."""

import csv
from collections.abc import Callable
from pathlib import Path

Row = dict[str, str]


def edit_manifest(folder: Path, change: Callable[[str, Row], list[Row]]) -> None:
    """Replace every row of manifest.csv by what `change` makes of its id and itself."""
    path = folder / "manifest.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerows(change(Path(row["image"]).stem, row))
