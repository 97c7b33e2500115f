"""The split that a study makes for itself, and scores that its training has left behind."""

import json
from pathlib import Path

from tiny_study import values

from cers.study.definition import Study
from cers.study.plan import make_plan


def test_each_way_to_read_the_dataset_has_a_split_of_its_own(scans: Path, tmp_path: Path) -> None:
    study = Study(**values(seeds=[0]))
    here = [f"data.path={scans}", f"data.cache={tmp_path / 'cache'}"]
    plain = make_plan(study, tmp_path / "out", here)
    grouped = make_plan(study, tmp_path / "out", [*here, r"data.group_pattern=(\d)$"])
    assert plain.runs[0].config.data.split == tmp_path / "out" / "split.json"
    assert grouped.runs[0].config.data.split != plain.runs[0].config.data.split
    assert grouped.runs[0].split.groups != plain.runs[0].split.groups
    assert grouped.runs[0].key != plain.runs[0].key
    again = make_plan(study, tmp_path / "out", here)
    assert [run.key for run in again.runs] == [run.key for run in plain.runs]


def test_a_run_scored_before_its_training_ended_is_not_done(scans: Path, tmp_path: Path) -> None:
    plan = make_plan(Study(**values(seeds=[0])), tmp_path / "out", [f"data.path={scans}"])
    run = plan.runs[0]
    scores = plan.scores(run)
    scores.mkdir(parents=True)
    (scores / "cases.csv").touch()
    for best, scored, done in ((6, 6, True), (6, 3, False)):
        (scores.parent / "run.json").write_text(json.dumps({"best_step": best}), encoding="utf-8")
        (scores / "summary.json").write_text(json.dumps({"step": scored}), encoding="utf-8")
        assert plan.is_done(run) == done
