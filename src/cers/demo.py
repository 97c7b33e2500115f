"""The whole way in minutes: phantoms, split, rationales, two methods trained and scored, comparison, report."""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cers import __version__
from cers.config import MaskReading, RunConfig, dump_config, load_config
from cers.cot.offline import annotate_offline
from cers.cot.rationale import parse_rationale
from cers.data.check import check_dataset
from cers.data.layouts import load_cases
from cers.data.phantom import write_phantoms
from cers.data.splits import load_split, make_split, save_split
from cers.errors import CersError
from cers.evaluate.compare import ComparisonTable, compare
from cers.evaluation import evaluate
from cers.files import write_atomic
from cers.reporting import report
from cers.run import resume, train

CASES, SIZE = 240, 96
LABELLED, TEST = 0.25, 0.2
METHODS = {"supervised": ["method.name=supervised", "method.settings={}"], "cers": []}
# All that a demo's folder holds; nothing else is ever deleted.
MARK = "demo.json"
PARTS = ("phantom", "cache", "supervised", "cers", "split.json", "rationales.csv", "settings.yaml", MARK)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Step:
    """One step: what it `shows`, the `command` that does it alone, and `run`, which says in one line what came out.

    A step whose result is there already only tells it again.
    """

    title: str
    shows: str
    command: str
    run: Callable[[Progress], str]


