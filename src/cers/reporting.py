"""The report of a run: what it learned, how well, and for chosen cases why."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cers.cot.rationale import MalformedRationale, parse_rationale
from cers.data.case import Case
from cers.data.images import read_image
from cers.data.prediction import CasePrediction, Reference
from cers.engine.log import read_log
from cers.errors import CersError, nearest
from cers.evaluate.scored import outdated
from cers.evaluate.table import CaseRow, declared_rows, read_cases_csv
from cers.evaluation import evaluation_folder, truth_of
from cers.files import AnyPath, write_atomic
from cers.predict.pools import load_pool
from cers.predict.predictor import Predictor
from cers.report.content import ReportData, ShownCase, ShownReference
from cers.report.page import render_report
from cers.report.select import pick_cases
from cers.retrieval.pool import KnowledgePool
from cers.run import Run, load_run

REJECTED_SHOWN = 5


def report(
    folder: AnyPath,
    overrides: Sequence[str] = (),
    *,
    pool: AnyPath | None = None,
    chosen: Sequence[str] = (),
    n_each: int = 3,
    out: AnyPath | None = None,
) -> Path:
    """Write `report.html` of an evaluated run: curves, metrics, and best, median and worst cases with their evidence.

    The cases `chosen` by id come first. With `pool`, `report-<pool>.html` of its evaluation with that pool.
    `overrides` say where the run's data are now, e.g. `data.path=…`.

    Raises:
        CersError: the run is not there or not evaluated yet, a chosen case was not scored, its data are not there, or
            they lack cases of `pool`; `out` is not named like a page.
    """
    folder = Path(folder)
    pool, out = (None if path is None else Path(path) for path in (pool, out))
    if out is not None:
        _require_page(out)
    run = load_run(folder, overrides)
    scores = evaluation_folder(folder, pool=pool)
    summary = _summary(scores, f"cers eval {folder}" + ("" if pool is None else f" --pool {pool}"))
    rows = read_cases_csv(scores / "cases.csv")
    known = run.cases()
    references = None if pool is None else _shown_pool(run, pool, known)
    data = ReportData(
        title=f"{run.config.method.name} · {folder.name}" + ("" if pool is None else f" · pool {pool.name}"),
        config=run.config.model_dump(mode="json"),
        summary=summary,
        log=read_log(folder / "log.jsonl"),
        provenance=_provenance(run),
        cases=_shown_cases(run, known, _picked(rows, chosen, n_each), rows, references),
    )
    path = out or folder / ("report.html" if pool is None else f"report-{pool.name}.html")
    write_atomic(path, render_report(data))
    return path


def _require_page(path: Path) -> None:
    """An earlier report is replaced, but nothing that is none."""
    if path.suffix.lower() not in (".html", ".htm"):
        page = path / "report.html" if path.is_dir() else path.with_name(f"{path.stem}.html")
        raise CersError(f"a report is an HTML page, which {path} does not name; did you mean --out {page}?")


def _picked(rows: Sequence[CaseRow], chosen: Sequence[str], n_each: int) -> list[tuple[str, str]]:
    scored = {row.id for row in rows}
    for id_ in chosen:
        if id_ not in scored:
            raise CersError(f"'{id_}' is none of the {len(scored)} scored cases; {nearest(id_, scored)}")
    found = dict.fromkeys(chosen, "chosen")
    return list((found | {id_: why for id_, why in pick_cases(rows, n_each) if id_ not in found}).items())


def _shown_pool(run: Run, folder: Path, known: Mapping[str, Case]) -> KnowledgePool:
    pool = load_pool(run, folder)
    if strangers := sorted(set(pool.ids) - known.keys()):
        raise CersError(
            f"{folder} has {len(strangers)} cases that the run's data do not, e.g. '{strangers[0]}': "
            "they cannot be shown; report a pool made by `cers pool build --split`"
        )
    return pool


def _summary(scores: Path, command: str) -> dict[str, Any]:
    path = scores / "summary.json"
    if not path.is_file():
        raise CersError(f"{scores.parent} is not evaluated yet; run `{command}` first")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CersError(f"{path} is damaged; run `{command}` again") from None
    if said := outdated(scores):
        raise CersError(said)
    return summary


def _provenance(run: Run) -> dict[str, Any]:
    facts = run.facts
    names = {
        "method": "Method",
        "encoder": "Encoder",
        "encoder_weights": "Encoder weights",
        "report_encoder": "Report encoder",
        "cot_encoder": "Rationale encoder",
        "labelled": "Labelled cases",
        "unlabelled": "Unlabelled cases",
        "validation": "Validation cases",
        "test": "Test cases",
        "split": "Split hash",
        "seed": "Seed",
        "cers": "cers version",
        "torch": "torch version",
    }
    shown = {title: facts[name] for name, title in names.items() if facts.get(name) not in (None, "")}
    costs = run.costs()
    took = {"Training time (s)": round(costs["wall_seconds"], 1)} if "wall_seconds" in costs else {}
    return {**shown, "Best step": facts["state"]["best_step"], **took}


def _shown_cases(
    run: Run,
    known: Mapping[str, Case],
    picked: Sequence[tuple[str, str]],
    rows: Sequence[CaseRow],
    pool: KnowledgePool | None,
) -> list[ShownCase]:
    cases = [known[id_] for id_, _ in picked]
    metrics = {row.id: row.metrics for row in declared_rows(rows)}
    predictions = Predictor(run, cases, pool=pool).predict(compare_without_evidence=True)
    return [
        _shown_case(run, known, case, heading, prediction, vars(metrics[case.id]))
        for (_, heading), case, prediction in zip(picked, cases, predictions, strict=True)
    ]


def _shown_case(
    run: Run,
    known: Mapping[str, Case],
    case: Case,
    heading: str,
    prediction: CasePrediction,
    metrics: Mapping[str, float],
) -> ShownCase:
    return ShownCase(
        id=case.id,
        heading=heading,
        image=read_image(case.image),
        truth=truth_of(case, run, prediction.probability.shape),
        probability=prediction.probability,
        branches=prediction.branches,
        without_evidence=prediction.without_evidence,
        metrics=metrics,
        label=case.label,
        report=case.report,
        rationale=case.rationale,
        references=[_shown_reference(run, known, r) for r in prediction.references],
        rejected=[_shown_reference(run, known, r) for r in prediction.rejected[:REJECTED_SHOWN]],
        compared=prediction.compared,
        at_least=prediction.at_least,
    )


def _shown_reference(run: Run, known: Mapping[str, Case], reference: Reference) -> ShownReference:
    case = known[reference.id]
    image = read_image(case.image)
    return ShownReference(
        id=case.id,
        image=image,
        mask=truth_of(case, run, image.shape[:2]),
        label=case.label,
        report=case.report,
        rationale=_entry_rationale(case),
        image_similarity=reference.image_similarity,
        text_similarity=reference.text_similarity,
        attention=reference.attention,
    )


def _entry_rationale(case: Case) -> str | None:
    """What the pool knows a case by: its mask-informed rationale, or the other where only that is well-formed."""
    for text in filter(None, (case.mask_rationale, case.rationale)):
        with suppress(MalformedRationale):
            parse_rationale(text)
            return text
    return case.mask_rationale or case.rationale
