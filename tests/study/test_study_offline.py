"""`bench/study_offline.py`: a study packed, run elsewhere in calls that are killed, and brought home."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import cv2
import pytest
from tiny_study import TINY, values, write_study

from cers.config import MaskReading
from cers.data.cache import ImageCache
from cers.data.images import image_size
from cers.data.layouts import load_cases
from cers.data.splits import make_split, save_split
from cers.study.definition import load_study
from cers.study.plan import make_plan
from cers_command import succeeds

SCRIPT = Path(__file__).parents[2] / "bench" / "study_offline.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_offline", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
BROUGHT = ("config.yaml", "split.json", "run.json", "log.jsonl", "eval/cases.csv", "eval/summary.json")


def offline(*arguments: str | Path) -> int:
    """`python bench/study_offline.py …` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        return int(script.main())


def elsewhere(bundle: Path, results: Path, work: Path, log: Path) -> subprocess.Popen[bytes]:
    """A call of `run` there, by the script in the bundle, in a folder that has nothing of ours."""
    arguments = ["run", bundle, results, "--work", work, "--minutes", "9"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(bundle / "study_offline.py"), *map(str, arguments)],
            cwd=log.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def runs_in(results: Path) -> set[str]:
    if not results.is_file():
        return set()
    with tarfile.open(results) as archive:
        return {name.partition("/")[0] for name in archive.getnames()}


