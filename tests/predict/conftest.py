"""Two tiny trained runs on phantoms that differ in their seed, and a second hospital's phantoms."""

from pathlib import Path

import pytest

from cers.config import load_config
from cers.data.layouts import load_cases
from cers.data.phantom import write_phantoms
from cers.data.splits import make_split, save_split
from cers.run import train


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`phantom/`, its `copy/` under other ids, `elsewhere/`, `split.json`, runs `cers`, `other`, `plain`."""
    folder = tmp_path_factory.mktemp("home")
    write_phantoms(folder / "phantom", n=40, size=64)
    write_phantoms(folder / "elsewhere", n=20, size=64, seed=1)
    rename(folder / "elsewhere", "far")
    write_phantoms(folder / "copy", n=40, size=64)
    rename(folder / "copy", "copy")
    cases = load_cases(folder / "phantom" / "manifest.csv")
    save_split(make_split(cases, labelled=12, val=0.1, test=0.2, clusters=[]), folder / "split.json")
    for name, method, seed in (("cers", "cers", 0), ("other", "cers", 1), ("plain", "supervised", 0)):
        settings = [f"data.path={folder / 'phantom' / 'manifest.csv'}", f"data.split={folder / 'split.json'}"]
        settings += [f"data.cache={folder / 'cache'}", "data.image_size=32", f"method.name={method}", f"seed={seed}"]
        settings += ["model.encoder=test_convnext", "model.weights=none", "train.steps=4", "train.validate_every=2"]
        settings += ["train.batch_labelled=4", "train.batch_unlabelled=4", "method.settings={}"]
        train(load_config("cpu", settings), folder / name)
    return folder


def rename(folder: Path, prefix: str) -> None:
    """Give the phantoms of `folder`, and their patients, names of their own."""
    for part in ("images", "masks"):
        for path in (folder / part).iterdir():
            path.rename(path.with_name(path.name.replace("phantom", prefix)))
    manifest = folder / "manifest.csv"
    text = manifest.read_text(encoding="utf-8")
    text = text.replace("/phantom_", f"/{prefix}_").replace("patient_", f"{prefix}_patient_")
    manifest.write_text(text, encoding="utf-8")
