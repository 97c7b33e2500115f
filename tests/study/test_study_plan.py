import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_study import values, write_folds, write_study

from cers.config import dump_config
from cers.data.case import Case
from cers.data.layouts import load_cases
from cers.data.prediction import CasePrediction
from cers.data.splits import load_split, save_split
from cers.errors import CersError
from cers.evaluate.compare import Comparison, ComparisonTable, Row
from cers.evaluate.metrics import METRICS
from cers.evaluate.scored import Costs
from cers.evaluate.table import build_rows, write_cases_csv
from cers.study.definition import load_study
from cers.study.plan import Plan, PlannedRun, make_plan
from cers.study.table import published_rows, section_title, study_table, write_tables


def plan_of(folder: Path, overrides: list[str], **changes: object) -> Plan:
    return make_plan(load_study(write_study(folder / "s.yaml", **changes)), folder / "out", overrides)


@pytest.fixture
def here(scans, split_file) -> list[str]:
    return [f"data.path={scans}", f"data.split={split_file}"]


def keys(plan: Plan) -> set[str]:
    return {run.key for run in plan.runs}


def test_every_cell_has_a_run_and_first_seeds_come_first(tmp_path, here):
    plan = plan_of(tmp_path, here, labelled=[0.25, 0.5])
    assert len(plan.runs) == 2 * 2 * 2
    assert [run.seed for run in plan.runs] == [0] * 4 + [1] * 4
    assert list(plan.cells) == [(0.25, "plain"), (0.25, "teacher"), (0.5, "plain"), (0.5, "teacher")]
    assert len({run.family for run in plan.runs}) == 2


def test_a_run_is_known_by_what_it_computes_and_not_by_where_or_how_it_is_called(tmp_path, here, split_file):
    first = plan_of(tmp_path, here)
    renamed = [{**row, "name": f"new {row['name']}"} for row in values()["rows"]]
    elsewhere = tmp_path / "moved.json"
    save_split(load_split(split_file), elsewhere)
    moved = [here[0], f"data.split={elsewhere}", "train.workers=1", "data.cache=other", "train.checkpoint_every=5"]
    again = plan_of(tmp_path, moved, rows=renamed, reference="new plain")
    assert keys(again) == keys(first)
    count = len(first.runs[0].split.labelled)
    assert keys(plan_of(tmp_path, here, labelled=[count])) == keys(first)
    for change in ("train.steps=7", "optim.lr=0.5", "data.image_size=64", "text.cot=none"):
        assert not keys(plan_of(tmp_path, [*here, change])) & keys(first)


def test_a_default_written_out_is_the_same_run(tmp_path, here):
    plain, spelled = values()["rows"][0], {"method.name": "cers", "method.settings.k": 5}
    rows = [plain, {"name": "short", "settings": {"method.name": "cers"}}, {"name": "long", "settings": spelled}]
    plan = plan_of(tmp_path, here, rows=rows)
    assert plan.cells[0.5, "short"] == plan.cells[0.5, "long"]
    assert len(plan.runs) == 4


def test_files_count_by_content(tmp_path, here):
    tables = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    for table, text in zip(tables, ("image,cot\n", "image,cot\n", "image,cot\nx,y\n"), strict=True):
        table.write_text(text, encoding="utf-8")
    a, b, c = (keys(plan_of(tmp_path, [*here, f"data.rationales={table}"])) for table in tables)
    assert a == b
    assert not a & c


def test_a_folder_of_a_text_encoder_counts_by_content(tmp_path, here):
    def of(name: str, weights: str) -> set[str]:
        folder = tmp_path / name
        (folder / "part").mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "part" / "weights").write_text(weights, encoding="utf-8")
        return keys(plan_of(tmp_path, [*here, f"text.report={folder}"]))

    first = of("here", "1")
    assert of("there", "1") == first
    assert not of("other", "2") & first
    (tmp_path / "here" / "part" / "weights").write_text("changed", encoding="utf-8")
    assert not keys(plan_of(tmp_path, [*here, f"text.report={tmp_path / 'here'}"])) & first


def test_published_shares_are_no_counts(tmp_path, here):
    paper = {"source": "A & B", "datasets": ["One"], "figures": {"1": {"plain": {"One": [70.0, 60.5]}}}}

    def beside(share: float | int) -> list[str]:
        plan = plan_of(tmp_path, here, labelled=[share], published=paper)
        title = section_title(share, len(plan.runs[0].split.labelled))
        lines = {m.name: Comparison(title, m.name, "plain", 1, 4, 4, 0.5, 0.0, 0.4, 0.6) for m in METRICS}
        table = ComparisonTable("plain", (Row(title, "plain", False, None, Costs(), lines),))
        _, found = published_rows(plan, table)
        write_tables(plan, table)
        assert "70.00 / 60.50" in (plan.out / "table.tex").read_text(encoding="utf-8")
        return found

    assert beside(1.0)[1:] == ["plain", "50.00 / 50.00", "70.00 / 60.50"]
    assert beside(1)[1:] == ["plain", "–", "70.00 / 60.50"]


