"""The audit of texts that describe their images, and of texts that do not."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cers.cli.annotate import app
from cers.config import MaskReading
from cers.cot.offline import annotate_offline
from cers.data.layouts import load_cases
from cers.errors import CersError

RUNNER = CliRunner()
GOOD = "Texture: aa.\nBoundary: bb.\nContext: cc.\nSummary: dd."
PUBLISHED = Path("../shared/data")


def audit(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, ["audit", *map(str, arguments)])


def write(path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...] = ("image", "cot")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


@pytest.fixture(scope="module")
def written(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline rationales of both roles for every phantom."""
    cases = load_cases(scans)
    out = tmp_path_factory.mktemp("written") / "rationales.csv"
    annotate_offline(cases, {case.id for case in cases if case.mask}, out, mask_reading=MaskReading(), use_report=False)
    return out


def test_malformed_rows_are_all_listed_and_fail(tmp_path: Path) -> None:
    rows = [("a", GOOD), ("b", "I'm sorry, I can't help."), *((f"c{n}", "Texture: x") for n in range(30))]
    result = audit(write(tmp_path / "cot.csv", rows))
    assert result.exit_code == 1
    assert "b unlabelled malformed: a refusal" in result.stdout
    assert all(f"c{n} unlabelled malformed: missing boundary" in result.stdout for n in range(30))
    assert "Wording" in result.stdout
    result = audit(write(tmp_path / "cot.csv", rows[1:]))
    assert result.stdout.startswith("Flaws ")  # of texts that all are malformed there is no wording to show
    result = audit(write(tmp_path / "cot.csv", [("a", GOOD)]))
    assert result.exit_code == 0
    assert "no flaw found" in result.stdout


def test_texts_that_describe_their_image_find_it_and_shuffled_ones_do_not(
    written: Path, scans: Path, tmp_path: Path
) -> None:
    result = audit(written, "--data", scans, "--json")
    found = json.loads(result.stdout)["information"]
    assert found["rationale"]["outranks"]["lift"]["low"] > 0
    with written.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    free = [row for row in rows if row["role"] == "unlabelled"]
    turned = np.roll([row["cot"] for row in free], 7)
    other = [(row["image"], str(text), "unlabelled") for row, text in zip(free, turned, strict=True)]
    other += [(row["image"], row["cot"], "labelled") for row in rows if row["role"] == "labelled"]
    path = write(tmp_path / "turned.csv", other, ("image", "cot", "role"))
    wrong = json.loads(audit(path, "--data", scans, "--json").stdout)["information"]
    assert wrong["rationale"]["outranks"]["mean"] < found["rationale"]["outranks"]["mean"] - 0.1
    assert wrong["rationale"]["outranks"]["low"] < 0.5


def test_two_files_are_audited_as_one_set(written: Path, tmp_path: Path) -> None:
    with written.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    paths = [
        write(tmp_path / name, [(row["image"], row["cot"]) for row in rows if row["role"] == role])
        for name, role in (("cot_mask.csv", "labelled"), ("cot_no_mask.csv", "unlabelled"))
    ]
    whole, parts = audit(written, "--json"), audit(*paths, "--json")
    one, two = json.loads(whole.stdout), json.loads(parts.stdout)
    assert one["information"] == two["information"]
    assert "report" not in one["information"]
    assert one["texts"] == two["texts"]


def test_the_page_shows_the_worst_cases_with_their_images(written: Path, scans: Path, tmp_path: Path) -> None:
    with written.open(encoding="utf-8") as file:
        rows = [(row["image"], row["cot"], row["role"]) for row in csv.DictReader(file)]
    rows[0] = (rows[0][0], "<b>I'm sorry</b>, I can't help.", rows[0][2])
    page = tmp_path / "audit.html"
    result = audit(write(tmp_path / "cot.csv", rows, ("image", "cot", "role")), "--data", scans, "--html", page)
    assert result.exit_code == 1
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;I&#39;m sorry" in html
    assert "<b>I" not in html
    assert "Says least about its own image (" in html
    assert html.count("data:image/webp;base64,") == html.count("<article") >= 8
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_the_page_shows_what_was_copied_and_leaves_out_what_is_perfect(
    written: Path, scans: Path, tmp_path: Path
) -> None:
    with written.open(encoding="utf-8") as file:
        rows = [(row["image"], row["cot"], row["role"]) for row in csv.DictReader(file)]
    free, informed = ([row for row in rows if row[2] == role] for role in ("unlabelled", "labelled"))
    words = [f"red{i} blue{i} green{i} grey{i}" for i in range(len(free))]
    own = [f"Texture: {w}.\nBoundary: {w} b.\nContext: {w} c.\nSummary: {w} s." for w in words]
    rows = [(row[0], text, row[2]) for part in (free, informed) for row, text in zip(part, own, strict=False)]
    copied = rows[len(free) - 1] = (free[-1][0], rows[0][1], "unlabelled")  # of another patient
    page = tmp_path / "audit.html"
    audit(write(tmp_path / "cot.csv", rows, ("image", "cot", "role")), "--data", scans, "--html", page)
    html = page.read_text(encoding="utf-8")
    assert "Nearly the text of another (2)" in html
    assert f'<th scope="col">text of {rows[0][0]}</th>' in html
    assert f'<th scope="col">text of {copied[0]}</th>' in html
    assert "outranks only 100" not in html


def test_mistakes_are_one_line(written: Path, scans: Path, tmp_path: Path) -> None:
    assert isinstance(audit(tmp_path / "absent.csv").exception, CersError)
    assert "choose from" in str(audit(written, "--encoder", "bort").exception)
    assert "did you mean" in str(audit(written, "--role", "labeled").exception)
    strangers = write(tmp_path / "strangers.csv", [("nobody", GOOD)])
    assert "no rationale is about an image" in str(audit(strangers, "--data", scans).exception)
    empty = write(tmp_path / "empty.csv", [])
    assert "no rationale to audit" in str(audit(empty).exception)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published rationales are not in ../shared/data")
def test_the_published_rationales_have_the_known_flaws() -> None:
    reports = PUBLISHED / "brisc2025" / "reports"
    texts = [str(reports / f"cot_output_gpt5_{role}.csv") for role in ("mask", "no_mask")]
    from cers.cot.audit import find_flaws
    from cers.cot.texts import read_texts

    flaws = find_flaws(read_texts([Path(text) for text in texts]), {})
    malformed = sorted(flaw.image for flaw in flaws if flaw.kind == "malformed")
    assert malformed == ["brisc2025_train_00444_gl_co_t1", "brisc2025_train_04506_pi_sa_t1"]
    assert {flaw.role for flaw in flaws if flaw.kind == "speaks of the drawing"} == {"labelled"}
