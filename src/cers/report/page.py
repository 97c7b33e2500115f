"""The page itself: one HTML file that needs nothing beside it and runs no script."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from cers.evaluate.metrics import METRICS
from cers.evaluate.render import counted
from cers.evaluate.table import DECLARED, shown_branches
from cers.report.content import ReportData, ShownCase, ShownReference
from cers.report.curves import training_charts, validation_chart
from cers.report.evidence import ASPECTS, MALFORMED, columns, explain, panels
from cers.report.retrieval import meaning, strategies

__all__ = ["ReportData", "ShownCase", "ShownReference", "render_report"]

TITLES = {metric.name: metric.title for metric in METRICS}
DIGITS = {metric.name: metric.digits for metric in METRICS} | dict.fromkeys(
    ("false_lesions", "predicted_area", "true_area"), 0
)
IN_PIXELS = {"hd95", "assd", "predicted_area", "true_area"}
BRANCHES = {
    "base": "the plain decoder, without references",
    "retrieval": "the decoder that reads references",
    "both": "the mean of their log-odds",
    "references": "the masks of the references alone",
    "sized": "the answer with outlines that are far too small enlarged",
}


@dataclass(frozen=True)
class Cell:
    """A metric in a table: its mean and its 95 % interval in words, either empty where unknown."""

    mean: str
    interval: str


@dataclass(frozen=True)
class SummaryRow:
    """One branch, class or size of the results table."""

    name: str
    n: int
    cells: Mapping[str, Cell]
    missed: Mapping[str, int]
    false_positives: Mapping[str, int]


def render_report(data: ReportData) -> str:
    """`data` as a complete HTML document, a few MB at most: pictures are thumbnails, curves inline SVG."""
    branches: Mapping[str, Any] = data.summary.get("branches") or {}
    declared: Mapping[str, Any] = branches.get(DECLARED, {})
    settings: Mapping[str, Any] = data.config.get("method", {}).get("settings", {})
    retrieval = strategies(data.summary.get("retrieval") or {}, settings.get("retrieval"))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            overall=_row("all cases", declared["all"]) if declared else None,
            groups=declared["all"].get("groups") if declared else None,
            tables=_tables(branches, declared),
            branches={name: words for name, words in BRANCHES.items() if name in branches},
            retrieval=retrieval,
            retrieval_meaning=meaning(retrieval),
            k=settings.get("k", "k"),
            validation=validation_chart(data.log),
            curves=training_charts(data.log),
            config=yaml.safe_dump(dict(data.config), sort_keys=False, allow_unicode=True) if data.config else "",
        )
    )


def _tables(branches: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, list[SummaryRow]]:
    """The results by branch, class and lesion size; a single class or size would only repeat the overall row."""
    parts = {
        "Branch": {name: branch["all"] for name, branch in shown_branches(branches).items()},
        "Class": declared.get("by_class", {}),
        "Lesion size": declared.get("by_size", {}),
    }
    shown = {title: rows for title, rows in parts.items() if len(rows) > 1 or title == "Branch"}
    return {title: [_row(name, part) for name, part in rows.items()] for title, rows in shown.items()}


def _row(name: str, part: Mapping[str, Any]) -> SummaryRow:
    cells = {m.title: _cell(part["metrics"][m.name], m.digits) for m in METRICS}
    return SummaryRow(name.replace("_", " "), part["n"], cells, part["missed"], part["false_positives"])


def _cell(values: Mapping[str, float | None], digits: int = 3) -> Cell:
    low, high = values.get("low"), values.get("high")
    known = low is not None and high is not None
    return Cell(number(values.get("mean"), digits), f"{number(low, digits)} to {number(high, digits)}" if known else "")


def number(value: Any, digits: int | None = None) -> str:
    """A number for readers: three decimals below 10, one above; "–" where there is none; other values as they are."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    shown = f"{value:z,.{digits if digits is not None else 3 if abs(value) < 10 else 1}f}"
    return shown.replace("-", "−")


def environment() -> jinja2.Environment:
    """What every page is made with: the templates of this package, escaping, and no undefined name."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cers.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, cell=_cell, counted=counted)
    environment.globals.update(panels=panels, columns=columns, explain=explain, aspects=ASPECTS, malformed=MALFORMED)
    environment.globals.update(metric_titles=TITLES, digits=DIGITS, in_pixels=IN_PIXELS)
    return environment
