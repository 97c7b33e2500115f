"""What a study is: rows, labelled shares and seeds over one preset, read from YAML."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, field_validator

from cers.config import RunConfig, Section, load_config, validate_settings
from cers.errors import CersError, nearest
from cers.methods.registry import METHODS


class _Proportion(float):
    """A share of the cases. Never equal to a count: 1.0 is all of them, and 1 is one case."""

    def __eq__(self, other: object) -> bool:
        return not isinstance(other, int) and super().__eq__(other)

    __hash__ = float.__hash__


Share = Annotated[float, AfterValidator(_Proportion)] | int


class StudyRow(Section):
    """A row of the table: its name and the settings that make it."""

    name: str = Field(min_length=1)
    settings: dict[str, Any] = Field({}, description="what makes it, e.g. method.name: bcp")
    labelled: tuple[Share, ...] | None = Field(
        None, description="only at these shares; all of the study's if not given"
    )


class Published(Section):
    """Figures of a paper, in per cent: for each share (`any` where it has none) and row, Dice and IoU by dataset."""

    source: str
    datasets: tuple[str, ...]
    figures: dict[str, dict[str, dict[str, tuple[float, ...]]]]
    extra: dict[str, dict[str, str]] = Field({}, description="further columns by title, then row")
    differences: tuple[str, ...] = Field((), description="how its protocol differs from any of ours")


class Study(Section):
    """A grid of runs."""

    title: str
    reference: str = Field(description="the row that all others are tested against")
    preset: str = "cpu"
    settings: dict[str, Any] = Field({}, description="of every run")
    labelled: tuple[Share, ...] = Field((1.0,), min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each stands for {seed} in the settings")
    folds: tuple[int, ...] = Field((), description="each stands for {fold} in the settings; their cases are pooled")
    rows: tuple[StudyRow, ...] = Field(min_length=1)
    part: Literal["test", "val"] = Field("test", description="what its runs are scored on; val to choose settings by")
    published: Published | None = None

    @field_validator("labelled", "seeds", "folds")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("names a value twice")
        return values

    @field_validator("rows")
    @classmethod
    def _named_once(cls, rows: tuple[StudyRow, ...]) -> tuple[StudyRow, ...]:
        names = [row.name for row in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rows have the name '{twice[0]}'")
        return rows

    def restricted(
        self,
        preset: str | None = None,
        labelled: Sequence[Share] = (),
        seeds: Sequence[int] = (),
        rows: Sequence[str] = (),
        part: str | None = None,
        folds: Sequence[int] = (),
        reference: str | None = None,
    ) -> "Study":
        """The study with another preset, part, reference, shares, seeds or folds, or only some of its rows beside it.

        Raises:
            CersError: no such row or part.
        """
        names = [row.name for row in self.rows]
        for name in [*rows, *([reference] if reference else [])]:
            if name not in names:
                raise CersError(f"no row '{name}' in this study; {nearest(name, names)}")
        values = self.model_dump()
        values["reference"] = reference or self.reference
        kept = {values["reference"], *rows} if rows else set(names)
        values["rows"] = [row for row in values["rows"] if row["name"] in kept]
        if self.published is not None:
            for figures in values["published"]["figures"].values():
                for name in figures.keys() - kept:
                    del figures[name]
        values["preset"] = preset or self.preset
        values["part"] = part or self.part
        if labelled:
            values["labelled"] = tuple(labelled)
            values["rows"] = [{**row, "labelled": None} for row in values["rows"]]
        if seeds:
            values["seeds"] = tuple(seeds)
        if folds:
            values["folds"] = tuple(folds)
        return _checked(values, "study")

    def config(
        self, row: StudyRow, share: Share, seed: int, overrides: Sequence[str] = (), fold: int | None = None
    ) -> RunConfig:
        """The configuration of one run; `overrides` come last. Where a setting says {seed} or {fold} stand these.

        Raises:
            CersError: a bad setting, an override of what the grid varies, or {fold} in a study without folds.
        """
        for override in overrides:
            key = override.partition("=")[0]
            if key in _OF_THE_GRID:
                raise CersError(f"{key} is what the study varies; {_OF_THE_GRID[key]}")
        grid = {"data.labelled": share, "seed": seed}
        own = [f"{key}={json.dumps(value)}" for key, value in {**self.settings, **row.settings, **grid}.items()]
        try:
            config = load_config(self.preset, [_at(each, seed, fold) for each in (*own, *overrides)], methods=METHODS)
            of_preset = [f"{key}={json.dumps(value)}" for key, value in config.flat().items()]
            return config.with_values([_at(each, seed, fold) for each in of_preset if _varies(each)])
        except CersError as error:
            raise CersError(f"row '{row.name}': {error}") from None


def _varies(setting: str) -> bool:
    return _SEED in setting or _FOLD in setting


def _at(setting: str, seed: int, fold: int | None) -> str:
    """The setting of one run, its numbers in the place of {seed} and {fold}."""
    if fold is None and _FOLD in setting:
        raise CersError(f"{setting}: which folds? give --folds 1,2,3,4,5")
    return setting.replace(_SEED, str(seed)).replace(_FOLD, str(fold))


_SEED, _FOLD = "{seed}", "{fold}"
_OF_THE_GRID = {
    "seed": "give --seeds 0,1,2",
    "data.labelled": "give --labelled 0.05,0.25",
    "method.name": "choose among its rows with --rows, or write a study file",
}


def study_names() -> list[str]:
    """Names of the shipped studies."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("cers.studies").iterdir() if p.name.endswith(".yaml")
    )


