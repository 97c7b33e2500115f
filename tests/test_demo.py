"""The demo with few images, a small encoder and a handful of steps."""

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from cers.cli.main import VERBS
from cers.config import load_config, preset_names
from cers.demo import PARTS, Step, comparison, demo
from cers.engine.log import read_log
from cers.errors import CersError, Interrupted
from cers.run import load_run

TINY = ["data.image_size=32", "model.encoder=test_convnext", "model.weights=none", "train.steps=4"]
TINY += ["train.validate_every=2", "train.checkpoint_every=1", "train.batch_labelled=4", "train.batch_unlabelled=4"]


def steps_of(out: Path, **options: bool) -> list[Step]:
    return demo(out, cases=60, size=64, overrides=TINY, **options)


def quiet(_done: int, _total: int) -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that was interrupted while it trained, and then run to its end."""
    out = tmp_path_factory.mktemp("demo") / "here"
    first = {step.title: step for step in steps_of(out)}
    titles = list(first)
    for title in titles[: titles.index("Train cers")]:
        first[title].run(quiet)
    with pytest.raises(Interrupted):
        first["Train cers"].run(interrupting)
    assert not (out / "cers" / "run.json").exists()
    drawn = (out / "phantom" / "manifest.csv").stat().st_mtime_ns
    trained = (out / "supervised" / "run.json").stat().st_mtime_ns
    for step in steps_of(out):
        said = step.run(quiet)
        assert said
        assert "\n" not in said
    assert (out / "phantom" / "manifest.csv").stat().st_mtime_ns == drawn
    assert (out / "supervised" / "run.json").stat().st_mtime_ns == trained
    return out


def interrupting(done: int, _total: int) -> None:
    """Ctrl-C in the second step."""
    if done == 2:
        os.kill(os.getpid(), signal.SIGINT)


def test_it_ends_with_scores_comparison_and_report(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(PARTS)
    assert (folder / "cers" / "report.html").stat().st_size > 100_000
    tested = len(load_run(folder / "cers").split.test)
    lines = [line for line in comparison(folder).lines if line.metric == "dice"]
    assert [(line.method, line.n) for line in lines] == [("supervised", tested), ("cers", tested)]


def test_an_interrupted_training_is_gone_on_with(folder: Path) -> None:
    steps = [row["step"] for row in read_log(folder / "cers" / "log.jsonl") if row["kind"] == "step"]
    assert steps == [1, 2, 3, 4]


def test_both_methods_see_the_same_quarter_of_masks_and_the_written_rationales(folder: Path) -> None:
    runs = {name: load_run(folder / name) for name in ("supervised", "cers")}
    assert runs["supervised"].split == runs["cers"].split
    split = runs["cers"].split
    assert split.strategy == "grouped"
    assert len(split.labelled) == (len(split.labelled) + len(split.unlabelled)) // 4
    cases = runs["cers"].cases()
    informed = {id_ for id_, case in cases.items() if case.mask_rationale}
    assert informed == set(split.labelled)
    assert all(case.rationale and case.rationale.startswith("Texture:") for case in cases.values())


def test_every_step_names_a_command_that_exists(tmp_path: Path) -> None:
    for step in steps_of(tmp_path / "with space"):
        program, verb, *rest = shlex.split(step.command)
        assert program == "cers"
        assert verb in VERBS
        assert any(str(tmp_path / "with space") in argument for argument in rest)


def test_a_finished_demo_is_begun_anew_and_foreign_files_stay(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    steps_of(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["demo.json", "notes.txt", "settings.yaml"]


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    for name in ("thesis.tex", "cers"):
        (tmp_path / name).write_text("years of work", encoding="utf-8")
    with pytest.raises(CersError, match="holds other things than a demo"):
        steps_of(tmp_path)
    with pytest.raises(CersError, match="holds other things than a demo"):
        steps_of(tmp_path / "thesis.tex", overwrite=True)
    steps_of(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert not (tmp_path / "cers").exists()


def test_other_arguments_are_another_demo(tmp_path: Path) -> None:
    steps_of(tmp_path)[0].run(quiet)
    steps_of(tmp_path)
    assert (tmp_path / "phantom").is_dir()
    demo(tmp_path, cases=61, size=64, overrides=TINY)
    assert not (tmp_path / "phantom").exists()
    assert json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))["cases"] == 61


def test_the_preset_is_offered_and_small() -> None:
    assert "demo" in preset_names()
    config = load_config("demo")
    assert config.data.image_size <= 96
    assert (config.train.steps or 1000) <= 200
