"""Studies of tiny runs from end to end: a kill, a broken row, an edited grid, two processes."""

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny_study import values, write_folds, write_study

from cers.data.splits import load_split
from cers.study.definition import load_study
from cers.study.plan import Plan, make_plan
from cers.study.runner import process_for
from cers.study.worker import serve
from cers_command import Command, cers, one_line, refused, succeeds

BROKEN = {"name": "broken", "settings": {"method.name": "cers", "model.encoder": "no_such_encoder"}}


def arguments(folder: Path, scans: Path, split_file: Path) -> list[str]:
    places = [f"data.path={scans}", f"data.split={split_file}", f"data.cache={scans.parent / 'cache'}"]
    return [str(folder / "tiny.yaml"), *places, "--out", str(folder / "out")]


def plan_of(given: list[str]) -> Plan:
    return make_plan(load_study(given[0]), Path(given[-1]), given[1:4])


@pytest.fixture(scope="module")
def finished(scans: Path, split_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A study that was killed in its first run, and then gone on with; one of its rows cannot be trained."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "tiny.yaml", rows=[*values()["rows"], BROKEN])
    given = arguments(folder, scans, split_file)
    command = Command(folder / "killed", "study", *given)
    checkpoints = folder / "out" / "runs"
    # Its workers come from a server of their own, which imports everything anew.
    command.wait_until(lambda: any(checkpoints.glob("*/checkpoints/last.safetensors")), seconds=600)
    command.send(signal.SIGKILL)
    command.wait()
    done = cers("study", *given, "--jobs", "2")
    line = one_line(done)
    assert "2 of 6 runs failed" in line
    assert "failed: broken, 50 %, seed 0: model.encoder: " in done.stderr
    assert "plain" in done.stdout
    return given


def test_a_failed_row_hides_no_other(finished):
    plan = plan_of(finished)
    assert [plan.is_done(run) for run in plan.runs] == [run.row != "broken" for run in plan.runs]
    with (plan.out / "table.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    dice = {line["method"]: line for line in lines if line["metric"] == "dice"}
    assert {name: line["seeds"] for name, line in dice.items()} == {"plain": "2", "teacher": "2"}
    assert dice["teacher"]["pairs"] == "2"
    assert float(dice["plain"]["parameters"]) > 1000
    assert float(dice["teacher"]["image_passes"]) > float(dice["plain"]["image_passes"])
    for name in ("table.md", "table.tex", "table.html"):
        assert "teacher" in (plan.out / name).read_text(encoding="utf-8")


def test_what_a_run_cost_is_recorded(finished):
    plan = plan_of(finished)
    plain = next(run for run in plan.runs if run.row == "plain")
    facts = json.loads((plan.folder(plain) / "run.json").read_text(encoding="utf-8"))
    assert (facts["steps"], facts["optimiser_steps"], facts["labelled_images"], facts["unlabelled_images"]) == (
        6,
        6,
        48,
        0,
    )
    assert facts["image_passes"] == 48
    assert facts["peak_memory"] > 2**20
    assert facts["wall_seconds"] >= facts["seconds"] > 0


def test_an_edited_study_does_only_what_is_new(finished, tmp_path):
    out = shutil.copytree(finished[-1], tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    write_study(tmp_path / "edited.yaml", title="Edited", seeds=[1, 2], rows=[values()["rows"][0]])
    done = succeeds("study", tmp_path / "edited.yaml", *finished[1:4], "--out", out)
    assert "1 of 2 runs are done already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list(out.glob("runs/*/run.json"))) == len(times) + 1


def test_a_finished_study_only_tells_its_table(finished, tmp_path):
    out = shutil.copytree(finished[-1], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    done = succeeds("study", *finished[:-1], out, "--rows", "plain,teacher")
    assert "teacher" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == before


def test_the_table_so_far_is_shown_without_training(finished, tmp_path):
    out = Path(shutil.copytree(finished[-1], tmp_path / "out"))
    plan = make_plan(load_study(finished[0]), out, finished[1:4])
    gone = next(run for run in plan.runs if run.row == "teacher")
    shutil.rmtree(plan.folder(gone))
    (out / "table.csv").unlink()
    done = succeeds("study", *finished[:-1], out, "--table")
    assert "3 of 6 runs are done" in done.stderr
    with (out / "table.csv").open(encoding="utf-8") as file:
        assert {line["method"]: line["seeds"] for line in csv.DictReader(file)} == {"plain": "2", "teacher": "1"}
    assert not plan.folder(gone).exists()
    turned = succeeds("study", *finished[:-1], out, "--table", "--reference", "teacher")
    assert "Δ: difference to teacher" in turned.stderr
    assert "no row 'techer' in this study; did you mean 'teacher'" in refused(
        "study", *finished[:-1], out, "--table", "--reference", "techer"
    )
    assert "no run of this study is done" in refused("study", *finished[:-1], tmp_path / "empty", "--table")


def test_folds_are_trained_and_pooled(scans, tmp_path):
    write_study(tmp_path / "tiny.yaml", seeds=[0], rows=[values()["rows"][0]])
    given = arguments(tmp_path, scans, write_folds(scans, tmp_path, 2))
    done = succeeds("study", *given, "--folds", "1,2", "--jobs", "2")
    assert "plain, 50 %, seed 0, fold 2 done" in done.stderr
    assert "Cross-validated in 2 folds" in done.stderr
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8") as file:
        line = next(csv.DictReader(file))
    assert (line["seeds"], line["n"]) == ("1", "24")
    folders = sorted((tmp_path / "out" / "runs").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == [f"plain-50-seed0-fold{fold}" for fold in (1, 2)]
    compared = succeeds("compare", *folders)
    assert "Cross-validated in 2 folds" in compared.stderr
    assert "--folds 'a,b' is not a list" in refused("study", *given, "--folds", "a,b")


def test_settings_are_chosen_on_validation_images_without_training_again(finished, tmp_path):
    out = Path(shutil.copytree(finished[-1], tmp_path / "out"))
    trained = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    succeeds("study", *finished[:-1], out, "--rows", "plain,teacher", "--part", "val")
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")} == trained
    split = load_split(Path(finished[2].partition("=")[2]))
    with (out / "table.csv").open(encoding="utf-8") as file:
        assert {line["n"] for line in csv.DictReader(file)} == {str(len(split.val))}
    assert "validation cases" in (out / "table.md").read_text(encoding="utf-8")
    assert "validation cases" not in (Path(finished[-1]) / "table.md").read_text(encoding="utf-8")


def test_a_run_that_another_process_holds_is_not_done_twice(finished, tmp_path):
    from filelock import FileLock

    out = Path(shutil.copytree(finished[-1], tmp_path / "out"))
    plan = make_plan(load_study(finished[0]), out, finished[1:4])
    held = next(run for run in plan.runs if run.row == "teacher")
    (plan.folder(held) / "eval" / "summary.json").unlink()
    with FileLock(plan.lock(held), timeout=0):
        done = succeeds("study", *finished[:-1], out, "--rows", "plain,teacher", "--minutes", "0.1")
    assert "time is up: 3 of 4 runs are done" in done.stdout
    assert not plan.is_done(held)
    done = succeeds("study", *finished[:-1], out, "--rows", "plain,teacher")
    assert plan.is_done(held)


def test_dry_run_measures_each_configuration_and_writes_no_run(finished, tmp_path):
    done = cers("study", *finished[:-1], tmp_path / "dry", "--dry-run")
    assert "2 of 6 runs would fail" in one_line(done)
    assert "6 of 6 runs to do" in done.stdout.replace("\n", "")
    assert "failed: broken, 50 %, seed 1: model.encoder" in done.stderr
    rows = [line for line in done.stdout.splitlines() if "fails" in line]
    assert 0 < max(map(len, rows)) < 120  # reasons would make the table as wide as they are long
    assert not (tmp_path / "dry" / "runs").exists()


def test_dry_run_with_a_validation_after_every_step(finished, tmp_path):
    rows = ["--rows", "plain", "--labelled", "0.5", "--seeds", "0"]
    done = succeeds("study", *finished[:-1], tmp_path / "dry", *rows, "train.validate_every=1", "--dry-run")
    assert "1 of 1 runs to do" in done.stdout.replace("\n", "")
    assert "fails" not in done.stdout


def test_measuring_stops_with_the_command_that_asked_for_it(tmp_path):
    with process_for(serve, time.sleep, 90.0, tmp_path / "log", 1) as (process, _):
        began = time.monotonic()
    assert process.exitcode is not None
    assert time.monotonic() - began < 60  # loading libraries included


def test_mistakes_are_one_line(finished, tmp_path):
    assert "did you mean 'table2'" in refused("study", "tabel2")
    assert "--seeds 'a'" in refused("study", *finished, "--seeds", "a")
    assert "--labelled 'x'" in refused("study", *finished, "--labelled", "x")
    assert "no dataset" in refused("study", finished[0], "data.path=nowhere", "--out", tmp_path)
