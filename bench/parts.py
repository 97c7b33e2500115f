"""What the parts of CERS are worth, and how many labels it saves: from case scores, without training anything.

    python bench/parts.py screen screen.json runs/t1                        # of the test part
    python bench/parts.py screen screen.json runs/t1 --scores eval-rest     # of another evaluation of the same runs

Counted are the runs of a study, or of an archive, that have the split's test part and every setting of the preset. A
part is the difference of two answers to the same images: by other methods, by other branches of the same network, or by
the same network with other references (`cers eval RUN --retrieval random`). Intervals are over images and trainings
(`difference_interval`), p over images (`paired_permutation`, in the table of labels after Holm), in parentheses the
number of trainings.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cers.config import load_config
from cers.data.splits import read_split
from cers.errors import CersError
from cers.evaluate.render import interval, markdown, signed
from cers.evaluate.statistics import difference_interval, holm, paired_permutation
from cers.evaluate.table import DECLARED, read_cases_csv
from cers.methods.registry import METHODS
from cers.study.plan import run_key

METRICS = ("dice", "iou", "nsd", "hd95", "border_dice", "false_lesions")


class Answer(NamedTuple):
    """A method, one of its branches, and by which references."""

    method: str
    branch: str = DECLARED
    retrieval: str | None = None


PARTS = {
    "CERS − supervised": (Answer("cers"), Answer("supervised")),
    "CERS − unet-text": (Answer("cers"), Answer("unet-text")),
    "reading the report: unet-text − supervised": (Answer("unet-text"), Answer("supervised")),
    "both decoders − the retrieval branch": (Answer("cers", "both"), Answer("cers", "retrieval")),
    "sizes of references": (Answer("cers"), Answer("cers", "both")),
    "own − random references": (Answer("cers"), Answer("cers", retrieval="random")),
    "own − shuffled reports": (Answer("cers"), Answer("cers", retrieval="shuffled-report")),
    "own − shuffled rationales": (Answer("cers"), Answer("cers", retrieval="shuffled-cot")),
    "own − by image alone": (Answer("cers"), Answer("cers", retrieval="image")),
    "own − re-ranked by rationale": (Answer("cers"), Answer("cers", retrieval="image+cot")),
    "own − no references": (Answer("cers"), Answer("cers", retrieval="none")),
}
OTHERS = ("ucmt", "unimatch-v2", "supervised", "unet-text")


class Training(NamedTuple):
    """A finished run; `labelled` are the cases that it saw with their masks."""

    folder: Path
    method: str
    labelled: frozenset[str]
    seed: int

    @property
    def labels(self) -> int:
        """How many these are."""
        return len(self.labelled)


class Scores(NamedTuple):
    """A metric of each image (N,) by seed, the cases that its training saw masks of, and the groups of the images."""

    by_seed: dict[int, NDArray[np.float64]]
    labelled: dict[int, frozenset[str]]
    groups: list[str | None]


class Pairs(NamedTuple):
    """Two answers (S,N) to the same images by the same S trainings, and the groups of the images."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    groups: list[str | None]


class Archive:
    """The finished runs of a study that belong to one preset and test part, and one metric of one evaluation."""

    def __init__(self, preset: str, split: Path, study: Path, evaluation: str, metric: str) -> None:
        self.evaluation, self.metric = evaluation, metric
        self.runs: list[Training] = []
        test = set(read_split(split).test)
        for folder in sorted(path.parent for path in (study / "runs").glob("*/run.json")):
            config, shown = load_config(folder / "config.yaml"), read_split(folder / "split.json")
            name, seed = config.method.name, config.seed
            usual = load_config(preset, [f"method.name={name}", f"seed={seed}", "data.path=."], methods=METHODS)
            if set(shown.test) == test and folder.name.endswith(run_key(usual, shown)):
                self.runs.append(Training(folder, name, frozenset(shown.labelled), seed))
        scored = [
            run for run in self.runs if run.method == "cers" and (run.folder / evaluation / "cases.csv").is_file()
        ]
        self.columns = sorted({run.labels for run in scored})
        if not scored:
            raise CersError(
                f"{study} has no run of 'cers' under '{preset}' with the test part of {split} and {evaluation}"
            )

    def scores(self, answer: Answer, labels: int) -> Scores:
        """What `answer` scored after the trainings with so many labels."""
        found, groups = dict[int, NDArray[np.float64]](), list[str | None]()
        labelled: dict[int, frozenset[str]] = {}
        for run in self.runs:
            name = "-".join([self.evaluation, *([answer.retrieval] if answer.retrieval else [])])
            table = run.folder / name / "cases.csv"
            if (run.method, run.labels) == (answer.method, labels) and table.is_file():
                if run.seed in found:
                    raise CersError(f"two runs of '{run.method}' have seed {run.seed} and {labels} labels; keep one")
                labelled[run.seed] = run.labelled
                rows = sorted((r for r in read_cases_csv(table) if r.branch == answer.branch), key=lambda r: r.id)
                found[run.seed] = np.array([getattr(row.metrics, self.metric) for row in rows], np.float64)
                groups = [row.group for row in rows]
        return Scores(found, labelled, groups)

    def pairs(self, first: Answer, second: Answer, labels: int) -> Pairs | None:
        """Both answers by the seeds that both have; None where there are none.

        Raises:
            CersError: they learned from different labelled cases.
        """
        a, b = self.scores(first, labels), self.scores(second, labels)
        seeds = sorted(a.by_seed.keys() & b.by_seed.keys())
        if not seeds:
            return None
        if any(a.labelled[seed] != b.labelled[seed] for seed in seeds):
            raise CersError(f"'{first.method}' and '{second.method}' saw different sets of {labels} labelled cases")
        return Pairs(np.array([a.by_seed[s] for s in seeds]), np.array([b.by_seed[s] for s in seeds]), a.groups)