def demo(
    out: Path,
    *,
    cases: int = CASES,
    size: int = SIZE,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> list[Step]:
    """The steps of the demo in the folder `out`, to be run in order.

    An unfinished demo of the same arguments is gone on with; a finished or another one is begun anew.

    Raises:
        CersError: `out` holds other things and `overwrite` is not set, or an override is none.
    """
    config = load_config("demo", [*_paths(out), *overrides])
    _prepare(
        out, {"cers": __version__, "cases": cases, "size": size, "config": config.model_dump(mode="json")}, overwrite
    )
    write_atomic(out / "settings.yaml", dump_config(config))
    manifest, split, table = out / "phantom" / "manifest.csv", out / "split.json", out / "rationales.csv"
    return [
        Step(
            "Draw",
            "scans whose lesions only words tell from look-alikes",
            _command("data", "phantom", manifest.parent, "--cases", cases, "--size", size),
            lambda progress: _draw(out, cases, size, progress),
        ),
        Step(
            "Check",
            "what would go wrong with a dataset, before any training",
            _command("data", "check", manifest),
            lambda progress: _check(out, progress),
        ),
        Step(
            "Split",
            "no patient on two sides, and the masks of only a quarter of the training images in use",
            _command("data", "split", manifest, "--labelled", LABELLED, "--test", TEST, "--out", split),
            lambda _: _split(out),
        ),
        Step(
            "Describe",
            "a rationale for every image from measurements and report; masks are opened for labelled images only",
            _command("annotate", "offline", manifest, "--split", split, "--out", table),
            lambda progress: _describe(out, progress),
        ),
        *(step for name in METHODS for step in _train_and_score(out, name)),
        Step(
            "Compare",
            "both on the same test images, with intervals and a paired test",
            _command("compare", *(out / name for name in METHODS)),
            lambda _: _difference(comparison(out)),
        ),
        Step(
            "Report",
            "why it outlined what it did: the cases it looked up, side by side",
            _command("report", out / "cers"),
            lambda _: f"open {report(out / 'cers')} in a browser",
        ),
    ]


def comparison(out: Path) -> ComparisonTable:
    """The two scored runs of a demo side by side."""
    return compare({name: [out / name] for name in METHODS}, next(iter(METHODS)))


def _command(*arguments: object) -> str:
    return shlex.join(["cers", *map(str, arguments)])


def _prepare(out: Path, arguments: Mapping[str, Any], overwrite: bool) -> None:
    """An empty or resumable folder, marked as a demo's."""
    mark, wanted = out / MARK, json.dumps(arguments, indent=1)
    if out.exists() and not (out.is_dir() and (mark.exists() or overwrite or not any(out.iterdir()))):
        raise CersError(f"{out} holds other things than a demo; choose another --out, or pass --overwrite")
    same = mark.is_file() and mark.read_text(encoding="utf-8") == wanted
    if not same or (out / "cers" / "report.html").exists():
        for part in PARTS:
            path = out / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_atomic(mark, wanted)


def _paths(out: Path) -> list[str]:
    paths = {"path": out / "phantom" / "manifest.csv", "split": out / "split.json", "cache": out / "cache"}
    paths["rationales"] = out / "rationales.csv"
    return [f"data.{name}={json.dumps(str(path))}" for name, path in paths.items()]


def _draw(out: Path, cases: int, size: int, progress: Progress) -> str:
    if not (out / "phantom").is_dir():
        write_phantoms(out / "phantom", n=cases, size=size, progress=progress)
    return f"{cases} images of {size} x {size} pixels, with masks and reports"


def _check(out: Path, progress: Progress) -> str:
    found = check_dataset(out / "phantom" / "manifest.csv", parse_rationale=parse_rationale, progress=progress)
    counts = {name: found.counts[name] for name in ("images", "patients", "classes")}
    warnings = sum(problem.level == "warning" for problem in found.problems)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{said}; {found.errors} errors, {warnings} warnings"


def _split(out: Path) -> str:
    if not (out / "split.json").is_file():
        cases = load_cases(out / "phantom" / "manifest.csv")
        save_split(make_split(cases, labelled=LABELLED, test=TEST), out / "split.json")
    split = load_split(out / "split.json")
    parts = {"labelled": split.labelled, "unlabelled": split.unlabelled, "validation": split.val, "test": split.test}
    return ", ".join(f"{len(ids)} {name}" for name, ids in parts.items())


def _describe(out: Path, progress: Progress) -> str:
    cases = load_cases(out / "phantom" / "manifest.csv")
    labelled = load_split(out / "split.json").labelled
    table = out / "rationales.csv"
    done = annotate_offline(cases, labelled, table, mask_reading=MaskReading(), progress=progress)
    return f"{done.written + done.kept} rationales for {len(cases)} images, {len(done.problems)} problems"


def _train_and_score(out: Path, name: str) -> list[Step]:
    shows = {
        "supervised": "what the labelled images alone teach",
        "cers": "what unlabelled images, words and looked-up cases add to the same labelled images",
    }
    overrides = METHODS[name]
    return [
        Step(
            f"Train {name}",
            shows[name],
            _command("train", "--preset", out / "settings.yaml", "--out", out / name, *overrides),
            lambda progress: _train(out, name, load_config(out / "settings.yaml", overrides), progress),
        ),
        Step(
            f"Score {name}",
            "the outlines of the test images, case by case",
            _command("eval", out / name),
            lambda progress: _score(out / name, progress),
        ),
    ]


def _train(out: Path, name: str, config: RunConfig, progress: Progress) -> str:
    folder = out / name

    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            progress(row["step"], row["steps"])

    if not (folder / "run.json").is_file():
        if (folder / "config.yaml").is_file():
            resume(folder, on_row=on_row)
        else:
            train(config, folder, overwrite=True, on_row=on_row)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return f"{facts['steps']} steps in {facts['seconds']:.0f} s"


def _score(folder: Path, progress: Progress) -> str:
    file = folder / "eval" / "summary.json"
    if not file.is_file():
        evaluate(folder, on_case=progress)
    overall = json.loads(file.read_text(encoding="utf-8"))["branches"]["declared"]["all"]
    dice = overall["metrics"]["dice"]
    return f"Dice {dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) over {overall['n']} images"


def _difference(table: ComparisonTable) -> str:
    line = next(line for line in table.lines if line.metric == "dice" and line.method != table.reference)
    return f"Dice of {line.method} less that of {table.reference}: {line.difference:+.3f}, p = {line.p:.3f}"
