"""Run any study on a machine without network, in calls of a few minutes that resume.

    python bench/study_offline.py pack table1 BUNDLE data.path=… data.split=… --preset screen --wheels wheels/
    python BUNDLE/study_offline.py run BUNDLE RESULTS.tar.gz --minutes 9 --jobs 4     # there, as often as needed
    python bench/study_offline.py unpack RESULTS.tar.gz runs/table1                    # here again
    cers study table1 --preset screen data.path=… data.split=… --out runs/table1       # finds each run, and tabulates
    python bench/study_offline.py gather runs/table1 RESULTS.tar.gz                    # of what ran here, to share

BUNDLE (at most 60 MiB) holds this package's source, the study, its split, the cases of the split with their texts,
files that settings name (rationales, weights, text encoders), and wheels of packages that the other machine lacks.
Images travel as they are; `--side 128` shrinks those that are not scored, and their masks, as the run itself would, so
that what is trained and how it is scored stay the same. `--labelled`, `--seeds`, `--rows` and `--part` are as
for `cers study`.

RESULTS (.tar.gz or .tar.xz) holds what a table is made of: settings, split, log, costs and scores by case, no weights,
no masks. It is written anew whenever a run has finished, so that a killed call loses none; a later `run` takes finished
runs from it. Where the machine was not lost, unfinished runs go on from checkpoints in --work.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

LIMIT = 60 * 2**20
RUN_FILES = ("config.yaml", "split.json", "run.json", "log.jsonl")
SCORES = ("cases.csv", "summary.json")
PLACES = ("data.path", "data.split", "data.layout", "data.cache")
HERE = "BUNDLE/"  # stands in the bundle's settings for wherever it will lie
SAFETY = 60.0  # seconds of a call for saving, the table and packing
GATHER = 1.0  # seconds between looks for finished runs


def pack(given: argparse.Namespace) -> None:
    """Write the bundle of a study."""
    from cers.cli.study import chosen_study
    from cers.errors import CersError
    from cers.files import write_atomic

    study = chosen_study(given.study, given.preset, given.labelled, given.seeds, given.rows, given.part)
    bundle, config = given.bundle, _common_config(study, given.overrides, given.side)
    _clear(bundle)
    overrides = [o for o in given.overrides if o.partition("=")[0] not in PLACES]
    study, overrides = _with_files(study, given.overrides, overrides, bundle)
    shutil.copy(config.data.split, bundle / "split.json")
    carried = _carry_cases(config, bundle, given.side, study.part)
    write_atomic(bundle / "study.yaml", _dumped(study, bundle))
    write_atomic(bundle / "overrides.json", json.dumps(overrides, indent=1))
    _carry_code(bundle, given.wheels)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    said = f"{bundle}: {carried} cases, {size / 2**20:.1f} MiB"
    if size > LIMIT:
        hint = "a smaller split" if given.side else f"--side {config.data.image_size}, or a smaller split"
        raise CersError(f"{said}, more than {LIMIT >> 20} MiB; take {hint}")
    sys.stdout.write(f"{said}\n")


def _common_config(study, overrides: Sequence[str], side: int | None):
    """The configuration of the first run; all rows must be of the data that it names."""
    from cers.errors import CersError

    if study.folds:
        raise CersError("a bundle carries one split: pack every fold apart, as a study without folds")
    configs = [study.config(row, study.labelled[0], study.seeds[0], overrides) for row in study.rows]
    first = configs[0].data
    for row, config in zip(study.rows, configs, strict=True):
        for name in ("path", "split", "layout", "negatives", "group_pattern", "mask"):
            if getattr(config.data, name) != getattr(first, name):
                raise CersError(
                    f"row '{row.name}' has another data.{name}; a bundle carries one dataset: pack it apart"
                )
        if side not in (None, size := config.data.image_size):
            raise CersError(f"--side {side} would change what is trained: row '{row.name}' has data.image_size={size}")
    if first.split is None or first.negatives:
        raise CersError("set data.split (`cers data split`), without data.negatives: a bundle carries a split's cases")
    return configs[0]


def _clear(bundle: Path) -> None:
    """Make room for the bundle, but delete nothing that is not one."""
    from cers.errors import CersError

    if bundle.exists() and not (bundle / "study_offline.py").is_file() and (bundle.is_file() or any(bundle.iterdir())):
        raise CersError(f"{bundle} is there and is no bundle; name a new folder")
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)


def _with_files(study, overrides: Sequence[str], kept: Sequence[str], bundle: Path):
    """Put every file that settings name into the bundle; the study and the overrides that name them there."""
    from cers.study.plan import FILES, named_file

    carried, rows = set(), []
    for row in study.rows:
        values = study.config(row, study.labelled[0], study.seeds[0], overrides).flat()
        own = dict(row.settings)
        for key in FILES:
            if (path := named_file(values[key])) is not None:
                own[key] = HERE + _carried(path, bundle)
                carried.add(key)
        rows.append(row.model_copy(update={"settings": own}))
    overrides = [o for o in kept if o.partition("=")[0] not in carried]
    return study.model_copy(update={"rows": tuple(rows)}), overrides


def _carried(path: Path, bundle: Path) -> str:
    """Copy a file or a folder into the bundle, once, and return its name there."""
    name = f"files/{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}-{path.name}"
    if not (bundle / name).exists():
        (bundle / "files").mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, bundle / name)
    return name


def _dumped(study, bundle: Path) -> str:
    from cers.study.definition import dump_study

    if Path(study.preset).is_file():
        shutil.copy(study.preset, bundle / "preset.yaml")
        study = study.model_copy(update={"preset": f"{HERE}preset.yaml"})
    return dump_study(study)


def _carry_cases(config, bundle: Path, side: int | None, part: str) -> int:
    """Copy the cases of the split, and prove that the bundle is read as the same cases."""
    from cers.data.splits import load_split
    from cers.errors import CersError
    from cers.files import write_atomic
    from cers.material import load_dataset

    # A row's rationales travel as files; the manifest holds those of the dataset, for rows without.
    bare = config.model_copy(update={"data": config.data.model_copy(update={"rationales": None})})
    cases = load_dataset(bare)
    split = load_split(config.data.split, cases)
    wanted = {*split.labelled, *split.unlabelled, *split.val, *split.test, *split.left_out}
    carried = [case for case in cases if case.id in wanted]
    sides = {case.id: None if case.id in split.parts[part] else side for case in carried}
    write_atomic(bundle / "data" / "manifest.csv", _manifest(carried, bundle / "data", sides, config))

    def known(case) -> tuple:
        return case.id, case.report, case.rationale, case.mask_rationale, case.group, case.label, case.annotated

    there = bare.data.model_copy(update={"path": bundle / "data" / "manifest.csv", "layout": "manifest"})
    found = {case.id: known(case) for case in load_dataset(bare.model_copy(update={"data": there}))}
    wrong = [case.id for case in carried if found.get(case.id) != known(case)]
    if wrong or len(found) != len(carried):
        raise CersError(f"{len(wrong)} cases do not survive the way through a manifest, e.g. '{(wrong or ['?'])[0]}'")
    return len(carried)


def _manifest(cases: Sequence, folder: Path, sides: Mapping[str, int | None], config) -> str:
    """Copy the images and masks of `cases`, shrunk where they have a side, and return the table of them."""
    text = io.StringIO()
    columns = ["image", "mask", "report", "cot", "mask_cot", "group", "label"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in cases:
        image, mask = _copied(case, folder, sides[case.id], config)
        texts = {"report": case.report, "cot": case.rationale, "mask_cot": case.mask_rationale}
        writer.writerow({"image": image, "mask": mask, **texts, "group": case.group, "label": case.label})
    return text.getvalue()


def _copied(case, folder: Path, side: int | None, config) -> tuple[str, str | None]:
    """Image and mask under the case's id, whatever the names of their layout: two folders may use one name."""
    import cv2

    from cers.data.cache import resize_image, resize_mask
    from cers.data.images import read_image, read_mask

    def name(part: str, path: Path) -> str:
        return f"{part}/{case.id}{path.suffix if side is None else '.png'}"

    image, mask = name("images", case.image), None if case.mask is None else name("masks", case.mask)
    if side is None:
        shutil.copy(case.image, folder / image)
        if mask is not None:
            shutil.copy(case.mask, folder / mask)
        return image, mask
    pixels = resize_image(read_image(case.image), side)
    cv2.imwrite(str(folder / image), pixels if pixels.ndim == 2 else pixels[..., ::-1])
    if mask is not None:
        values = config.data.mask.foreground
        lesion = resize_mask(read_mask(case.mask, config.data.mask), side) * (values[0] if values else 255)
        cv2.imwrite(str(folder / mask), lesion)
    return image, mask


