import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cers.config import dump_config, parse_config
from cers.data.case import Case
from cers.data.prediction import CasePrediction
from cers.data.splits import make_split, save_split
from cers.errors import CersError
from cers.evaluate import notes
from cers.evaluate.compare import compare, compare_sections
from cers.evaluate.comparison_table import (
    cost_rows,
    full_rows,
    legend,
    overview_rows,
    parts,
    to_csv,
    to_latex,
    to_markdown,
)
from cers.evaluate.metrics import METRICS
from cers.evaluate.table import build_rows, declared_rows, read_cases_csv, write_cases_csv

N = 24


def make_run(folder: Path, noise: float, seed: int, *, cases: int = N, shift: int = 0, grouped: bool = True) -> Path:
    """A run whose predictions are the true boxes with a share of wrong pixels; its base branch finds nothing."""
    rng, scored = np.random.default_rng(seed), []
    for i in range(cases):
        mask = np.zeros((24, 24), dtype=bool)
        mask[4 + i % 5 : 14 + shift, 6 : 8 if i % 6 == 0 else 18] = True
        found = (mask ^ (rng.random(mask.shape) < noise * (1 + i % 3))).astype(np.float32)
        case = Case(
            f"c{i}", Path(f"c{i}.png"), group=f"p{i // 2}" if grouped else None, label="even" if i % 4 < 2 else "odd"
        )
        branches = {"retrieval": found, "base": np.zeros_like(found)}
        scored.append((case, CasePrediction(case.id, found, branches), mask))
    write_cases_csv(build_rows(scored), folder / "eval" / "cases.csv")
    return folder


@pytest.fixture
def runs(tmp_path):
    return {
        "weak": [make_run(tmp_path / f"weak{s}", 0.08, s) for s in (1, 2)],
        "strong": [make_run(tmp_path / f"strong{s}", 0.01, s + 10) for s in (1, 2, 3)],
        "alike": [make_run(tmp_path / "alike", 0.08, 102)],
    }


def test_lines_hold_mean_spread_and_paired_test(runs):
    table = compare(runs, "weak")
    assert len(table.lines) == len(METRICS) * 3
    dice = {line.method: line for line in table.lines if line.metric == "dice"}
    assert list(dice) == ["weak", "strong", "alike"]
    means = [
        np.mean([r.metrics.dice for r in read_cases_csv(run / "eval" / "cases.csv") if r.branch == "declared"])
        for run in runs["strong"]
    ]
    assert dice["strong"].mean == pytest.approx(np.mean(means))
    assert dice["strong"].spread == pytest.approx(np.std(means, ddof=1))
    assert dice["strong"].low < dice["strong"].mean < dice["strong"].high
    assert dice["strong"].difference == pytest.approx(dice["strong"].mean - dice["weak"].mean)
    assert (dice["strong"].seeds, dice["strong"].n, dice["strong"].groups) == (3, N, N // 2)
    # 12 groups have 4096 sign patterns, of which two are as extreme as a difference of one sign throughout.
    assert dice["strong"].p == pytest.approx(2 / 4096, abs=8e-4)
    assert dice["strong"].p_holm == pytest.approx(2 * dice["strong"].p)
    assert dice["alike"].p > 0.05
    assert math.isnan(dice["alike"].spread)
    assert math.isnan(dice["weak"].p)


def test_lower_distances_are_a_negative_difference(runs):
    assd = {line.method: line for line in compare(runs, "weak").lines if line.metric == "assd"}
    assert assd["strong"].difference < 0
    assert assd["strong"].p < 0.01


def test_the_reference_comes_first_wherever_it_was_named(runs):
    table = compare(runs, "strong")
    assert [line.method for line in table.lines][:3] == ["strong", "weak", "alike"]
    assert "Δ Dice to strong" in full_rows(table)[0]


def test_csv_holds_every_number_in_full(runs):
    table = compare(runs, "weak")
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [float(line["mean"]) for line in lines] == [line.mean for line in table.lines]


def test_markdown_has_a_head_a_line_for_each_method_and_says_what_its_intervals_cover(runs):
    table = compare(runs, "weak")
    text = to_markdown(table).splitlines()
    lines = [line for line in text if line.startswith("|")]
    assert len(lines) == len(runs) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| weak | 2 | 24 (12 groups) | 0.")
    assert all(cell.strip() for line in lines for cell in line.strip("|").split("|"))
    assert any("interval covers cases and, where either has two seeds or more, seeds" in line for line in text)


def test_latex_is_balanced_and_escapes_what_it_must(runs):
    names = {"50 %_weak": runs["weak"], "[b] {^~$#": runs["strong"], "*c": runs["alike"]}
    text = to_latex(compare(names, "50 %_weak"), "A & B")
    assert r"50 \%\_weak" in text
    assert r"\caption{A \& B: scores}" in text
    tables = text.split(r"\end{table}")[:-1]
    assert len(tables) == 2  # these runs recorded no costs
    for table in tables:
        columns = len(table.partition(r"\begin{tabular}{")[2].partition("}")[0])
        assert columns <= 12  # a page is no wider
        rows = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in rows)
        assert not any(line.startswith(("[", "*")) for line in rows)  # after \\ they would be its options
        assert sorted(re.findall(r"\\begin\{(\w+)\}", table + r"\end{table}")) == ["table", "tabular"]
        depth = 0
        for brace in re.findall(r"(?<!\\)[{}]", table):
            depth += 1 if brace == "{" else -1
            assert depth >= 0
        assert depth == 0
    assert r"[b] \{\textasciicircum{}\textasciitilde{}\$\#" in text
    assert "[-" not in text
    assert " -0" not in text


