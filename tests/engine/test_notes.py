"""What a run says before it begins."""

from pathlib import Path

import pandas as pd
import pytest

from cers.config import load_config
from cers.run import prepare


@pytest.fixture
def table(scans: Path) -> pd.DataFrame:
    rows = pd.read_csv(scans / "manifest.csv")
    return rows.assign(**{name: rows[name].map(lambda path: scans / str(path), "ignore") for name in ("image", "mask")})


def notes(table: pd.DataFrame, folder: Path, settings: list[str], method: str) -> list[str]:
    table.to_csv(folder / "table.csv", index=False)
    told: list[str] = []
    config = load_config("demo", [*settings, f"data.path={folder / 'table.csv'}", f"method.name={method}"])
    prepare(config, folder / "run", on_note=told.append)
    return told


def test_a_reader_without_anything_to_read_says_so(table: pd.DataFrame, settings: list[str], tmp_path: Path) -> None:
    settings = [setting for setting in settings if not setting.startswith("method.")]
    bare = table.drop(columns=["report", "cot", "mask_cot"])
    said = "no training image has a report or a rationale: unet-text does without"
    assert said in notes(bare, tmp_path, settings, "unet-text")
    assert notes(bare, tmp_path, settings, "supervised") == []
    assert notes(table, tmp_path, settings, "unet-text") == []


def test_malformed_rationales_are_counted(table: pd.DataFrame, settings: list[str], tmp_path: Path) -> None:
    settings = [setting for setting in settings if not setting.startswith("method.")]
    table.loc[:, "cot"] = "I cannot help with that."
    (said,) = notes(table, tmp_path, settings, "supervised")
    assert "rationales are malformed and count as none, e.g. that of '" in said
