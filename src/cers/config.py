"""One run's settings: pydantic models, YAML presets, `a.b=c` overrides."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cers.errors import CersError, nearest

Model = TypeVar("Model", bound=BaseModel)

DEEPEST_GREY = 65_535  # of 16 bit


class _Loader(yaml.SafeLoader):
    """YAML without dates: no setting is one, but 2024-01-05 may well be the name of a folder."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Section(BaseModel):
    """Base of every section: unknown keys, infinity and NaN are refused, defaults are checked, values do not change."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True, frozen=True)


class MaskReading(Section):
    """How mask pixels become lesion. Left empty, only masks that leave no doubt are accepted."""

    threshold: int | None = Field(None, description="grey value from which on a pixel is lesion, e.g. 128")
    foreground: tuple[int, ...] | None = Field(None, description="grey values that are lesion, e.g. [1, 2]")

    @field_validator("threshold")
    @classmethod
    def _leaves_both_sides(cls, threshold: int | None) -> int | None:
        """Not a ValueError: commands make a reading of their options themselves, and it must be one line there too."""
        if threshold is not None and not 1 <= threshold <= DEEPEST_GREY:
            raise CersError(
                f"data.mask.threshold {threshold} leaves all pixels on one side; choose from 1 to 255 for masks of 8 "
                f"bit, to {DEEPEST_GREY} for deeper ones, e.g. 128; `cers data check` says what values masks hold"
            )
        return threshold


class DataConfig(Section):
    """Which images, in which layout and at which size."""

    path: Path = Field(Path("phantom"), description="folder or manifest of the dataset")
    layout: str = Field("auto", description="auto, brisc, qata, nnunet, manifest, cers, mosmed or folder")
    split: Path | None = Field(None, description="split file made by `cers data split`")
    labelled: float | int | None = Field(
        None, description="share (<=1.0) or count of training cases whose mask is used"
    )
    negatives: bool = Field(False, description="add the dataset's lesion-free images")
    group_pattern: str | None = Field(None, description="regular expression whose first group names the patient")
    mask: MaskReading = MaskReading()
    image_size: int = Field(224, ge=32, le=4096, description="side of the square network input, pixels")
    cache: Path = Field(Path(".cers-cache"), description="folder for decoded images and text embeddings")
    rationales: Path | None = Field(None, description="CSV of rationales that replace those of the dataset")
    flips: bool = Field(True, description="left/right flips, of the words of a text as well")


class TextConfig(Section):
    """Frozen text encoders of report and rationale."""

    report: str | None = Field(
        "tfidf",
        description="encoder of reports: tfidf, minilm, cxr-bert, clinicalbert, hf:<model>, a folder, none",
    )
    cot: str | None = Field("tfidf", description="encoder of rationales: as above")
    cot_upper_layers: int = Field(0, ge=0, description="last layers of the rationale encoder that train in the warm-up")
    max_report_tokens: int = Field(128, ge=1)
    max_cot_tokens: int = Field(256, ge=1)


class ModelConfig(Section):
    """The encoder that every method shares."""

    encoder: str = Field("convnext_tiny", description="name of a timm model with feature maps")
    weights: str = Field("hub", description="hub, none, package, or a .safetensors/.pth file")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the encoder")


class MethodConfig(Section):
    """Which method, and its own settings (checked by the method)."""

    name: str = "cers"
    settings: dict[str, Any] = {}


class OptimConfig(Section):
    """Optimiser and learning-rate schedule over the whole run."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    head_lr_factor: float = Field(
        1.0, gt=0, description="of the decoders' last convolutions, which AdamW moves too slowly where they are small"
    )
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0, description="linear rise of the learning rate at the start")
    min_lr: float = Field(1e-6, ge=0)
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null for none")


class TrainConfig(Section):
    """Budget and bookkeeping. Give `steps`, or `epochs` over the longer stream."""

    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    batch_labelled: int = Field(8, ge=1)
    batch_unlabelled: int = Field(8, ge=0)
    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware computes in it, full precision elsewhere"
    )
    validate_every: int = Field(200, ge=1, description="steps")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    patience: int | None = Field(None, ge=1, description="validations without a better Dice before stopping")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights used to validate and predict")
    workers: int = Field(0, ge=0, description="processes that load images")
    tensorboard: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        """YAML reads an unquoted `no` as false."""
        return "no" if value is False else value


# Settings that change how a run computes, not what: a resumed run may differ in them.
FREE = {"data.path", "data.cache", "train.workers", "train.tensorboard", "train.checkpoint_every"}


class RunConfig(Section):
    """Everything that decides what a run computes."""

    seed: int = Field(0, ge=0, lt=2**32)
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def with_values(self, overrides: Sequence[str]) -> Self:
        """The same configuration with `section.key=value` overrides.

        Raises:
            CersError: unknown key or a value of the wrong type.
        """
        values = self.model_dump(mode="json")
        _apply_all(values, overrides)
        return type(self).model_validate(parse_config(values, where="override").model_dump())

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name, in JSON's types."""
        return _flat(self.model_dump(mode="json"))

    def resolved(self, precision: str, settings: Mapping[str, Any]) -> Self:
        """With the actual precision and all of the method's settings written out."""
        values = self.model_dump()
        values["train"]["precision"] = precision
        values["method"]["settings"] = dict(settings)
        return type(self).model_validate(values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("cers.presets").iterdir() if p.name.endswith(".yaml")
    )


