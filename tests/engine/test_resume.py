"""A run that is killed and resumed ends with the same bits as one that is not."""

import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cers.engine.checkpoint import Checkpoint, load_checkpoint
from cers.engine.log import read_log
from cers.methods.registry import METHODS
from cers_command import Command, refused, succeeds

STEPS = 8
LAST = "last.safetensors"


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(folder / "log.jsonl")]


def last(folder: Path) -> Checkpoint:
    return load_checkpoint(folder / "checkpoints" / LAST)


def assert_same_end(folder: Path, whole: Path) -> None:
    for name in ("last", "best"):
        ours, theirs = (load_checkpoint(f / "checkpoints" / f"{name}.safetensors") for f in (folder, whole))
        assert ours.tensors.keys() == theirs.tensors.keys()
        different = [key for key, value in theirs.tensors.items() if not torch.equal(ours.tensors[key], value)]
        assert not different, f"{len(different)} of {len(ours.tensors)} tensors of {name}, first {different[0]}"
    assert log_rows(folder) == log_rows(whole)
    steps = Counter(row["step"] for row in log_rows(folder) if row["kind"] == "step")
    assert steps == dict.fromkeys(range(1, STEPS + 1), 1)
    ours, theirs = ({**last(f).facts, "state": None} for f in (folder, whole))
    assert ours == theirs


def train_until_killed(folder: Path, arguments: list[str], **how: Any) -> None:
    done = Command(folder.with_suffix(".log"), "train", *arguments, **how).wait()
    assert done.status == -signal.SIGKILL, done


def kill_at_step(folder: Path, arguments: list[str], step: int, delay: float) -> None:
    """Kill as soon as the log has `step`, and a little later."""
    command = Command(folder.with_suffix(".log"), "train", *arguments)
    command.wait_until(lambda: any(row["step"] >= step for row in read_log(folder / "log.jsonl")))
    time.sleep(delay)
    command.send(signal.SIGKILL)
    command.wait()


def narrow(method: str) -> list[str]:
    """A network of its own, if the method's settings have its width, is made a small one."""
    return ["method.settings.width=8"] if "width" in METHODS[method].Settings.model_fields else []


@pytest.mark.parametrize(
    ("method", "extra"), [*((name, narrow(name)) for name in METHODS), ("cers", ["train.ema=0.9", "train.workers=2"])]
)
def test_killed_at_any_moment_and_resumed_ends_with_the_same_bits(
    method: str, extra: list[str], settings: list[str], tmp_path: Path
) -> None:
    arguments = [*settings, f"method.name={method}", *extra]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    succeeds("train", "--out", whole, *arguments)
    chance = random.Random(f"{method}{extra}")
    resume = ["--resume", str(folder)]
    kill_at_step(folder, ["--out", str(folder), *arguments], chance.randint(1, 5), chance.uniform(0, 0.05))
    # Right before a checkpoint takes its name: it is written, but the one before it must hold.
    train_until_killed(folder, resume, die_at=("os.rename", LAST, 1))
    succeeds("train", *resume)
    assert_same_end(folder, whole)
    assert not list(folder.rglob("*.tmp"))