def _carry_code(bundle: Path, wheels: Path | None) -> None:
    import cers

    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(cers.__file__).parent, bundle / "src" / "cers", ignore=ignored)
    if wheels is not None:
        shutil.copytree(wheels, bundle / "wheels", ignore=lambda _, names: [n for n in names if not n.endswith(".whl")])
    shutil.copy(__file__, bundle / "study_offline.py")


def run(given: argparse.Namespace) -> int:
    """Go on with a bundle's study for some minutes; RESULTS is read if it is there, and kept up to date."""
    began = time.monotonic()
    bundle, results = given.bundle.resolve(), given.results.resolve()
    if not (bundle / "study.yaml").is_file():
        raise SystemExit(f"error: {bundle} is no bundle; make one with `python study_offline.py pack`")
    work = (given.work or Path(tempfile.gettempdir()) / "cers-study" / bundle.name).resolve()
    work.mkdir(parents=True, exist_ok=True)
    sys.path[:0] = [str(bundle / "src"), *_installed(bundle, work)]
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    # A queue's end of time is a Ctrl-C: the runs under way save themselves.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = work / "study"
    if results.is_file():
        unpack(results, out)
    from cers.cli.main import main as cers
    from cers.study import runner  # noqa: F401  slow to import, and not to count as time that is left

    left = max(0.1, given.minutes - (SAFETY + time.monotonic() - began) / 60)
    options = ["--out", str(out), "--jobs", str(given.jobs), "--threads", str(given.threads)]
    options += ["--dry-run"] if given.dry_run else ["--minutes", f"{left:.2f}"]
    sys.argv = ["cers", "study", *_arguments(bundle, work), *options]
    try:
        with _gathering(out, results):
            cers()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _installed(bundle: Path, work: Path) -> list[str]:
    """The folder in which the bundle's wheels are installed; none without wheels."""
    wheels = sorted((bundle / "wheels").glob("*.whl"))
    if not wheels:
        return []
    site = work / f"site-{hashlib.sha256(' '.join(w.name for w in wheels).encode()).hexdigest()[:8]}"
    if not site.is_dir():
        with tempfile.TemporaryDirectory(dir=work) as folder:  # a killed installation is no installation
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
            subprocess.run([*pip, f"{folder}/site", *map(str, wheels)], check=True)
            Path(folder, "site").rename(site)
    return [str(site)]


