"""Generated content of a report: a bright disc on noise, two branches, five references and five rejected candidates."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from cers.data.case import Case
from cers.data.prediction import CasePrediction
from cers.evaluate.retrieval import retrieval_quality
from cers.evaluate.table import build_rows, summarise
from cers.report.page import ReportData, ShownCase, ShownReference

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RATIONALE = "Texture: {0} homogeneous signal.\nBoundary: {0} sharp margin.\nContext: {0} near bone.\nSummary: {0} mass."


def disc(size: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def reference(name: str, image: float, text: float, attention: float | None = None) -> ShownReference:
    rng = np.random.default_rng(len(name))
    pixels = rng.integers(0, 255, (300, 300), dtype=np.uint8)
    rationale = RATIONALE.format(name.capitalize())
    return ShownReference(
        name, pixels, disc(300, 90, 90, 20), "glioma", f"report of {name}", rationale, image, text, attention
    )


def shown_case(name: str = "query", heading: str = "best") -> ShownCase:
    truth = disc(300, 150, 150, 40)
    ours, base = (disc(300, 150, 150 + d, 40).astype(np.float32) for d in (5, 20))
    return ShownCase(
        id=name,
        heading=heading,
        image=np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8),
        probability=ours,
        truth=truth,
        branches={"retrieval": ours, "base": base},
        without_evidence=base,
        metrics={"dice": 0.9123, "hd95": 5.0},
        label="glioma",
        report="One lesion.",
        rationale=RATIONALE.format("Query"),
        references=[reference(f"kept{i}", 0.9, 0.8 - i / 20, 0.2) for i in range(5)],
        rejected=[reference(f"dropped{i}", 0.95, 0.3) for i in range(5)],
        compared="rationale",
    )


def training_log() -> list[dict]:
    log: list[dict] = []
    for step in range(0, 1000, 10):
        stage = "warmup" if step < 300 else "semi"
        log.append({"kind": "step", "step": step, "stage": stage, "loss": 1 / (1 + step), "lr": 1e-3, "alignment": 0.5})
        if step % 100 == 90:
            dice = {"retrieval": step / 1000, "base": step / 2000}
            log.append({"kind": "validation", "step": step, "stage": stage, "dice": dice, "best": step < 700})
    return log


def summary() -> dict:
    scored = []
    for i in range(8):
        mask = disc(64, 30, 30, 10)
        ours = (disc(64, 30, 30 + i, 10) if i else np.zeros((64, 64))).astype(np.float32)
        branches = {"retrieval": ours, "base": ours / 3}
        label = "glioma" if i % 2 else "meningioma"
        case = Case(f"c{i}", Path(f"c{i}.png"), label=label)
        scored.append((case, CasePrediction(f"c{i}", ours, branches), mask))
    return summarise(build_rows(scored))


def retrieval() -> dict:
    """Every reference has the query's class, but for the control."""
    pool = {f"{label}{i}": Case(f"{label}{i}", Path(), label=label) for label in ("glioma", "none") for i in range(4)}
    queries = [Case(f"q{i}", Path(), label="glioma") for i in range(6)]
    found = {"image+cot": ["glioma0", "glioma1"], "random": ["none0", "none1"]}
    return {name: retrieval_quality(queries, {q.id: ids for q in queries}, pool) for name, ids in found.items()}


@pytest.fixture(scope="session")
def full() -> ReportData:
    cases = [shown_case(f"query{i}", heading) for i, heading in enumerate(["best", "median", "worst"] * 3)]
    return ReportData(
        title="A run",
        config={"seed": 3, "data": {"path": "phantom"}, "method": {"settings": {"retrieval": "image+cot", "k": 2}}},
        summary=summary() | {"retrieval": retrieval()},
        log=training_log(),
        provenance={"split hash": "abc123", "labelled": 1234, "weights": "none"},
        cases=cases,
    )


@pytest.fixture
def case() -> ShownCase:
    return shown_case()


@pytest.fixture
def supervised(case: ShownCase) -> ShownCase:
    """A method without evidence: one branch, no references."""
    branches = {"base": case.probability}
    return replace(case, branches=branches, without_evidence=None, references=(), rejected=())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine (looked for " + ", ".join(PROGRAMS) + ")")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
