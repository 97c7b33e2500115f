import string
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cers.config import RunConfig, dump_config, load_config, parse_config, preset_names
from cers.errors import CersError
from cers.methods.registry import METHODS, method_settings

WORDS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)


def mistake(*overrides: str, source: str | Path | None = None) -> str:
    with pytest.raises(CersError) as caught:
        load_config(source, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_complete_and_valid_for_its_method(name: str) -> None:
    config = load_config(name)
    method_settings(config.method.name, config.method.settings)
    assert config.train.steps or config.train.epochs


@pytest.mark.parametrize("name", preset_names())
def test_a_resolved_configuration_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["data.path=a b", "data.mask.foreground=[1, 2]", "data.labelled=1.0"])
    chosen = method_settings(config.method.name, config.method.settings).model_dump(mode="json")
    resolved = config.resolved("no", chosen)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(resolved), encoding="utf-8")
    again = load_config(path)
    assert again == resolved
    assert isinstance(again.data.labelled, float)  # a share, not one case
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["train"]["precision"] == "no"


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(1e-8, 10), st.one_of(st.none(), st.integers(1, 9), st.floats(0.01, 1)))
def test_any_values_read_back(seed: int, lr: float, labelled: float | int | None) -> None:
    config = load_config("cpu", [f"seed={seed}", f"optim.lr={lr!r}"])
    config = parse_config(config.model_dump() | {"data": config.data.model_dump() | {"labelled": labelled}})
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert config.optim.lr == lr


def test_overrides_apply_in_order_and_leave_the_rest() -> None:
    config = load_config("cpu", ["train.steps=5", "train.steps=6", "data.path=x=y", "optim.clip_norm=null"])
    assert config.train.steps == 6
    assert config.data.path == Path("x=y")
    assert config.optim.clip_norm is None
    assert config.model == load_config("cpu").model


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.precision=no", "train", "precision", "no"),  # YAML reads it as false
        ("optim.lr=1e-3", "optim", "lr", 1e-3),  # and this as a word
        ("data.labelled=0.25", "data", "labelled", 0.25),
        ("data.labelled=100", "data", "labelled", 100),
        ("data.group_pattern=[a-z]+_(\\d+)", "data", "group_pattern", "[a-z]+_(\\d+)"),
        ("text.report=none", "text", "report", "none"),
        ("data.flips=false", "data", "flips", False),
        ("data.path=2024-01-05", "data", "path", Path("2024-01-05")),
        ("data.path=2024-13-45", "data", "path", Path("2024-13-45")),
        ("data.path=00123", "data", "path", Path("00123")),
        ("data.path=0x_", "data", "path", Path("0x_")),
        ("data.split=2024", "data", "split", Path("2024")),
        ("data.split=null", "data", "split", None),
        ("data.group_pattern=[a-z]", "data", "group_pattern", "[a-z]"),
        ("method.name=[cers]", "method", "name", "[cers]"),
        ("method.settings={k: 3}", "method", "settings", {"k": 3}),
    ],
)
def test_values_mean_what_they_look_like(override: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(load_config("cpu", [override]), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("preset", ["cpu", "screen", "demo"])
@pytest.mark.parametrize("ablation", ["report=false", "retrieval=none", "output=retrieval", "reference_sizes=false"])
def test_an_ablation_is_one_setting_under_any_preset(preset: str, ablation: str) -> None:
    config = load_config(preset, [f"method.settings.{ablation}"])
    method_settings(config.method.name, config.method.settings)


def test_a_budget_in_epochs_takes_the_place_of_the_presets_in_steps() -> None:
    for preset, override in (("cpu", "train.epochs=3"), ("paper", "train.steps=3")):
        train = load_config(preset, [override]).train
        assert {train.steps, train.epochs} == {3, None}, preset
    assert load_config("cpu", ["train.epochs=null"]) == load_config("cpu")


def test_long_values_are_not_printed_whole() -> None:
    assert len(mistake("data.image_size=[" + "1, " * 500 + "1]")) < 200


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_the_preset_go_with_its_method(name: str) -> None:
    for overrides in ([f"method.name={name}"], [f"method.name={name}", "train.steps=3"]):
        config = load_config("cpu", overrides)
        method_settings(name, config.method.settings)
    assert load_config("cpu", ["method.name=cers"]) == load_config("cpu")
    kept = load_config("cpu", ["method.settings.k=3", f"method.name={name}"]).method.settings
    assert kept["k"] == 3
    assert ("pool_momentum" in kept) == (name == "cers")


@pytest.mark.parametrize("preset", preset_names())
def test_what_a_preset_holds_by_method_is_of_that_method(preset: str) -> None:
    text = (resources.files("cers.presets") / f"{preset}.yaml").read_text(encoding="utf-8")
    for name, own in (yaml.safe_load(text).get("by_method") or {}).items():
        assert name in METHODS
        config = load_config(preset, [f"method.name={name}"])
        method_settings(name, config.method.settings)
        assert {key: config.flat()[key] for key in own} == own


def test_settings_by_method_come_after_the_file_and_before_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "method: {name: bcp, settings: {decay: 0.5}}\noptim: {lr: 1.0}\n"
        "by_method: {bcp: {method.settings.decay: 0.6, optim.lr: 2.0}, cps: {optim.lr: 3.0}}\n",
        encoding="utf-8",
    )
    assert load_config(path).method.settings == {"decay": 0.6}
    assert load_config(path, ["method.settings.decay=0.7"]).method.settings == {"decay": 0.7}
    assert load_config(path).optim.lr == 2
    assert load_config(path, ["optim.lr=4", 'method.name="cps"']).optim.lr == 4
    assert load_config(path, ['method.name="cps"']).optim.lr == 3
    assert load_config(path, ["method.name=ucmt"]).optim.lr == 1
    assert "by_method" not in dump_config(load_config(path))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.stpes=5", "unknown setting 'train.stpes'; did you mean 'steps'?"),
        ("data.mask.treshold=5", "unknown setting 'data.mask.treshold'; did you mean 'threshold'?"),
        ("trian.steps=5", "unknown setting 'trian'; did you mean 'train'?"),
        ("zzz=5", "unknown setting 'zzz'; choose from: data, method, model,"),
        ("train.steps", "'train.steps' is not of the form section.key=value"),
        ("=5", "is not of the form"),
        ("train.steps.more=5", "override 'train.steps.more=5'"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1 (got 0)"),
        ("train.steps=2.5", "train.steps: Input should be a valid integer"),
        ("train.steps=2024-13-45", "train.steps: Input should be a valid integer"),
        ("train.steps=0x_", "train.steps: Input should be a valid integer"),
        ("optim.lr=[1, 2]", "optim.lr: Input should be a valid number"),
        ("optim.lr=inf", "optim.lr: Input should be a finite number (got 'inf')"),
        ("data.labelled=.nan", "data.labelled.float: Input should be a finite number (got nan)"),
        ("optim.name=adam", "optim.name: Input should be 'sgd' or 'adamw' (got 'adam')"),
        ("optim=adam", "optim: Input should be a valid dictionary"),
        ("train.ema=1.5", "train.ema: Input should be less than 1"),
        ("data.path=", "data.path: Input is not a valid path"),
    ],
)
def test_mistakes_in_overrides_are_one_line(override: str, said: str) -> None:
    assert said in mistake(override, source="cpu")


