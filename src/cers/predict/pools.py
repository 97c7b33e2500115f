"""Knowledge pools beside a run: built from its own cases or another hospital's, read back, and looked into."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cers.config import MaskReading
from cers.data.case import Batch, Case
from cers.data.duplicates import pixel_hash
from cers.data.layouts import load_cases
from cers.data.loaders import evaluation_batches
from cers.data.splits import load_split
from cers.engine.device import prediction_accelerator
from cers.engine.weights import fingerprint
from cers.errors import CersError
from cers.material import Decoding
from cers.retrieval.pool import KnowledgePool, PoolEntry, PoolShape
from cers.retrieval.search import cosine_similarity
from cers.run import Run, load_run, require_other_data

BATCH = 16
ROWS = 1024
NEAREST = 5


@dataclass(frozen=True)
class PoolFacts:
    """What a pool holds. Means are over its cases; None where fewer than two are known."""

    folder: str
    encoder: str
    entries: int
    filled: int
    classes: dict[str, int]
    groups: int
    without_group: int
    cot_known: int
    report_known: int
    nearest_image: float | None
    nearest_cot: float | None
    bytes_per_case: int


@dataclass(frozen=True)
class Neighbour:
    """An entry near another one: `similarity` is the cosine of their embeddings."""

    id: str
    label: str | None
    group: str | None
    similarity: float


def build_pool(
    folder: Path,
    out: Path,
    *,
    data: Path | None = None,
    layout: str = "auto",
    mask: MaskReading | None = None,
    keep_own: bool = False,
    split: Path | None = None,
    overwrite: bool = False,
    on_decode: Decoding | None = None,
) -> KnowledgePool:
    """Fill a pool by the encoder of the run in `folder` and save it into `out`; nothing is trained.

    It holds the labelled cases of the run, or those of another `split` of its dataset, or all annotated cases of the
    dataset `data`, with `keep_own` beside the run's. Their mask-informed rationales are embedded, the mask-free ones
    where there are none. Masks are opened for a run whose references show theirs, and for no other; those of `data`
    are read by `mask`, without which they must leave no doubt.

    Raises:
        CersError: no trained run, one whose method has no pool, no annotated case, an id that both datasets have, a
            case that the run validates or tests (by its id or, where the run's data are at hand, by its image file),
            `mask` without `data`, or `out` holds a pool already and `overwrite` is not set.
    """
    _require_free(out, overwrite)
    require_other_data(data, mask)
    run = load_run(folder)
    shape = _pool_of(run).shape
    own = _own(run, split) if data is None or keep_own or split is not None else []
    other = [] if data is None else _other(run, data, layout)
    if twice := {case.id for case in own} & {case.id for case in other}:
        raise CersError(f"'{min(twice)}' is a case of the run and of {data} ({len(twice)} such ids); rename the files")
    pool = KnowledgePool([PoolEntry(c.id, c.group, c.label) for c in (*own, *other)], shape)
    accelerator = prediction_accelerator(run.config.train.precision)
    method, pool = run.method.to(accelerator.device).eval(), pool.to(accelerator.device)
    with accelerator.autocast():
        for beside, cases in ((run, own), (run.reading_masks(mask), other)):
            batches = _clean(beside, cases, shape, on_decode)
            method.fill_pool(pool, (batch.to(accelerator.device) for batch in batches))
    pool.save(out, encoder=fingerprint(method.encoder))
    return pool


def load_pool(run: Run, folder: Path) -> KnowledgePool:
    """A saved pool, if it fits the run's encoder.

    Raises:
        CersError: it does not, or the run's method has no pool.
    """
    _pool_of(run)
    return KnowledgePool.load(folder, encoder=fingerprint(run.method.encoder))


def pool_folder(folder: Path) -> Path:
    """`folder` itself, or the pool of the run in it.

    Raises:
        CersError: the run's method has no pool.
    """
    if not (folder / "config.yaml").is_file():
        return folder
    if not (folder / "pool" / "manifest.json").is_file():
        raise CersError(f"the run {folder} has no knowledge pool: its method keeps none, or training has not ended")
    return folder / "pool"


def inspect_pool(folder: Path) -> PoolFacts:
    """What the pool in `folder`, or that of the run in `folder`, holds.

    Raises:
        CersError: there is no readable pool.
    """
    folder = pool_folder(folder)
    pool = KnowledgePool.load(folder)
    groups = [entry.group for entry in pool.entries]
    return PoolFacts(
        folder=str(folder),
        encoder=json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["encoder"],
        entries=len(pool),
        filled=int(pool.filled.sum()),
        classes=dict(sorted(Counter(entry.label for entry in pool.entries if entry.label).items())),
        groups=len({group for group in groups if group is not None}),
        without_group=groups.count(None),
        cot_known=int(pool.cot_known.sum()),
        report_known=int(pool.report_known.sum()),
        nearest_image=_mean_nearest(pool.image[pool.filled]),
        nearest_cot=_mean_nearest(pool.cot[pool.cot_known]),
        bytes_per_case=sum(tensor.nbytes for tensor in pool.state_dict().values()) // max(1, len(pool)),
    )


def neighbours(folder: Path, case: str, count: int = NEAREST) -> dict[str, list[Neighbour]]:
    """The `count` entries nearest to an entry by "image" and by "cot", its own group included, itself not.

    Raises:
        CersError: there is no readable pool, or `case` is not in it.
    """
    pool = KnowledgePool.load(pool_folder(folder))
    row = pool.row_of(case)
    by_image = _nearest(pool, pool.image, pool.filled, row, count)
    return {"image": by_image, "cot": _nearest(pool, pool.cot, pool.cot_known, row, count)}


def _require_free(out: Path, overwrite: bool) -> None:
    if (out / "manifest.json").exists():
        if not overwrite:
            raise CersError(f"{out} holds a pool already; choose another --out, or pass --overwrite")
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CersError(f"{out} holds something else than a pool; name another folder with --out")


def _pool_of(run: Run) -> KnowledgePool:
    if run.method.pool is None:
        raise CersError(
            f"{run.folder} is a run of '{run.config.method.name}', which has no knowledge pool; use one of cers"
        )
    return run.method.pool


def _own(run: Run, split: Path | None) -> list[Case]:
    """The labelled cases of the run, or those of another split of its dataset."""
    known = run.cases()
    if split is None:
        return [known[id_] for id_ in run.split.labelled]
    cases = [known[id_] for id_ in load_split(split, list(known.values())).labelled]
    _require_unseen(cases, run, f"{split} labels", "name another split")
    return cases


def _other(run: Run, data: Path, layout: str) -> list[Case]:
    """The annotated cases of another dataset, or of another table of the run's: then its groups hold there too."""
    cases = [case for case in load_cases(data, layout) if case.annotated]
    if not cases:
        raise CersError(f"{data} has no annotated case; a pool is filled with cases whose lesion is known")
    _require_unseen(cases, run, f"{data} has", "leave them out of it")
    return run.grouped(cases)


def _clean(run: Run, cases: Sequence[Case], shape: PoolShape, on_decode: Decoding | None) -> Iterator[Batch]:
    """Batches of `cases` as they are. Masks that such a pool does not keep are not opened."""
    if not (with_masks := shape.prototypes > 0 or shape.areas):
        cases = [replace(case, mask=None, negative=False) for case in cases]
    ids = [case.id for case in cases]
    if cases:
        yield from evaluation_batches(run.maker(cases, ids, on_decode), ids, BATCH, with_masks=with_masks)


def _require_unseen(cases: Sequence[Case], run: Run, who: str, instead: str) -> None:
    """None of `cases` may be one that the run validates or tests, under its own id or another."""
    held_out = {*run.split.val, *run.split.test}
    if seen := run.shown_by(cases, held_out, pixel_hash) | ({case.id for case in cases} & held_out):
        raise CersError(
            f"{who} '{min(seen)}' ({len(seen)} such cases), which {run.folder} validates or tests; references must "
            f"not show them: {instead}"
        )


def _mean_nearest(vectors: Tensor) -> float | None:
    """Mean over vectors (N,D) of unit length of the cosine with the nearest other; piecewise, as N² may be large."""
    if len(vectors) < 2:
        return None
    best = []
    for start in range(0, len(vectors), ROWS):
        similarity = cosine_similarity(vectors[start : start + ROWS], vectors)
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        best.append(similarity.amax(dim=1))
    return float(torch.cat(best).mean())


def _nearest(pool: KnowledgePool, vectors: Tensor, known: Tensor, row: int, count: int) -> list[Neighbour]:
    if not known[row]:
        return []
    similarity = cosine_similarity(vectors[row : row + 1], vectors)[0].masked_fill(~known, -torch.inf)
    similarity[row] = -torch.inf
    order = similarity.sort(descending=True, stable=True).indices.tolist()
    rows = [i for i in order if similarity[i] > -torch.inf][:count]
    near = [(pool.entries[i], float(similarity[i])) for i in rows]
    return [Neighbour(entry.id, entry.label, entry.group, cosine) for entry, cosine in near]
