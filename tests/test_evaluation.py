"""Evaluating and reporting a trained run by the real command line."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cers.data.layouts import load_cases
from cers.data.phantom import write_phantoms
from cers.data.splits import make_split, save_split
from cers.evaluation import evaluation_folder
from cers_command import refused, succeeds
from manifest_files import edit_manifest


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def cases_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def grey(path: Path) -> Any:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run somewhere else, evaluated."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("elsewhere") / "moved"))
    done = succeeds("eval", run)
    assert "scoring" in done.stderr
    assert f"per case: {run / 'eval' / 'cases.csv'}" in done.stdout
    return run


def test_scores_can_be_computed_again_from_what_is_written(evaluated: Path, scans: Path, split_file: Path) -> None:
    test = read_json(split_file)["test"]
    declared = {row["id"]: row for row in cases_csv(evaluated / "eval") if row["branch"] == "declared"}
    assert sorted(declared) == sorted(test)
    for id_, row in declared.items():
        predicted, true = (grey(folder / "masks" / f"{id_}.png") for folder in (evaluated / "eval", scans))
        assert predicted.shape == true.shape == grey(scans / "images" / f"{id_}.png").shape
        assert set(np.unique(predicted)) <= {0, 255}
        overlap, total = np.sum((predicted > 0) & (true > 0)), np.sum(predicted > 0) + np.sum(true > 0)
        assert float(row["dice"]) == pytest.approx(2 * overlap / total if total else 1.0)
    assert len({grey(scans / "images" / f"{id_}.png").shape for id_ in test}) > 1
    summary = read_json(evaluated / "eval" / "summary.json")["branches"]["declared"]["all"]
    assert summary["n"] == len(test)
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(np.mean([float(r["dice"]) for r in declared.values()]))


def test_references_are_labelled_cases_of_others(evaluated: Path, scans: Path, split_file: Path) -> None:
    split = read_json(split_file)
    group = {case.id: case.group for case in load_cases(scans)}
    lines = [json.loads(line) for line in (evaluated / "eval" / "evidence.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == split["test"]
    for line in lines:
        ids = [reference["id"] for reference in line["references"]]
        assert set(ids) <= set(split["labelled"])
        assert 0 < len(ids) == len(set(ids)) <= 5
        assert all(group[id_] != group[line["id"]] for id_ in ids)
        assert sum(reference["attention"] for reference in line["references"]) == pytest.approx(1, abs=1e-3)
    retrieval = read_json(evaluated / "eval" / "summary.json")["retrieval"]
    shuffled = {"shuffled-cot", "shuffled-report"}
    assert set(retrieval) == {"image", "cot", "report", "image+report", "image+cot", "random"} | shuffled
    assert all(quality["self_rate"] == quality["same_group_rate"] == 0 for quality in retrieval.values())


def test_the_same_again_is_the_same(evaluated: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(evaluated, tmp_path / "again"))
    succeeds("eval", again, "--json")
    for name in ("cases.csv", "summary.json", "evidence.jsonl"):
        assert (again / "eval" / name).read_bytes() == (evaluated / "eval" / name).read_bytes()


def test_the_validation_part(evaluated: Path, split_file: Path) -> None:
    done = succeeds("eval", evaluated, "--part", "val")
    assert f"per case: {evaluated / 'eval-val' / 'cases.csv'}" in done.stdout
    assert {row["id"] for row in cases_csv(evaluated / "eval-val")} == set(read_json(split_file)["val"])


def test_cases_that_it_was_trained_on_are_not_scored_as_new(evaluated: Path, scans: Path, split_file: Path) -> None:
    split = read_json(split_file)
    said = refused("eval", evaluated, "--data", scans)
    assert f"({len(split['labelled']) + len(split['val'])} such cases), by whose mask {evaluated} was trained" in said
    assert "give one of them" in refused("eval", evaluated, "--data", scans, "--part", "val")


def test_an_image_it_was_trained_on_is_known_when_saved_anew(
    evaluated: Path, scans: Path, split_file: Path, tmp_path: Path
) -> None:
    labelled = read_json(split_file)["labelled"][0]
    write_phantoms(tmp_path / "other", n=4, size=64, seed=5)
    stranger = sorted((tmp_path / "other" / "images").iterdir())[0]
    for part in ("images", "masks"):
        pixels = grey(scans / part / f"{labelled}.png")
        cv2.imwrite(str(tmp_path / "other" / part / stranger.name), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert stranger.read_bytes() != (scans / "images" / f"{labelled}.png").read_bytes()
    said = refused("eval", evaluated, "--data", tmp_path / "other")
    assert f"'{stranger.stem}' (1 such cases), by whose mask {evaluated} was trained" in said


def test_another_dataset_even_without_the_runs_own(evaluated: Path, scans: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "other", n=4, size=64, seed=5)
    done = succeeds("eval", evaluated, "--data", tmp_path / "other", "--json")
    summary = json.loads(done.stdout)
    assert summary["branches"]["declared"]["all"]["n"] == 4
    (scores,) = evaluated.glob("eval-data-other-*")
    assert len(list((scores / "masks").iterdir())) == 4
    assert len({evaluation_folder(evaluated, data=tmp_path / f / "manifest.csv") for f in ("one", "two")}) == 2
    assert evaluation_folder(evaluated, data=tmp_path / "val") != evaluation_folder(evaluated, "val")
    moved = ["--data", tmp_path / "other", "--json"]
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(f"{scans}\n", f"{scans}-gone\n"), encoding="utf-8")
    done = succeeds("eval", run, *moved)
    assert "whether it was trained on some of these cases was not checked" in done.stderr
    without = json.loads(done.stdout)
    assert without["branches"] == summary["branches"]
    assert without["retrieval"]["image"]["class_precision"] == summary["retrieval"]["image"]["class_precision"]
    edit_manifest(tmp_path / "other", lambda i, row: [row] if i.endswith("1") else [])
    succeeds("eval", evaluated, "--data", tmp_path / "other")
    assert len(list((scores / "masks").iterdir())) == 1, "outlines of cases that are no longer scored"


def test_images_without_mask_are_outlined(evaluated: Path, scans: Path, split_file: Path, tmp_path: Path) -> None:
    test = read_json(split_file)["test"]
    new = Path(shutil.copytree(scans, tmp_path / "new"))
    shutil.rmtree(new / "masks")
    edit_manifest(new, lambda i, row: [{**row, "mask": ""}] if i in test else [])
    assert "outline it with `cers predict`" in refused("eval", evaluated, "--data", new)
    done = succeeds("predict", evaluated, new)
    (written,) = evaluated.glob("predict-new-*")
    assert f"masks: {written / 'masks'}" in done.stdout
    for id_ in test:
        outlined, scored = (grey(folder / "masks" / f"{id_}.png") for folder in (written, evaluated / "eval"))
        np.testing.assert_array_equal(outlined, scored)
    assert len(list((written / "masks").iterdir())) == len(test)
    lines = [json.loads(line) for line in (written / "evidence.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == sorted(test)
    elsewhere = succeeds("predict", evaluated, new, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "masks" / f"{test[0]}.png").is_file(), elsewhere.stdout
    bare = succeeds("predict", evaluated, new / "images", "--out", tmp_path / "bare")
    assert "no image has a report or rationale, which cers reads" in bare.stderr
    assert len(list((tmp_path / "bare" / "masks").iterdir())) == len(list((new / "images").iterdir()))
    assert "goes by the image" not in elsewhere.stderr
    before = {path: path.read_bytes() for path in (scans / "masks").iterdir()}
    assert f"{scans / 'masks'} holds masks of something else" in refused("predict", evaluated, new, "--out", scans)
    assert {path: path.read_bytes() for path in (scans / "masks").iterdir()} == before
    succeeds("predict", evaluated, new, "--out", tmp_path / "out")
    shutil.copy(new / "images" / f"{test[0]}.png", new / "images" / f"{test[0]}.PNG")
    assert "same stem" in refused("predict", evaluated, new / "images")
    assert "no dataset at" in refused("predict", evaluated, tmp_path / "gone")


def test_scores_that_training_has_left_behind_are_not_shown(evaluated: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    facts = read_json(run / "run.json")
    assert read_json(run / "eval" / "summary.json")["step"] == facts["best_step"]
    (run / "run.json").write_text(json.dumps(facts | {"best_step": facts["best_step"] + 1}), encoding="utf-8")
    for command in ("compare", "report"):
        said = refused(command, run)
        assert "but training has gone on" in said
        assert f"run `cers eval {run}` again" in said
    (run / "eval" / "summary.json").write_text("{", encoding="utf-8")
    assert f"summary.json is damaged; run `cers eval {run}` again" in refused("compare", run)


def test_the_report_renders(evaluated: Path, split_file: Path) -> None:
    done = succeeds("report", evaluated, "--cases", "1")
    assert done.stdout == f"written: {evaluated / 'report.html'}\n"
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert "test_convnext" in page
    assert any(id_ in page for id_ in read_json(split_file)["test"])


def test_a_report_replaces_nothing_but_a_page(evaluated: Path, tmp_path: Path) -> None:
    mine = tmp_path / "manifest.csv"
    mine.write_text("image,mask\n", encoding="utf-8")
    assert f"did you mean --out {tmp_path / 'manifest.html'}?" in refused("report", evaluated, "--out", mine)
    assert f"did you mean --out {tmp_path / 'report.html'}?" in refused("report", evaluated, "--out", tmp_path)
    assert mine.read_text(encoding="utf-8") == "image,mask\n"
    page = tmp_path / "page.HTM"
    page.write_text("an earlier report", encoding="utf-8")
    succeeds("report", evaluated, "--cases", "1", "--out", page)
    assert "test_convnext" in page.read_text(encoding="utf-8")


def test_a_dataset_that_moved(evaluated: Path, scans: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    moved = Path(shutil.copytree(scans, tmp_path / "moved"))
    config = run / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(scans), str(tmp_path / "gone")), encoding="utf-8")
    for command in ("eval", "report"):
        line = refused(command, run)
        assert f"no dataset at {tmp_path / 'gone'}" in line
        assert line.endswith("say where it is with data.path=FOLDER")
    succeeds("eval", run, f"data.path={moved}")
    assert (run / "eval" / "cases.csv").read_bytes() == (evaluated / "eval" / "cases.csv").read_bytes()
    succeeds("report", run, f"data.path={moved}", "--cases", "1")
    assert "optim.lr was 0.001" in refused("eval", run, "optim.lr=1")
    assert "unknown setting 'data.pth'; did you mean 'path'?" in refused("eval", run, "data.pth=1")


def test_a_dataset_that_lost_cases(evaluated: Path, scans: Path, split_file: Path, tmp_path: Path) -> None:
    fewer = Path(shutil.copytree(scans, tmp_path / "fewer"))
    lost = read_json(split_file)["test"][0]
    edit_manifest(fewer, lambda id_, row: [] if id_ == lost else [row])
    line = refused("eval", evaluated, f"data.path={fewer}")
    assert (
        f"data.path={fewer} is not the dataset of this run any more: 1 ids are not in the dataset, e.g. '{lost}'"
        in line
    )


def test_what_cannot_be_evaluated_is_one_line(
    settings: list[str], scans: Path, evaluated: Path, tmp_path: Path
) -> None:
    save_split(make_split(load_cases(scans), labelled=4, val=0, test=0, clusters=[]), tmp_path / "all.json")
    run = tmp_path / "run"
    few = [f"data.split={tmp_path / 'all.json'}", "train.steps=1", "method.name=supervised"]
    succeeds("train", "--out", run, *settings, *few)
    assert f"the split of {run} has no test cases; score other data with --data" in refused("eval", run)
    assert "has no val cases" in refused("eval", run, "--part", "val")
    assert f"{run} is not evaluated yet; run `cers eval {run}` first" in refused("report", run)
    assert "no part 'tset'" in refused("eval", evaluated, "--part", "tset")
    assert "config.yaml is missing" in refused("eval", tmp_path)
    assert f"no dataset at {tmp_path / 'x'}" in refused("eval", evaluated, "--data", tmp_path / "x")
    (run / "checkpoints" / "best.safetensors").unlink()
    assert "no checkpoint at" in refused("eval", run)


def test_a_method_without_retrieval(settings: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeeds("train", "--out", run, *settings, "train.steps=1", "method.name=supervised")
    done = succeeds("eval", run)
    assert "Retrieval" not in done.stdout
    assert (run / "eval" / "evidence.jsonl").read_text(encoding="utf-8") == ""
    succeeds("report", run, "--cases", "1")


def test_damaged_results_are_one_line(evaluated: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    (run / "eval" / "cases.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert "is not a per-case table" in refused("report", run)
    (run / "eval" / "summary.json").write_text("{", encoding="utf-8")
    assert f"is damaged; run `cers eval {run}` again" in refused("report", run)
