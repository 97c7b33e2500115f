"""A comparison as people and programs read it: wide rows of text, CSV, Markdown, LaTeX."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from math import isnan

from cers.evaluate.compare import Comparison, ComparisonTable, Row
from cers.evaluate.render import count, counted, duration, interval, latex, markdown, memory, number, signed
from cers.evaluate.scored import Costs

TEXT_MARK = "†"
Rows = list[list[str]]


def overview_rows(table: ComparisonTable) -> Rows:
    """Head and a row per method with its Dice in every section, and of how many seeds; empty for a single section.

    In the order of the section with most methods: the others may lack some.
    """
    by_section: dict[str, dict[str, str]] = {}
    for row in table.rows:
        by_section.setdefault(row.section, {})[_name(row)] = f"{_mean(row.dice)} ({row.dice.seeds})"
    if len(by_section) < 2:
        return []
    fullest_first = sorted(by_section.values(), key=len, reverse=True)
    names = dict.fromkeys(name for section in fullest_first for name in section)
    body = [[name, *(section.get(name, "–") for section in by_section.values())] for name in names]
    return [["Dice ↑", *by_section], *body]


def score_rows(table: ComparisonTable) -> Rows:
    """Head and a row per method: overlap with its intervals, and distances."""
    head = [*_names(table), "seeds", "N", "Dice ↑", "95 %", "IoU ↑", "95 %", "HD95 ↓", "NSD ↑", "false ↓"]
    return [head, *(_scores(row, _titled(table)) for row in table.rows)]


def difference_rows(table: ComparisonTable) -> Rows:
    """Head and a row per method: how it differs from the reference in Dice and IoU."""
    head = _names(table)
    for name in ("Dice", "IoU"):
        head += [f"Δ {name} to {table.reference}", "95 %", "p (Holm)"]
    return [head, *(_differences(row, _titled(table)) for row in table.rows)]


def cost_rows(table: ComparisonTable) -> Rows:
    """Head and a row per method: what it took to train."""
    head = [*_names(table), "parameters", "steps", "optimiser steps", "labelled images", "unlabelled images"]
    head += ["image passes", "a step", f"less {table.reference}'s", "wall-clock", "peak memory"]
    base = {row.section: row.costs.step_seconds for row in table.rows if row.method == table.reference}
    beside = [None if row.method == table.reference else base.get(row.section) for row in table.rows]
    return [head, *(_costs(row, _titled(table), step) for row, step in zip(table.rows, beside, strict=True))]


def parts(table: ComparisonTable) -> dict[str, Rows]:
    """The table in parts narrow enough for a page: what is known, and rows that are compared with something."""
    head, *differences = difference_rows(table)
    tested = [cells for cells, row in zip(differences, table.rows, strict=True) if not isnan(row.dice.p)]
    three = {"Scores": score_rows(table), "Differences": [head, *tested], "What it took": cost_rows(table)}
    known = {name: _without_empty_columns(rows) for name, rows in three.items()}
    shown = {name: rows for name, rows in known.items() if len(rows) > 1 and len(rows[0]) > len(_names(table))}
    return {"Overview": overview, **shown} if (overview := overview_rows(table)) else shown


def full_rows(table: ComparisonTable) -> Rows:
    """Scores, differences and costs in one row per method."""
    first = len(_names(table))
    three = zip(score_rows(table), difference_rows(table), cost_rows(table), strict=True)
    return [[*scores, *differences[first:], *costs[first:]] for scores, differences, costs in three]


def legend(table: ComparisonTable) -> list[str]:
    """What the columns mean and what the intervals cover, then the table's own notes."""
    lines = [
        "Dice, IoU, HD95 (px), NSD (2 px) and false lesions, outlined regions that touch none: mean over N cases "
        "and over seeds, ± standard deviation of seeds. "
        "95 %: bootstrap over cases, or groups where known, for these trained networks.",
    ]
    if overview_rows(table):
        lines.append("Overview: mean Dice ± standard deviation of seeds (number of seeds).")
    if table.comparisons:
        lines.append(
            f"Δ: difference to {table.reference}, paired by case and, from two common seeds on, by seed; its 95 % "
            "interval covers cases and, where either has two seeds or more, seeds. p: paired permutation test over "
            f"cases or groups, Holm-adjusted for {counted(table.comparisons, 'comparison')} under the same metric; "
            "only the interval knows that seeds differ."
        )
    if any(row.reads_text for row in table.rows):
        lines.append(f"{TEXT_MARK} reads a text (report or rationale) at test time.")
    return [*lines, *table.notes]