@pytest.fixture
def home(scans: Path, split_file: Path, tmp_path: Path) -> list[str]:
    """A study with a preset file and a row with rationales of its own, and the settings that it is run with."""
    (tmp_path / "own.yaml").write_text("train: {precision: 'no'}\nmodel: {encoder: test_convnext}\n", encoding="utf-8")
    with (tmp_path / "new.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "cot"), *((c.image.name, c.rationale) for c in load_cases(scans)[:9])])
    rows = [
        {"name": "plain", "settings": {"method.name": "supervised"}},
        {
            "name": "other words",
            "settings": {"method.name": "supervised", "data.rationales": str(tmp_path / "new.csv")},
        },
    ]
    study = write_study(tmp_path / "tiny.yaml", preset=str(tmp_path / "own.yaml"), rows=rows, seeds=[0])
    return [str(study), f"data.path={scans}", f"data.split={split_file}", f"data.cache={scans.parent / 'cache'}"]


def test_a_study_goes_there_is_killed_goes_on_and_comes_home(home, tmp_path):
    bundle, results, work = tmp_path / "bundle", tmp_path / "there" / "results.tar.gz", tmp_path / "work"
    results.parent.mkdir()
    assert offline("pack", home[0], bundle, "--side", "32", *home[1:]) == 0
    for name in ("own.yaml", "new.csv"):
        (tmp_path / name).rename(tmp_path / f"not there {name}")
    call = elsewhere(bundle, results, work, tmp_path / "killed.log")
    deadline = time.monotonic() + 600
    while not runs_in(results):
        assert call.poll() is None, (tmp_path / "killed.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    call.send_signal(signal.SIGKILL)
    call.wait()
    early = runs_in(results)
    times = {path: path.stat().st_mtime_ns for name in early for path in (work / "study/runs" / name).rglob("*.json")}
    call = elsewhere(bundle, results, work, tmp_path / "rest.log")
    assert call.wait(600) == 0, (tmp_path / "rest.log").read_text(encoding="utf-8")
    assert early <= runs_in(results)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with tarfile.open(results) as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} == set(BROUGHT)
    assert (results.parent / "results-table.html").is_file()

    for name in ("own.yaml", "new.csv"):
        (tmp_path / f"not there {name}").rename(tmp_path / name)
    out = tmp_path / "out"
    assert offline("unpack", results, out) == 0
    plan = make_plan(load_study(home[0]), out, home[1:])
    assert {plan.folder(run).name for run in plan.runs} == runs_in(results)
    assert len(plan.runs) == 2
    assert all(plan.is_done(run) for run in plan.runs)
    assert "other words" in succeeds("study", *home, "--out", out).stdout


def test_what_is_packed_is_what_was_read(home, scans, tmp_path):
    bundle = tmp_path / "bundle"
    assert offline("pack", home[0], bundle, *home[1:], "--side", "32", "--seeds", "3,4") == 0
    ours, theirs = ({case.id: case for case in load_cases(path)} for path in (scans, bundle / "data"))
    assert ours.keys() == theirs.keys()
    caches = [
        ImageCache.build(list(cases.values()), 32, tmp_path / name, MaskReading())
        for name, cases in (("a", ours), ("b", theirs))
    ]
    for case_id in ours:
        assert (caches[0].image(case_id) == caches[1].image(case_id)).all()
        assert (caches[0].mask(case_id) == caches[1].mask(case_id)).all()
    # What is scored keeps its size, so that scores are comparable.
    scored = set(json.loads((bundle / "split.json").read_text(encoding="utf-8"))["test"])
    assert 0 < len(scored) < len(ours)
    for case_id, case in theirs.items():
        assert image_size(case.image) == (image_size(ours[case_id].image) if case_id in scored else (32, 32))
    # The rationales of one row are not those of the others.
    assert {i: case.rationale for i, case in ours.items()} == {i: case.rationale for i, case in theirs.items()}
    text = (bundle / "study.yaml").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert load_study(bundle / "study.yaml").seeds == (3, 4)
    (carried,) = (bundle / "files").iterdir()
    assert carried.read_bytes() == (tmp_path / "new.csv").read_bytes()


def test_a_layout_with_names_of_its_own_is_carried_by_id(scans, tmp_path):
    root = tmp_path / "nnunet"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for case in load_cases(scans)[:12]:
        assert case.mask is not None
        cv2.imwrite(str(root / "imagesTr" / f"{case.id}_0000.png"), cv2.imread(str(case.image)))
        cv2.imwrite(str(root / "labelsTr" / f"{case.id}.png"), cv2.imread(str(case.mask), cv2.IMREAD_GRAYSCALE))
    save_split(make_split(load_cases(root), val=0.2, test=0.2, clusters=[]), tmp_path / "split.json")
    study = write_study(tmp_path / "tiny.yaml")
    settings = [f"data.path={root}", f"data.split={tmp_path / 'split.json'}", "data.layout=nnunet"]
    assert offline("pack", study, tmp_path / "bundle", *settings) == 0
    assert {case.id for case in load_cases(tmp_path / "bundle" / "data")} == {case.id for case in load_cases(root)}


def test_what_cannot_be_packed_is_refused(home, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work", encoding="utf-8")
    assert offline("pack", home[0], mine, *home[1:]) == 2
    assert "is no bundle" in capsys.readouterr().err
    assert (mine / "thesis.tex").is_file()
    assert offline("pack", home[0], tmp_path / "b", *home[1:], "--side", "64") == 2
    assert "--side 64 would change what is trained: row 'plain' has data.image_size=32" in capsys.readouterr().err
    assert offline("pack", home[0], tmp_path / "b", home[1]) == 2
    assert "set data.split" in capsys.readouterr().err
    rows = [*values()["rows"], {"name": "big", "settings": {"method.name": "supervised", "data.image_size": 64}}]
    big = write_study(tmp_path / "big.yaml", rows=rows, settings=TINY)
    assert offline("pack", big, tmp_path / "b", *home[1:], "--side", "32") == 2
    assert "row 'big' has data.image_size=64" in capsys.readouterr().err


def finished_run(folder: Path, text: str = "{}") -> Path:
    for name in BROUGHT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_unpacking_leaves_alone_what_is_here_under_any_name(tmp_path, capsys):
    there, here = tmp_path / "there", tmp_path / "here"
    for key in ("aaa", "bbb", "ccc"):
        finished_run(there / "runs" / f"row-{key}", "new")
    assert offline("gather", there, tmp_path / "r.tar.gz") == 0
    assert capsys.readouterr().out == f"3 runs in {tmp_path / 'r.tar.gz'}\n"
    with pytest.raises(SystemExit, match="holds no finished run"):
        offline("gather", tmp_path, tmp_path / "none.tar.gz")
    with pytest.raises(SystemExit, match="cannot write"):
        offline("gather", there, tmp_path / "r.tar.gz" / "r.tar.gz")
    finished_run(here / "runs" / "renamed-aaa", "old")
    (here / "runs" / "row-bbb" / "checkpoints").mkdir(parents=True)
    assert offline("unpack", tmp_path / "r.tar.gz", here) == 0
    said = capsys.readouterr().out
    assert "1 runs put into" in said
    assert f"{here / 'runs' / 'row-bbb'} was begun here" in said
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["renamed-aaa", "row-bbb", "row-ccc"]
    assert not (here / "runs" / "row-bbb" / "eval").exists()
    assert (here / "runs" / "renamed-aaa" / "run.json").read_text(encoding="utf-8") == "old"
    for key in ("aaa", "ccc"):
        (there / "runs" / f"row-{key}" / "eval").rename(there / "runs" / f"row-{key}" / "eval-val")
    assert offline("gather", there, tmp_path / "val.tar.xz") == 0
    capsys.readouterr()
    assert offline("unpack", tmp_path / "val.tar.xz", here) == 0
    assert {path.name for path in (here / "runs" / "row-ccc").glob("eval*")} == {"eval", "eval-val"}
    # Another training of the same run: its scores are not those of the weights here.
    assert {path.name for path in (here / "runs" / "renamed-aaa").glob("eval*")} == {"eval"}
    half = tmp_path / "half.tar.gz"
    half.write_bytes((tmp_path / "r.tar.gz").read_bytes()[:200])
    with pytest.raises(SystemExit, match="cannot be unpacked"):
        offline("unpack", half, tmp_path / "new")
    assert list((tmp_path / "new" / "runs").iterdir()) == []


@pytest.mark.parametrize(("name", "kind"), [("../outside", tarfile.REGTYPE), ("run/link", tarfile.SYMTYPE)])
def test_results_that_reach_outside_are_refused(tmp_path, name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/hostname"
    with tarfile.open(tmp_path / "results.tar.gz", "w:gz") as archive:
        archive.addfile(member)
    with pytest.raises(SystemExit, match=f"cannot be unpacked: '{name}' is no file of a run"):
        offline("unpack", tmp_path / "results.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out" / "outside").exists()