@settings(max_examples=25)
@given(WORDS, WORDS)
def test_no_unknown_key_passes(section: str, key: str) -> None:
    known = section in RunConfig.model_fields and key in getattr(RunConfig(), section, RunConfig()).model_fields_set
    with pytest.raises(CersError):
        load_config(None, [f"{section}.{key}=1", f"{section}.{key}.x=1"])
    assert not known


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"train: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- 1\n- 2\n", "expected sections such as 'data:' and 'train:', found list"),
        (b"just words", "found str"),
        (b"data: 5", "data: Input should be a valid dictionary"),
        (b"1: 2", "1: Keys should be strings"),
        (b"by_method: 5", "by_method: expected settings by method"),
        (b"by_method: {cers: 5}", "by_method: expected settings by method"),
        (b"seed: -1", "seed: Input should be greater than or equal to 0 (got -1)"),
        (b"by_method: {cers: {optim.lrr: 5}}", "unknown setting 'optim.lrr'; did you mean 'lr'?"),
        (b"method: 5\nby_method: {cers: {optim.lr: 5}}", "method: Input should be a valid dictionary"),
        (b"method: {name: [cers]}", "method.name: Input should be a valid string"),
        (b"seed: 2024-13-45", "seed: Input should be a valid integer"),
        (b"seed: 0x_", "not valid YAML"),
        (b"method:\n  name: cers\n  setings: {}\n", "unknown setting 'method.setings'; did you mean 'settings'?"),
    ],
)
def test_mistakes_in_files_are_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    line = mistake(source=path)
    assert said in line
    assert str(path) in line


def test_a_method_that_is_none_gets_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("by_method: {cer: {optim.lr: 5}}", encoding="utf-8")
    with pytest.raises(CersError, match=r"mine\.yaml: by_method: no method .cer.; did you mean .cers."):
        load_config(path, methods=METHODS)


def test_an_unknown_preset_gets_the_nearest(tmp_path: Path) -> None:
    assert mistake(source="papper") == "no preset or file 'papper'; did you mean 'paper'?"
    assert "no preset or file" in mistake(source=tmp_path)


@pytest.mark.parametrize("content", ["", "train:\n", "\ufefftrain:\n  epochs: 3\n"])
def test_a_file_may_be_empty_and_so_may_a_section(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    assert load_config(path, ["train.steps=7"]).train.steps == 7


def test_a_date_in_a_file_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for content in ("data: {path: 2024-01-05}", "by_method: {cers: {data.path: 2024-01-05}}"):
        path.write_text(content, encoding="utf-8")
        assert load_config(path).data.path == Path("2024-01-05")


def test_values_are_checked_again_when_overridden() -> None:
    config = load_config("cpu")
    assert config.with_values(["train.workers=2"]).train.workers == 2
    with pytest.raises(CersError, match=r"override: unknown setting 'train\.worker'"):
        config.with_values(["train.worker=2"])
