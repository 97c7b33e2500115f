import json
import math
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from cers.cli.main import main
from cers.cli.pool import app
from cers.config import MaskReading, load_config
from cers.data.images import read_mask
from cers.data.layouts import load_cases
from cers.data.splits import make_split, save_split
from cers.engine.checkpoint import load_checkpoint
from cers.engine.log import read_log
from cers.errors import CersError
from cers.evaluation import evaluate
from cers.predict.pools import build_pool, inspect_pool, load_pool, neighbours
from cers.reporting import report
from cers.retrieval.pool import KnowledgePool, PoolEntry, PoolShape
from cers.run import load_run, train

LIMIT = 80 * 1024  # bytes per case


@pytest.fixture(scope="module")
def extended(home: Path) -> Path:
    """The labelled cases of the run and all of the second hospital."""
    build_pool(home / "cers", home / "extended", data=home / "elsewhere" / "manifest.csv", keep_own=True)
    return home / "extended"


def references(folder: Path) -> dict[str, list[str]]:
    rows = map(json.loads, (folder / "evidence.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["id"]: [reference["id"] for reference in row["references"]] for row in rows}


def test_the_runs_own_pool_holds_its_labelled_cases_and_what_the_encoder_sees_now(home: Path) -> None:
    built = build_pool(home / "cers", home / "own")
    run = load_run(home / "cers")
    assert run.method.pool is not None
    assert built.entries == run.method.pool.entries
    assert set(built.ids) == set(run.split.labelled)
    assert built.filled.all()
    assert built.cot_known.all()
    assert torch.equal(load_pool(run, home / "own").image, built.image)
    assert torch.allclose(built.image.norm(dim=1), torch.ones(len(built)), atol=1e-5)


def test_mask_informed_rationales_are_preferred(home: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere.csv"
    text = (home / "elsewhere" / "manifest.csv").read_text(encoding="utf-8")
    for part in ("images/", "masks/"):
        text = text.replace(f"{part}far", f"{home / 'elsewhere'}/{part}far")
    table.write_text(text.replace("mask_cot", "unused"), encoding="utf-8")
    cases = {case.id: case for case in load_cases(home / "elsewhere" / "manifest.csv")}
    assert all(case.mask_rationale and case.rationale for case in cases.values())
    informed = build_pool(home / "cers", tmp_path / "informed", data=home / "elsewhere" / "manifest.csv")
    free = build_pool(home / "cers", tmp_path / "free", data=table)
    assert informed.ids == free.ids
    assert free.cot_known.all()
    assert torch.equal(informed.image, free.image)
    assert not torch.allclose(informed.cot, free.cot, atol=1e-3)


def test_a_pool_of_references_with_masks_keeps_what_lies_under_them(home: Path) -> None:
    config = load_config(home / "cers" / "config.yaml").with_values(["method.settings.reference_masks=true"])
    train(config, home / "masks")
    assert build_pool(home / "cers", home / "without").shape.prototypes == 0
    pool = build_pool(home / "masks", home / "with", data=home / "elsewhere" / "manifest.csv", keep_own=True)
    lesion, background, look_alike = pool.prototypes.unbind(1)
    negative = {case.id for case in load_cases(home / "elsewhere" / "manifest.csv") if case.negative}
    assert {id_ for id_, row in zip(pool.ids, lesion.any(dim=1).tolist(), strict=True) if not row} >= negative
    assert lesion.any(dim=1).sum() >= 20
    assert background.any(dim=1).all()
    assert torch.equal(look_alike.any(dim=1), lesion.any(dim=1))
    assert evaluate(home / "masks", pool=home / "with", out=home / "with-masks")["branches"]


def test_a_pool_of_references_with_sizes_keeps_how_large_their_lesions_are(home: Path) -> None:
    config = load_config(home / "cers" / "config.yaml").with_values(["method.settings.reference_sizes=true"])
    train(config, home / "sizes")
    best = load_checkpoint(home / "sizes" / "checkpoints" / "best.safetensors")
    rows = [row for row in read_log(home / "sizes" / "log.jsonl") if "sized" in row.get("dice", {})]
    until = [row for row in rows if row["step"] <= best.facts["state"]["best_step"]]
    gain = sum(row["dice"]["sized"] - row["dice"]["retrieval"] for row in until)
    assert float(best.part("method")["size_gain"]) == pytest.approx(gain, abs=1e-6)
    assert until[-1]["declared"] == until[-1]["dice"]["sized" if gain > 0 else "retrieval"]
    pool = build_pool(home / "sizes", home / "with-sizes", data=home / "elsewhere" / "manifest.csv")
    cases = {case.id: case for case in load_cases(home / "elsewhere" / "manifest.csv") if case.annotated}
    assert len(pool) == len(cases)
    for id_, area in zip(pool.ids, pool.area.tolist(), strict=True):
        case = cases[id_]
        true = 0.0 if case.mask is None else float(read_mask(case.mask, MaskReading()).mean())
        assert area == pytest.approx(true, abs=0.01)
    assert evaluate(home / "sizes", pool=home / "with-sizes", out=home / "sized")["branches"]
    area = dict(zip(pool.ids, pool.area.tolist(), strict=True))
    for said in map(json.loads, (home / "sized" / "evidence.jsonl").read_text(encoding="utf-8").splitlines()):
        compared = [area[r["id"]] for r in said["references"] if not math.isnan(r["text_similarity"])]
        assert said["at_least"] == pytest.approx(min(compared, default=0.0))


def test_new_knowledge_changes_what_is_retrieved_and_nothing_else(home: Path, extended: Path) -> None:
    run = home / "cers"
    evaluate(run, out=home / "before")
    summary = evaluate(run, pool=extended, out=home / "after")
    before, after = references(home / "before"), references(home / "after")
    assert before.keys() == after.keys()
    assert not any(id_.startswith("far") for ids in before.values() for id_ in ids)
    assert any(id_.startswith("far") for ids in after.values() for id_ in ids)
    assert all(quality["coverage"]["of"] == 12 + 20 for quality in summary["retrieval"].values())


def test_two_pools_of_one_name_do_not_take_each_others_place(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "cers", tmp_path / "run"))
    for name in ("one", "two"):
        build_pool(run, tmp_path / name / "pool")
    evaluate(run, pool=tmp_path / "one" / "pool")
    evaluate(run, pool=tmp_path / "one" / "pool")
    with pytest.raises(CersError, match=r"eval-pool-pool holds scores with the pool .*one/pool; rename"):
        evaluate(run, pool=tmp_path / "two" / "pool")


def test_a_pool_of_another_encoder_is_one_line_and_status_2(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_pool(home / "other", home / "foreign")
    monkeypatch.setattr(sys, "argv", ["cers", "eval", str(home / "cers"), "--pool", str(home / "foreign")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "was built with encoder test_convnext-" in told.err
    assert "cers pool build" in told.err


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("plain", {}, "which has no knowledge pool"),
        ("nowhere", {}, "holds no run"),
        ("cers", {"data": "phantom/labelled.csv", "keep_own": True}, r"is a case of the run and of .* \(12 such ids\)"),
        ("cers", {"data": "bare.csv"}, "no annotated case"),
    ],
)
def test_what_cannot_fill_a_pool_is_refused(home: Path, tmp_path: Path, run: str, options: dict, message: str) -> None:
    image = next((home / "elsewhere" / "images").iterdir())
    (home / "bare.csv").write_text(f"image\n{image}\n", encoding="utf-8")
    table = pd.read_csv(home / "phantom" / "manifest.csv")
    labelled = load_run(home / "cers").split.labelled
    table[table["image"].map(lambda path: Path(path).stem in labelled)].to_csv(
        home / "phantom" / "labelled.csv", index=False
    )
    if "data" in options:
        options = options | {"data": home / options["data"]}
    with pytest.raises(CersError, match=message):
        build_pool(home / run, tmp_path / "pool", **options)
    assert not (tmp_path / "pool").exists()


def test_a_pool_may_know_masks_that_training_did_not_use(home: Path, tmp_path: Path) -> None:
    run = load_run(home / "cers")
    save_split(run.split.with_labelled(1.0), tmp_path / "all.json")
    pool = build_pool(home / "cers", tmp_path / "pool", split=tmp_path / "all.json")
    assert set(pool.ids) == set(run.split.order) > set(run.split.labelled)
    evaluate(home / "cers", pool=tmp_path / "pool")  # beside the scores with its own pool, not over them
    used = {id_ for ids in references(home / "cers" / "eval-pool-pool").values() for id_ in ids}
    assert used & (set(run.split.order) - set(run.split.labelled))


def test_an_evaluation_with_another_pool_has_a_report_of_its_own(home: Path, tmp_path: Path, extended: Path) -> None:
    run = load_run(home / "cers")
    save_split(run.split.with_labelled(1.0), tmp_path / "all.json")
    pool = tmp_path / "wide"
    build_pool(home / "cers", pool, split=tmp_path / "all.json")
    with pytest.raises(CersError, match=f"not evaluated yet; run `cers eval .* --pool {pool}` first"):
        report(home / "cers", pool=pool)
    evaluate(home / "cers", pool=pool)
    path = report(home / "cers", pool=pool)
    assert path == home / "cers" / "report-wide.html"
    chosen = run.split.test[2]
    report(home / "cers", pool=pool, chosen=[chosen], n_each=1, out=tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert f'<span class="badge">chosen</span> {chosen}' in page
    assert "Rationale similarity" in page  # the run's strategy is image+cot
    with pytest.raises(CersError, match=f"is none of the {len(run.split.test)} scored cases; did you mean '{chosen}'"):
        report(home / "cers", pool=pool, chosen=[f"{chosen}x"])
    added = set(KnowledgePool.load(pool).ids) - set(run.split.labelled)
    assert any(id_ in path.read_text(encoding="utf-8") for id_ in added)
    evaluate(home / "cers", pool=extended)
    with pytest.raises(CersError, match=r"has 20 cases that the run's data do not, e\.g\. 'far_.*cannot be shown"):
        report(home / "cers", pool=extended)


def test_a_pool_never_shows_what_its_run_is_tested_on(home: Path, tmp_path: Path) -> None:
    cases = load_cases(home / "phantom" / "manifest.csv")
    save_split(make_split(cases, strategy="paper", val=0.1, test=0.2), tmp_path / "other.json")
    with pytest.raises(CersError, match="validates or tests; references must not show them"):
        build_pool(home / "cers", tmp_path / "pool", split=tmp_path / "other.json")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("folder", ["phantom", "copy"])
def test_nor_where_it_is_given_as_another_dataset(home: Path, tmp_path: Path, folder: str) -> None:
    with pytest.raises(CersError, match=rf"{folder}/manifest.csv has .* \(9 such cases\), which .* validates or tests"):
        build_pool(home / "cers", tmp_path / "pool", data=home / folder / "manifest.csv")
    assert not (tmp_path / "pool").exists()


def test_groups_of_the_runs_split_count_in_another_table_of_its_images(home: Path, tmp_path: Path) -> None:
    """The unlabelled cases of the run, outlined since: without the groups that training excluded by they would leak."""
    run = load_run(home / "cers")
    table = pd.read_csv(home / "phantom" / "manifest.csv")
    outlined = table[table["image"].map(lambda path: Path(path).stem in run.split.unlabelled)]
    outlined.drop(columns="group").to_csv(home / "phantom" / "outlined.csv", index=False)
    pool = build_pool(home / "cers", tmp_path / "pool", data=home / "phantom" / "outlined.csv")
    assert set(pool.ids) <= set(run.split.unlabelled)
    assert len(pool) >= 10
    assert {entry.id: entry.group for entry in pool.entries} == {id_: run.split.groups[id_] for id_ in pool.ids}


def test_a_pool_is_replaced_on_request_only(home: Path, extended: Path) -> None:
    with pytest.raises(CersError, match="holds a pool already"):
        build_pool(home / "cers", extended)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pool_takes_no_folder_of_something_else(home: Path, overwrite: bool) -> None:
    before = sorted((home / "phantom").iterdir())
    with pytest.raises(CersError, match="phantom holds something else than a pool"):
        build_pool(home / "cers", home / "phantom", overwrite=overwrite)
    assert sorted((home / "phantom").iterdir()) == before


def test_facts_of_a_pool(home: Path, extended: Path) -> None:
    facts = inspect_pool(extended)
    assert (facts.entries, facts.filled, facts.cot_known, facts.report_known) == (32, 32, 32, 32)
    assert sum(facts.classes.values()) == 32
    assert facts.without_group == 0
    assert facts.encoder.startswith("test_convnext-")
    pool = KnowledgePool.load(extended)
    cosines = pool.image @ pool.image.T - 2 * torch.eye(32)
    assert facts.nearest_image == pytest.approx(float(cosines.amax(1).mean()), abs=1e-5)
    own = inspect_pool(home / "cers")
    assert own.entries == 12
    assert Path(own.folder) == home / "cers" / "pool"


@pytest.mark.parametrize(
    "shape",
    [
        PoolShape(channels=768, grid=7, cot=512, report=128),  # ConvNeXt-T at 224 px
        PoolShape(channels=320, grid=4, cot=512, report=128),  # EfficientNet-Lite0 at 128 px
    ],
)
def test_a_case_takes_little_room(tmp_path: Path, shape: PoolShape) -> None:
    entries = [PoolEntry(f"c{i}", f"p{i // 2}", "glioma") for i in range(50)]
    KnowledgePool(entries, shape).save(tmp_path / "pool", encoder="convnext_tiny-0")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "pool").iterdir()) / 50
    facts = inspect_pool(tmp_path / "pool")
    assert facts.bytes_per_case <= on_disk <= LIMIT
    assert facts.groups == 25
    assert (facts.filled, facts.nearest_image, facts.nearest_cot) == (0, None, None)


def test_neighbours_are_the_most_similar_others(extended: Path) -> None:
    pool = KnowledgePool.load(extended)
    case = pool.ids[3]
    near = neighbours(extended, case, count=4)
    for name, vectors in (("image", pool.image), ("cot", pool.cot.float())):
        cosines = vectors @ vectors[3]
        cosines[3] = -1
        wanted = [pool.ids[i] for i in cosines.argsort(descending=True)[:4]]
        assert [neighbour.id for neighbour in near[name]] == wanted
        assert near[name][0].similarity == pytest.approx(float(cosines.max()), abs=1e-5)
    with pytest.raises(CersError, match="is not in the pool"):
        neighbours(extended, "nobody")


def test_commands(home: Path, extended: Path) -> None:
    runner = CliRunner()
    built = runner.invoke(app, ["build", str(home / "cers"), "--out", str(home / "by-command")])
    assert built.exit_code == 0, built.output
    assert f"pool of 12 cases: {home / 'by-command'}; next: cers eval" in built.output
    case = KnowledgePool.load(extended).ids[0]
    shown = runner.invoke(app, ["inspect", str(extended), "--case", case])
    for text in ("32 of 32", "KiB per case", "test_convnext-", f"Nearest to {case} by image", "by cot"):
        assert text in shown.output
    listed = json.loads(runner.invoke(app, ["inspect", str(extended), "--case", case, "--json"]).stdout)
    assert listed["entries"] == 32
    assert [n["id"] for n in listed["nearest"][case]["image"]] == [n.id for n in neighbours(extended, case)["image"]]
    refused = runner.invoke(app, ["inspect", str(home / "plain")])
    assert isinstance(refused.exception, CersError)
    assert "has no knowledge pool" in str(refused.exception)
