"""What a reader of a comparison must know beside its numbers: whatever differs between runs but their method."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean

from cers.config import FREE
from cers.evaluate.scored import ScoredRun, Trait
from cers.evaluate.statistics import FEW_GROUPS, group_index

Sections = Mapping[str, Mapping[str, Sequence[ScoredRun]]]

# What a comparison varies on purpose, and what says only where things are or how fast they go.
_EXPECTED = (*sorted(FREE), "seed", "method.", "data.layout", "data.split", "data.labelled")


def comparison_notes(sections: Sections, reference: str, only: Mapping[Trait, str]) -> tuple[str, ...]:
    """Which cases were chosen, and a line for each difference between the runs that is not method, seed or share."""
    chosen = [f"Only test cases with {trait} '{value}'." for trait, value in only.items()]
    circumstances = (_circumstances(sections), _folds(sections), _groups(sections), _seeds(sections))
    first = (*chosen, *_validation(sections), *_settings(sections, reference))
    return (*first, *chain.from_iterable(circumstances), *_labels(sections))


def _settings(sections: Sections, reference: str) -> Iterator[str]:
    told = set()
    for runs in sections.values():
        base = next((run.config for run in runs.get(reference, ()) if run.config), None)
        for name, mine in runs.items():
            for run in mine:
                if base is None or run.config is None or name in told:
                    continue
                ours, theirs = run.config.flat(), base.flat()
                keys = [k for k in ours if not k.startswith(_EXPECTED) and ours[k] != theirs.get(k)]
                if keys:
                    told.add(name)
                    said = ", ".join(f"{key} {ours[key]} ({theirs.get(key)})" for key in keys)
                    yield f"{name} differs from {reference} in more than its method: {said}."


def _validation(sections: Sections) -> Iterator[str]:
    # Folds are pooled, and what one validates on another one tests.
    of_one_split = (run for run in _runs(sections) if len(run.splits) == 1)
    if any(run.rows.keys() <= set(run.splits[0].val) for run in of_one_split):
        yield "N are validation cases, by which settings and checkpoints may be chosen: no result of a method."


def _circumstances(sections: Sections) -> Iterator[str]:
    words = {"device": "devices", "torch": "torch versions", "cers": "cers versions", "dataset": "datasets"}
    for fact, many in words.items():
        # One fold may hold other images than the next, or be of another machine; all runs of it must be alike.
        for fold in zip(*(run.facts for run in _runs(sections)), strict=False):
            values = sorted({str(facts[fact]) for facts in fold if facts.get(fact)})
            if len(values) > 1:
                yield f"The runs are of different {many}: {', '.join(values)}; their times do not compare."
                break


def _folds(sections: Sections) -> Iterator[str]:
    folds = max((len(run.facts) for run in _runs(sections)), default=0)
    if folds > 1:
        yield (
            f"Cross-validated in {folds} folds: each case is scored by the network that did not see its fold. Training "
            "sets of folds overlap, which no interval covers."
        )


def _seeds(sections: Sections) -> Iterator[str]:
    counts = {len(mine) for runs in sections.values() for mine in runs.values()}
    if len(counts) > 1:
        yield (
            f"Rows have between {min(counts)} and {max(counts)} seeds; a difference is over the seeds that both have, "
            "over all of each where these are fewer than two. A single seed is taken to vary as the others do."
        )
    if counts == {1}:
        yield "With a single seed nothing is known of what another would give: the interval is over cases only."


def _groups(sections: Sections) -> Iterator[str]:
    run = next(_runs(sections))
    groups = len(set(group_index([row.group for row in run.rows.values()])))
    if 1 < groups < FEW_GROUPS:
        yield f"Only {groups} independent groups of cases: intervals and p are surer than so few allow."


def _labels(sections: Sections) -> Iterator[str]:
    for section, runs in sections.items():
        chosen = {run.seed: run.labelled for mine in runs.values() for run in mine if run.labelled}
        same_size = {tuple(map(len, folds)) for folds in chosen.values()}
        if len(same_size) == 1 < len({tuple(map(frozenset, folds)) for folds in chosen.values()}):
            of = f"{section}: e" if section else "E"
            yield f"{of}ach seed has labelled images of its own, so that seeds vary by them as well."
        counts = {fmean(map(len, run.labelled)) for mine in runs.values() for run in mine if run.labelled}
        if not section and len(counts) > 1:
            yield f"Rows were trained with different numbers of masks: {', '.join(f'{n:g}' for n in sorted(counts))}."


def _runs(sections: Sections) -> Iterator[ScoredRun]:
    for runs in sections.values():
        for mine in runs.values():
            yield from mine
