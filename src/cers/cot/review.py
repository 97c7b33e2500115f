"""An expert's review of rationales: which are drawn, and what verdict files say.

A verdict is about one aspect of one text: `right`, `wrong` or `unsure`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cers.cot.rationale import ASPECTS, MalformedRationale, parse_rationale, render
from cers.cot.texts import Written
from cers.errors import CersError

VERDICTS = ("right", "wrong", "unsure")
FORMAT = "cers-review-1"


@dataclass(frozen=True)
class Verdicts:
    """One reviewer's file: verdicts by text (`image role`) and aspect, and notes by text.

    `sample` identifies what was reviewed; `of` is how many texts that were.
    """

    reviewer: str
    sample: str
    of: int
    verdicts: Mapping[str, Mapping[str, str]]
    notes: Mapping[str, str]


def draw_sample(texts: Sequence[Written], n: int, seed: int) -> list[Written]:
    """`n` well-formed texts of as many images where there are so many, at random but always the same for a `seed`.

    The texts come in random order, put as four aspects. Of an image only one text is drawn.

    Raises:
        CersError: `n` is below 1, or there is no well-formed text.
    """
    if n < 1:
        raise CersError(f"{n} texts cannot be reviewed; ask for 1 or more")
    sound: dict[str, dict[str, Written]] = {}
    for text in texts:
        try:
            clean = Written(text.image, text.role, render(parse_rationale(text.text)), text.where)
        except MalformedRationale:
            continue
        sound.setdefault(text.image, {}).setdefault(text.role, clean)
    if not sound:
        raise CersError("no well-formed rationale to review; `cers annotate audit` says what is wrong")
    rng = np.random.default_rng(seed)
    images = sorted(sound)
    drawn = [images[i] for i in rng.permutation(len(images))[:n]]
    return [sound[image][roles[rng.integers(len(roles))]] for image in drawn if (roles := sorted(sound[image]))]


def name_of(text: Written) -> str:
    """How verdict files call a text."""
    return f"{text.image} {text.role}"


def sample_hash(sample: Sequence[Written]) -> str:
    """SHA-256 of the texts, in any order: verdicts on other texts, or on other words, do not mix."""
    content = sorted([name_of(text), text.text] for text in sample)
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def read_verdicts(path: Path) -> Verdicts:
    """The file that a review page saved.

    Raises:
        CersError: no such file, not one of these, or with a verdict that is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CersError(f"no file {path}; save one from the page that `cers annotate review` writes") from None
    except (OSError, ValueError) as error:
        raise CersError(f"{path} is no file of verdicts ({error}); save it again from the review page") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CersError(f"{path} is no file of verdicts; save one from the page that `cers annotate review` writes")
    try:
        verdicts = {str(text): dict(given) for text, given in found["verdicts"].items()}
        notes = {str(text): str(note) for text, note in found.get("notes", {}).items() if note}
        read = Verdicts(str(found["reviewer"]), str(found["sample"]), int(found["of"]), verdicts, notes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CersError(f"{path} is damaged ({error!r}); save it again from the review page") from None
    _refuse_strange(read.verdicts, path)
    return read


def _refuse_strange(verdicts: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    for text, given in verdicts.items():
        for aspect, verdict in given.items():
            if aspect not in ASPECTS or verdict not in VERDICTS:
                raise CersError(
                    f"{path}: '{text}' has {aspect}={verdict}; aspects are {', '.join(ASPECTS)} and "
                    f"verdicts {', '.join(VERDICTS)}"
                )
