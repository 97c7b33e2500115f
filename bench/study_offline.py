"""Run any study on a machine without network, in calls of a few minutes that resume.

    python bench/study_offline.py pack table1 BUNDLE data.path=… data.split=… --preset screen --wheels wheels/
    python BUNDLE/study_offline.py run BUNDLE RESULTS.tar.gz --minutes 9 --jobs 4     # there, as often as needed
    python bench/study_offline.py unpack RESULTS.tar.gz runs/table1                    # here again
    cers study table1 --preset screen data.path=… data.split=… --out runs/table1       # finds each run, and tabulates

BUNDLE (at most 60 MiB) holds this package's source, the study, its split, the cases of the split with their texts, and
wheels of packages that the other machine lacks. Images travel as they are; `--side 128` shrinks those and the masks
as the run itself would (what is trained stays the same, but scores are at that size: do not mix them with others).
RESULTS holds what a table is made of: settings, split, log, costs and scores by case, no weights and no masks; a later
`run` takes finished runs from it. Where the machine was not lost, unfinished runs go on from checkpoints in --work.
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

LIMIT = 60 * 2**20
RESULT_FILES = ("config.yaml", "split.json", "run.json", "log.jsonl", "eval/cases.csv", "eval/summary.json")
SAFETY = 60.0  # seconds of a call for unpacking, starting and packing


def pack(
    source: str, bundle: Path, overrides: Sequence[str], preset: str | None, side: int | None, wheels: Path | None
) -> None:
    """Write the bundle of a study."""
    from cers.config import RunConfig
    from cers.data.case import Case
    from cers.data.splits import load_split
    from cers.errors import CersError
    from cers.files import write_atomic
    from cers.material import load_dataset
    from cers.study.definition import dump_study, load_study

    study = load_study(source).restricted(preset)
    config: RunConfig = study.config(study.rows[0], study.labelled[0], study.seeds[0], overrides)
    if config.data.split is None or config.data.negatives:
        raise CersError("set data.split (`cers data split`), without data.negatives: a bundle carries a split's cases")
    cases = load_dataset(config)
    split = load_split(config.data.split, cases)
    wanted = {*split.labelled, *split.unlabelled, *split.val, *split.test, *split.left_out}
    if bundle.exists():
        shutil.rmtree(bundle)
    carried: list[Case] = [case for case in cases if case.id in wanted]
    write_atomic(bundle / "data" / "manifest.csv", _manifest(carried, bundle / "data", side, config))
    shutil.copy(config.data.split, bundle / "split.json")
    kept = [o for o in overrides if not o.startswith(("data.path=", "data.split=", "data.layout=", "data.cache="))]
    if config.data.rationales is not None:
        shutil.copy(config.data.rationales, bundle / "rationales.csv")
        kept = [o for o in kept if not o.startswith("data.rationales=")] + ["data.rationales=BUNDLE/rationales.csv"]
    if Path(study.preset).is_file():
        shutil.copy(study.preset, bundle / "preset.yaml")
        study = study.restricted("BUNDLE/preset.yaml")
    write_atomic(bundle / "study.yaml", dump_study(study))
    write_atomic(bundle / "overrides.txt", "\n".join(kept))
    import cers

    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(cers.__file__).parent, bundle / "src" / "cers", ignore=ignored)
    shutil.copy(__file__, bundle / "study_offline.py")
    if wheels is not None:
        shutil.copytree(wheels, bundle / "wheels", ignore=lambda _, names: [n for n in names if not n.endswith(".whl")])
    _require_same(bundle, carried)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    said = f"{bundle}: {len(carried)} cases, {size / 2**20:.1f} MiB"
    if size > LIMIT:
        raise CersError(
            f"{said}, more than {LIMIT >> 20} MiB; pass --side {config.data.image_size}, or a smaller split"
        )
    sys.stdout.write(f"{said}\n")


def run(bundle: Path, results: Path, work: Path, minutes: float, jobs: int, threads: int, dry: bool) -> int:
    """Go on with a bundle's study for `minutes`; `results` is read if it is there, and written again."""
    site = work / "site"
    packages = sorted((bundle / "wheels").glob("*.whl")) if (bundle / "wheels").is_dir() else []
    if packages and not site.is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*install, *map(str, packages)], check=True)
    out = work / "study"
    if results.is_file():
        unpack(results, out)
    paths = [str(bundle / "src"), str(site), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": str(threads)}
    text = (bundle / "study.yaml").read_text(encoding="utf-8")
    (work / "study.yaml").write_text(text.replace("BUNDLE/", f"{bundle}/"), encoding="utf-8")
    kept = (bundle / "overrides.txt").read_text(encoding="utf-8").replace("BUNDLE/", f"{bundle}/").splitlines()
    places = {"path": bundle / "data" / "manifest.csv", "split": bundle / "split.json", "cache": work / "cache"}
    settings = [*kept, *(f"data.{name}={json.dumps(str(path))}" for name, path in places.items())]
    left = max(0.2, minutes - SAFETY / 60)
    options = ["--out", str(out), "--jobs", str(jobs), "--threads", str(threads), "--minutes", f"{left:.2f}"]
    program = "from cers.cli.main import main; main()"
    arguments = [str(work / "study.yaml"), *settings, *options, *(["--dry-run"] if dry else [])]
    done = subprocess.run([sys.executable, "-c", program, "study", *arguments], env=environment, check=False)
    _gather(out, results)
    return done.returncode


def unpack(results: Path, out: Path) -> None:
    """Put the runs of `results` into a study's folder, but none over a run that is there."""
    with tarfile.open(results) as archive:
        for member in archive.getmembers():
            target = out / "runs" / member.name
            if member.isfile() and not (target.parent / "checkpoints").exists() and not target.exists():
                archive.extract(member, out / "runs", filter="data")


def _gather(out: Path, results: Path) -> None:
    """Write the result files of every finished run, and the tables."""
    results.parent.mkdir(parents=True, exist_ok=True)
    temporary = results.with_suffix(".tmp")
    with tarfile.open(temporary, "w:gz") as archive:
        for summary in sorted((out / "runs").glob("*/eval/summary.json")):
            folder = summary.parents[1]
            if (folder / "run.json").is_file():
                for name in RESULT_FILES:
                    archive.add(folder / name, f"{folder.name}/{name}")
    temporary.replace(results)
    for table in out.glob("table.*"):
        shutil.copy(table, results.parent / f"{results.name.split('.')[0]}-{table.name}")


def _manifest(cases: Iterable, folder: Path, side: int | None, config) -> str:
    """Copy the images and masks of `cases`, and return the table of them."""
    text = io.StringIO()
    columns = ["image", "mask", "report", "cot", "mask_cot", "group", "label"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for case in cases:
        image, mask = _copied(case, folder, side, config)
        texts = {"report": case.report, "cot": case.rationale, "mask_cot": case.mask_rationale}
        writer.writerow({"image": image, "mask": mask, **texts, "group": case.group, "label": case.label})
    return text.getvalue()


def _copied(case, folder: Path, side: int | None, config) -> tuple[str, str | None]:
    import cv2

    from cers.data.cache import resize_image, resize_mask
    from cers.data.images import read_image, read_mask

    names = [f"images/{case.image.name}", None if case.mask is None else f"masks/{case.mask.name}"]
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if side is None:
        shutil.copy(case.image, folder / names[0])
        if case.mask is not None:
            shutil.copy(case.mask, folder / names[1])
        return names[0], names[1]
    names = [name and str(Path(name).with_suffix(".png")) for name in names]
    image = resize_image(read_image(case.image), side)
    cv2.imwrite(str(folder / names[0]), image if image.ndim == 2 else image[..., ::-1])
    if case.mask is not None:
        values = config.data.mask.foreground
        mask = resize_mask(read_mask(case.mask, config.data.mask), side) * (values[0] if values else 255)
        cv2.imwrite(str(folder / names[1]), mask)
    return names[0], names[1]


def _require_same(bundle: Path, cases: Sequence) -> None:
    """The bundle must be read as the same cases, or its runs would not be those of the study."""
    from cers.data.layouts import load_cases
    from cers.errors import CersError

    def known(case) -> tuple:
        return case.id, case.report, case.rationale, case.mask_rationale, case.group, case.label, case.annotated

    found = {case.id: known(case) for case in load_cases(bundle / "data" / "manifest.csv")}
    wrong = [case.id for case in cases if found.get(case.id) != known(case)]
    if wrong or len(found) != len(cases):
        raise CersError(f"{len(wrong)} cases do not survive the way through a manifest, e.g. '{(wrong or ['?'])[0]}'")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("study")
    packing.add_argument("bundle", type=Path)
    packing.add_argument("overrides", nargs="*")
    packing.add_argument("--preset")
    packing.add_argument("--side", type=int)
    packing.add_argument("--wheels", type=Path)
    running = verbs.add_parser("run")
    running.add_argument("bundle", type=Path)
    running.add_argument("results", type=Path)
    running.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "cers-study")
    running.add_argument("--minutes", type=float, default=9.0)
    running.add_argument("--jobs", type=int, default=1)
    running.add_argument("--threads", type=int, default=1)
    running.add_argument("--dry-run", action="store_true")
    unpacking = verbs.add_parser("unpack")
    unpacking.add_argument("results", type=Path)
    unpacking.add_argument("out", type=Path)
    return _do(parser.parse_args())


def _do(given: argparse.Namespace) -> int:
    if given.verb == "pack":
        from cers.errors import CersError

        try:
            pack(given.study, given.bundle, given.overrides, given.preset, given.side, given.wheels)
        except CersError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
    elif given.verb == "unpack":
        unpack(given.results, given.out)
    else:
        given.work.mkdir(parents=True, exist_ok=True)
        options = (given.work.resolve(), given.minutes, given.jobs, given.threads, given.dry_run)
        return run(given.bundle.resolve(), given.results.resolve(), *options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
