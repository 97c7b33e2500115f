"""Settings of an annotation by a language model: a YAML file, and `key=value` on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from cers.config import MaskReading, Section, read_value, read_yaml, validate_settings
from cers.errors import CersError

_OURS = {"model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "response_format"}


class AnnotateConfig(Section):
    """Which model is asked, about what, and what it gets to see."""

    model: str = Field("gpt-5.2", description="name of the model on the server; the default is the paper's")
    base_url: str | None = Field(
        None, description="server, e.g. http://localhost:8000/v1; else OPENAI_BASE_URL or OpenAI"
    )
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the server's key")
    modality: str | None = Field(None, description="e.g. T1-weighted MR image")
    anatomy: str | None = Field(None, description="e.g. brain")
    target: str = Field("lesion", description="what is to be segmented, e.g. tumour")
    prompts: Path | None = Field(None, description="folder with own labelled.md and unlabelled.md")
    overlay: Literal["fill", "contour"] = Field("fill", description="how the mask of a labelled case is shown")
    max_side: int = Field(512, ge=64, le=2048, description="longest side of the picture sent, pixels")
    image_format: Literal["jpeg", "png"] = Field("jpeg", description="how the picture is encoded")
    redact: bool = Field(False, description="mask burnt-in text at the borders, and names in reports")
    mask: MaskReading = MaskReading()
    allow_remote: tuple[str, ...] = Field((), description="hosts other than this machine that may be sent to")
    max_tokens: int = Field(500, ge=64, description="longest answer; give a model that reasons some thousands")
    extra: dict[str, Any] = Field({}, description="further fields of each request, e.g. {reasoning_effort: low}")
    concurrency: int = Field(8, ge=1, le=256, description="calls in flight")
    timeout: float = Field(120.0, gt=0, description="seconds to wait for an answer")
    prices: Path | None = Field(None, description="own price table; see `cers annotate prices`")

    @field_validator("extra")
    @classmethod
    def _of_one_answer(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """A stream cannot be read, several answers would be paid for and thrown away, and the rest is set elsewhere."""
        if taken := sorted(set(extra) & _OURS):
            raise ValueError(f"may not hold '{taken[0]}', which is set by other settings or cannot be changed")
        return extra


def load_annotate_config(path: Path | None = None, overrides: Sequence[str] = ()) -> AnnotateConfig:
    """The settings in the YAML file `path`, with `key=value` overrides.

    Raises:
        CersError: unreadable file, unknown key, or a value of the wrong type.
    """
    values: Any = {}
    if path is not None:
        try:
            values = read_yaml(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise CersError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, yaml.YAMLError) as error:
            raise CersError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise CersError(f"{path}: expected lines such as 'model: gpt-5.2', found {type(values).__name__}")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise CersError(f"setting '{override}' is not of the form key=value, e.g. modality='chest CT'")
        section = values
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise CersError(f"setting '{override}': '{name}' has no keys of its own")
        section[last] = read_value(AnnotateConfig, key, text)
    return validate_settings(AnnotateConfig, values, where=str(path or "setting"))
