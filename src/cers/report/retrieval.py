"""How well each retrieval strategy finds cases like the query: a table, and one sentence on the run's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cers.evaluate.render import percent

Quality = Mapping[str, Any]


@dataclass(frozen=True)
class Strategy:
    """A row of the table: `quality` as `cers.evaluate.retrieval.retrieval_quality` returns it."""

    name: str
    quality: Quality
    own: bool


def strategies(qualities: Mapping[str, Quality], own: str | None) -> list[Strategy]:
    """Every strategy in the order given; the run's `own` one is marked."""
    return [Strategy(name, quality, name == own) for name, quality in qualities.items()]


def meaning(shown: Sequence[Strategy]) -> str:
    """What the numbers of the run's own strategy say, in one sentence; empty where there are none."""
    own = next((strategy for strategy in shown if strategy.own), None)
    if own is None:
        return ""
    for kind, measure, said in (
        ("class", "class_precision", "{share} of the cases that “{name}” retrieves have the query's class"),
        ("report", "report_agreement", "Reports of the cases that “{name}” retrieves share {share} of the words"),
    ):
        found, chance = own.quality[measure]["mean"], own.quality[f"{kind}_chance"]["mean"]
        if found is not None:
            claim, verdict = said.format(name=own.name, share=percent(found)), _verdict(own.quality[f"{kind}_lift"])
            return f"{claim}, against {percent(chance)} for cases drawn at random: {verdict}."
    return f"Neither classes nor reports are known, so the cases that “{own.name}” retrieves cannot be judged by them."


def _verdict(lift: Mapping[str, float | None]) -> str:
    low, high = lift["low"], lift["high"]
    if low is None or high is None:
        return "too few independent cases to say whether that is chance"
    if low > 0:
        return "more alike than chance explains"
    return "less alike than chance explains" if high < 0 else "no difference that chance could not explain"