def _arguments(bundle: Path, work: Path) -> list[str]:
    """The study, as a file that names things where they lie now, and its settings."""

    def placed(name: str) -> str:
        return (bundle / name).read_text(encoding="utf-8").replace(HERE, f"{bundle}/")

    (work / "study.yaml").write_text(placed("study.yaml"), encoding="utf-8")
    places = {"path": bundle / "data" / "manifest.csv", "split": bundle / "split.json", "cache": work / "cache"}
    settings = [f"data.{name}={json.dumps(str(path))}" for name, path in places.items()]
    return [str(work / "study.yaml"), *json.loads(placed("overrides.json")), *settings, "data.layout=manifest"]


@contextlib.contextmanager
def _gathering(out: Path, results: Path) -> Iterator[None]:
    """Keep `results` up to date within the block, and at its end however it ends."""
    over = threading.Event()
    known = set(_scored(out))

    def watch() -> None:
        while not over.wait(GATHER):
            if (now := set(_scored(out))) != known:
                known.update(now)
                _gather(out, results)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        _gather(out, results)
        for table in out.glob("table.*"):
            shutil.copy(table, results.parent / f"{results.name.split('.')[0]}-{table.name}")


def _gather(out: Path, results: Path) -> None:
    """Write the result files of every finished run."""
    results.parent.mkdir(parents=True, exist_ok=True)
    temporary = results.with_name(f".{results.name}.tmp")
    with tarfile.open(temporary, "w:xz" if results.suffix == ".xz" else "w:gz") as archive:
        for folder in _finished(out):
            scores = [path.parent for path in folder.glob("eval*/summary.json")]
            for file in (*(folder / name for name in RUN_FILES), *(s / name for s in scores for name in SCORES)):
                archive.add(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    temporary.replace(results)


def gather(out: Path, results: Path) -> int:
    """Write the result files of a study that ran here; how many runs they are of."""
    finished = len(_finished(out))
    if not finished:
        raise SystemExit(f"error: {out} holds no finished run of a study")
    try:
        _gather(out, results)
    except OSError as error:
        raise SystemExit(f"error: cannot write {results}: {error.strerror}") from None
    return finished


def unpack(results: Path, out: Path) -> tuple[int, list[Path]]:
    """Put the runs of `results` into a study's folder: how many, and those begun here that were let be.

    A run is known by the hash at the end of its name, whatever its row is called here, and comes whole or not at all.
    """
    runs, count, begun = out / "runs", 0, []
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        try:
            with tarfile.open(results) as archive:
                _extract(archive, Path(folder))
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise SystemExit(f"error: {results} cannot be unpacked: {' '.join(str(error).split())}") from None
        done = {_key(run) for run in _finished(out)}
        here = {_key(run): run for run in runs.iterdir()}
        for run in Path(folder).iterdir():
            if _key(run) not in here:
                run.rename(runs / run.name)
                count += 1
            elif _key(run) not in done:
                begun.append(here[_key(run)])
            else:
                _add_scores(run, here[_key(run)])
    return count, begun


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Plain files below `folder`, all that RESULTS holds; Python before 3.11.4 has no filter that sees to it."""
    for member in archive:
        place = (folder / member.name).resolve()
        source = archive.extractfile(member) if member.isfile() else None
        if source is None or not place.is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"'{member.name}' is no file of a run")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read())


def _add_scores(run: Path, there: Path) -> None:
    """Move scores on another part of the split to the same training, which has none of that part yet."""
    if (run / "run.json").read_bytes() == (there / "run.json").read_bytes():
        for scores in run.glob("eval*"):
            if not (there / scores.name).exists():
                scores.rename(there / scores.name)


def _finished(out: Path) -> list[Path]:
    return sorted({scores.parent for scores in _scored(out) if (scores.parent / "run.json").is_file()})


def _scored(out: Path) -> list[Path]:
    """Evaluations that are whole: the summary is written last."""
    return [path.parent for path in (out / "runs").glob("*/eval*/summary.json")]


def _key(run: Path) -> str:
    return run.name.rpartition("-")[2]


def _told(results: Path, out: Path) -> None:
    count, begun = unpack(results, out)
    sys.stdout.write(f"{count} runs put into {out / 'runs'}\n")
    for run in begun:
        sys.stdout.write(f"{run} was begun here and is let be; delete it and unpack again to have the finished one\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("study")
    packing.add_argument("bundle", type=Path)
    packing.add_argument("overrides", nargs="*")
    for option in ("--preset", "--labelled", "--seeds", "--rows", "--part"):
        packing.add_argument(option)
    packing.add_argument("--side", type=int)
    packing.add_argument("--wheels", type=Path)
    running = verbs.add_parser("run")
    running.add_argument("bundle", type=Path)
    running.add_argument("results", type=Path)
    running.add_argument(
        "--work", type=Path, help="for checkpoints and decoded images; default in the temporary folder"
    )
    for option, default in (("--minutes", 9.0), ("--jobs", 1), ("--threads", 1)):
        running.add_argument(option, type=type(default), default=default)
    running.add_argument("--dry-run", action="store_true")
    for verb, names in (("unpack", ("results", "out")), ("gather", ("out", "results"))):
        moving = verbs.add_parser(verb)
        for name in names:
            moving.add_argument(name, type=Path)
    given, rest = parser.parse_known_args()
    if given.verb != "pack" or any(word.startswith("-") for word in rest):
        given = parser.parse_args()
    else:
        given.overrides += rest  # argparse reads a list of words before the first option only
    if given.verb == "run":
        return run(given)
    if given.verb == "unpack":
        _told(given.results, given.out)
        return 0
    if given.verb == "gather":
        sys.stdout.write(f"{gather(given.out, given.results)} runs in {given.results}\n")
        return 0
    from cers.errors import CersError

    try:
        pack(given)
    except CersError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
