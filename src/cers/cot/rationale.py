"""A rationale: the four diagnostic aspects that the paper asks a language model for (arXiv 2606.17958, section 2.1.1).

Language models answer in many shapes, and sometimes not at all: what cannot be read as four aspects is malformed, and
malformed text counts as no rationale.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any

ASPECTS = ("texture", "boundary", "context", "summary")
MAX_TOKENS = 128
_TOKEN = re.compile(r"\w+|[^\w\s]")

_NAME = r"(?P<name>textures?|boundar(?:y|ies)|context|(?:concise\s+)?summary)(?:\s*\([^)\n]*\))?"
_DASH = r"(?:[-–—]|â€[“”\x93\x94])"
_LINE_HEADING = re.compile(
    rf"^[^\S\n]*(?:[>#*_\-•\"'`(\[]|\d+\s*[.):]|[ï»¿\ufeff]|[^\S\n])*{_NAME}[*_\"'`\])]*"
    rf"(?:[^\S\n]*[:：][*_]*|[^\S\n]+{_DASH}[^\S\n]|[^\S\n]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_HEADING = re.compile(rf"(?:^|(?<=[\s.;|*_]))[*_]*{_NAME}[*_]*\s*[:：][*_]*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am)\s+(?:sorry|unable|not able)|(?:i|we)\s+(?:can(?:no|['’])t|can not|am unable|won['’]t)"
    r"|as an ai\b|unable to (?:assist|help|comply|analy[sz]e|provide|view))",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"\b(?:[a-z]*error|[a-z]*exception|traceback|rate.?limit\w*|time[d-]?\s?out|quota|api.?key|http\s?[45]\d\d)\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\n\s*\n\s*(?:\**note\b|disclaimer|let me know|if you|would you|please\b|```|---).*\Z", re.I | re.S
)
_COORDINATES = re.compile(
    r"\b[xy]\s*[=:≈]\s*\d|\(\s*\d+(?:\.\d+)?\s*,\s*\d+(?:\.\d+)?\s*\)|\bpixels?\s*\(?\d|\bcoordinates?\b"
    r"|\bbounding box|\b(?:row|column)s?\s+\d",
    re.IGNORECASE,
)
_DRAWING = re.compile(
    r"\b(?:overlaid|overlays?|highlighted|outlined|annotat(?:ed|ion)s?|ground[- ]truth|segmentation mask"
    r"|crop(?:ped)?)\b",
    re.IGNORECASE,
)
_LOST = re.compile(r"\ufffd|[a-z]\?[a-z]|â€|Ã[\x80-\xbf]")


class MalformedRationale(ValueError):  # noqa: N818 - the name says what the text is
    """A text that is not a rationale; the message says what is missing, doubled or there instead."""


class RefusalError(MalformedRationale):
    """The model declined to answer."""


@dataclass(frozen=True)
class Rationale:
    """Four aspects, each non-empty text on one line, cleaned of markup and of repairable encoding damage.

    Raises:
        MalformedRationale: an aspect holds no word, or a refusal.
    """

    texture: str
    boundary: str
    context: str
    summary: str

    def __post_init__(self) -> None:
        for field in fields(self):
            text = _clean(getattr(self, field.name))
            if not re.search(r"[^\W\d_]{2}", text) or text.lower().strip(".") in {"none", "n/a", "null", "unknown"}:
                raise MalformedRationale(f"'{field.name}' is empty")
            if _REFUSAL.search(text):
                raise RefusalError(f"'{field.name}' is a refusal: '{_shortened(text)}'")
            object.__setattr__(self, field.name, text)


def render(rationale: Rationale) -> str:
    """The four aspects under their headings, one a line; `parse_rationale` reads it back unchanged."""
    aspects = zip(ASPECTS, astuple(rationale), strict=True)
    return "\n".join(f"{name.capitalize()}: {text}" for name, text in aspects)


def parse_rationale(text: str) -> Rationale:
    """The rationale in a language model's answer: headings in any order, case and markup, or JSON with those keys.

    Raises:
        MalformedRationale: empty, a refusal, an error message, or an aspect missing, empty or given twice.
    """
    if not text.strip("\ufeff \t\r\n"):
        raise MalformedRationale("empty text")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = _json_parts(text)
    if parts is None:
        parts = max((_split(text, p) for p in (_LINE_HEADING, _INLINE_HEADING)), key=_distinct)
    counts = Counter(name for name, _ in parts)
    missing = [name for name in ASPECTS if not counts[name]]
    if missing:
        raise _incomplete(text, missing)
    doubled = [name for name in ASPECTS if counts[name] > 1]
    if doubled:
        raise MalformedRationale(f"more than one {' and '.join(map(repr, doubled))}")
    return Rationale(**dict(parts))


def audit_rationale(text: str, report: str | None = None) -> list[str]:
    """What is wrong with `text` as a rationale, most serious first; empty when nothing is."""
    try:
        rationale = parse_rationale(text)
    except MalformedRationale as error:
        return [f"malformed: {error}"]
    flaws = []
    if (length := tokens(render(rationale))) > MAX_TOKENS:
        flaws.append(f"over-long: {length} words and marks, more than {MAX_TOKENS}")
    if found := _COORDINATES.search(text):
        flaws.append(f"mentions coordinates: '{found.group()}'")
    if found := _DRAWING.search(text):
        flaws.append(f"speaks of the drawing: '{found.group()}'")
    if report and _copies(render(rationale), report):
        flaws.append("copies the report")
    if not re.search(r"[.!?…][\"'”’)\]*`\s}]*\Z", text):
        flaws.append(f"cut off: ends with '{_shortened(text.rstrip()[-20:])}'")
    if _LOST.search(text):
        flaws.append("characters were lost in encoding")
    return flaws


def tokens(text: str) -> int:
    """Words and punctuation marks of `text`: what every tokenizer makes at least of it."""
    return len(_TOKEN.findall(text))


def _split(text: str, heading: re.Pattern[str]) -> list[tuple[str, str]]:
    matches = list(heading.finditer(text))
    ends = [*(m.start() for m in matches[1:]), len(text)]
    return [(_aspect(m["name"]), _CLOSING.sub("", text[m.end() : end])) for m, end in zip(matches, ends, strict=False)]


def _distinct(parts: list[tuple[str, str]]) -> int:
    return len({name for name, _ in parts})


def _aspect(name: str) -> str:
    name = name.lower()
    return next(aspect for aspect in ASPECTS if aspect[:6] in name)


def _json_parts(text: str) -> list[tuple[str, str]] | None:
    """The aspects of a JSON object in `text`, bare, fenced or nested once; None when there is none."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start or _LINE_HEADING.match(text):
        return None
    try:
        pairs = json.loads(text[start : end + 1], object_pairs_hook=list, strict=False)
        return list(_named(pairs)) or None
    except (ValueError, RecursionError):  # a small model may open brackets without end
        return None


