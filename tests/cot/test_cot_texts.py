from pathlib import Path

import pandas as pd
import pytest

from cers.cot.store import AnnotationStore
from cers.cot.texts import read_texts, role_named, usable
from cers.errors import CersError

GOOD = "Texture: {0} signal.\nBoundary: sharp.\nContext: near bone.\nSummary: mass."


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("cot_output_gpt5_mask.csv", "labelled"),
        ("cot_output_gpt5_no_mask.csv", "unlabelled"),
        ("rationales.csv", "unlabelled"),
    ],
)
def test_the_file_name_says_the_role_unless_the_row_or_the_caller_does(tmp_path: Path, name: str, role: str) -> None:
    path = table(tmp_path / name, [{"image": "a.jpg", "cot": GOOD.format("even")}])
    (text,) = read_texts([path])
    assert (text.image, text.role) == ("a", role)
    assert read_texts([path], "labelled")[0].role == "labelled"
    table(path, [{"image": "a", "cot": GOOD.format("even"), "role": "unlabelled"}])
    assert read_texts([path], "labelled")[0].role == "unlabelled"


def test_a_store_gives_its_newest_good_answers_and_the_bad_ones_of_others(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with AnnotationStore(path) as store:
        store.import_rows([("a", "unlabelled", GOOD.format("old")), ("b", "labelled", "I'm sorry.")], "one")
        store.import_rows([("a", "unlabelled", GOOD.format("new"))], "two")
        store.import_rows([("a", "unlabelled", "Texture: cut")], "three")
    texts = read_texts([path])
    assert [(t.image, t.role) for t in texts] == [("a", "unlabelled"), ("b", "labelled")]
    assert usable(texts, "unlabelled")["a"].texture == "new signal."
    assert usable(texts, "labelled") == {}


def test_of_several_texts_the_first_well_formed_one_counts(tmp_path: Path) -> None:
    rows = [{"image": "a", "cot": cot} for cot in ("no text", GOOD.format("first"), GOOD.format("second"))]
    texts = read_texts([table(tmp_path / "cot.csv", rows)])
    assert usable(texts, "unlabelled")["a"].texture == "first signal."


def test_a_short_row_has_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "cot.csv"
    path.write_text("cot,image\none\ntwo,b\n", encoding="utf-8")
    assert [(t.image, t.text) for t in read_texts([path])] == [("", "one"), ("b", "two")]
    path.write_text("image,cot\na\nb,two\n", encoding="utf-8")
    assert [(t.image, t.text) for t in read_texts([path])] == [("a", ""), ("b", "two")]


def test_mistakes_name_the_line_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CersError, match="no file"):
        read_texts([tmp_path / "absent.csv"])
    with pytest.raises(CersError, match="image,cot; found image,text"):
        read_texts([table(tmp_path / "text.csv", [{"image": "a", "text": "b"}])])
    with pytest.raises(CersError, match=r"x.csv:2: unknown role 'labeled'.*labelled"):
        read_texts([table(tmp_path / "x.csv", [{"image": "a", "cot": "b", "role": "labeled"}])])
    (tmp_path / "ragged.csv").write_text("image,cot\na,one, two\n", encoding="utf-8")
    with pytest.raises(CersError, match="line 2"):
        read_texts([tmp_path / "ragged.csv"])
    with pytest.raises(CersError, match="did you mean 'labelled'"):
        role_named("labeled")
    (tmp_path / "other.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(CersError, match="store"):
        read_texts([tmp_path / "other.sqlite"])