def parts_table(archive: Archive) -> Iterator[list[str]]:
    """One row a part, one column a number of labels; the last, of every training, where all have equally many."""
    yield ["part", *(f"{labels} labels" for labels in archive.columns), "all trainings"]
    for name, (with_it, without) in PARTS.items():
        cells = [archive.pairs(with_it, without, labels) for labels in archive.columns]
        known = [cell for cell in cells if cell is not None]
        even = len({len(cell.a) for cell in known}) == 1
        together = [_difference(_joined(known), "higher in {} of {}")] if even else [""]
        yield [name, *("" if cell is None else _difference(cell, "{1}") for cell in cells), *together]


def labels_table(archive: Archive) -> Iterator[list[str]]:
    """CERS less others that had the next larger number of labels."""
    steps = list(itertools.pairwise(archive.columns))
    yield ["CERS with − the other with", *(f"{few} − {more}" for few, more in steps)]
    found = {(other, step): _across(archive, other, *step) for other in OTHERS for step in steps}
    known = {place: pairs for place, pairs in found.items() if pairs is not None}
    p = dict(zip(known, holm([_p(pairs) for pairs in known.values()]), strict=True))
    for other in OTHERS:
        cells = [(known.get((other, step)), p.get((other, step), 1.0)) for step in steps]
        yield [other, *("" if c is None else f"{_said(c, p, paired=False)} ({len(c.a)}, {len(c.b)})" for c, p in cells)]


def _across(archive: Archive, other: str, few: int, more: int) -> Pairs | None:
    """All trainings of CERS with `few` labels, and of another method with `more`; their seeds are no pairs."""
    mine, theirs = archive.scores(Answer("cers"), few), archive.scores(Answer(other), more)
    if not mine.by_seed or not theirs.by_seed:
        return None
    a, b = (np.array([scores.by_seed[seed] for seed in sorted(scores.by_seed)]) for scores in (mine, theirs))
    return Pairs(a, b, mine.groups)


def _difference(pairs: Pairs, trainings: str) -> str:
    ahead = int((pairs.a.mean(axis=1) > pairs.b.mean(axis=1)).sum())
    return f"{_said(pairs, _p(pairs), paired=True)} ({trainings.format(ahead, len(pairs.a))})"


def _p(pairs: Pairs) -> float:
    return paired_permutation(pairs.a.mean(axis=0), pairs.b.mean(axis=0), pairs.groups)


def _said(pairs: Pairs, p: float, *, paired: bool) -> str:
    found = difference_interval(*pairs, paired_seeds=paired)
    return f"{signed(found.mean)} {interval(found.low, found.high)}, p = {p:.4f}"


def _joined(pairs: Sequence[Pairs]) -> Pairs:
    return Pairs(np.concatenate([p.a for p in pairs]), np.concatenate([p.b for p in pairs]), pairs[0].groups)


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("split", type=Path)
    parser.add_argument("study", type=Path)
    parser.add_argument("--scores", default="eval", help="the folder of an evaluation in each run (default: eval)")
    parser.add_argument("--metric", default="dice", choices=METRICS)
    given = parser.parse_args()
    try:
        archive = Archive(given.preset, given.split, given.study, given.scores, given.metric)
        for table in (parts_table, labels_table):
            sys.stdout.write(markdown([*table(archive)]) + "\n")
    except CersError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
