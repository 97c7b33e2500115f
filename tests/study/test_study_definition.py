import pytest
from tiny_study import write_study

from cers.cli.study import chosen_study
from cers.config import load_config, preset_names
from cers.errors import CersError
from cers.methods.registry import METHODS, method_settings
from cers.study.definition import dump_study, load_study, share_name, study_names


def published(figures: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, object]:
    return {"published": {"source": "A paper", "datasets": ["One"], "figures": figures}}


def test_what_is_written_is_read_again(tmp_path):
    study = load_study(write_study(tmp_path / "s.yaml"))
    (tmp_path / "again.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "again.yaml") == study


def test_what_is_left_of_a_study_is_a_study(tmp_path):
    left = load_study("table1").restricted(rows=["supervised", "bcp"], seeds=[3])
    assert left.published is not None
    assert {name for figures in left.published.figures.values() for name in figures} == {"supervised", "bcp"}
    (tmp_path / "left.yaml").write_text(dump_study(left), encoding="utf-8")
    assert load_study(tmp_path / "left.yaml") == left
    on_val = load_study("table1").restricted(part="val")
    (tmp_path / "val.yaml").write_text(dump_study(on_val), encoding="utf-8")
    assert load_study(tmp_path / "val.yaml").part == "val"
    fewer = load_study("table1").restricted(labelled=[0.02])
    (tmp_path / "fewer.yaml").write_text(dump_study(fewer), encoding="utf-8")
    assert load_study(tmp_path / "fewer.yaml") == fewer


@pytest.mark.parametrize("preset", ["paper", "cpu", "screen"])
@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_fits_every_preset(name, preset):
    assert preset in preset_names()
    study = load_study(name).restricted(preset)
    for row in study.rows:
        for share in row.labelled or study.labelled:
            config = study.config(row, share, study.seeds[0])
            method_settings(config.method.name, config.method.settings)
            assert config.data.image_size == load_config(preset).data.image_size


def test_table1_has_every_method_and_published_rows_are_rows():
    assert {"table1", "table2", "table3", "topk", "additions", "learning_rate"} <= set(study_names())
    study = load_study("table1")
    assert {row.settings["method.name"] for row in study.rows} == set(METHODS)
    for name in study_names():
        study = load_study(name)
        if study.published is not None:
            figures = {row for rows in study.published.figures.values() for row in rows}
            assert figures <= {row.name for row in study.rows}
            assert {f"{share:g}" for share in study.labelled} >= study.published.figures.keys()


def test_every_method_tries_the_same_learning_rates_on_validation_images():
    study = load_study("learning_rate")
    tried: dict[str, list[float]] = {}
    for row in study.rows:
        tried.setdefault(row.settings["method.name"], []).append(row.settings["optim.lr"])
    assert study.part == "val"
    assert tried.keys() == set(METHODS)
    assert {tuple(rates) for rates in tried.values()} == {(0.0005, 0.001, 0.002)}


def test_the_paper_preset_keeps_its_settings_of_cers():
    study = load_study("table1").restricted("paper")
    config = study.config(study.rows[-1], 0.5, 1, ["data.path=here"])
    assert config.method.settings["consistency"] == load_config("paper").method.settings["consistency"]
    assert (config.data.labelled, config.seed, str(config.data.path)) == (0.5, 1, "here")


def test_one_case_is_not_all_of_them(tmp_path):
    study = load_study(write_study(tmp_path / "s.yaml", labelled=[1, 0.5])).restricted(labelled=[1, 1.0])
    assert [share_name(share) for share in study.labelled] == ["1 cases", "100 %"]
    (tmp_path / "again.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "again.yaml") == study


def test_seed_and_fold_stand_in_a_preset_file_as_well(tmp_path):
    preset = tmp_path / "mine.yaml"
    text = "data: {split: 's-{seed}.json'}\nby_method: {supervised: {data.rationales: 'r-{fold}.csv'}}\n"
    preset.write_text(text, encoding="utf-8")
    study = load_study(write_study(tmp_path / "s.yaml")).restricted(str(preset))
    data = study.config(study.rows[0], 0.5, 3, fold=2).data
    assert (str(data.split), str(data.rationales)) == ("s-3.json", "r-2.csv")
    with pytest.raises(CersError, match=r'row .plain.: data\.rationales="r-\{fold\}\.csv": which folds\? give --folds'):
        study.config(study.rows[0], 0.5, 3)


def test_rows_are_chosen_by_names_with_commas():
    def chosen(rows: str) -> list[str]:
        return [row.name for row in chosen_study("additions", None, None, None, rows, None).rows[1:]]

    names = ["strong views alone, without Dice of lessons", "no references"]
    assert chosen(",".join(names)) == names
    assert chosen(f" {names[1]} , {names[0]},") == names
    with pytest.raises(CersError, match="no row 'no reference' in this study; did you mean 'no references'"):
        chosen(f"no reference,{names[0]}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "plian"}, "reference 'plian' is none of its rows; did you mean 'plain'"),
        ({"seeds": []}, "seeds: "),
        ({"part": "tests"}, "part: Input should be 'test' or 'val' (got 'tests')"),
        ({"seeds": [1, 1]}, "names a value twice"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows have the name 'a'"),
        ({"rows": [{"name": "plain", "setings": {}}]}, "unknown setting 'rows.0.setings'; did you mean 'settings'"),
        ({"labeled": [1.0]}, "unknown setting 'labeled'; did you mean 'labelled'"),
        ({"rows": [{"name": "plain", "labelled": [0.4]}]}, "'plain' is labelled 0.4, which is none of the study's"),
        ({"labelled": [1, 0.5], "rows": [{"name": "plain", "labelled": [1.0]}]}, "labelled 1.0, which is none of the"),
        (published({"half": {}}), "'half' is no labelled share; write 0.25, 1 or any"),
        (published({"any": {"plian": {}}}), "figures are published of 'plian', which is no row; did you mean 'plain'"),
        (published({"1": {"plain": {"Ones": [1]}}}), "figures of 'plain' are of no dataset 'Ones'; did you mean 'One'"),
    ],
)
def test_mistakes_in_a_file_are_named_in_one_line(tmp_path, changes, message):
    with pytest.raises(CersError) as caught:
        load_study(write_study(tmp_path / "s.yaml", **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_studies_rows_and_overrides_of_the_grid_are_refused(tmp_path):
    with pytest.raises(CersError, match="did you mean 'table1'"):
        load_study("tabel1")
    (tmp_path / "bad.yaml").write_text("[1", encoding="utf-8")
    with pytest.raises(CersError, match="not a readable YAML file"):
        load_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]", encoding="utf-8")
    with pytest.raises(CersError, match="found list"):
        load_study(tmp_path / "list.yaml")
    study = load_study(write_study(tmp_path / "s.yaml"))
    with pytest.raises(CersError, match="no row 'techer' in this study; did you mean 'teacher'"):
        study.restricted(rows=["techer"])
    assert [row.name for row in study.restricted(rows=["teacher"]).rows] == ["plain", "teacher"]
    with pytest.raises(CersError, match="seed is what the study varies; give --seeds"):
        study.config(study.rows[0], 0.5, 0, ["seed=3"])
    with pytest.raises(CersError, match=r"row 'plain': .*unknown setting 'train\.step'"):
        study.config(study.rows[0], 0.5, 0, ["train.step=3"])
