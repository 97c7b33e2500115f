from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_files import by_id, kinds, table, touch

from cers.data.layouts import load_cases, scan
from cers.errors import CersError


def test_cers_tables_keep_raw_texts_and_tell_the_rationales_apart(tmp_path: Path) -> None:
    touch(tmp_path, "frames/bjorke_1.png", "masks/bjorke_1.png", "frames/bjorke_2.png", "masks/bjorke_2.png")
    cot = "Texture: fine.  \nBoundary: sharp, “clear”.\nContext: none.\nSummary: a, b."
    table(tmp_path / "text.csv", ("image", "text"), ("bjorke_1.jpg", "one, two"), ("bjorke_9.jpg", "x"))
    table(tmp_path / "reports/cot_output_gpt5_no_mask.csv", ("image", "cot"), ("bjorke_1", cot), bom=True)
    table(
        tmp_path / "reports/cot_output_gpt5_mask.csv", ("image", "cot"), ("bjorke_1", "M"), ("bjorke_2", "N"), bom=True
    )
    found = scan(tmp_path)
    cases = by_id(found.cases)
    assert found.layout == "cers"
    assert (cases["bjorke_1"].report, cases["bjorke_1"].rationale, cases["bjorke_1"].mask_rationale) == (
        "one, two",
        cot,
        "M",
    )
    assert (cases["bjorke_2"].rationale, cases["bjorke_2"].mask_rationale) == (None, "N")
    assert (found.reports_matched, found.rationales_matched, found.mask_rationales_matched) == (1, 1, 2)
    assert found.reports_unmatched == ["bjorke_9"]
    assert kinds(found) == []
    assert kinds(found, "note") == ["unmatched-text"]


@pytest.mark.parametrize("name", ["cot_no_mask", "CoT-no-mask", "nomask_cot", "cot_without_mask", "cot", "maskfree"])
def test_mask_free_tables_are_known_by_name(plain: Path, name: str) -> None:
    table(plain / f"reports/{name}.csv", ("image", "cot"), ("a", "T"))
    case = by_id(load_cases(plain))["a"]
    assert (case.rationale, case.mask_rationale) == ("T", None)


def test_text_files_and_odd_columns(plain: Path) -> None:
    touch(plain, "reports/._junk.csv")
    (plain / "reports" / "b.txt").write_text("Bilateral.\n", encoding="utf-8-sig")
    table(plain / "reports/r.csv", ("", " Image ", "REPORT"), ("0", "images/a.PNG", "Left."))
    cases = by_id(load_cases(plain))
    assert cases["a"].report == "Left."
    assert cases["b"].report == "Bilateral.\n"


def test_text_files_are_read_whatever_the_case_of_their_suffix(plain: Path) -> None:
    (plain / "reports").mkdir()
    (plain / "reports" / "a.TXT").write_text("Left.", encoding="utf-8")
    found = scan(plain)
    assert by_id(found.cases)["a"].report == "Left."
    assert found.problems == []


def test_texts_that_are_not_read_are_said(plain: Path) -> None:
    touch(plain, "reports/a.docx", "reports/b.2024.DOCX", "reports/c.pdf", "reports/old/a.txt")
    (found,) = scan(plain).problems
    assert (found.level, found.kind, found.where) == ("warning", "ignored-file", str(plain / "reports"))
    assert found.message.startswith("not read: 2x .docx, 1x .pdf, 1x subfolder; texts are .txt, .csv or .xlsx")


def test_a_blank_text_file_is_no_report(plain: Path) -> None:
    touch(plain, "reports/a.txt")
    (plain / "reports" / "b.txt").write_text(" \n", encoding="utf-8-sig")
    table(plain / "text.csv", ("image", "text"), ("a", "Left."))
    found = scan(plain)
    assert {c.id: c.report for c in found.cases} == {"a": "Left.", "b": None, "c": None}
    assert kinds(found) == []
    assert kinds(found, "warning") == ["empty-text"]
    assert "'a', 'b'" in next(p.message for p in found.problems if p.kind == "empty-text")


