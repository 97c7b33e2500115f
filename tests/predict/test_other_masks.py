"""Masks of another dataset are read as that dataset has them, not as those of the run."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cers.config import MaskReading, load_config
from cers.data.layouts import load_cases
from cers.data.phantom import write_phantoms
from cers.errors import CersError
from cers.evaluate.table import declared_rows, read_cases_csv
from cers.evaluation import evaluate
from cers.predict.pools import build_pool
from cers.run import load_run, train


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A run whose own masks are read by a threshold, with references that know their sizes."""
    settings = ["data.mask.threshold=128", "method.settings.reference_sizes=true"]
    return train(load_config(home / "cers" / "config.yaml").with_values(settings), home / "threshold")


def other(folder: Path, lesion: int) -> Path:
    """Phantoms of another hospital, in whose masks a lesion has this grey value."""
    write_phantoms(folder, n=6, size=64, seed=7)
    for path in (folder / "masks").iterdir():
        cv2.imwrite(str(path), (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0).astype(np.uint8) * lesion)
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text("utf-8").replace("patient_", f"of_{lesion}_"), encoding="utf-8")
    for part in ("images", "masks"):
        for path in (folder / part).iterdir():
            path.rename(path.with_name(path.name.replace("phantom", f"other{lesion}")))
    manifest.write_text(manifest.read_text("utf-8").replace("/phantom_", f"/other{lesion}_"), encoding="utf-8")
    return manifest


def areas(folder: Path) -> dict[str, float]:
    return {row.id: row.metrics.true_area for row in declared_rows(read_cases_csv(folder / "cases.csv"))}


@pytest.mark.parametrize(("lesion", "mask"), [(1, None), (100, MaskReading(foreground=(100,)))])
def test_they_are_scored_and_join_a_pool(run: Path, tmp_path: Path, lesion: int, mask: MaskReading | None) -> None:
    data = other(tmp_path / "other", lesion)
    evaluate(run, data=data, mask=mask, out=tmp_path / "scores")
    pool = build_pool(run, tmp_path / "pool", data=data, mask=mask, keep_own=True)
    outlined = {case.id for case in load_cases(data) if case.mask}
    assert len(outlined) >= 4
    assert {id_ for id_, area in areas(tmp_path / "scores").items() if area > 0} == outlined
    sizes = dict(zip(pool.ids, pool.area.tolist(), strict=True))
    assert {id_ for id_, size in sizes.items() if size > 0 and id_.startswith("other")} == outlined
    own = load_run(run).split.labelled
    assert sum(sizes[id_] > 0 for id_ in own) >= 8


def test_where_they_leave_doubt_the_options_are_named(run: Path, tmp_path: Path) -> None:
    data = other(tmp_path / "other", 100)
    message = r"values \{0,100\} leave open what is lesion; .*--mask-foreground 100"
    with pytest.raises(CersError, match=message):
        evaluate(run, data=data, out=tmp_path / "scores")
    with pytest.raises(CersError, match=message):
        build_pool(run, tmp_path / "pool", data=data)


def test_the_runs_own_are_read_as_in_training(run: Path, tmp_path: Path) -> None:
    mask = MaskReading(foreground=(100,))
    with pytest.raises(CersError, match="said of --data only"):
        evaluate(run, mask=mask, out=tmp_path / "scores")
    with pytest.raises(CersError, match="said of --data only"):
        build_pool(run, tmp_path / "pool", mask=mask)


def test_a_mask_of_other_proportions_is_not_scored(run: Path, tmp_path: Path) -> None:
    data = other(tmp_path / "other", 1)
    path = next(case.mask for case in load_cases(data) if case.mask)
    cv2.imwrite(str(path), np.zeros((64, 32), np.uint8))
    with pytest.raises(CersError, match=rf"mask .*{path.name} is 32x64 but its image 64x64"):
        evaluate(run, data=data, out=tmp_path / "scores")


def test_cases_it_was_validated_by_are_not_scored_as_new(home: Path, tmp_path: Path) -> None:
    split = load_run(home / "cers").split
    table = pd.read_csv(home / "phantom" / "manifest.csv")
    for part, message in (("val", f"({len(split.val)} such cases), by whose mask"), ("test", None)):
        file = home / "phantom" / f"only-{part}.csv"
        table[table["image"].map(lambda p, part=part: Path(p).stem in split.parts[part])].to_csv(file, index=False)
        if message is None:
            assert evaluate(home / "cers", data=file, out=tmp_path / part)["overlap_checked"]
        else:
            with pytest.raises(CersError) as refused:
                evaluate(home / "cers", data=file, out=tmp_path / part)
            assert message in str(refused.value)


def test_a_method_without_a_pool_takes_none(home: Path, tmp_path: Path) -> None:
    build_pool(home / "cers", tmp_path / "pool")
    with pytest.raises(CersError, match="run of 'supervised', which has no knowledge pool"):
        evaluate(home / "plain", pool=tmp_path / "pool", out=tmp_path / "scores")