def test_different_cases_are_refused(runs, tmp_path):
    fewer = make_run(tmp_path / "fewer", 0.01, 1, cases=N - 1)
    with pytest.raises(CersError, match=r"different cases \('c23'"):
        compare({**runs, "fewer": [fewer]}, "weak")


@pytest.mark.parametrize("change", [{"shift": 1}, {"grouped": False}])
def test_different_masks_or_groups_are_refused(runs, tmp_path, change):
    other = make_run(tmp_path / "other", 0.01, 1, **change)
    with pytest.raises(CersError, match="'c0' with different masks or groups"):
        compare({**runs, "other": [other]}, "weak")


def test_different_splits_are_refused_and_other_label_shares_are_not(runs):
    cases = [Case(f"t{i}", Path(f"t{i}.png"), mask=Path(f"t{i}.png")) for i in range(40)]
    split = make_split(cases, strategy="paper", seed=0)
    first, second = runs["weak"]
    save_split(split, first / "split.json")
    save_split(split.with_labelled(0.25), second / "split.json")
    compare(runs, "weak")
    save_split(make_split(cases, strategy="paper", seed=1), second / "split.json")
    with pytest.raises(CersError, match="different splits"):
        compare(runs, "weak")


def test_mistakes_are_named_in_one_line(runs, tmp_path):
    for given, reference, message in [
        (runs, "waek", "did you mean 'weak'"),
        ({"weak": []}, "weak", "has no run folder"),
        ({"weak": [runs["weak"][0]] * 2}, "weak", "names a run folder twice"),
        ({"weak": [tmp_path / "nowhere"]}, "weak", "no per-case table at"),
    ]:
        with pytest.raises(CersError, match=message) as caught:
            compare(given, reference)
        assert "\n" not in str(caught.value)


def test_a_table_without_cases_is_refused(tmp_path):
    write_cases_csv([], tmp_path / "eval" / "cases.csv")
    with pytest.raises(CersError, match="holds no case"):
        compare({"a": [tmp_path]}, "a")


def test_rows_of_one_line_per_method_are_independent_of_file_order(runs):
    before = compare(runs, "weak")
    path = runs["strong"][0] / "eval" / "cases.csv"
    write_cases_csv(read_cases_csv(path)[::-1], path)
    assert to_csv(compare(runs, "weak")) == to_csv(before)


def with_facts(folder: Path, seed: int, facts: dict[str, object] | None = None, **train: object) -> Path:
    """The run with a configuration and what it cost."""
    config = parse_config({"seed": seed, "train": {"steps": 8, **train}})
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(facts or {}), encoding="utf-8")
    return folder


def test_differences_are_paired_by_seed(tmp_path):
    weak = [with_facts(make_run(tmp_path / f"w{s}", 0.08, s), s) for s in (0, 1, 2)]
    strong = [with_facts(make_run(tmp_path / f"s{s}", 0.01, s + 10), s) for s in (2, 1, 5)]
    line = compare({"weak": weak, "strong": strong}, "weak").rows[1].dice
    scores = {
        run: np.mean([r.metrics.dice for r in read_cases_csv(run / "eval" / "cases.csv") if r.branch == "declared"])
        for run in (*weak, *strong)
    }
    mine, theirs = np.array([[scores[strong[1]], scores[strong[0]]], [scores[weak[1]], scores[weak[2]]]])
    assert line.pairs == 2
    assert line.difference == pytest.approx(np.mean(mine - theirs))
    assert line.difference_low < line.difference < line.difference_high
    notes = compare({"weak": weak, "strong": strong[:2]}, "weak").notes
    assert any("between 2 and 3 seeds" in note for note in notes)


