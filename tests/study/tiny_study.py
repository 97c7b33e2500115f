"""A study of a few tiny runs, as a file."""

from pathlib import Path
from typing import Any

import yaml

from cers.data.folds import fold_files, make_folds
from cers.data.layouts import load_cases
from cers.data.splits import save_split

TINY = {
    "model.encoder": "test_convnext",
    "model.weights": "none",
    "data.image_size": 32,
    "train.steps": 6,
    "train.batch_labelled": 4,
    "train.batch_unlabelled": 4,
    "train.validate_every": 3,
    "train.checkpoint_every": 1,
    "optim.warmup_steps": 2,
}


def values(**changes: Any) -> dict[str, Any]:
    rows = [
        {"name": "plain", "settings": {"method.name": "supervised"}},
        {"name": "teacher", "settings": {"method.name": "mean-teacher"}},
    ]
    study = {"title": "Tiny", "reference": "plain", "preset": "demo", "labelled": [0.5], "seeds": [0, 1]}
    return {**study, "settings": TINY, "rows": rows, **changes}


def write_study(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(values(**changes)), encoding="utf-8")
    return path


def write_folds(scans: Path, folder: Path, folds: int) -> Path:
    """Splits of the scans, each image its own group; returned is what names them all to a study."""
    for split, file in zip(
        make_folds(load_cases(scans), folds, clusters=[]), fold_files(folder / "split.json", folds), strict=True
    ):
        save_split(split, file)
    return folder / "split-{fold}.json"
