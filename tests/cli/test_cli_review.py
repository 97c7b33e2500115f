"""From rationales to a page, and from saved verdicts to accuracy and agreement."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cers.cli.annotate import app
from cers.config import MaskReading
from cers.cot.offline import annotate_offline
from cers.cot.review import FORMAT
from cers.data.layouts import load_cases
from cers.data.splits import load_split
from cers.errors import CersError

RUNNER = CliRunner()
ASPECTS = ("texture", "boundary", "context", "summary")


def run(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def written(scans: Path, split_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "rationales.csv"
    labelled = set(load_split(split_file).labelled)
    annotate_offline(load_cases(scans), labelled, out, mask_reading=MaskReading(), use_report=False)
    return out


def shown(page: Path) -> dict[str, bool]:
    """Each text of the page, and whether a lesion is outlined beside it."""
    articles = re.split(r"<article ", page.read_text(encoding="utf-8"))[1:]
    return {re.findall(r'data-name="([^"]+)"', a)[0]: "<svg" in a for a in articles}


def test_the_sample_is_seeded_and_only_labelled_lesions_are_outlined(
    written: Path, scans: Path, split_file: Path, tmp_path: Path
) -> None:
    pages = [tmp_path / f"{name}.html" for name in ("a", "b", "c", "blind")]
    for page, seed in zip(pages[:3], (0, 0, 1), strict=True):
        result = run("review", written, "--data", scans, "--split", split_file, "--out", page, "-n", 12, "--seed", seed)
        assert result.exit_code == 0, result.output
    assert pages[0].read_bytes() == pages[1].read_bytes()
    texts, others = shown(pages[0]), shown(pages[2])
    assert len(texts) == 12
    assert len({name.split()[0] for name in texts}) == 12
    assert set(texts) != set(others)
    labelled = set(load_split(split_file).labelled)
    assert {name: name.split()[0] in labelled for name in texts} == texts
    assert True in texts.values()
    assert False in texts.values()
    run("review", written, "--data", scans, "--out", pages[3], "-n", 12)
    assert not any(shown(pages[3]).values())


def test_masks_of_other_cases_are_never_opened(written: Path, scans: Path, split_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scans"
    shutil.copytree(scans, copy)
    labelled = set(load_split(split_file).labelled)
    for case in load_cases(copy):
        if case.mask and case.id not in labelled:
            case.mask.write_bytes(b"no image at all")
    for root, page in ((scans, "a.html"), (copy, "b.html")):
        result = run("review", written, "--data", root, "--split", split_file, "--out", tmp_path / page)
        assert "without outline" not in result.output
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_masks_of_several_lesions_are_read_as_the_options_say(
    written: Path, scans: Path, split_file: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(scans, tmp_path / "scans"))
    for path in (copy / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 255
        mask[:3, :3] = 2
        cv2.imwrite(str(path), mask)
    page = tmp_path / "a.html"
    review = ["review", written, "--data", copy, "--split", split_file, "--out", page, "-n", 24]
    assert "leave open what is lesion" in run(*review).output
    assert not any(shown(page).values())
    assert "leave open" not in run(*review, "--mask-foreground", 1, "--mask-foreground", 2).output
    assert any(shown(page).values())


def saved(path: Path, reviewer: str, verdicts: dict[str, dict[str, str]], sample: str = "s") -> Path:
    content = {"format": FORMAT, "sample": sample, "of": 50, "reviewer": reviewer, "verdicts": verdicts, "notes": {}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def given(seed: int, n: int = 50) -> dict[str, dict[str, str]]:
    rng = np.random.default_rng(seed)
    return {
        f"c{i} labelled": {a: str(rng.choice(["right", "right", "wrong", "unsure"])) for a in ASPECTS} for i in range(n)
    }


def test_verdicts_give_accuracy_and_agreement(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.json", "Ada", given(0))
    found = json.loads(run("verdicts", first, "--json").stdout)
    part = found["reviewers"]["Ada"]["texture"]
    assert part["right"] + part["wrong"] + part["unsure"] == 50
    assert part["accuracy"]["mean"] == part["right"] / (part["right"] + part["wrong"])
    assert part["accuracy"]["low"] < part["accuracy"]["mean"] < part["accuracy"]["high"]
    assert found["agreement"] == {}
    same, other = saved(tmp_path / "b.json", "Bo", given(0)), saved(tmp_path / "c.json", "Cy", given(1))
    found = json.loads(run("verdicts", first, same, other, "--json").stdout)["agreement"]
    assert found["Ada and Bo"]["verdicts"]["kappa"]["mean"] == 1
    assert found["Ada and Cy"]["verdicts"]["kappa"]["low"] < 0 < found["Ada and Cy"]["verdicts"]["kappa"]["high"]
    assert found["Ada and Cy"]["verdicts"]["n"] == 200
    table = run("verdicts", first, other)
    assert "Ada and Cy" in table.stdout
    assert "kappa" in table.stdout


def test_a_text_counts_as_wrong_where_one_aspect_is(tmp_path: Path) -> None:
    right = dict.fromkeys(ASPECTS, "right")
    verdicts = {
        "a x": right,
        "b x": right | {"context": "wrong", "texture": "unsure"},
        "c x": right | {"summary": "unsure"},
    }
    verdicts["d x"] = {"texture": "right"}
    found = json.loads(run("verdicts", saved(tmp_path / "a.json", "A", verdicts), "--json").stdout)
    whole = found["reviewers"]["A"]["all four"]
    assert (whole["right"], whole["wrong"], whole["unsure"]) == (1, 1, 1)


def test_mistakes_are_one_line(written: Path, scans: Path, tmp_path: Path) -> None:
    good = saved(tmp_path / "a.json", "Ada", given(0))
    broken = tmp_path / "broken.json"
    cases = {
        "no file": (tmp_path / "absent.json",),
        "another sample": (good, saved(tmp_path / "b.json", "Bo", given(0), "t")),
        "two files are by reviewer 'Ada'": (good, saved(tmp_path / "c.json", "Ada", given(1))),
        "holds no verdict yet": (saved(tmp_path / "d.json", "Di", {}),),
        "verdicts right, wrong, unsure": (saved(tmp_path / "e.json", "Ed", {"a": {"texture": "good"}}),),
    }
    for said, paths in cases.items():
        assert said in str(run("verdicts", *paths).exception), said
    for content in ("", "[]", '{"format": "cers-review-1"}', "{" * 50, '{"format": "cers-review-1", "verdicts": [1]}'):
        broken.write_text(content, encoding="utf-8")
        assert isinstance(run("verdicts", broken).exception, CersError), content
    assert "ask for 1 or more" in str(run("review", written, "--data", scans, "-n", 0).exception)
    assert "no dataset" in str(run("review", written, "--data", tmp_path / "absent").exception)
