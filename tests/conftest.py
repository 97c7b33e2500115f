"""Shapes and types written in the networks' signatures are checked while the tests run.

Fixtures that many folders share: a small dataset, its split, and runs on it that take a second.
"""

from pathlib import Path

import cv2
import hypothesis
import pytest
from jaxtyping import install_import_hook

install_import_hook("cers.nets", "beartype.beartype")
# The same examples in every run, and no failure because the machine is busy.
hypothesis.settings.register_profile(
    "cers", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("cers")

SIZES = ((64, 64), (80, 56), (48, 72))


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four phantoms of three sizes, two of them not square, as manifest.csv."""
    from cers.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("scans") / "scans"
    write_phantoms(folder, n=24, size=64)
    for part in ("images", "masks"):
        for number, path in enumerate(sorted((folder / part).iterdir())):
            pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(path), cv2.resize(pixels, SIZES[number % 3], interpolation=cv2.INTER_NEAREST))
    return folder


@pytest.fixture(scope="session")
def split_file(scans: Path) -> Path:
    """A split of `scans` with labelled, unlabelled, validation and test cases."""
    from cers.data.layouts import load_cases
    from cers.data.splits import make_split, save_split

    path = scans.parent / "split.json"
    save_split(make_split(load_cases(scans), labelled=0.5, val=0.15, test=0.15, clusters=[]), path)
    return path


@pytest.fixture(scope="session")
def settings(scans: Path, split_file: Path) -> list[str]:
    """A run of eight small steps on `scans`, as arguments of `cers train`."""
    return [
        f"data.path={scans}",
        f"data.split={split_file}",
        f"data.cache={scans.parent / 'cache'}",
        "data.image_size=32",
        "model.encoder=test_convnext",
        "model.weights=none",
        "train.steps=8",
        "train.batch_labelled=4",
        "train.batch_unlabelled=4",
        "train.validate_every=3",
        "train.checkpoint_every=2",
        "train.precision=no",
        "optim.warmup_steps=2",
    ]


@pytest.fixture(scope="session")
def trained(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of method cers on `scans` by `settings`. Copy it before changing anything in it."""
    from cers.config import load_config
    from cers.run import train

    return train(load_config("cpu", settings), tmp_path_factory.mktemp("runs") / "trained")
