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
from cers.data.folders import list_images
from cers.data.layouts import load_cases
from cers.data.manifest import find_manifest
from cers.data.prediction import CasePrediction
from cers.data.problems import Problem
from cers.errors import CersError
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
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Outline every image of `data`, a dataset or a folder of images, by the run in `folder`. Masks are not opened.

    Writes into `out` (default: `prediction_folder`), which is returned, what `write_outlines` says. `rationales` is a
    CSV of texts as in training, for a dataset or a table; `pool` is a knowledge pool in the place of the run's own,
    `overrides` say where the run's data are now. `on_note` is told where a method that reads has nothing to read.

    Raises:
        CersError: no trained run, no such dataset, an image that cannot be read, a pool of another encoder, or masks of
            something else in `out`.
    """
    folder, data = Path(folder), Path(data)
    run = load_run(folder, overrides)
    cases = _bare_images(data) if layout == "auto" and rationales is None else []
    cases = cases or load_cases(data, layout, rationales=rationales)
    if on_note is not None and run.method.reads_text and not any(case.report or case.rationale for case in cases):
        on_note(f"no image has a report or rationale, which {run.config.method.name} reads: it goes by the image alone")
    out = prediction_folder(folder, data) if out is None else Path(out)
    predictor = Predictor(run, cases, pool=None if pool is None else load_pool(run, Path(pool)))
    for _ in write_outlines(predictor, cases, out, on_case):
        pass
    return out


def _bare_images(folder: Path) -> list[Case]:
    """The images of a folder that is no dataset; none of one that is."""
    problems: list[Problem] = []
    images = list_images(folder, problems) if folder.is_dir() and find_manifest(folder) is None else {}
    if images and (error := next((p for p in problems if p.level == "error"), None)):
        raise CersError(f"{error.where}: {error.message}")
    return [Case(id_, path) for id_, path in images.items()]


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

    Raises:
        CersError: `out` holds masks that are not of such a call: a dataset's own would be lost.
    """
    evidence: list[str] = []
    if not (written := out / "evidence.jsonl").exists():
        if (out / "masks").exists():
            raise CersError(f"{out / 'masks'} holds masks of something else; name another folder, or delete it")
        write_atomic(written, "")  # a call that is killed may be made again
    for done, prediction in enumerate(predictor.predict(), start=1):
        _write_mask(_mask_file(out, prediction.id), prediction.probability >= THRESHOLD)
        references = [asdict(reference) for reference in prediction.references]
        if references:
            said = {"id": prediction.id, "references": references, "at_least": prediction.at_least}
            evidence.append(json.dumps(said) + "\n")
        if on_case is not None:
            on_case(done, len(cases))
        yield prediction
    write_atomic(written, "".join(evidence))
    for stale in set((out / "masks").glob("*.png")) - {_mask_file(out, case.id) for case in cases}:
        stale.unlink()


def _mask_file(out: Path, id_: str) -> Path:
    return out / "masks" / f"{id_}.png"


def _write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]
    write_atomic(path, encoded.tobytes())
