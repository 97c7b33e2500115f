"""A study's table: our figures, those published beside them, and every form they are written in."""

from collections.abc import Collection, Iterator
from pathlib import Path

from cers.config import load_config
from cers.evaluate.compare import ComparisonTable, compare_sections
from cers.evaluate.comparison_table import Rows, legend, to_csv, to_latex, to_markdown
from cers.evaluate.render import latex, markdown, number
from cers.files import write_atomic
from cers.report.comparison import render_comparison, render_curves
from cers.study.definition import Share, share_name
from cers.study.plan import Plan, PlannedRun

# Settings in which a protocol may depart from the paper's, which the preset `paper` holds.
_PROTOCOL = (
    "data.image_size",
    "model.",
    "text.report",
    "text.cot",
    "optim.",
    "train.steps",
    "train.epochs",
    "train.batch",
    "train.ema",
    "train.patience",
)


def study_table(plan: Plan) -> ComparisonTable | None:
    """The comparison of the runs that are done, in sections by labelled share; None while there are none.

    Raises:
        CersError: runs that cannot be compared, e.g. scored on different masks.
    """
    titles = _titles(plan)
    sections: dict[str, dict[str, list[Path]]] = {}
    for (share, row), keys in plan.cells.items():
        if done := _done(plan, keys):
            sections.setdefault(titles[share], {})[row] = [plan.scores(run) for run in done]
    return compare_sections(sections, plan.study.reference) if sections else None


def _done(plan: Plan, keys: Collection[str]) -> list[PlannedRun]:
    """The runs that are trained and scored; of a seed all folds or none, since folds are compared together."""
    seeds: dict[int, list[PlannedRun]] = {}
    for run in plan.runs:
        if run.key in keys:
            seeds.setdefault(run.seed, []).append(run)
    return [run for folds in seeds.values() if all(map(plan.is_done, folds)) for run in folds]


def _titles(plan: Plan) -> dict[Share, str]:
    """The section of each share, with what it comes to in its first fold."""
    counts = {run.key: len(run.split.labelled) for run in plan.runs}
    return {share: section_title(share, counts[keys[0]]) for (share, _), keys in plan.cells.items()}


def section_title(share: Share, count: int) -> str:
    """A labelled share with what it comes to."""
    return share_name(share) if isinstance(share, int) else f"{share_name(share)} ({count})"


def published_rows(plan: Plan, table: ComparisonTable) -> Rows:
    """Head and a row for each published figure, ours beside it in per cent; empty without any, or on validation."""
    published = plan.study.published
    if published is None or plan.study.part != "test":
        return []
    head = ["labelled", "method", "ours Dice / IoU", *(f"published {name}" for name in published.datasets)]
    rows = [[*head, *published.extra]]
    ours = {(row.section, row.method): row for row in table.rows}
    titles = _titles(plan)
    # Figures are of shares; a count such as 1 must not be taken for the share 1, all of them.
    shares: dict[str, list[Share]] = {"any": list(titles)}
    shares |= {f"{share:g}": [share] for share in titles if isinstance(share, float)}
    for key, figures in published.figures.items():
        for name, by_dataset in figures.items():
            cells = [_pair(by_dataset.get(dataset)) for dataset in published.datasets]
            cells += [column.get(name, "–") for column in published.extra.values()]
            found = [
                (section, mine)
                for share in shares.get(key if key == "any" else f"{float(key):g}", [])
                if (mine := ours.get((section := titles[share], name))) is not None
            ]
            for section, mine in found:
                both = f"{number(100 * mine.dice.mean, 2)} / {number(100 * mine.by_metric['iou'].mean, 2)}"
                rows.append([section, name, both, *cells])
            if not found:
                rows.append([key if key == "any" else share_name(float(key)), name, "–", *cells])
    return rows


def protocol(plan: Plan) -> list[str]:
    """How our protocol departs from the published one, a line each."""
    published = plan.study.published
    if published is None:
        return []
    ours, paper = (c.flat() for c in (plan.runs[0].config, load_config("paper")))
    changed = [
        f"{key} {ours[key]} (paper: {paper[key]})"
        for key in ours
        if key.startswith(_PROTOCOL) and ours[key] != paper[key] and key not in _row_settings(plan)
    ]
    split = plan.runs[0].split
    lines = [f"Ours: {', '.join(changed)}."] if changed else []
    lines.append(
        f"Ours: split '{split.strategy}' with {len(split.order)} annotated training, {len(split.val)} validation and "
        f"{len(split.test)} test images (paper: 8:1:1 by image, whatever patient or near-duplicate they are of)."
    )
    return [*lines, *published.differences]


def write_tables(plan: Plan, table: ComparisonTable) -> list[Path]:
    """Write `table.csv`, `.md`, `.tex` and `.html` into the study's folder, and `curves.svg` of several shares."""
    title, beside = plan.study.title, published_rows(plan, table)
    text, tex = f"# {title}\n\n{to_markdown(table)}", to_latex(table, title)
    if beside and plan.study.published:
        head = f"Beside {plan.study.published.source} (Dice / IoU, %)"
        text += f"\n## {head}\n\n{markdown(beside)}" + "".join(f"\n- {line}" for line in protocol(plan)) + "\n"
        tex += "\n" + latex(beside, head, protocol(plan))
    files = {
        "table.csv": to_csv(table),
        "table.md": text,
        "table.tex": tex,
        "table.html": render_comparison(title, table, legend(table), beside, protocol(plan)),
    }
    if curves := render_curves(table):
        files["curves.svg"] = curves
    else:  # an earlier table had more shares
        (plan.out / "curves.svg").unlink(missing_ok=True)
    for name, content in files.items():
        write_atomic(plan.out / name, content)
    return [plan.out / name for name in files]


def _row_settings(plan: Plan) -> set[str]:
    return {key for row in plan.study.rows for key in row.settings}


def _pair(values: tuple[float, ...] | None) -> str:
    return "–" if values is None else " / ".join(f"{value:.2f}" for value in values)


def failures(plan: Plan, failed: dict[str, str]) -> Iterator[str]:
    """A line for each run that failed, with where its process spoke."""
    for run in plan.runs:
        if run.key in failed:
            yield f"{run.name}: {failed[run.key]} (log: {plan.log(run)})"
