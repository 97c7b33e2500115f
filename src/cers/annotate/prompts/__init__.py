"""The prompts: one template per role, shipped in versioned folders or the user's own (arXiv 2606.17958, section 2.1.1).

A prompt says what its picture truly shows. Its version names the folder and a hash of everything that shapes the
request apart from the case, so that an edited prompt, or another picture style, is another version.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from cers.annotate.settings import AnnotateConfig
from cers.cot.records import ROLES, Role
from cers.errors import CersError

DEFAULT_VERSION = "v1"
VARIABLES = ("image", "modality", "anatomy", "target", "report", "marked", "overlay", "redacted")
REPAIR = (
    "Your answer cannot be used: {reason}. Answer once more, briefly, in exactly four lines that begin with "
    "'Texture:', 'Boundary:', 'Context:' and 'Summary:'."
)
# Settings that change what a role's request holds. The mask does not exist for the unlabelled role.
_SHAPING: Mapping[Role, tuple[str, ...]] = {
    "unlabelled": ("modality", "anatomy", "target", "max_side", "image_format", "redact"),
    "labelled": ("modality", "anatomy", "target", "max_side", "image_format", "redact", "overlay", "mask"),
}
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False)


@dataclass(frozen=True)
class Prompt:
    """The template of one role and its version."""

    role: Role
    version: str
    template: str

    def render(self, config: AnnotateConfig, report: str | None, *, marked: bool) -> str:
        """The text of a request; `marked` says whether the picture has lesion pixels to show.

        Raises:
            CersError: the template is broken or names an unknown variable.
        """
        values = {
            "image": _image(config),
            "modality": config.modality,
            "anatomy": config.anatomy,
            "target": config.target,
            "report": " ".join(report.split()) if report else None,
            "marked": marked,
            "overlay": config.overlay,
            "redacted": config.redact,
        }
        try:
            return _compiled(self.template).render(values).strip()
        except TemplateError as error:
            raise CersError(f"prompt {self.role}.md: {error}; it may use {', '.join(VARIABLES)}") from None


def repair(messages: list[dict[str, Any]], answer: str, reason: str | None) -> list[dict[str, Any]]:
    """`messages`, continued by an `answer` that cannot be used, and the request for another."""
    said = [{"role": "assistant", "content": answer}] if answer else []
    return [*messages, *said, {"role": "user", "content": REPAIR.format(reason=reason)}]


@cache
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


def load_prompts(config: AnnotateConfig) -> dict[Role, Prompt]:
    """The prompt of each role, from `config.prompts` or as shipped.

    Raises:
        CersError: a file is missing, not UTF-8, or does not render.
    """
    prompts = {role: _load(config, role) for role in ROLES}
    for prompt in prompts.values():
        prompt.render(config, "A report.", marked=True)
    return prompts


def _load(config: AnnotateConfig, role: Role) -> Prompt:
    folder = config.prompts or resources.files("cers.annotate.prompts") / DEFAULT_VERSION
    try:
        template = (folder / f"{role}.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CersError(
            f"no prompt {folder}/{role}.md in UTF-8 ({error}); own prompts are two files, one a role"
        ) from None
    shaping = config.model_dump(mode="json", include=set(_SHAPING[role]))
    content = json.dumps([template, shaping], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(content.encode("utf-8")).hexdigest()[:8]
    return Prompt(role, f"{'own' if config.prompts else DEFAULT_VERSION}-{digest}", template)


def _image(config: AnnotateConfig) -> str:
    """For instance 'a T1-weighted MR image of the brain'."""
    kind = config.modality or "medical image"
    article = "an" if kind[0].lower() in "aeiou" or kind.startswith(("MR", "X-")) else "a"
    return f"{article} {kind}" + (f" of the {config.anatomy}" if config.anatomy else "")
