"""Scoring a run: its predictions against masks, its references against its queries."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cers.config import MaskReading
from cers.data.case import Case
from cers.data.duplicates import pixel_hash
from cers.data.images import read_mask_at
from cers.data.layouts import load_cases
from cers.errors import CersError
from cers.evaluate.retrieval import retrieval_quality
from cers.evaluate.table import build_rows, summarise, write_cases_csv, write_summary
from cers.files import AnyPath
from cers.predict.outlines import OnCase, place_name, write_outlines
from cers.predict.pools import load_pool
from cers.predict.predictor import Predictor
from cers.retrieval.pool import PoolEntry
from cers.run import Run, load_run, require_other_data


def evaluate(
    folder: AnyPath,
    overrides: Sequence[str] = (),
    *,
    part: str = "test",
    data: AnyPath | None = None,
    layout: str = "auto",
    mask: MaskReading | None = None,
    pool: AnyPath | None = None,
    retrieval: str | None = None,
    out: AnyPath | None = None,
    on_case: OnCase | None = None,
) -> dict[str, Any]:
    """Score a run on its test (or `val`) part, or on every annotated case of another dataset `data`.

    The masks of `data` are read by `mask`, without which they must leave no doubt, and not as those of the run.

    Writes into `out` (default: `evaluation_folder`): `cases.csv`, `summary.json`, the predicted masks as
    `masks/<id>.png` at the size of their images, and `evidence.jsonl` with every case's references. `retrieval` chooses
    references by another strategy than the run was trained with, e.g. `random` or `none`: what the trained network
    makes of them. `overrides` say where the data are now, e.g. `data.path=…`. Returns the summary: metrics by branch,
    under "retrieval" the quality of every strategy, under "step" that of the scored weights, and of other data under
    "overlap_checked" whether the run's own were at hand to be held against.

    Raises:
        CersError: no trained run, no such part or dataset, `mask` without `data`, a pool of another encoder, or a case
            in `data` by whose mask the run was trained or validated (told by its image file, where its data are at
            hand); or where it would write lie scores with another pool of that name.
    """
    folder = Path(folder)
    data, pool, out = (None if path is None else Path(path) for path in (data, pool, out))
    require_other_data(data, mask)
    run = load_run(folder, overrides)
    cases = _own_cases(run, part) if data is None else _other_cases(data, layout, run)
    if data is not None:
        run = run.reading_masks(mask)
    if retrieval is not None:
        run.method.retrieve_by(retrieval)
    out = out or evaluation_folder(folder, part, data, pool, retrieval)
    _require_own(out, pool)
    predictor = Predictor(run, cases, pool=None if pool is None else load_pool(run, pool))
    predictions = zip(cases, write_outlines(predictor, cases, out, on_case), strict=True)
    rows = build_rows((case, said, truth_of(case, run, said.probability.shape)) for case, said in predictions)
    summary = summarise(rows) | {"step": run.facts["state"]["step"]}
    if pool is not None:
        summary["pool"] = str(pool.resolve())
    if data is not None:
        summary["overlap_checked"] = bool(run.cases_at_hand())
    if quality := retrieval_table(predictor, cases, run):
        summary["retrieval"] = quality
    write_cases_csv(rows, out / "cases.csv")
    write_summary(summary, out / "summary.json")
    return summary


def evaluation_folder(
    folder: Path,
    part: str = "test",
    data: Path | None = None,
    pool: Path | None = None,
    retrieval: str | None = None,
) -> Path:
    """Where `evaluate` writes: `eval` in the run, where given with `-val` or the names of data, pool and strategy."""
    where = [part] if part != "test" else []
    if data is not None:
        where = ["data", place_name(data)]
    return folder / "-".join(
        ["eval", *where, *([f"pool-{pool.name}"] if pool else []), *([retrieval] if retrieval else [])]
    )


def retrieval_table(predictor: Predictor, cases: Sequence[Case], run: Run) -> dict[str, Any]:
    """For each strategy how much its references resemble their queries; empty for a method without retrieval."""
    pool = run.method.pool
    if pool is None or not len(pool):
        return {}
    known = run.cases_at_hand()
    entries = {entry.id: _case_of(entry, known.get(entry.id)) for entry in pool.entries}
    return {
        strategy: retrieval_quality(cases, references, entries)
        for strategy, references in predictor.compare_retrieval().items()
    }


def _case_of(entry: PoolEntry, known: Case | None) -> Case:
    """The case of that name, with its report, unless it differs: the pool may be of another hospital."""
    if known is not None and (known.group, known.label) == (entry.group, entry.label):
        return known
    return Case(entry.id, Path(), group=entry.group, label=entry.label)


def truth_of(case: Case, run: Run, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask of an annotated case at the size (H,W) of its prediction; empty for a lesion-free one."""
    if case.mask is None:
        return np.zeros(shape, np.bool_)
    return read_mask_at(case.mask, shape, run.config.data.mask)


def _require_own(out: Path, pool: Path | None) -> None:
    """Two pools of one name would take each other's place."""
    held = None
    with suppress(OSError, ValueError):  # none there, or damaged: it is written anew
        held = json.loads((out / "summary.json").read_text(encoding="utf-8")).get("pool")
    if pool is not None and held not in (None, str(pool.resolve())):
        raise CersError(f"{out} holds scores with the pool {held}; rename one of the two, or delete {out}")


def _own_cases(run: Run, part: str) -> list[Case]:
    parts = {"test": run.split.test, "val": run.split.val}
    if part not in parts:
        raise CersError(f"no part '{part}'; choose from: {', '.join(parts)}")
    known = run.cases()
    if not parts[part]:
        raise CersError(f"the split of {run.folder} has no {part} cases; score other data with --data PATH")
    return [known[id_] for id_ in parts[part]]


def _other_cases(data: Path, layout: str, run: Run) -> list[Case]:
    cases = [case for case in load_cases(data, layout) if case.annotated]
    if not cases:
        raise CersError(
            f"{data} has no annotated case to score; give one with masks, or outline it with `cers predict`"
        )
    if learned := run.shown_by(cases, {*run.split.labelled, *run.split.val}, pixel_hash):
        raise CersError(
            f"{data} has '{min(learned)}' ({len(learned)} such cases), by whose mask {run.folder} was trained or "
            "validated; leave them out of it, or score the run's own test part without --data"
        )
    return run.grouped(cases)