def test_curves_are_drawn_where_there_are_several_shares(tmp_path, here):
    plan = plan_of(tmp_path, here)
    rows = []
    for share in (0.25, 1.0):
        lines = {m.name: Comparison(f"{share}", m.name, "plain", 1, 4, 4, 0.5, 0.0, 0.4, 0.6) for m in METRICS}
        rows.append(Row(f"{share}", "plain", False, share, Costs(), lines))
    assert plan.out / "curves.svg" not in write_tables(plan, ComparisonTable("plain", tuple(rows[:1])))
    assert plan.out / "curves.svg" in write_tables(plan, ComparisonTable("plain", tuple(rows)))
    drawn = (plan.out / "curves.svg").read_text(encoding="utf-8")
    assert "plain" in drawn
    assert "reads text" not in drawn
    write_tables(plan, ComparisonTable("plain", tuple(replace(row, reads_text=True) for row in rows)))
    assert "reads text" in (plan.out / "curves.svg").read_text(encoding="utf-8")
    write_tables(plan, ComparisonTable("plain", tuple(rows[:1])))
    assert not (plan.out / "curves.svg").exists()


def test_a_study_needs_a_folder(tmp_path, here):
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(CersError, match="out is a file; name another folder with --out"):
        plan_of(tmp_path, here)


def test_two_rows_of_one_configuration_are_one_run(tmp_path, here):
    rows = [{"name": name, "settings": {"method.name": "supervised"}} for name in ("plain", "same")]
    plan = plan_of(tmp_path, here, rows=rows)
    assert len(plan.runs) == 2
    assert plan.cells[0.5, "plain"] == plan.cells[0.5, "same"]


def test_without_a_split_one_is_made_once(tmp_path, scans):
    plan = plan_of(tmp_path, [f"data.path={scans}"])
    made = (tmp_path / "out" / "split.json").read_bytes()
    assert plan_of(tmp_path, [f"data.path={scans}"]).runs == plan.runs
    assert (tmp_path / "out" / "split.json").read_bytes() == made
    assert {run.config.data.split for run in plan.runs} == {tmp_path / "out" / "split.json"}


@pytest.mark.parametrize("setting", [{"data.negatives": True}, {"data.group_pattern": "(.)"}])
def test_rows_that_read_the_dataset_differently_need_splits_of_their_own(tmp_path, here, split_file, setting):
    plain = values()["rows"][0]
    other = {"name": "other", "settings": {**plain["settings"], **setting}}
    (name,) = setting
    with pytest.raises(CersError, match=f"rows 'plain' and 'other' differ in {name}; give each a data.split of its"):
        plan_of(tmp_path, here, rows=[plain, other])
    save_split(replace(load_split(split_file), seed=7), tmp_path / "other.json")
    other["settings"]["data.split"] = str(tmp_path / "other.json")
    plan = plan_of(
        tmp_path, [here[0]], rows=[{**plain, "settings": {**plain["settings"], "data.split": here[1][11:]}}, other]
    )
    assert len(keys(plan)) == 4
    assert plan_of(tmp_path, [*here, *(f"{key}={value}" for key, value in setting.items())])


def test_rows_may_leave_shares_out_and_bad_settings_name_their_row(tmp_path, here):
    rows = [values()["rows"][0], {**values()["rows"][1], "labelled": [0.25]}]
    plan = plan_of(tmp_path, here, rows=rows, labelled=[0.25, 0.5])
    assert (0.5, "teacher") not in plan.cells
    rows = [{"name": "plain", "settings": {"method.name": "supervised", "method.settings.kk": 1}}]
    with pytest.raises(CersError, match=r"row 'plain': method\.settings of 'supervised'"):
        plan_of(tmp_path, here, rows=rows)


def test_one_case_and_all_of_them_are_planned_apart(tmp_path, here):
    rows = [values()["rows"][0], {**values()["rows"][1], "labelled": [1.0]}]
    plan = plan_of(tmp_path, here, rows=rows, labelled=[1, 1.0], seeds=[0])
    assert [run.name for run in plan.runs] == [
        "plain, 1 cases, seed 0",
        "plain, 100 %, seed 0",
        "teacher, 100 %, seed 0",
    ]
    assert [len(run.split.labelled) > 1 for run in plan.runs] == [False, True, True]
    assert [len(keys) for keys in plan.cells.values()] == [1, 1, 1]