def load_config(
    source: str | Path | None = None, overrides: Sequence[str] = (), *, methods: Iterable[str] | None = None
) -> RunConfig:
    """The configuration of a preset name or YAML file, with `section.key=value` overrides applied in order.

    Another `method.name` takes none of the method settings in the file: they are those of the method named there. What
    a file holds for several methods stands under `by_method`, e.g. `{bcp: {optim.lr: 5.0e-4}}`, and comes before the
    overrides; `methods` are the names that it may hold there, where they are given.

    Raises:
        CersError: unknown preset, unreadable file, unknown key or method, or a value of the wrong type.
    """
    values, where = {} if source is None else _read_yaml(source), str(source or "defaults")
    by_method = values.pop("by_method", None) or {}
    _apply_all(values, [o for o in overrides if _names_method(o)])
    _apply_all(values, [*_own_overrides(values, by_method, where, methods), *overrides])
    return parse_config(values, where)


def parse_config(values: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """`values` as a checked configuration, or one line that names the first mistake."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise CersError(f"{where}: {_first_mistake(error, RunConfig)}") from None


def validate_settings(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """`values` checked by `model`, or one line that names the first mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise CersError(f"{where}: {_first_mistake(error, model)}") from None


def read_yaml(text: str) -> Any:
    """What the YAML `text` of settings says.

    Raises:
        YAMLError: it is no YAML.
        ValueError: a number in it is none, such as 0x_.
    """
    return yaml.load(text, _Loader)


_WRITTEN = (str, Path, str | None, Path | None)


def read_value(model: type[BaseModel], key: str, text: str) -> Any:
    """The value that an override `key=text` gives to a setting of `model`.

    A text or path that YAML would take for something else stays as it is written: 00123, 2024, no.
    """
    try:
        value = read_yaml(text)
    except (ValueError, yaml.YAMLError):  # a regular expression, for instance
        return text
    return value if value is None or isinstance(value, str) or _type_of(model, key) not in _WRITTEN else text


def _type_of(model: type[BaseModel], key: str) -> Any:
    """The declared type of the setting `key`, None where there is no such setting."""
    found: Any = model
    for name in key.split("."):
        field = getattr(found, "model_fields", {}).get(name)
        found = field and field.annotation
    return found


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML, every value resolved."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    preset = resources.files("cers.presets") / f"{source}.yaml"
    if not path.is_file() and not preset.is_file():
        raise CersError(f"no preset or file '{source}'; {nearest(str(source), preset_names())}")
    try:
        values = read_yaml((path if path.is_file() else preset).read_text(encoding="utf-8"))
    except OSError as error:
        raise CersError(f"{source}: cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise CersError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise CersError(f"{source}: expected sections such as 'data:' and 'train:', found {type(values).__name__}")
    return values or {}


def _names_method(override: str) -> bool:
    return override.startswith("method.name=")


def _own_overrides(values: Mapping[str, Any], by_method: Any, where: str, methods: Iterable[str] | None) -> list[str]:
    """What `by_method` holds for the method of `values`, as overrides."""
    method = values.get("method")
    name = (method if isinstance(method, dict) else {}).get("name", MethodConfig().name)
    if not isinstance(name, str):
        return []  # a mistake that `parse_config` names
    own = by_method.get(name, {}) if isinstance(by_method, dict) else None
    if not isinstance(own, dict):
        raise CersError(f"{where}: by_method: expected settings by method, e.g. bcp: {{optim.lr: 5.0e-4}}")
    if unknown := by_method.keys() - {*(methods or by_method)}:
        raise CersError(f"{where}: by_method: no method '{min(unknown)}'; {nearest(min(unknown), methods or ())}")
    return [f"{key}={json.dumps(value)}" for key, value in own.items()]


def _apply_all(values: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in sorted(overrides, key=lambda o: not _names_method(o)):
        _apply(values, override)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise CersError(f"override '{override}' is not of the form section.key=value, e.g. train.steps=500")
    *sections, last = key.split(".")
    for name in sections:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise CersError(f"override '{override}': '{name}' has no keys of its own")
    value = read_value(RunConfig, key, text)
    if (budget := {"train.steps": "epochs", "train.epochs": "steps"}.get(key)) and value is not None:
        values.pop(budget, None)  # a budget in the one unit takes the place of a preset's in the other
    if key == "method.name" and value != values.get("name", MethodConfig().name):
        values.pop("settings", None)  # they are those of the method it was before
    values[last] = value


_LONG = 80  # characters of a value beyond which it says less than it hides


def _first_mistake(error: ValidationError, model: type[BaseModel]) -> str:
    mistake = error.errors()[0]
    where = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        *sections, name = mistake["loc"]
        return f"unknown setting '{where}'; {nearest(str(name), _keys(model, sections))}"
    said = f"{where}: {mistake['msg'].removeprefix('Value error, ')}"
    got = repr(mistake.get("input"))
    return said if mistake["type"] == "missing" or len(got) > _LONG else f"{said} (got {got})"


def _keys(model: type[BaseModel], sections: Sequence[int | str]) -> list[str]:
    for section in sections:
        if isinstance(section, str) and section in model.model_fields:  # a number is the place in a list
            annotation = model.model_fields[section].annotation
            inner = (annotation, *get_args(annotation))
            model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return list(model.model_fields)
