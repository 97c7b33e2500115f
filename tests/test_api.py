"""`import cers` and what it offers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cers
import cers.config
import cers.evaluation
import cers.reporting
import cers.retrieval.pool
import cers.run
from cers.data.phantom import write_phantoms
from cers.predict import outlines, predictor

HEAVY = {"torch", "numpy", "pydantic", "monai", "timm", "pandas", "cv2", "cers.run"}


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, cers; dir(cers); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "cers" in loaded
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("cers")} == {"cers"}


def test_every_name_is_the_function_or_class_where_it_is_defined() -> None:
    assert cers.load_config is cers.config.load_config
    assert (cers.train, cers.resume, cers.load_run) == (cers.run.train, cers.run.resume, cers.run.load_run)
    assert cers.evaluate is cers.evaluation.evaluate
    assert cers.report is cers.reporting.report
    assert cers.Predictor is predictor.Predictor
    assert cers.predict is outlines.predict
    assert cers.KnowledgePool is cers.retrieval.pool.KnowledgePool
    assert all(callable(getattr(cers, name)) for name in cers.__all__)
    assert set(cers.__all__) <= set(dir(cers))


def test_rooms_of_the_same_names_do_not_hide_the_functions() -> None:
    code = (
        "import cers, cers.evaluate.table, cers.predict.pools, cers.report.page\n"
        "from cers.evaluate import metrics\n"
        "from cers.report.page import render_report\n"
        "print(cers.evaluate.__module__, cers.predict.__module__, cers.report.__module__, metrics.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cers.evaluation cers.predict.outlines cers.reporting cers.evaluate.metrics\n"
    assert done.stderr == ""


def test_star_import_brings_exactly_what_is_listed() -> None:
    names: dict[str, object] = {}
    exec("from cers import *", names)
    assert set(names) - {"__builtins__"} == set(cers.__all__)


@pytest.mark.parametrize("name", ["evaluat", "__path_of_nothing__"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(cers, name)
    with pytest.raises(ImportError):
        exec("from cers import nothing_of_the_kind")


def test_rooms_are_still_attributes() -> None:
    assert cers.config.RunConfig is sys.modules["cers.config"].RunConfig


def test_the_readme_example_runs_as_it_stands(
    scans: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0]
    small = [s for s in settings if not s.startswith(("data.path", "data.split"))]
    wanted = '"data.split=split.json"]'
    assert wanted in code
    monkeypatch.chdir(scans.parent)
    names: dict[str, Any] = {}
    write_phantoms(tmp_path / "new", n=3, size=64, seed=5)
    (tmp_path / "new.csv").write_text(f"image\n{tmp_path}/new/images/phantom_00000.png\n", encoding="utf-8")
    code = code.replace('"new.csv"', f'"{tmp_path}/new.csv"').replace("runs/", f"{tmp_path}/")
    exec(code.replace(wanted, f'"data.split=split.json", *{small!r}]'), names)
    assert len(names["cases"]) == 24
    assert names["mask"].shape == names["found"].probability.shape
    assert names["recalled"]
    assert 0 <= names["summary"]["branches"]["declared"]["all"]["metrics"]["dice"]["mean"] <= 1
    assert cers.report(str(names["run"]), out=str(tmp_path / "report.html")).is_file()
    assert cers.load_run(str(names["run"])).config == cers.load_run(names["run"]).config
