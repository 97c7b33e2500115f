import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cers.cli.compare import compare, group_runs
from cers.config import dump_config, load_config, parse_config
from cers.errors import CersError
from cers.evaluate.metrics import Metrics
from cers.evaluate.table import CaseRow, write_cases_csv

app = typer.Typer()
app.command()(compare)


LIKE_ALL = (0.5, 0.5, 3.0, 1.0, 0.5, 0.0, 5.0)


def make_run(folder: Path, method: str | None, seed: int, dice: float, **settings: object) -> Path:
    rows = [
        CaseRow(f"c{i}", "declared", None, None, "small", Metrics(dice - i / 100, *LIKE_ALL, 6.0 + i)) for i in range(8)
    ]
    write_cases_csv(rows, folder / "eval" / "cases.csv")
    if method:
        config = parse_config({"seed": seed, "method": {"name": method, "settings": settings}})
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return folder


@pytest.fixture
def folders(tmp_path):
    return [make_run(tmp_path / f"cers{s}", "cers", s, 0.8 + s / 100) for s in (0, 1)] + [
        make_run(tmp_path / "plain", "supervised", 0, 0.6)
    ]


def test_seeds_of_one_configuration_are_grouped(folders):
    assert group_runs([str(f) for f in folders]) == {"cers": folders[:2], "supervised": folders[2:]}


def test_given_names_win(folders):
    found = group_runs([f"mine={folders[0]}", f"mine={folders[2]}", str(folders[1])])
    assert found == {"mine": [folders[0], folders[2]], "cers": [folders[1]]}


def test_a_folder_without_configuration_goes_by_its_own_name(tmp_path):
    folder = make_run(tmp_path / "other=tool", None, 0, 0.5)
    assert group_runs([str(folder)]) == {"other=tool": [folder]}


def test_other_settings_are_not_seeds(folders, tmp_path):
    other = make_run(tmp_path / "variant", "cers", 2, 0.5, k=3)
    with pytest.raises(CersError, match="differ in more than their seed"):
        group_runs([str(folders[0]), str(other)])


def test_the_first_other_setting_is_named_and_where_or_how_fast_a_run_was_is_none(folders, tmp_path):
    moved = make_run(tmp_path / "moved", "cers", 2, 0.5)
    config = load_config(moved / "config.yaml", ["data.path=elsewhere", "data.cache=other", "train.workers=2"])
    (moved / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert group_runs([str(folders[0]), str(moved)]) == {"cers": [folders[0], moved]}
    other = dump_config(config.with_values(["train.steps=7", "train.checkpoint_every=3"]))
    (moved / "config.yaml").write_text(other, encoding="utf-8")
    with pytest.raises(CersError, match=r"more than their seed: train\.steps is 7 and None; name them"):
        group_runs([str(folders[0]), str(moved)])


def test_an_evaluation_goes_by_its_run_and_its_own_name(folders, tmp_path):
    for folder in (*folders, variant := make_run(tmp_path / "variant", "cers", 2, 0.5, k=3)):
        shutil.copytree(folder / "eval", folder / "eval-random")
    evaluations = [folder / "eval-random" for folder in folders]
    assert group_runs([*map(str, evaluations), f"{folders[0]}/eval"]) == {
        "cers/eval-random": evaluations[:2],
        "supervised/eval-random": evaluations[2:],
        "cers": [folders[0] / "eval"],
    }
    with pytest.raises(CersError, match=r"differ in more than their seed: method\.settings\.k is 3"):
        group_runs([str(evaluations[0]), str(variant / "eval-random")])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CersError, match="no run folder"):
        group_runs([f"name={tmp_path / 'nowhere'}"])


def test_command_writes_each_format(folders):
    arguments = [str(f) for f in folders]
    markdown = CliRunner().invoke(app, [*arguments, "--format", "markdown", "--reference", "supervised"])
    assert markdown.exit_code == 0
    assert "Δ Dice to supervised" in markdown.output.splitlines()[0]
    assert "| cers | 2 | 8 | 0.770 ± 0.007 |" in markdown.output
    rows = CliRunner().invoke(app, [*arguments, "--format", "csv"])
    assert rows.output.splitlines()[1].startswith(",dice,cers,2,8,8,0.77")
    assert CliRunner().invoke(app, [*arguments, "--format", "latex"]).output.startswith("\\begin{table}")
    assert CliRunner().invoke(app, [*arguments, "--format", "html"]).output.startswith("<!DOCTYPE html>")
    table = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert "0.770" in table.output
