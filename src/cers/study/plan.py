"""The runs of a study, each known by what it computes, and where they lie."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from cers.config import FREE, DataConfig, RunConfig
from cers.data.splits import Split, load_split, make_split, save_split
from cers.engine.trainer import Streams, total_steps
from cers.errors import CersError
from cers.evaluate.scored import outdated
from cers.evaluation import evaluation_folder
from cers.material import load_dataset
from cers.methods.registry import method_settings
from cers.study.definition import Share, Study, share_name

# Where the data lie and how they are read; what a run sees of them is in the hash of its split.
_PLACES = FREE | {"data.split", "data.labelled", "data.layout", "data.negatives", "data.group_pattern"}

# Settings that may name a file or a folder, which counts by what it holds.
FILES = ("data.rationales", "model.weights", "text.report", "text.cot")
_KEY = 12


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study. `key` is the hash of what it computes; `family` of what it costs, whatever seed and fold."""

    row: str
    share: Share
    seed: int
    fold: int | None
    config: RunConfig
    split: Split
    key: str
    family: str
    steps: int

    @property
    def name(self) -> str:
        """What it is called in progress and errors."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.row}, {share_name(self.share)}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """A study in a folder. `runs` has each different run once, in the order of running; `cells` names all of them.

    `cells` maps (share, row) to the keys of its seeds and folds: two rows may be the same run.
    """

    study: Study
    out: Path
    runs: tuple[PlannedRun, ...]
    cells: Mapping[tuple[Share, str], tuple[str, ...]]

    def folder(self, run: PlannedRun) -> Path:
        """Where the run is, or is to be: an earlier one that computes the same is found under any name."""
        found = sorted((self.out / "runs").glob(f"*-{run.key}"))
        fold = "" if run.fold is None else f" fold{run.fold}"
        slug = re.sub(r"[^a-z0-9]+", "-", f"{run.row} {share_name(run.share)} seed{run.seed}{fold}".lower()).strip("-")
        return found[0] if found else self.out / "runs" / f"{slug}-{run.key}"

    def scores(self, run: PlannedRun) -> Path:
        """Where the run's scores on the study's part are, or are to be."""
        return evaluation_folder(self.folder(run), self.study.part)

    def lock(self, run: PlannedRun) -> Path:
        """Held by the process that works on the run."""
        return self.out / "locks" / run.key

    def log(self, run: PlannedRun) -> Path:
        """What the run's process had to say."""
        return self.out / "logs" / f"{self.folder(run).name}.log"

    def is_done(self, run: PlannedRun) -> bool:
        """Whether it is trained and scored."""
        scores = self.scores(run)
        files = (scores.parent / "run.json", scores / "cases.csv", scores / "summary.json")
        return all(file.is_file() for file in files) and outdated(scores) is None


def make_plan(study: Study, out: Path, overrides: Sequence[str] = ()) -> Plan:
    """Lay the study out in `out`; without data.split a grouped split is made there once, for all runs.

    Raises:
        CersError: a bad setting, row by row; no dataset; no budget; folds that test the same cases; or rows that read
            the dataset differently and share a split.
    """
    if out.is_file():
        raise CersError(f"{out} is a file; name another folder with --out")
    cells: dict[tuple[Share, str], list[str]] = {}
    planned: list[PlannedRun] = []
    splits: dict[tuple[Path | None, Share], Split] = {}
    readings: dict[Path | None, tuple[str, DataConfig]] = {}
    # The first seed of everything comes first: a table that is cut short is then complete in its rows.
    for seed, fold, share, row in product(study.seeds, study.folds or (None,), study.labelled, study.rows):
        if row.labelled is not None and share not in row.labelled:
            continue
        config = study.config(row, share, seed, overrides, fold)
        _require_same_reading(row.name, config.data, *readings.setdefault(config.data.split, (row.name, config.data)))
        if (config.data.split, share) not in splits:
            splits[config.data.split, share] = _split(config, out).with_labelled(share)
        run = _planned(row.name, share, seed, fold, config, splits[config.data.split, share], out)
        planned.append(run)
        cells.setdefault((share, row.name), []).append(run.key)
    _require_disjoint([run for run in planned if run.fold is not None])
    runs: dict[str, PlannedRun] = {}
    for run in planned:
        runs.setdefault(run.key, run)
    ordered = {(s, r.name): tuple(cells[s, r.name]) for s in study.labelled for r in study.rows if (s, r.name) in cells}
    return Plan(study, out, tuple(runs.values()), ordered)