def _named(pairs: Any) -> Iterator[tuple[str, str]]:
    for item in pairs if isinstance(pairs, list) else ():
        if not (isinstance(item, tuple) and len(item) == 2):
            continue
        name, value = str(item[0]).strip().lower(), item[1]
        if name in ASPECTS:
            yield name, "; ".join(map(str, value)) if isinstance(value, list) else str(value or "")
        else:
            yield from _named(value)


def _incomplete(text: str, missing: list[str]) -> MalformedRationale:
    if _REFUSAL.search(text):
        return RefusalError(f"a refusal: '{_shortened(text)}'")
    if _ERROR.search(text) and len(missing) == len(ASPECTS):
        return MalformedRationale(f"an error message: '{_shortened(text)}'")
    return MalformedRationale(f"missing {', '.join(missing)}: '{_shortened(text)}'")


def _clean(text: str) -> str:
    """One line without markup at its ends; encoding damage is mended where the loss is certain."""
    before = None
    while before != text:
        before = text
        if "â€" in text or "Ã" in text:
            text = _reencoded(text)
        text = re.sub(r"\ufffd\?*|[\ufeff\u200b]", "", text)
        text = re.sub(r"(?<=[a-z])\?(?=[a-z])", "-", text)
        text = re.sub(r"\A[\s*_:：\-–—]+|[\s*_`]+\Z", "", " ".join(text.split()))
    return text


def _reencoded(text: str) -> str:
    try:
        return text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return text


def _copies(text: str, report: str) -> bool:
    """Whether eight words in a row, or a whole shorter report of at least four, stand in `text`."""
    words = re.findall(r"\w+", report.lower())
    if len(words) < 4:
        return False
    spaced = " ".join(["", *re.findall(r"\w+", text.lower()), ""])
    length = min(len(words), 8)
    return any(f" {' '.join(words[i : i + length])} " in spaced for i in range(len(words) - length + 1))


def _shortened(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
