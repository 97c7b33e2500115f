"""`bench/parts.py`: what parts of CERS are worth, told from case scores that are known beforehand."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cers.config import dump_config, load_config
from cers.data.splits import Split, save_split
from cers.evaluate.metrics import Metrics
from cers.evaluate.table import CaseRow, write_cases_csv
from cers.methods.registry import METHODS
from cers.study.plan import run_key

SCRIPT = Path(__file__).parents[2] / "bench" / "parts.py"
TRAIN, VAL, TEST = [[f"{part}{i}" for i in range(12)] for part in ("train", "val", "test")]


def split_of(labels: int) -> Split:
    return Split("random", 0, TRAIN[:labels], TRAIN[labels:], VAL, TEST, TRAIN, "0" * 64, [], {})


def add_run(
    study: Path,
    method: str,
    labels: int,
    seed: int,
    dice: dict[str, float],
    *others: str,
    test: Sequence[str] = TEST,
    order: Sequence[str] = TRAIN,
) -> Path:
    """A finished run under `screen` with settings `others`, whose branches have these scores on every image."""
    split = replace(split_of(labels), test=[*test], labelled=[*order[:labels]], unlabelled=[*order[labels:]])
    config = load_config("screen", [f"method.name={method}", f"seed={seed}", "data.path=.", *others], methods=METHODS)
    folder = study / "runs" / f"{method}-{labels}-seed{seed}-{run_key(config, split)}"
    add_scores(folder / "eval", dice)
    save_split(split, folder / "split.json")
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({}), encoding="utf-8")
    return folder


def add_scores(folder: Path, dice: dict[str, float]) -> None:
    rows = [
        CaseRow(id_, branch, None, None, "small", Metrics(value, *[0.0] * 8))
        for id_ in TEST
        for branch, value in dice.items()
    ]
    write_cases_csv(rows, folder / "cases.csv")


def tables(study: Path, split: Path, *options: str) -> list[dict[str, str]]:
    """Both tables that the script prints, each as {first cell: rest of its line}."""
    said = subprocess.run(
        [sys.executable, SCRIPT, "screen", split, study, *options], capture_output=True, text=True, check=True
    ).stdout
    return [
        {line.split(" | ")[0].removeprefix("| "): line.partition(" | ")[2] for line in table.splitlines()}
        for table in said.strip().split("\n\n")
    ]


def error_of(study: Path, split: Path, *options: str) -> str:
    said = subprocess.run([sys.executable, SCRIPT, "screen", split, study, *options], capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr.startswith("error: ")
    assert "Traceback" not in said.stderr
    return said.stderr


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    for seed in (0, 1):
        cers = {"declared": 0.8, "both": 0.75, "retrieval": 0.7}
        for labels in (3, 6):
            run = add_run(folder, "cers", labels, seed, cers)
            add_scores(run / "eval-random", {"declared": 0.79 if seed else 0.81})
        add_run(folder, "supervised", 6, seed, {"declared": 0.6})
    return folder


@pytest.fixture
def split(tmp_path: Path) -> Path:
    save_split(split_of(3), tmp_path / "split.json")
    return tmp_path / "split.json"


def test_parts_are_differences_of_the_same_trainings(study: Path, split: Path) -> None:
    parts, _ = tables(study, split)
    assert parts["part"] == "3 labels | 6 labels | all trainings |"
    nothing, six, together = parts["CERS − supervised"].split(" | ")
    assert nothing == ""
    assert six.startswith("+0.200 [0.200, 0.200], p = 0.00")
    assert six.endswith("(2)")
    assert together.endswith("(higher in 2 of 2) |")
    assert parts["sizes of references"].startswith("+0.050 ")
    assert parts["both decoders − the retrieval branch"].startswith("+0.050 ")
    random = parts["own − random references"]
    assert random.startswith("+0.000 [−0.127, 0.127], p = 1.0000 (2)")  # t of one degree: 12.7 times 0.01
    assert random.endswith("(higher in 2 of 4) |")


def test_fewer_labels_are_held_against_more_of_another_method(study: Path, split: Path) -> None:
    _, labels = tables(study, split)
    assert labels["CERS with − the other with"] == "3 − 6 |"
    assert labels["supervised"].startswith("+0.200 [")
    assert labels["supervised"].endswith("(2, 2) |")
    assert labels["ucmt"] == " |"


def test_runs_of_other_settings_or_other_test_images_do_not_count(study: Path, split: Path) -> None:
    before = tables(study, split)
    add_run(study, "supervised", 6, 2, {"declared": 0.1}, "optim.lr=0.5")
    add_run(study, "cers", 6, 2, {"declared": 0.1, "both": 0.1, "retrieval": 0.1}, "method.settings.k=3")
    add_run(study, "supervised", 3, 0, {"declared": 0.1}, test=TEST[1:])
    assert tables(study, split) == before


def test_runs_that_saw_other_masks_are_no_pair(study: Path, split: Path) -> None:
    add_run(study, "unet-text", 6, 0, {"declared": 0.5}, order=TRAIN[::-1])
    assert "saw different sets of 6 labelled cases" in error_of(study, split)


def test_two_trainings_of_one_seed_are_refused(study: Path, split: Path) -> None:
    add_run(study, "cers", 6, 1, {"declared": 0.8, "both": 0.8, "retrieval": 0.8}, order=TRAIN[::-1])
    assert "two runs of 'cers' have seed 1 and 6 labels" in error_of(study, split)


def test_where_nothing_is_to_be_counted_it_says_so(study: Path, split: Path) -> None:
    assert "no run of 'cers' under 'screen'" in error_of(study, split, "--scores", "eval-val")