def _require_same_reading(row: str, data: DataConfig, other: str, others: DataConfig) -> None:
    """What a run sees of its dataset is in its split, so that no key tells two readings of one split apart."""
    for name in ("negatives", "group_pattern"):
        if getattr(data, name) != getattr(others, name):
            raise CersError(f"rows '{other}' and '{row}' differ in data.{name}; give each a data.split of its own")


def _require_disjoint(runs: Sequence[PlannedRun]) -> None:
    """No case may be tested in two folds, as it is where folds share a split."""
    tested: dict[str, int | None] = {}
    for run in runs:
        for case_id in run.split.test:
            if (other := tested.setdefault(case_id, run.fold)) != run.fold:
                raise CersError(
                    f"folds {other} and {run.fold} both test '{case_id}'; make the splits with `cers data split "
                    "--folds`, and name them by data.split=split-{fold}.json"
                )


def require_data(plan: Plan) -> None:
    """Hold the split against the dataset once, before every run does.

    Raises:
        CersError: no dataset there, or not that of the split.
    """
    checked = set()
    for run in plan.runs:
        if (path := run.config.data.split) is not None and path not in checked:
            checked.add(path)
            load_split(path, load_dataset(run.config))


def run_key(config: RunConfig, split: Split) -> str:
    """A hash of all that decides what a run computes: its settings, method defaults filled in, and its split.

    Folders do not count, files count by their content, and the split by its hash: a share and the count that it comes
    to are one run, and so is the same data elsewhere. Precision counts as it was asked for (`auto` is `auto`).
    """
    return _hash({**_identity(config), "split": split.hash})


def _planned(
    row: str, share: Share, seed: int, fold: int | None, config: RunConfig, split: Split, out: Path
) -> PlannedRun:
    if config.data.split is None:
        data = config.data.model_copy(update={"split": _own_split(config, out)})
        config = config.model_copy(update={"data": data})
    try:
        key = run_key(config, split)
    except CersError as error:
        raise CersError(f"row '{row}': {error}") from None
    steps = total_steps(config, Streams(split.labelled, split.unlabelled, split.val))
    texts = config.data.rationales is not None  # those of one fold take as long as those of another
    family = _hash({**_identity(config), "seed": None, "data.rationales": texts})
    return PlannedRun(row, share, seed, fold, config, split, key, family, steps)


def _identity(config: RunConfig) -> dict[str, Any]:
    settings = method_settings(config.method.name, config.method.settings).model_dump(mode="json")
    values = config.resolved(config.train.precision, settings).flat()
    kept = {key: value for key, value in values.items() if key not in _PLACES}
    return kept | {key: _content(kept[key]) for key in FILES}


def named_file(value: Any) -> Path | None:
    """The file, or the folder of a text encoder, that a setting among FILES names; None where it names neither."""
    path = Path(value) if isinstance(value, str) else None
    return path if path is not None and (path.is_file() or (path / "config.json").is_file()) else None


def _content(value: Any) -> Any:
    """A file or a folder by its hash, anything else as it is."""
    path = named_file(value)
    if path is None:
        return value
    if path.is_file():
        return _sha256(path, path.stat().st_mtime_ns)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _hash({file.relative_to(path).as_posix(): _sha256(file, file.stat().st_mtime_ns) for file in files})


@cache
def _sha256(path: Path, _changed: int) -> str:
    """Read once for as long as it is not changed, not for every run that names it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()[:_KEY]


def _split(config: RunConfig, out: Path) -> Split:
    if config.data.split is not None:
        return load_split(config.data.split)
    path = _own_split(config, out)
    if not path.is_file():
        save_split(make_split(load_dataset(config)), path)
    return load_split(path)


def _own_split(config: RunConfig, out: Path) -> Path:
    """Where the study keeps the split that it makes; another one for each way to read the dataset."""
    reading = {name: value for name in ("negatives", "group_pattern") if (value := getattr(config.data, name))}
    return out / (f"split-{_hash(reading)}.json" if reading else "split.json")