def load_study(source: str | Path) -> Study:
    """The study of that name, or in that YAML file.

    Raises:
        CersError: no such study, unreadable, unknown key, bad value, or the reference is none of its rows.
    """
    path, shipped = Path(source), resources.files("cers.studies") / f"{source}.yaml"
    if not path.is_file() and not shipped.is_file():
        raise CersError(f"no study or file '{source}'; {nearest(str(source), study_names())}")
    try:
        values = yaml.safe_load((path if path.is_file() else shipped).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CersError(f"{source}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise CersError(f"{source}: expected the keys of a study such as 'rows:', found {type(values).__name__}")
    study = _checked(values, str(source))
    _require_known_rows_and_shares(study, str(source))
    return study


def dump_study(study: Study) -> str:
    """The study as YAML."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def share_name(share: Share) -> str:
    """A labelled share or count in words."""
    return f"{share} cases" if isinstance(share, int) else f"{100 * share:g} %"


def _require_known_rows_and_shares(study: Study, where: str) -> None:
    """A study as written must name no row and no share that it has not; a restricted one may."""
    for row in study.rows:
        for share in row.labelled or ():
            if share not in study.labelled:
                raise CersError(f"{where}: row '{row.name}' is labelled {share}, which is none of the study's shares")
    if study.published is not None:
        _require_known_figures(study.published, [row.name for row in study.rows], where)


def _require_known_figures(published: Published, rows: Sequence[str], where: str) -> None:
    for share, figures in published.figures.items():
        if share != "any" and not re.fullmatch(r"\d+(\.\d+)?", share):
            raise CersError(f"{where}: published '{share}' is no labelled share; write 0.25, 1 or any")
        for row, by_dataset in figures.items():
            if row not in rows:
                raise CersError(f"{where}: figures are published of '{row}', which is no row; {nearest(row, rows)}")
            for name in by_dataset.keys() - set(published.datasets):
                known = nearest(name, published.datasets)
                raise CersError(f"{where}: figures of '{row}' are of no dataset '{name}'; {known}")


def _checked(values: Mapping[str, Any], where: str) -> Study:
    study = validate_settings(Study, values, where)
    names = [row.name for row in study.rows]
    if study.reference not in names:
        raise CersError(
            f"{where}: reference '{study.reference}' is none of its rows; {nearest(study.reference, names)}"
        )
    if study.folds and study.part == "val":
        raise CersError(
            f"{where}: what one fold validates on another one tests; choose settings on a split without folds"
        )
    return study