def test_hidden_files_among_texts_are_passed_over(plain: Path) -> None:
    (plain / "reports").mkdir()
    for name in ("._a.txt", ".DS_Store", "~$a.docx", "Thumbs.db"):
        (plain / "reports" / name).write_bytes(b"\x00\xff\xfe\x05")
    assert scan(plain).problems == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_line_ends(plain: Path, delimiter: str, end: str) -> None:
    text = end.join((f"image{delimiter}text", f'a.jpg{delimiter}"x; y,\tz"', "", ""))
    (plain / "text.csv").write_bytes(text.encode())
    found = scan(plain)
    assert by_id(found.cases)["a"].report == "x; y,\tz"
    assert found.problems == []


@pytest.mark.parametrize(
    ("content", "kind", "level"),
    [
        (b"image,text\na,x\na.png,x\n", "repeated-rows", "warning"),
        (b"image,text\na,x\na.png,y\n", "contradicting-rows", "error"),
        (b"image,text\na,left, and right\n", "ragged-rows", "error"),
        (b"image,text\na,\n", "empty-text", "warning"),
        (b"image,text\na,caf\xe9\n", "unreadable-table", "error"),
        (b'image,text\na,"never closed\n', "unreadable-table", "error"),
        (b"", "unreadable-table", "error"),
        (b"picture,text\na,x\n", "unknown-table", "warning"),
        (b"image,cot,role\na,x,teacher\n", "unknown-role", "error"),
        (b"image,text\nA1,x\nB1,y\n", "unmatched-text", "warning"),
        (b"image,text\na\n", "empty-text", "warning"),
        (b"text,image\nx\n", "empty-text", "warning"),
        (b"cot,image\nx\n", "empty-text", "warning"),
        (b"image,text,text\na,x,x\n", "repeated-column", "error"),
    ],
)
def test_flaws_of_tables(plain: Path, content: bytes, kind: str, level: str) -> None:
    (plain / "reports").mkdir()
    (plain / "reports" / "t.csv").write_bytes(content)
    found = scan(plain)
    assert len(found.cases) == 3
    assert kinds(found, level) == [kind]


def test_a_text_file_may_not_contradict_a_table(plain: Path) -> None:
    table(plain / "text.csv", ("image", "text"), ("a", "left"))
    (plain / "reports").mkdir()
    (plain / "reports" / "a.txt").write_text("right", encoding="utf-8")
    assert kinds(scan(plain)) == ["contradicting-rows"]


def test_broken_workbooks_are_a_problem(plain: Path) -> None:
    (plain / "text.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    assert kinds(scan(plain)) == ["unreadable-table"]


def test_rationales_replace_those_of_the_dataset(plain: Path, tmp_path: Path) -> None:
    table(plain / "reports/cot_mask.csv", ("image", "cot"), ("a", "old"), ("b", "old"))
    table(plain / "reports/cot_no_mask.csv", ("image", "cot"), ("a", "old"))
    own = table(tmp_path / "own.csv", ("image", "cot"), ("a", "new"), ("c.png", "new c"))
    cases = by_id(load_cases(plain, rationales=own))
    assert [cases[i].rationale for i in "abc"] == ["new", None, "new c"]
    assert [cases[i].mask_rationale for i in "abc"] == [None, None, None]
    table(own, ("image", "cot", "role"), ("a", "seen", "labelled"), ("a", "unseen", "unlabelled"))
    case = by_id(load_cases(plain, rationales=own))["a"]
    assert (case.rationale, case.mask_rationale) == ("unseen", "seen")


def test_rationales_from_a_bad_file(plain: Path) -> None:
    with pytest.raises(CersError, match="no file"):
        scan(plain, rationales=plain / "absent.csv")
    with pytest.raises(CersError, match="columns image,cot"):
        scan(plain, rationales=table(plain / "x.csv", ("image", "text"), ("a", "b")))


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1
    )
)
def test_any_text_survives_the_table(texts: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        touch(root, *(f"{kind}/{i}.png" for i in "abc" for kind in ("images", "masks")))
        table(root / "text.csv", ("image", "text"), *texts.items())
        cases = by_id(scan(root).cases)
        assert {i: cases[i].report for i in "abc"} == {i: texts[i] if texts.get(i, "").strip() else None for i in "abc"}