def test_one_common_seed_is_no_pair_and_a_single_seed_varies_as_the_others_do(tmp_path):
    weak = [with_facts(make_run(tmp_path / f"w{s}", 0.08, s), s) for s in (0, 1, 2)]
    strong = [with_facts(make_run(tmp_path / f"s{s}", 0.01, s + 10), s) for s in (2, 3, 4)]
    three = compare({"weak": weak, "strong": strong}, "weak")
    line, baseline = three.rows[1].dice, three.rows[0].dice
    assert line.pairs == 0
    assert line.difference == pytest.approx(line.mean - baseline.mean)
    one = compare({"weak": weak, "strong": strong[:1]}, "weak").rows[1].dice
    alone = compare({"weak": weak[2:], "strong": strong[:1]}, "weak")
    assert one.pairs == 0
    assert one.difference_high - one.difference_low > (
        alone.rows[1].dice.difference_high - alone.rows[1].dice.difference_low
    )
    assert any("With a single seed nothing is known" in note for note in alone.notes)


def test_few_groups_are_named(runs, monkeypatch):
    assert "Only 12 independent groups of cases: intervals and p are surer than so few allow." in (
        compare(runs, "weak").notes
    )
    monkeypatch.setattr(notes, "FEW_GROUPS", 12)
    assert not any("independent groups" in note for note in compare(runs, "weak").notes)


def test_evaluations_of_one_run_are_compared_as_methods_are(tmp_path):
    own = [with_facts(make_run(tmp_path / f"r{s}", 0.02, s), s) for s in (0, 1)]
    for s, folder in enumerate(own):
        make_run(tmp_path / "other", 0.08, s + 10)
        (tmp_path / "other" / "eval").rename(folder / "eval-random")
    table = compare({"own": own, "random": [folder / "eval-random" for folder in own]}, "own")
    line = table.rows[1].dice
    assert (line.seeds, line.pairs) == (2, 2)
    assert line.difference < 0
    assert table.rows[1].costs == table.rows[0].costs
    same = compare({"own": own, "again": [folder / "eval" for folder in own]}, "own").rows[1].dice
    assert same.difference == 0


@pytest.mark.parametrize(
    ("only", "n"), [({"label": "odd"}, 12), ({"size": "medium"}, 4), ({"label": "odd", "size": "medium"}, 2)]
)
def test_cases_of_one_class_or_size_are_compared_alone(runs, only, n):
    table = compare(runs, "weak", only)
    assert [note for note in table.notes if note.startswith("Only test")] == [
        f"Only test cases with {trait} '{value}'." for trait, value in only.items()
    ]
    alike = next(row for row in table.rows if row.method == "alike").dice
    rows = declared_rows(read_cases_csv(runs["alike"][0] / "eval" / "cases.csv"))
    wanted = [row.metrics.dice for row in rows if all(getattr(row, trait) == value for trait, value in only.items())]
    assert alike.n == len(wanted) == n
    assert alike.mean == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"label": "ood"}, "scored no case with label 'ood'; did you mean 'odd'"),
        ({"size": "smal"}, "scored no case with size 'smal'; choose from: large, medium"),
    ],
)
def test_a_class_or_size_that_no_case_has_is_named(runs, only, message):
    with pytest.raises(CersError, match=message):
        compare(runs, "weak", only)


def test_two_runs_of_one_seed_are_refused(tmp_path):
    twice = [with_facts(make_run(tmp_path / name, 0.08, 1), 4) for name in ("a", "b")]
    with pytest.raises(CersError, match="two runs of 'm' have seed 4 and cases in common"):
        compare({"m": twice}, "m")


