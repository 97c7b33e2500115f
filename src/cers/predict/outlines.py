"""What a run outlines in images, kept in files: masks, and the references behind them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cers.data.case import Case
from cers.data.layouts import load_cases
from cers.data.prediction import CasePrediction
from cers.files import AnyPath, write_atomic
from cers.predict.pools import load_pool
from cers.predict.predictor import Predictor
from cers.run import load_run

THRESHOLD = 0.5
OnCase = Callable[[int, int], None]


def predict(
    folder: AnyPath,
    data: AnyPath,
    overrides: Sequence[str] = (),
    *,
    layout: str = "auto",
    rationales: AnyPath | None = None,
    pool: AnyPath | None = None,
    out: AnyPath | None = None,
    on_case: OnCase | None = None,
) -> Path:
    """Outline every image of `data` by the run in `folder`; masks that it has are not opened. Returns the folder.

    Writes into `out` (default: `prediction_folder`) what `write_outlines` says. `rationales` is a CSV of texts as in
    training, `pool` a knowledge pool in the place of the run's own, `overrides` say where the run's data are now.

    Raises:
        CersError: no trained run, no such dataset, an image that cannot be read, or a pool of another encoder.
    """
    folder, data = Path(folder), Path(data)
    run = load_run(folder, overrides)
    cases = load_cases(data, layout, rationales=rationales)
    out = prediction_folder(folder, data) if out is None else Path(out)
    predictor = Predictor(run, cases, pool=None if pool is None else load_pool(run, Path(pool)))
    for _ in write_outlines(predictor, cases, out, on_case):
        pass
    return out


def prediction_folder(folder: Path, data: Path) -> Path:
    """Where `predict` writes: in the run, by the name of `data` and a hash of where it lies."""
    return folder / f"predict-{place_name(data)}"


def place_name(data: Path) -> str:
    """A name for a dataset; those of one name, such as two `manifest.csv`, are told apart by where they lie."""
    return f"{data.stem}-{hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:6]}"


def write_outlines(
    predictor: Predictor, cases: Sequence[Case], out: Path, on_case: OnCase | None = None
) -> Iterator[CasePrediction]:
    """Predict `cases` one by one; keep `masks/<id>.png`, at the size of the images, and `evidence.jsonl` in `out`.

    Once all are done, masks that an earlier call left there of other cases are removed.
    """
    evidence: list[str] = []
    for done, prediction in enumerate(predictor.predict(), start=1):
        _write_mask(_mask_file(out, prediction.id), prediction.probability >= THRESHOLD)
        references = [asdict(reference) for reference in prediction.references]
        if references:
            said = {"id": prediction.id, "references": references, "at_least": prediction.at_least}
            evidence.append(json.dumps(said) + "\n")
        if on_case is not None:
            on_case(done, len(cases))
        yield prediction
    write_atomic(out / "evidence.jsonl", "".join(evidence))
    for stale in set((out / "masks").glob("*.png")) - {_mask_file(out, case.id) for case in cases}:
        stale.unlink()


def _mask_file(out: Path, id_: str) -> Path:
    return out / "masks" / f"{id_}.png"


def _write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]
    write_atomic(path, encoded.tobytes())