# Steps 1 and 2 are the warm-up of method cers; the first checkpoint stands at its border.
@pytest.mark.parametrize(
    ("event", "name", "count"),
    [
        ("os.rename", r"config\.yaml", 1),
        ("os.rename", LAST, 2),
        ("open", LAST + r"\.\d+", 3),
        ("os.rename", r"best\.safetensors", 2),
        ("os.rename", r"pool\.safetensors", 1),
    ],
)
def test_killed_while_writing(
    event: str, name: str, count: int, settings: list[str], trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    train_until_killed(folder, ["--out", str(folder), *settings], die_at=(event, name, count))
    begun = (folder / "config.yaml").is_file()
    succeeds("train", "--resume", folder) if begun else succeeds("train", "--out", folder, *settings)
    assert_same_end(folder, trained)
    assert (folder / "run.json").is_file()
    assert (folder / "pool" / "manifest.json").is_file()


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves_and_says_how_to_go_on(workers: int, settings: list[str], trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = Command(tmp_path / "log", "train", "--out", folder, *settings, f"train.workers={workers}")
    command.wait_until(lambda: any(row["step"] >= 3 for row in read_log(folder / "log.jsonl")))
    command.send(signal.SIGINT)
    done = command.wait()
    assert done.status == 130, done
    step = last(folder).facts["state"]["step"]
    assert 3 <= step < STEPS
    said = f"cers: stopped after step {step} of {STEPS}; go on with `cers train --resume {folder}`"
    assert done.stderr.splitlines()[-1] == said
    assert [line for line in done.stderr.splitlines() if line.startswith("cers:")] == [said]
    succeeds("train", "--resume", folder, "train.workers=0")
    assert_same_end(folder, trained)


def test_two_processes_do_not_train_into_one_folder(settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    command = Command(tmp_path / "log", "train", "--out", folder, *settings, "train.steps=500")
    command.wait_until(lambda: any(row["step"] >= 3 for row in read_log(folder / "log.jsonl")))
    for arguments in (["--resume", folder], ["--out", folder, "--overwrite", *settings]):
        assert f"another process is training {folder}" in refused("train", *arguments)
    command.send(signal.SIGINT)
    done = command.wait()
    assert f"go on with `cers train --resume '{folder}'`" in done.stderr
    rows = [row["step"] for row in read_log(folder / "log.jsonl") if row["kind"] == "step"]
    assert rows == [*range(1, len(rows) + 1)]
    assert len(rows) >= last(folder).facts["state"]["step"]


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / "finished"))


def test_resuming_a_finished_run_changes_nothing(finished: Path, trained: Path) -> None:
    succeeds("train", "--resume", finished)
    assert_same_end(finished, trained)


@pytest.mark.parametrize("size", [0, 5, 100, 20_000, -1])
def test_a_torn_checkpoint_is_one_line(size: int, finished: Path) -> None:
    path = finished / "checkpoints" / LAST
    path.write_bytes(path.read_bytes()[:size])
    line = refused("train", "--resume", finished)
    assert f"{path} is not a whole checkpoint" in line
    assert "restore it from a copy, or train again" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.steps=20", "train.steps was 8 when the run started and cannot become 20"),
        ("optim.lr=0.1", "optim.lr was 0.001 when the run started and cannot become 0.1"),
        ("method.settings.k=3", "method.settings.k was 5"),
        ("method.name=supervised", "method.name was 'cers'"),
        ("seed=1", "seed was 0"),
        ("train.ema=0.9", "train.ema was None"),
        ("train.step=20", "unknown setting 'train.step'; did you mean 'steps'?"),
    ],
)
def test_a_change_that_would_break_the_run_is_refused(change: str, said: str, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert said in refused("train", "--resume", finished, change)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seed: 0", "seed: 7", "was trained with seed=0, config.yaml says 7; restore config.yaml"),
        ("steps: 8", "steps: 5", "was trained with train.steps=8, config.yaml says 5"),
        ("encoder: test_convnext", "encoder: test_efficientnet", "was trained with model.encoder='test_convnext'"),
    ],
)
@pytest.mark.parametrize("verb", [("train", "--resume"), ("eval",)])
def test_a_run_whose_config_was_edited_is_refused(
    before: str, after: str, said: str, verb: tuple[str, ...], finished: Path
) -> None:
    path = finished / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert said in refused(*verb, finished)


def test_no_other_split_takes_the_place_of_the_runs_own(finished: Path, scans: Path) -> None:
    path = finished / "split.json"
    path.unlink()
    for verb in (("train", "--resume"), ("eval",)):
        assert "split.json is missing; restore it from a copy" in refused(*verb, finished)
    succeeds("data", "split", scans, "--seed", "5", "--out", path)
    for verb in (("train", "--resume"), ("eval",)):
        assert "was trained on another split than split.json" in refused(*verb, finished)


def test_a_run_that_was_cut_short_is_not_taken_for_a_whole_one(
    settings: list[str], trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train_until_killed(folder, ["--out", str(folder), *settings], die_at=("os.rename", LAST, 3))
    said = f"{folder} stopped at step "
    assert said in succeeds("eval", folder).stderr.replace("\n", "")
    assert said in refused("compare", f"short={folder}", f"whole={trained}")


def test_where_and_how_it_computes_may_change(settings: list[str], trained: Path, scans: Path, tmp_path: Path) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    train_until_killed(folder, ["--out", str(folder), *settings], die_at=("os.rename", LAST, 3))
    shutil.copytree(scans, moved)
    elsewhere = [f"data.path={moved}", f"data.cache={tmp_path / 'cache'}", "train.checkpoint_every=5"]
    said = succeeds("train", "--resume", folder, *elsewhere, "train.tensorboard=true").stderr
    assert re.search(r"decoded (\d+) of \1 files", said)
    assert (tmp_path / "cache" / "images").is_dir()
    assert_same_end(folder, trained)


def test_a_checkpoint_says_what_it_was_trained_on(trained: Path, split_file: Path) -> None:
    facts = last(trained).facts
    split = json.loads(split_file.read_text(encoding="utf-8"))
    assert facts["split"] == split["hash"]
    assert [entry[0] for entry in facts["entries"]] == split["labelled"]
    assert facts["unlabelled"] == len(split["unlabelled"])
    assert facts["encoder"] == "test_convnext"
    assert facts["encoder_weights"] == "none: random initialisation"
    assert facts["report_encoder"].startswith("tfidf-")
    assert facts["steps"] == facts["state"]["step"] == STEPS


def test_resuming_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    assert "config.yaml is missing" in refused("train", "--resume", tmp_path)
    assert "config.yaml is missing" in refused("train", "--resume", tmp_path / "nowhere")
    for more in (["--out", tmp_path / "b"], ["--overwrite"], ["--preset", "cpu"]):
        line = refused("train", "--resume", tmp_path, *more)
        assert "goes on in its own folder with its own settings; leave out --out, --overwrite and --preset" in line
