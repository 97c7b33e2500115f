"""Rationales into a store and out again, as training reads them."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cers.cli.annotate import app
from cers.cot.store import AnnotationStore
from cers.data.layouts import load_cases
from cers.errors import CersError

RUNNER = CliRunner()
GOOD = "Texture: {0} signal, “quoted”.\nBoundary: sharp; with, commas.\nContext: near bone.\nSummary: mass."
PUBLISHED = Path("../shared/data/brisc2025/reports")


def run(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, [*map(str, arguments)])


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("image", "cot"), *rows])
    return path


def test_two_tables_go_into_a_store_and_out_as_training_reads_them(scans: Path, tmp_path: Path) -> None:
    ids = [case.id for case in load_cases(scans)]
    free = write(tmp_path / "cot_no_mask.csv", [(f"{i}.jpg", GOOD.format(f"free {i}")) for i in ids])
    informed = write(tmp_path / "cot_mask.csv", [(i, GOOD.format(f"informed {i}")) for i in ids[:3]])
    store, out = tmp_path / "store.sqlite", tmp_path / "rationales.csv"
    result = run("import", free, informed, "--store", store, "--model", "gpt-5")
    assert result.exit_code == 0, result.output
    result = run("export", store, "--out", out)
    assert result.exit_code == 0, result.output
    cases = {case.id: case for case in load_cases(scans, rationales=out)}
    for i in ids:
        assert f"free {i} signal, “quoted”" in (cases[i].rationale or "")
    assert {i for i, case in cases.items() if case.mask_rationale} == set(ids[:3])
    assert all("informed" in (cases[i].mask_rationale or "") for i in ids[:3])
    once = out.read_bytes()
    run("import", out, "--store", tmp_path / "again.sqlite", "--model", "gpt-5")
    assert f"{out} exists; add --overwrite" in str(run("export", tmp_path / "again.sqlite", "--out", out).exception)
    result = run("export", tmp_path / "again.sqlite", "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == once


def test_what_is_left_out_is_named_and_the_status_says_so(tmp_path: Path) -> None:
    rows = [("a", GOOD.format("one")), ("a", GOOD.format("two")), ("b", "I'm sorry, I can't help."), ("c", "")]
    result = run("import", write(tmp_path / "cot.csv", rows), "--store", tmp_path / "s.db", "--model", "m")
    assert result.exit_code == 1
    assert "a unlabelled: contradicts cot.csv:5" in result.stdout
    assert "b unlabelled: malformed: a refusal" in result.stdout
    assert "c unlabelled: malformed: empty text" in result.stdout
    with AnnotationStore(tmp_path / "s.db") as store:
        assert [(row.image, row.state) for row in store.rows()] == [("a", "ok")]


def test_a_bad_answer_in_the_store_is_no_text_in_the_table(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.import_rows([("a", "unlabelled", GOOD.format("old")), ("b", "unlabelled", "I'm sorry.")], "one")
        store.import_rows([("a", "unlabelled", "RateLimitError: 429")], "two")
    out = tmp_path / "out.csv"
    result = run("export", tmp_path / "s.db", "--out", out)
    assert "b unlabelled: invalid" in result.stdout
    assert "old signal" in out.read_text(encoding="utf-8")
    assert "RateLimit" not in out.read_text(encoding="utf-8")
    assert "by model 'two'" in str(run("export", tmp_path / "s.db", "--model", "two").exception)


@pytest.mark.parametrize("content", [b"image,mask,cot\na,b,c\n", b"", b"\xff\xfe"])
def test_an_export_replaces_nothing_but_an_export(content: bytes, tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        store.import_rows([("a", "unlabelled", GOOD.format("old"))], "one")
    mine = tmp_path / "mine.csv"
    mine.write_bytes(content)
    for more in ([], ["--overwrite"]):
        error = run("export", tmp_path / "s.db", "--out", mine, *more).exception
        assert isinstance(error, CersError)
        assert f"{mine} exists and is no CSV image,role,cot" in str(error)
    assert mine.read_bytes() == content


def test_mistakes_leave_nothing_behind(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    bad = write(tmp_path / "cot.csv", [("a", "nothing")])
    for paths in ([tmp_path / "absent.csv"], [bad]):
        assert isinstance(run("import", *paths, "--store", store, "--model", "m").exception, CersError)
    assert not store.exists()
    assert "no annotation store" in str(run("export", store).exception)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published rationales are not in ../shared/data")
def test_the_published_tables_come_in_but_for_two_rows(tmp_path: Path) -> None:
    tables = [PUBLISHED / f"cot_output_gpt5_{name}.csv" for name in ("mask", "no_mask")]
    result = run("import", *tables, "--store", tmp_path / "s.db", "--model", "gpt-5")
    assert result.exit_code == 1
    assert "3933" in result.stdout
    assert "3931" in result.stdout
    assert "00444_gl_co" in result.stdout
    assert "04506_pi_sa" in result.stdout