@pytest.fixture(scope="module")
def folds(scans, tmp_path_factory) -> list[str]:
    """Places of a study on three folds of the scans."""
    return [f"data.path={scans}", f"data.split={write_folds(scans, tmp_path_factory.mktemp('folds'), 3)}"]


def test_folds_are_runs_of_their_own_by_seed(tmp_path, folds):
    for fold in (1, 2, 3):
        (tmp_path / f"texts-{fold}.csv").write_text(f"image,cot\na,words of fold {fold}\n", encoding="utf-8")
    folds = [*folds, f"data.rationales={tmp_path}/texts-{{fold}}.csv"]
    plan = plan_of(tmp_path, folds, folds=[1, 2, 3])
    assert len(plan.runs) == 2 * 2 * 3
    assert len({run.family for run in plan.runs}) == 2
    assert [(run.seed, run.fold) for run in plan.runs[::2]] == [(s, f) for s in (0, 1) for f in (1, 2, 3)]
    assert plan.runs[4].name == "plain, 50 %, seed 0, fold 3"
    assert {run.config.data.split.name for run in plan.runs} == {f"split-{fold}.json" for fold in (1, 2, 3)}
    alone = plan_of(tmp_path, [setting.replace("{fold}", "2") for setting in folds])
    assert keys(alone) == {run.key for run in plan.runs if run.fold == 2}


def test_each_seed_may_have_labelled_images_of_its_own(tmp_path, scans, split_file):
    cases = load_cases(scans)
    split = load_split(split_file)
    for seed in (0, 1):
        save_split(split.redrawn(cases, seed + 5), tmp_path / f"split-{seed}.json")
    plan = plan_of(tmp_path, [f"data.path={scans}", f"data.split={tmp_path}/split-{{seed}}.json"])
    assert {(run.seed, run.config.data.split.name) for run in plan.runs} == {(0, "split-0.json"), (1, "split-1.json")}
    labelled = {run.seed: set(run.split.labelled) for run in plan.runs}
    assert len(labelled[0]) == len(labelled[1])
    assert labelled[0] != labelled[1]
    assert len({run.family for run in plan.runs}) == 2


def test_folds_that_are_none_are_refused(tmp_path, here, folds):
    with pytest.raises(CersError, match=r"folds 1 and 2 both test .*--folds.*split-\{fold\}\.json"):
        plan_of(tmp_path, [*here, "data.rationales=r-{fold}.csv"], folds=[1, 2])
    with pytest.raises(CersError, match="folds 1 and 2 both test"):
        plan_of(tmp_path, here, folds=[1, 2])
    with pytest.raises(CersError, match=r"data\.split=.*which folds\? give --folds"):
        plan_of(tmp_path, folds)
    with pytest.raises(CersError, match="what one fold validates on another one tests"):
        plan_of(tmp_path, folds, folds=[1, 2, 3], part="val")


def test_a_seed_counts_once_all_its_folds_are_done(tmp_path, folds):
    plan = plan_of(tmp_path, folds, folds=[1, 2, 3])
    for run in plan.runs:
        if (run.row, run.seed, run.fold) != ("teacher", 1, 2):
            _pretend(plan, run)
    table = study_table(plan)
    assert {row.method: (row.dice.seeds, row.dice.n) for row in table.rows} == {"plain": (2, 24), "teacher": (1, 24)}
    assert table.rows[1].dice.pairs == 0  # one seed in common is no pair
    for run in plan.runs:
        if (run.row, run.seed, run.fold) == ("teacher", 0, 1):
            shutil.rmtree(plan.folder(run))
    assert [row.method for row in study_table(plan).rows] == ["plain"]


def test_a_share_and_the_count_it_comes_to_are_two_sections_of_the_same_runs(tmp_path, here):
    count = len(plan_of(tmp_path, here).runs[0].split.labelled)
    plan = plan_of(tmp_path, here, labelled=[0.5, count])
    assert {run.share for run in plan.runs} == {0.5}
    for run in plan.runs:
        _pretend(plan, run)
    sections = [row.section for row in study_table(plan).rows]
    assert sections == [f"50 % ({count})"] * 2 + [f"{count} cases"] * 2


def _pretend(plan: Plan, run: PlannedRun) -> None:
    """As if it had been trained, and had found every lesion."""
    box = np.zeros((8, 8), dtype=bool)
    box[2:6, 2:6] = True
    found = CasePrediction("", box.astype(np.float32), {})
    cases = [Case(case_id, Path("c.png")) for case_id in run.split.test]
    write_cases_csv(
        build_rows([(case, replace(found, id=case.id), box) for case in cases]), plan.scores(run) / "cases.csv"
    )
    save_split(run.split, plan.folder(run) / "split.json")
    (plan.folder(run) / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
    for name in ("run.json", f"{plan.scores(run).name}/summary.json"):
        (plan.folder(run) / name).write_text("{}", encoding="utf-8")
