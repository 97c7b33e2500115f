"""What the training loop promises, on runs of a few steps by the real command line."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cers.data.layouts import load_cases
from cers.data.splits import make_split, save_split
from cers.engine.checkpoint import load_checkpoint
from cers.engine.log import read_log
from cers_command import refused, succeeds


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_log(folder / "log.jsonl") if row["kind"] == kind]


def parameters(folder: Path) -> dict[str, Tensor]:
    """Weights at the end of a run, without running statistics."""
    weights = load_checkpoint(folder / "checkpoints" / "last.safetensors").part("method")
    return {k: v for k, v in weights.items() if v.is_floating_point() and "running_" not in k}


@pytest.fixture
def supervised(settings: list[str]) -> list[str]:
    return [*settings, "method.name=supervised", "optim.warmup_steps=0"]


@pytest.fixture
def without_val(scans: Path, tmp_path: Path) -> str:
    """A split with neither validation nor test cases."""
    save_split(make_split(load_cases(scans), val=0, test=0, clusters=[]), tmp_path / "all.json")
    return f"data.split={tmp_path / 'all.json'}"


def test_stops_when_validation_no_longer_gets_better(supervised: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    patient = ["train.patience=2", "train.validate_every=1", "optim.lr=1e-30", "optim.min_lr=0"]
    done = succeeds("train", "--out", folder, *supervised, *patient)
    assert len(rows(folder, "step")) == 3
    assert [row["best"] for row in rows(folder, "validation")] == [True, False, False]
    assert "step 1: validation Dice" in done.stderr
    succeeds("train", "--resume", folder)
    assert len(rows(folder, "step")) == 3
    assert load_checkpoint(folder / "checkpoints" / "best.safetensors").facts["state"]["step"] == 1


def test_averaged_weights_are_the_ones_kept(supervised: list[str], without_val: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    succeeds("train", "--out", folder, *supervised, "train.steps=3", "train.ema=0.6", without_val)
    last = load_checkpoint(folder / "checkpoints" / "last.safetensors")
    best = load_checkpoint(folder / "checkpoints" / "best.safetensors").part("method")
    average, live = last.part("average"), last.part("method")
    assert set(parameters(folder)) <= set(average)
    assert all(torch.equal(best[name], value) for name, value in average.items())
    assert any(not torch.equal(live[name], value) for name, value in average.items())
    assert rows(folder, "validation") == []


def test_gradients_are_clipped_to_their_norm(supervised: list[str], tmp_path: Path) -> None:
    """Two first steps of plain descent that differ in the learning rate only lie `clip_norm` apart per unit of it."""

    def after_one_step(lr: float, clip: str) -> dict[str, Tensor]:
        folder = tmp_path / f"{lr}-{clip}"
        plain = ["optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.schedule=constant"]
        plain.append("optim.head_lr_factor=1")
        step = ["train.steps=1", f"optim.lr={lr}", f"optim.clip_norm={clip}"]
        succeeds("train", "--out", folder, *supervised, *plain, *step)
        return parameters(folder)

    def norm(clip: str) -> float:
        first, second = after_one_step(1.0, clip), after_one_step(3.0, clip)
        return math.sqrt(sum(float((second[k] - first[k]).square().sum()) for k in first)) / 2

    assert norm("0.01") == pytest.approx(0.01, rel=1e-2)
    assert norm("null") > 0.1


def test_the_learning_rate_follows_its_schedule(supervised: list[str], trained: Path, tmp_path: Path) -> None:
    poly = ["train.steps=4", "optim.schedule=poly", "optim.lr=0.01", "optim.min_lr=0", "optim.warmup_steps=2"]
    succeeds("train", "--out", tmp_path / "poly", *supervised, *poly)
    found = [row["lr"] for row in rows(tmp_path / "poly", "step")]
    assert found == pytest.approx([0.005, 0.01, 0.01, 0.01 * 0.5**0.9])
    cosine = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]
    assert [row["lr"] for row in rows(trained, "step")] == pytest.approx([0.0005, 0.001, *cosine])


def test_rows_name_every_part_of_the_loss(trained: Path) -> None:
    stages = {row["stage"]: row for row in rows(trained, "step")}
    assert list(stages) == ["warm-up", "semi"]
    assert {"loss", "segmentation", "alignment", "lr", "seconds"} <= stages["warm-up"].keys()
    assert {"loss", "segmentation", "consistency", "lr", "seconds"} <= stages["semi"].keys()
    assert {row["step"] for row in rows(trained, "validation")} == {2, 3, 6, 8}
    assert {row["steps"] for row in rows(trained, "step")} == {8}


def test_tensorboard_on_request(supervised: list[str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    succeeds("train", "--out", folder, *supervised, "train.steps=2", "train.tensorboard=true")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("step/loss")] == pytest.approx(
        [row["loss"] for row in rows(folder, "step")]
    )
    assert [event.step for event in events.Scalars("validation/declared")] == [2]


def test_no_tensorboard_unless_asked(trained: Path) -> None:
    assert not (trained / "tensorboard").exists()


def test_a_loss_that_is_not_finite_stops_before_the_step(supervised: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    weights = timm.create_model("test_convnext").state_dict()
    name = next(key for key in weights if key.endswith("conv_dw.weight"))
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    line = refused("train", "--out", folder, *supervised, f"model.weights={tmp_path / 'broken.safetensors'}")
    batch = folder / "replay" / "step-1.safetensors"
    assert line.startswith(
        f"cers: error: the loss of step 1 is not finite; its batch is saved as {batch}; start a new run"
    )
    saved = load_file(batch)
    assert saved["labelled.images"].shape == (8, 3, 32, 32)
    assert set(saved["labelled.masks"].unique().tolist()) == {0.0, 1.0}
    assert not (folder / "checkpoints").exists()
    assert rows(folder, "step") == []


def test_a_run_that_diverges_keeps_its_last_checkpoint(supervised: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wild = ["optim.name=sgd", "optim.lr=1e30", "optim.clip_norm=null", "train.checkpoint_every=1"]
    line = refused("train", "--out", folder, *supervised, *wild)
    path = folder / "checkpoints" / "last.safetensors"
    checkpoint = load_checkpoint(path)
    assert all(value.isfinite().all() for value in checkpoint.tensors.values())
    step = checkpoint.facts["state"]["step"]
    assert f"of step {step + 1} is not finite" in line
    assert len(rows(folder, "step")) == step
    before = path.read_bytes()
    assert refused("train", "--resume", folder) == line  # the very same batch, and nothing lost
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["train.steps=null"], "set train.steps=… or train.epochs=…"),
        (["train.precision=fp16"], "train.precision=fp16 needs a GPU"),
        (["data.labelled=0"], "labelled 0 is neither a share such as 0.25 nor a count from 1 to"),
        (["data.labelled=999"], "labelled 999 is neither a share"),
        (["model.encoder=test_convnxt"], "did you mean 'test_convnext'?"),
        (["method.settings.kk=3"], "unknown setting 'kk'"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    change: list[str], said: str, settings: list[str], tmp_path: Path
) -> None:
    if "fp16" in change[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert said in refused("train", "--out", tmp_path / "run", *settings, *change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["cers", "supervised"])
@pytest.mark.parametrize(
    "change",
    [
        ["data.labelled=1", "train.batch_labelled=3", "train.batch_unlabelled=40"],  # more than there are cases
        ["data.labelled=1.0"],  # hence no unlabelled case
        ["train.batch_unlabelled=0"],
        ["text.report=none", "text.cot=none"],
    ],
    ids=["one-labelled", "all-labelled", "no-unlabelled", "no-text"],
)
def test_corner_cases_train(
    method: str, change: list[str], settings: list[str], without_val: str, tmp_path: Path
) -> None:
    few = ["train.steps=3", f"method.name={method}", without_val]
    succeeds("train", "--out", tmp_path / "run", *settings, *few, *change)
    assert [row["step"] for row in rows(tmp_path / "run", "step")] == [1, 2, 3]
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").is_file()


def test_epochs_count_the_longer_stream(supervised: list[str], split_file: Path, tmp_path: Path) -> None:
    split = json.loads(split_file.read_text(encoding="utf-8"))
    longer = max(len(split["labelled"]), len(split["unlabelled"]))
    succeeds("train", "--out", tmp_path / "run", *supervised, "train.steps=null", "train.epochs=1")
    assert len(rows(tmp_path / "run", "step")) == math.ceil(longer / 4)


def test_without_a_split_one_is_made_and_named(supervised: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = succeeds("train", "--out", folder, *supervised, "train.steps=1", "data.split=null")
    assert f"data.split is not set: making a grouped split, 8:1:1, kept as {folder / 'split.json'}" in done.stderr
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    assert split["strategy"] == "grouped"
    assert split["val"]
    assert split["test"]


def test_what_is_doubtful_about_the_data_is_said_when_train_makes_the_split(
    supervised: list[str], scans: Path, split_file: Path, tmp_path: Path
) -> None:
    new = Path(shutil.copytree(scans, tmp_path / "new"))
    manifest = new / "manifest.csv"
    head, *lines = manifest.read_text("utf-8").splitlines()
    manifest.write_text("\n".join([f"{head},scanner", *(f"{line},A" for line in lines)]), encoding="utf-8")
    few = [*supervised, "train.steps=1", f"data.path={new}"]
    assert (
        "column 'scanner' is not read" in succeeds("train", "--out", tmp_path / "own", *few, "data.split=null").stderr
    )
    given = succeeds("train", "--out", tmp_path / "given", *few, f"data.split={split_file}")
    assert "scanner" not in given.stderr, "`cers data split` has said it"
