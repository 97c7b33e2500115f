"""What a run must not see, it does not see: such files are garbage here, and every weight stays the same."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cers.engine.checkpoint import load_checkpoint
from cers_command import succeeds
from manifest_files import Row, edit_manifest


def train(settings: list[str], data: Path, folder: Path) -> dict[str, torch.Tensor]:
    here = [f"data.path={data}", f"data.cache={folder.parent / f'cache-{folder.name}'}", "train.steps=4"]
    succeeds("train", "--out", folder, *settings, *here)
    return dict(load_checkpoint(folder / "checkpoints" / "last.safetensors").tensors)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(settings: list[str], scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The end of a run on the dataset as it is."""
    return train(settings, scans, tmp_path_factory.mktemp("leakage") / "whole")


@pytest.fixture
def parts(split_file: Path) -> dict[str, list[str]]:
    split = json.loads(split_file.read_text(encoding="utf-8"))
    return {name: split[name] for name in ("labelled", "unlabelled", "val", "test")}


@pytest.fixture
def copy(scans: Path, tmp_path: Path) -> Path:
    """The dataset, to be spoiled."""
    return Path(shutil.copytree(scans, tmp_path / "copy"))


def test_training_sees_neither_test_cases_nor_hidden_masks(
    settings: list[str], whole: dict[str, torch.Tensor], copy: Path, parts: dict[str, list[str]], tmp_path: Path
) -> None:
    for id_ in parts["test"]:
        (copy / "images" / f"{id_}.png").write_bytes(b"no image")
    for id_ in [*parts["unlabelled"], *parts["test"]]:
        (copy / "masks" / f"{id_}.png").write_bytes(b"no mask")

    def spoil(id_: str, row: Row) -> list[Row]:
        if id_ in parts["test"]:
            row["report"] = "words that no other report has"
            row["cot"] = f"<texture>{id_}</texture> and no more"
        if id_ not in parts["labelled"]:
            row["mask_cot"] = "this would tell where the lesion is"
        return [row]

    edit_manifest(copy, spoil)
    assert same(train(settings, copy, tmp_path / "blind"), whole)


@pytest.mark.parametrize("part", ["labelled", "unlabelled"])
def test_what_training_may_see_it_uses(
    part: str,
    settings: list[str],
    whole: dict[str, torch.Tensor],
    copy: Path,
    parts: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    """The test above would pass on anything if nothing mattered."""
    id_ = parts[part][0]
    if part == "unlabelled":
        path = str(copy / "images" / f"{id_}.png")
        cv2.imwrite(path, 255 - cv2.imread(path, cv2.IMREAD_GRAYSCALE))
    else:
        edit_manifest(copy, lambda i, row: [{**row, "mask_cot": row["cot"]} if i == id_ else row])
    assert not same(train(settings, copy, tmp_path / "changed"), whole)


def test_prediction_does_not_see_masks(trained: Path, copy: Path, parts: dict[str, list[str]], tmp_path: Path) -> None:
    here = [f"data.path={copy}", f"data.cache={tmp_path / 'cache'}"]

    def evaluate() -> tuple[dict[str, bytes], str]:
        succeeds("eval", run, *here)
        masks = {path.name: path.read_bytes() for path in (run / "eval" / "masks").iterdir()}
        return masks | {"evidence": (run / "eval" / "evidence.jsonl").read_bytes()}, (
            run / "eval" / "cases.csv"
        ).read_text(encoding="utf-8")

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    predicted, scores = evaluate()
    for id_ in parts["test"]:
        path = str(copy / "masks" / f"{id_}.png")
        mask = np.zeros_like(cv2.imread(path, cv2.IMREAD_GRAYSCALE))
        mask[:20, :30] = 255
        cv2.imwrite(path, mask)
    edit_manifest(copy, lambda i, row: [{**row, "mask_cot": "here it is"} if i in parts["test"] else row])
    assert len(predicted) == len(parts["test"]) + 1
    again, other_scores = evaluate()
    assert again == predicted
    assert other_scores != scores


def test_text_encoders_learn_from_training_texts_only(
    settings: list[str], copy: Path, trained: Path, parts: dict[str, list[str]], tmp_path: Path
) -> None:
    def encoders(unseen: list[str]) -> tuple[str, str]:
        edit_manifest(copy, lambda i, row: [{**row, "report": f"{i} speaks"} if i in unseen else row])
        run = tmp_path / f"run-{len(unseen)}"
        here = [f"data.path={copy}", f"data.cache={tmp_path / 'cache'}", "train.steps=1"]
        succeeds("train", "--out", run, *settings, *here)
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return facts["report_encoder"], facts["cot_encoder"]

    facts = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    before = (facts["report_encoder"], facts["cot_encoder"])
    assert encoders([*parts["test"], *parts["val"]]) == before
    after = encoders(parts["unlabelled"][:1])
    assert after[0] != before[0]
    assert after[1] == before[1]
