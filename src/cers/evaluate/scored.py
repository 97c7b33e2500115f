"""Evaluated run folders read back for comparison: scores by case, settings, and what the training cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any, Literal, Self

from cers.config import RunConfig, load_config
from cers.data.splits import Split, read_split
from cers.errors import CersError, nearest
from cers.evaluate.table import CaseRow, declared_rows, read_cases_csv

Trait = Literal["label", "size"]
AGAIN = "run `cers eval` on the same split for both"


@dataclass(frozen=True)
class Costs:
    """What a run cost to train; means over seeds in a row of a table. None: not recorded.

    `image_passes` counts an image once for each network it goes through in training, teachers and all stages included;
    `seconds` is wall-clock with loading and validation, `step_seconds` the median step of the last stage,
    `peak_memory` bytes.
    """

    parameters: float | None = None
    labelled_images: float | None = None
    unlabelled_images: float | None = None
    image_passes: float | None = None
    steps: float | None = None
    optimiser_steps: float | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    peak_memory: float | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """From `run.json`."""
        known = {**facts, "seconds": facts.get("wall_seconds")}
        return cls(**{f.name: known.get(f.name) for f in fields(cls)})

    @classmethod
    def mean(cls, costs: Sequence[Self]) -> Self:
        """Each cost where every run recorded it."""
        columns = {f.name: [getattr(cost, f.name) for cost in costs] for f in fields(cls)}
        return cls(**{name: None if None in values else fmean(values) for name, values in columns.items()})


@dataclass(frozen=True)
class ScoredRun:
    """The declared rows of one training by case id, or those of its folds together; `folder` and `config` of the first.

    `splits` and `facts` are of each fold, of the one run where it was not cross-validated; empty where not known.
    """

    folder: Path
    rows: dict[str, CaseRow]
    splits: tuple[Split, ...]
    config: RunConfig | None
    facts: tuple[Mapping[str, Any], ...]

    @classmethod
    def pooled(cls, folds: Sequence[Self]) -> Self:
        """The folds of one cross-validation as one run that has scored the cases of all."""
        ordered = sorted(folds, key=lambda fold: min(fold.rows))
        return cls(
            ordered[0].folder,
            {id_: row for fold in ordered for id_, row in fold.rows.items()},
            tuple(split for fold in ordered for split in fold.splits),
            ordered[0].config,
            tuple(facts for fold in ordered for facts in fold.facts),
        )

    @property
    def seed(self) -> int | None:
        """The seed of the run, None where it is not known."""
        return None if self.config is None else self.config.seed

    @property
    def reads_text(self) -> bool:
        """Whether its predictions depend on a text; False where it did not say."""
        return any(facts.get("reads_text") for facts in self.facts)

    @property
    def labelled(self) -> tuple[set[str], ...]:
        """Ids of the cases whose masks it saw, by fold."""
        return tuple(set(split.labelled) for split in self.splits)

    @property
    def share(self) -> float | None:
        """The part of the training cases whose masks it saw, the mean over folds; None where it is not known."""
        if not self.splits:
            return None
        return fmean(len(s.labelled) / max(1, len(s.labelled) + len(s.unlabelled)) for s in self.splits)

    def only(self, trait: Trait, value: str) -> Self:
        """The same run, scored on the cases of one class, or of one size of lesion, alone.

        Raises:
            CersError: there is none.
        """
        rows = {id_: row for id_, row in self.rows.items() if getattr(row, trait) == value}
        if not rows:
            scored = {getattr(row, trait) for row in self.rows.values()} - {None}
            raise CersError(f"{self.folder} scored no case with {trait} '{value}'; {nearest(value, scored)}")
        return replace(self, rows=rows)


def run_folder(folder: Path) -> Path:
    """The run that `folder` is, or of which it is one evaluation, such as `eval-random`."""
    return folder.parent if (folder / "cases.csv").is_file() else folder


def read_scored(folder: Path) -> ScoredRun:
    """Read `eval/cases.csv` of a run, and `split.json`, `config.yaml` and `run.json` where they are.

    `folder` may also be one evaluation of a run, such as its `eval-random`: the same training under other references.

    Raises:
        CersError: it was not evaluated, or a file is damaged.
    """
    run = run_folder(folder)
    table = (folder if folder != run else run / "eval") / "cases.csv"
    split, config = run / "split.json", run / "config.yaml"
    if said := outdated(table.parent):
        raise CersError(said)
    rows = declared_rows(read_cases_csv(table))
    if not rows:
        raise CersError(f"{table} holds no case; run `cers eval` on a split with cases")
    return ScoredRun(
        folder,
        {row.id: row for row in rows},
        (read_split(split),) if split.is_file() else (),
        load_config(config) if config.is_file() else None,
        (_trained(run),),
    )


def outdated(scores: Path) -> str | None:
    """What to say of scores of weights that the run has left behind since; None of those of its best ones."""
    run, again = _trained(scores.parent), f"run `cers eval {quote(str(scores.parent))}` again"
    best = run.get("best_step") or run.get("steps")  # without validation the last are the best
    scored = _facts(scores / "summary.json", again).get("step")
    if None in (scored, best) or scored == best:
        return None
    return f"{scores} is of weights of step {scored}, but training has gone on and the best are of step {best}; {again}"


def _trained(run: Path) -> Mapping[str, Any]:
    return _facts(run / "run.json", f"delete it and run `cers train --resume {quote(str(run))}`")


def _facts(path: Path, advice: str) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise CersError(f"{path} is damaged; {advice}")
    return facts


def require_same_cases(first: ScoredRun, other: ScoredRun) -> None:
    """Refuse to compare runs scored on different cases, masks or groups, or trained on different splits.

    How many of the training masks they used may differ: that is what runs are compared for.

    Raises:
        CersError: they cannot be compared.
    """
    both = f"{first.folder} and {other.folder}"
    if only := sorted(first.rows.keys() ^ other.rows.keys()):
        raise CersError(f"{both} were scored on different cases ('{only[0]}' and {len(only) - 1} more); {AGAIN}")
    for case_id, row in first.rows.items():
        there = other.rows[case_id]
        if (row.metrics.true_area, row.group) != (there.metrics.true_area, there.group):
            raise CersError(f"{both} know case '{case_id}' with different masks or groups; {AGAIN}")
    if first.splits and other.splits and _parts(first) != _parts(other):
        raise CersError(f"{both} were trained on different splits; train both on one split file")


def require_same_labels(runs: Sequence[ScoredRun], section: str) -> None:
    """Refuse a section of a table in which runs of one seed saw different masks.

    Raises:
        CersError: two of them did.
    """
    first: dict[int | None, ScoredRun] = {}
    for run in runs:
        if run.splits and (other := first.setdefault(run.seed, run)).labelled != run.labelled:
            raise CersError(f"{section}: {other.folder} and {run.folder} were trained on different labelled cases")


def _parts(run: ScoredRun) -> list[dict[str, set[str]]]:
    return [{name: set(ids) for name, ids in split.parts.items()} for split in run.splits]