def in_folds(run: Path, folds: int = 3) -> list[Path]:
    """The run as if each fold had scored some of its groups, with the cost of the fold's number."""
    rows = read_cases_csv(run / "eval" / "cases.csv")
    made = []
    for fold in range(folds):
        folder = run.with_name(f"{run.name}-{fold}")
        write_cases_csv([r for r in rows if int(r.group.removeprefix("p")) % folds == fold], folder / "eval/cases.csv")
        shutil.copy(run / "config.yaml", folder)
        facts = {"parameters": 10 * fold, "dataset": f"images of fold {fold}"}
        (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
        made.append(folder)
    return made


def test_folds_of_a_seed_are_compared_as_one_run(tmp_path):
    weak = [with_facts(make_run(tmp_path / f"w{s}", 0.08, s), s, {"parameters": 10}) for s in (0, 1)]
    strong = [with_facts(make_run(tmp_path / f"s{s}", 0.01, s + 10), s, {"parameters": 10}) for s in (0, 1)]
    whole = compare({"weak": weak, "strong": strong}, "weak")
    parts = [[fold for run in runs for fold in in_folds(run)] for runs in (weak, strong)]
    folds = compare({"weak": parts[0], "strong": parts[1][::-1]}, "weak")
    assert folds.rows == whole.rows
    assert (folds.rows[1].dice.seeds, folds.rows[1].dice.pairs, folds.rows[1].dice.n) == (2, 2, N)
    assert any("Cross-validated in 3 folds" in note for note in folds.notes)
    assert not any("Cross-validated" in note for note in whole.notes)
    assert not any("different datasets" in note for note in folds.notes)
    (parts[1][0] / "run.json").write_text(json.dumps({"dataset": "others"}), encoding="utf-8")
    changed = compare({"weak": parts[0], "strong": parts[1]}, "weak")
    assert any("different datasets: images of fold 0, others" in note for note in changed.notes)
    with pytest.raises(CersError, match="scored on different cases"):
        compare({"weak": parts[0], "strong": parts[1][:-1]}, "weak")


def test_folds_must_have_had_the_same_splits(tmp_path):
    run = with_facts(make_run(tmp_path / "a", 0.08, 0), 0)
    first, other = in_folds(run), in_folds(shutil.copytree(run, tmp_path / "b"))
    cases = [Case(f"c{i}", Path("c.png"), mask=Path("c.png")) for i in range(N)]
    for number, folders in enumerate(zip(first, other, strict=True)):
        for folder in folders:
            save_split(make_split(cases, seed=number, clusters=[]), folder / "split.json")
    assert compare({"a": first, "b": other}, "a").rows[1].dice.difference == 0
    save_split(make_split(cases, seed=9, clusters=[]), other[2] / "split.json")
    with pytest.raises(CersError, match="trained on different splits"):
        compare({"a": first, "b": other}, "a")


def test_holm_counts_every_comparison_of_every_section(runs, tmp_path):
    copies = {
        name: [Path(shutil.copytree(run, tmp_path / f"copy-{run.name}")) for run in folders]
        for name, folders in runs.items()
    }
    one, both = compare(runs, "weak"), compare_sections({"a": runs, "b": copies}, "weak")
    assert (one.comparisons, both.comparisons) == (2, 4)
    strong = [row.dice for row in both.rows if row.method == "strong"]
    assert [line.section for line in strong] == ["a", "b"]
    assert strong[0].p_holm == pytest.approx(4 * strong[0].p)
    assert one.rows[1].dice.p_holm == pytest.approx(2 * strong[0].p)


def test_several_sections_begin_with_an_overview(runs):
    table = compare_sections({"5 %": runs, "25 %": {"alike": runs["alike"]}}, "weak")
    head, *rows = overview_rows(table)
    assert head == ["Dice ↑", "5 %", "25 %"]
    assert [row[0] for row in rows] == ["weak", "strong", "alike"]
    alike = next(row.dice for row in table.rows if row.method == "alike")
    assert rows[0][1].endswith(" (2)")
    assert rows[0][2] == "–"
    assert rows[2][1:] == [f"{alike.mean:.3f} (1)"] * 2
    assert next(iter(parts(table))) == "Overview"
    assert to_markdown(table).startswith("| Dice ↑ | 5 % | 25 % |\n")
    assert any(line.startswith("Overview:") for line in legend(table))
    few = {name: runs[name] for name in ("weak", "alike")}
    turned = compare_sections({"2 %": few, "25 %": runs}, "weak")
    assert [row[0] for row in overview_rows(turned)] == ["Dice ↑", "weak", "strong", "alike"]
    assert overview_rows(compare(runs, "weak")) == []


def test_a_section_without_its_reference_has_no_differences(runs):
    table = compare_sections({"a": runs, "b": {"alike": runs["alike"]}}, "weak")
    assert math.isnan(table.rows[-1].dice.difference)
    assert table.comparisons == 2


def test_a_section_must_have_seen_the_same_masks(runs):
    cases = [Case(f"t{i}", Path(f"t{i}.png"), mask=Path(f"t{i}.png")) for i in range(40)]
    split = make_split(cases, strategy="paper", seed=0)
    save_split(split.with_labelled(0.5), runs["weak"][0] / "split.json")
    save_split(split.with_labelled(0.25), runs["strong"][0] / "split.json")
    few = {name: runs[name][:1] for name in ("weak", "strong")}
    assert any("different numbers of masks" in note for note in compare(few, "weak").notes)
    with pytest.raises(CersError, match="trained on different labelled cases"):
        compare_sections({"25 %": few}, "weak")


def test_seeds_may_have_labelled_images_of_their_own(tmp_path):
    cases = [Case(f"t{i}", Path(f"t{i}.png"), mask=Path(f"t{i}.png")) for i in range(40)]
    split = make_split(cases, strategy="paper", seed=0, labelled=0.5)
    made = {
        name: [with_facts(make_run(tmp_path / f"{name}{s}", noise, 10 * i + s), s) for s in (0, 1)]
        for i, (name, noise) in enumerate({"weak": 0.08, "strong": 0.01}.items())
    }
    for folders in made.values():
        for seed, folder in enumerate(folders):
            save_split(split.redrawn(cases, seed), folder / "split.json")
    table = compare_sections({"50 %": made}, "weak")
    assert table.rows[1].dice.pairs == 2
    assert "50 %: each seed has labelled images of its own, so that seeds vary by them as well." in table.notes
    save_split(split.redrawn(cases, 0), made["weak"][1] / "split.json")
    with pytest.raises(CersError, match="trained on different labelled cases"):
        compare_sections({"50 %": made}, "weak")


def test_costs_are_means_over_seeds_and_text_readers_are_marked(tmp_path):
    facts = {"parameters": 34_480_393, "steps": 8, "image_passes": 100, "wall_seconds": 60.0, "reads_text": True}
    a = [with_facts(make_run(tmp_path / f"a{s}", 0.1, s), s, {**facts, "wall_seconds": 60.0 + s}) for s in (0, 2)]
    b = [with_facts(make_run(tmp_path / "b", 0.1, 9), 0, {"parameters": 1000})]
    table = compare({"reader": a, "plain": b}, "plain")
    head, plain, reader = cost_rows(table)
    assert table.rows[1].costs.seconds == 61.0
    assert reader[0] == "reader †"
    assert reader[head.index("parameters")] == "34.48M"
    assert plain[head.index("image passes")] == "–"
    assert any("reads a text" in line for line in legend(table))


def test_what_else_differs_is_named(tmp_path):
    facts = {"device": "cpu (x86_64)"}
    a = with_facts(make_run(tmp_path / "a", 0.1, 1), 0, facts)
    b = with_facts(make_run(tmp_path / "b", 0.1, 2), 0, {"device": "some GPU"}, batch_labelled=4)
    notes = compare({"a": [a], "b": [b]}, "a").notes
    assert "b differs from a in more than its method: train.batch_labelled 4 (8)." in notes
    assert any("different devices: cpu (x86_64), some GPU" in note for note in notes)


def test_validation_cases_are_no_result(runs):
    cases = [Case(f"c{i}", Path(f"c{i}.png"), mask=Path(f"c{i}.png")) for i in range(2 * N)]
    split = make_split(cases, strategy="paper", seed=0)
    scored = [f"c{i}" for i in range(N)]
    for folder in (*runs["weak"], *runs["strong"]):
        save_split(replace(split, val=scored, test=[]), folder / "split.json")
    chosen = {name: runs[name] for name in ("weak", "strong")}
    for only in ({}, {"label": "odd"}):
        assert sum("validation cases" in note for note in compare(chosen, "weak", only).notes) == 1
    for folder in (*runs["weak"], *runs["strong"]):
        save_split(replace(split, val=[], test=scored), folder / "split.json")
    assert not any("validation cases" in note for note in compare(chosen, "weak").notes)


def test_a_damaged_record_is_named(tmp_path):
    run = with_facts(make_run(tmp_path / "a", 0.1, 1), 0)
    (run / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(CersError, match=r"run.json is damaged"):
        compare({"a": [run]}, "a")
