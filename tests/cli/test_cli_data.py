import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from cers.cli.main import main
from cers.data.splits import load_split


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def cers_data(*arguments: str | Path) -> Done:
    """The command line's entry point in this process: starting Python anew each time takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["cers", "data", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty phantoms, drawn by the command itself."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    done = cers_data("phantom", folder, "--cases", "40", "--size", "64")
    assert done.returncode == 0, done.stderr
    assert "40 phantoms" in done.stdout
    return folder / "manifest.csv"


def test_the_next_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "pü space"
    done = cers_data("phantom", folder, "--cases", "2", "--size", "64")
    assert done.stdout.strip().endswith(f"next: cers data check '{folder / 'manifest.csv'}'")


def test_phantoms_take_the_place_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    assert f"{file} is a file; name a folder" in cers_data("phantom", file).stderr
    assert f"{tmp_path} is not empty" in cers_data("phantom", tmp_path).stderr
    assert file.read_text(encoding="utf-8") == "mine"


def test_check_says_a_sound_dataset_is_ready(phantoms: Path) -> None:
    done = cers_data("check", phantoms)
    assert done.returncode == 0, done.stderr
    assert "ready to train: 0 errors" in done.stdout
    assert "{0, 255}" in done.stdout


def test_check_exits_with_1_and_json_is_clean(tmp_path: Path) -> None:
    for i in range(3):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"c{i}.png"), pixels)
    done = cers_data("check", tmp_path, "--json")
    assert done.returncode == 1
    values = json.loads(done.stdout)
    assert values["errors"] == 2
    assert values["masks"] == [{"values": "more than 8 greys", "lesion": None, "masks": 3, "lesion_share": None}]
    assert "mask" in done.stderr
    shown = cers_data("check", tmp_path)
    assert shown.returncode == 1
    assert "not ready to train: 2 errors" in shown.stdout
    assert cers_data("check", tmp_path, "--mask-threshold", "128").returncode == 0
    assert cers_data("check", tmp_path, "--mask-foreground", "7", "--mask-foreground", "9").returncode == 0


def test_a_split_is_written_shown_and_holds(phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    done = cers_data("split", phantoms, "--labelled", "0.5", "--seed", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    split = load_split(out)
    assert split.hash[:12] in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("images"))
    assert [int(n) for n in row.split()[1:]] == [
        len(split.labelled),
        len(split.unlabelled),
        *map(len, (split.val, split.test)),
    ]
    assert len(split.labelled) == len(split.order) // 2
    assert cers_data("check", phantoms, "--split", out).returncode == 0
    again = cers_data("split", phantoms, "--out", out)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert load_split(out) == split
    changed = cers_data(
        "split", phantoms, "--out", out, "--overwrite", "--labelled", "5", "--strategy", "paper", "--json"
    )
    assert changed.returncode == 0, changed.stderr
    assert json.loads(changed.stdout)["parts"]["labelled"]["images"] == 5
    assert load_split(out).strategy == "paper"


def test_a_split_replaces_nothing_but_a_split(phantoms: Path, tmp_path: Path) -> None:
    mine = tmp_path / "split-3.json"
    mine.write_text('{"labelled": []}', encoding="utf-8")
    folds = ["--out", tmp_path / "split.json", "--folds"]
    for kind in (["--out", mine], [*folds, "3"], [*folds, "2"]):  # the last would remove it as a surplus fold
        for more in ([], ["--overwrite"]):
            done = cers_data("split", phantoms, *kind, *more)
            assert done.returncode == 2
            assert f"{mine} exists and is no split file; delete it, or write elsewhere with --out" in done.stderr
    assert list(tmp_path.iterdir()) == [mine]
    assert mine.read_text(encoding="utf-8") == '{"labelled": []}'


def test_a_class_can_go_without_masks(phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "unseen.json"
    done = cers_data("split", phantoms, "--without", "metastasis", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["parts"]
    assert "metastasis" not in parts["labelled"]["classes"]
    assert parts["unlabelled"]["classes"]["metastasis"] == parts["unlabelled"]["images"] > 0
    assert cers_data("check", phantoms, "--split", out).returncode == 0


def test_folds_are_written_shown_and_hold(phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    files = [tmp_path / f"split-{number}.json" for number in (1, 2, 3)]
    done = cers_data("split", phantoms, "--folds", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.iterdir()) == files
    for number, file in enumerate(files, start=1):
        assert f"fold {number} of 3" in done.stdout
        assert load_split(file).hash[:12] in done.stdout
        assert cers_data("check", phantoms, "--split", file).returncode == 0
    files[0].unlink()
    again = cers_data("split", phantoms, "--folds", "3", "--out", out)
    assert again.returncode == 2
    assert "split-2.json exists; add --overwrite" in again.stderr
    assert not files[0].exists()
    shown = cers_data("split", phantoms, "--folds", "3", "--out", out, "--overwrite", "--json")
    assert [fold["file"] for fold in json.loads(shown.stdout)] == [str(file) for file in files]
    assert sum(fold["parts"]["test"]["images"] for fold in json.loads(shown.stdout)) == 40
    fewer = cers_data("split", phantoms, "--folds", "2", "--out", out, "--overwrite")
    assert "split-3.json removed" in fewer.stderr
    assert sorted(tmp_path.iterdir()) == files[:2]  # a study over split-{fold}.json finds one division only


def test_which_images_are_labelled_is_drawn_anew_for_the_same_parts(phantoms: Path, tmp_path: Path) -> None:
    drawn = []
    cers_data("split", phantoms, "--out", tmp_path / "split.json", "--test", "0.3")
    for seed in ("1", "2"):
        out = tmp_path / f"split-{seed}.json"
        done = cers_data(
            "split", phantoms, "--redraw", tmp_path / "split.json", "--seed", seed, "--labelled", "6", "--out", out
        )
        assert done.returncode == 0, done.stderr
        drawn.append(load_split(out))
    assert drawn[0].test == drawn[1].test == load_split(tmp_path / "split.json").test
    assert drawn[0].val == drawn[1].val
    assert len(drawn[0].labelled) == len(drawn[1].labelled) == 6
    assert set(drawn[0].labelled) != set(drawn[1].labelled)


def test_a_split_says_what_is_not_read(phantoms: Path, tmp_path: Path) -> None:
    table = phantoms.parent / "patients.csv"
    table.write_text(phantoms.read_text(encoding="utf-8").replace("group", "patient_id", 1), encoding="utf-8")
    done = cers_data("split", table, "--out", tmp_path / "split.json", "--json")
    assert done.returncode == 0, done.stderr
    assert f"warning: {table}: column 'patient_id' is not read; if it names the patient, call it 'group'" in done.stderr
    assert json.loads(done.stdout)["file"] == str(tmp_path / "split.json")


def test_what_is_left_out_is_explained_below_the_table(tmp_path: Path) -> None:
    for i in range(30):
        for folder in ("images", "masks") if i % 3 else ("unlabeled",):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40)).astype(np.uint8)
            pixels = (pixels > 99).astype(np.uint8) * 255 if folder == "masks" else pixels
            cv2.imwrite(str(tmp_path / folder / f"P{i // 3}_{i}.png"), pixels)
    common = ("split", tmp_path, "--group-pattern", r"^(P\d)_", "--out")
    done = cers_data(*common, tmp_path / "a.json")
    assert done.stdout.count("left out: nobody annotated these, and their patient is validated or tested") == 1
    assert "left out:" not in cers_data(*common, tmp_path / "b.json", "--strategy", "paper").stdout


def test_the_mean_share_of_the_lesion_is_shown(phantoms: Path) -> None:
    lines = cers_data("check", phantoms).stdout.splitlines()
    row = next(i for i, line in enumerate(lines) if "mean lesion share" in line)
    assert 0.005 < float(lines[row + 1].split()[-1]) < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folds", "3", "--test", "0.2"], "leave out --test"),
        (["--redraw", "split.json", "--val", "0.2"], "leave out --strategy, --val"),
        (["--redraw", "nowhere.json"], "no split file nowhere.json"),
        (["--folds", "3", "--strategy", "paper"], "leave out --test and --strategy"),
        (["--folds", "1"], "give at least 2"),
        (["--without", "metastases"], "did you mean 'metastasis'"),
        (["--labelled", "some"], "neither a share"),
        (["--labelled", "2.5"], "neither a share"),
        (["--strategy", "papr"], "did you mean 'paper'"),
        (["--strategy", "official", "--val", "0.9"], "leave some for training"),
        (["--group-pattern", "("], "not a regular expression"),
        (["--group-pattern", "^(P\\d+)_"], "finds no patient in any of 40 names"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(
    phantoms: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = cers_data("split", phantoms, "--out", tmp_path / "split.json", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folds", "1"], "give at least 2"),
        (["--folds", "3", "--val", "0.8"], "leaves none of 3 folds' training images"),
        (["--test", "0.95"], "leave some for training"),
        (["--labelled", "500"], "a count from 1 to 40"),
        (["--labelled", "2.5", "--folds", "3"], "neither a share"),
    ],
)
def test_what_can_never_be_is_refused_before_images_are_compared(
    phantoms: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = cers_data("split", phantoms, "--out", tmp_path / "split.json", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "comparing images" not in done.stderr


def test_a_missing_dataset_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from cers.cli.main import main; main()", "data", "check", tmp_path / "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_help_loads_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['cers', 'data', 'check', '--help']\n"
        "from cers.cli.main import main\n"
        "try: main()\n"
        "finally: print({'torch', 'cv2', 'pandas', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.stdout.strip().endswith("set()")
    assert "--mask-threshold" in done.stdout