def to_markdown(table: ComparisonTable) -> str:
    """The full table in Markdown, with its legend."""
    tables = [markdown(rows) for rows in (overview_rows(table), full_rows(table)) if rows]
    return "\n".join(tables) + "".join(f"\n{line}\n" for line in legend(table))


def to_latex(table: ComparisonTable, caption: str = "") -> str:
    """Scores, differences and costs as tables that fit a page, the last with the legend."""
    shown = {f"{caption or 'Comparison'}: {name[0].lower()}{name[1:]}": rows for name, rows in parts(table).items()}
    last = list(shown)[-1]
    return "\n".join(latex(rows, title, legend(table) if title == last else ()) for title, rows in shown.items())


def to_csv(table: ComparisonTable) -> str:
    """A line per section, method and metric, every number in full, with the method's costs."""
    text = io.StringIO()
    extra = ["reads_text", "labelled_share"]
    columns = [f.name for f in fields(Comparison)] + extra + [f.name for f in fields(Costs)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    rows = {(row.section, row.method): row for row in table.rows}
    for line in table.lines:
        row = rows[line.section, line.method]
        facts = {"reads_text": row.reads_text, "labelled_share": row.share}
        writer.writerow({**asdict(line), **facts, **asdict(row.costs)})
    return text.getvalue()


def _without_empty_columns(rows: Sequence[Sequence[str]]) -> Rows:
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] != "–" for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _names(table: ComparisonTable) -> list[str]:
    return ["labelled", "method"] if _titled(table) else ["method"]


def _titled(table: ComparisonTable) -> bool:
    return any(row.section for row in table.rows)


def _name(row: Row) -> str:
    return f"{row.method} {TEXT_MARK}" if row.reads_text else row.method


def _scores(row: Row, titled: bool) -> list[str]:
    dice, iou = row.dice, row.by_metric["iou"]
    n = f"{dice.n}" if dice.n == dice.groups else f"{dice.n} ({counted(dice.groups, 'group')})"
    cells = [*_title(row, titled), str(dice.seeds), n]
    cells += [_mean(dice), interval(dice.low, dice.high), _mean(iou), interval(iou.low, iou.high)]
    return cells + [
        _mean(row.by_metric[name], digits) for name, digits in (("hd95", 1), ("nsd", 3), ("false_lesions", 2))
    ]


def _differences(row: Row, titled: bool) -> list[str]:
    cells = _title(row, titled)
    for line in (row.dice, row.by_metric["iou"]):
        cells += [signed(line.difference), interval(line.difference_low, line.difference_high), number(line.p_holm, 4)]
    return cells


def _title(row: Row, titled: bool) -> list[str]:
    return [row.section, _name(row)] if titled else [_name(row)]


def _mean(line: Comparison, digits: int = 3) -> str:
    spread = number(line.spread, digits)
    return number(line.mean, digits) + ("" if spread == "–" else f" ± {spread}")


def _costs(row: Row, titled: bool, reference_step: float | None) -> list[str]:
    """The cells of a row; a step is also given less one of the reference, which is what e.g. retrieval adds."""
    costs = row.costs
    known = costs.step_seconds is not None and reference_step is not None
    added = (costs.step_seconds or 0.0) - (reference_step or 0.0)
    cells = [*_title(row, titled), count(costs.parameters), count(costs.steps), count(costs.optimiser_steps)]
    cells += [count(costs.labelled_images), count(costs.unlabelled_images), count(costs.image_passes)]
    cells += [duration(costs.step_seconds), f"{signed(added)} s" if known else "–"]
    return [*cells, duration(costs.seconds), memory(costs.peak_memory)]
