"""What a shown case looks like on the page: its panels, its evidence side by side, and both in words."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cers.cot.rationale import MalformedRationale, parse_rationale
from cers.evaluate.metrics import overlap
from cers.evaluate.render import counted
from cers.report.content import ShownCase, ShownReference
from cers.report.figures import SMALL, THUMBNAIL, contour, difference, picture, window

ASPECTS = ("Texture", "Boundary", "Context", "Summary")
MALFORMED = "Rationale: malformed, not used"
_HEADING = re.compile(rf"(?:^|(?<=[.;]))[\s*_#-]*({'|'.join(ASPECTS)})[*_]*\s*:[*_]*", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"\w{5,}")
Map = NDArray[np.floating]


@dataclass(frozen=True)
class Outline:
    """A contour over a panel: SVG path `d`, the style it is drawn in, and what it means."""

    path: str
    style: str
    meaning: str


@dataclass(frozen=True)
class Panel:
    """A picture with its outlines. `scale` names both ends of a difference map (lower, higher), None elsewhere."""

    title: str
    image: str
    width: int
    height: int
    outlines: Sequence[Outline] = ()
    scale: tuple[str, str] | None = None
    note: str = ""

    @property
    def alt(self) -> str:
        """The panel in words, for whoever cannot see it."""
        drawn = [o.meaning if o.path else f"{o.meaning} (empty)" for o in self.outlines]
        parts = [self.title, "outlined: " + ", ".join(drawn) if drawn else "", self.note]
        return "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Column:
    """One case of the evidence table.

    `texts` holds its rationale by aspect, words shared with the query marked; all of it is under MALFORMED if it is.
    """

    id: str
    panel: Panel
    label: str
    report: str
    texts: Mapping[str, str]
    image_similarity: float = math.nan
    text_similarity: float = math.nan
    attention: float | None = None


def panels(case: ShownCase) -> list[Panel]:
    """The image alone, the prediction on it, where the branches disagree, and what the evidence changed."""
    shown = [_panel("Image", case.image), _prediction(case)]
    answers = _answering(case)
    declared = answers[0] if answers else "prediction"
    for name, branch in case.branches.items():
        if name not in answers:
            shown.append(_comparison(f"Branches: {declared} and {name}", case, declared, branch, name))
    if case.without_evidence is not None:
        shown.append(_comparison("Evidence on and off", case, "evidence on", case.without_evidence, "evidence off"))
    return shown


def _answering(case: ShownCase) -> list[str]:
    """Branches that are the prediction as they are."""
    return [name for name, branch in case.branches.items() if np.array_equal(branch, case.probability)]


def columns(case: ShownCase, others: Sequence[ShownReference]) -> list[Column]:
    """The query and then each of `others`, ready to stand side by side."""
    outline = [Outline(contour(case.probability), "prediction", "prediction")]
    query = _as_read(case.rationale)
    first = Column(
        case.id, _panel("Query", case.image, outline, side=SMALL), case.label or "", case.report or "", query
    )
    return [first, *(_column(other, query) for other in others)]


def _as_read(text: str | None) -> dict[str, str]:
    """A rationale by aspect as its encoder read it, which knows nothing of a malformed one."""
    if not text:
        return {}
    try:
        return {name.capitalize(): said for name, said in asdict(parse_rationale(text)).items()}
    except MalformedRationale:
        return {MALFORMED: text.strip()}


def split_aspects(text: str | None) -> dict[str, str]:
    """A rationale by aspect, for display: whatever precedes the first heading stands under "Rationale"."""
    before, *parts = _HEADING.split(text or "")
    found = {"Rationale": before.strip()} if before.strip() else {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        found[name.capitalize()] = f"{found.get(name.capitalize(), '')} {body}".strip()
    return found


def explain(case: ShownCase) -> list[str]:
    """Short sentences that answer "why here?" with numbers taken from the case itself."""
    said = []
    if not (case.probability >= 0.5).any():
        said.append("The model outlines no lesion here.")
    if "references" in _answering(case):
        said.append(
            "The retrieved cases answer here, not the decoder: most are of a class of which training had no mask, and "
            "they point to another place. From there the outline follows the edges of the image."
        )
    if sentence := _enlarged(case):
        said.append(sentence)
    if case.truth is None:
        said.append("Nobody annotated this image, so there is nothing to measure against.")
    elif not case.truth.any():
        said.append("The annotators saw no lesion here.")
    if case.without_evidence is not None:
        said.append(_change(case.probability, case.without_evidence, case.truth))
    if case.rejected and case.compared is None:
        said.append(_by_image_alone(case))
    kept, rejected = _span(case.references), _span(case.rejected)
    if kept and rejected:
        said.append(
            f"By {case.compared or 'text'}, the retrieved cases are {kept} similar to the query and the rejected "
            f"candidates {rejected}."
        )
    return said


def _by_image_alone(case: ShownCase) -> str:
    usable = case.report or (case.rationale and MALFORMED not in _as_read(case.rationale))
    why = "None of its texts could be compared" if usable else "Nothing usable was written of this image"
    return f"{why}, so the cases were recalled by the image alone."


def _prediction(case: ShownCase) -> Panel:
    outlines = [Outline(contour(case.probability), "prediction", "prediction")]
    if case.truth is not None:
        outlines.insert(0, Outline(contour(case.truth), "truth", "annotation"))
    return _panel("Prediction", case.image, outlines)


def _comparison(title: str, case: ShownCase, name: str, other: Map, other_name: str) -> Panel:
    """Enlarged to where the two maps, or their outlines, show anything."""
    ours = case.probability
    rows, columns = window((ours >= 0.5) | (other >= 0.5) | (np.abs(ours - other) > 0.1))
    image, shown, against = case.image[rows, columns], ours[rows, columns], other[rows, columns]
    outlines = [Outline(contour(shown), "prediction", name), Outline(contour(against), "other", other_name)]
    changed = int(((ours >= 0.5) != (other >= 0.5)).sum())
    most = np.abs(ours - other).max()
    note = f"{counted(changed, 'pixel')} decided differently; probabilities differ by up to {most:.2f}"
    if image.shape != case.image.shape:
        note = f"enlarged; {note}"
    return _panel(title, difference(image, shown, against), outlines, (other_name, name), note)


def _panel(
    title: str,
    image: NDArray[np.uint8],
    outlines: Sequence[Outline] = (),
    scale: tuple[str, str] | None = None,
    note: str = "",
    side: int = THUMBNAIL,
) -> Panel:
    return Panel(title, picture(image, side), image.shape[1], image.shape[0], outlines, scale, note)


def _column(case: ShownReference, query: Mapping[str, str]) -> Column:
    healthy = case.mask is not None and not case.mask.any()
    outlines = [] if case.mask is None or healthy else [Outline(contour(case.mask), "truth", "annotation")]
    note = "annotated: no lesion" if healthy else ""
    texts = {name: mark_shared(text, query.get(name, "")) for name, text in _as_read(case.rationale).items()}
    return Column(
        case.id,
        _panel("Reference", case.image, outlines, note=note, side=SMALL),
        case.label or "",
        case.report or "",
        texts,
        case.image_similarity,
        case.text_similarity,
        case.attention,
    )


def mark_shared(text: str, query: str) -> Markup:
    """`text`, escaped, with the longer words that `query` also uses inside <mark>."""
    known = {word.lower() for word in _WORD.findall(query)}
    marked, end = Markup(), 0
    for word in _WORD.finditer(text):
        if word.group().lower() in known:
            marked += Markup("{}<mark>{}</mark>").format(text[end : word.start()], word.group())
            end = word.end()
    return marked + text[end:]


def _change(probability: Map, without: Map, truth: NDArray[np.bool_] | None) -> str:
    on, off = probability >= 0.5, without >= 0.5
    added, removed = int((on & ~off).sum()), int((off & ~on).sum())
    if not added and not removed:
        return "The outline is the same with the evidence switched off."
    change = f"The evidence added {counted(added, 'pixel')} to the outline and took {removed:,} away"
    if truth is None:
        return f"{change}."
    return f"{change}: Dice {overlap(on, truth)[0]:.3f} with it, {overlap(off, truth)[0]:.3f} without."


def _enlarged(case: ShownCase) -> str:
    """What the sizes of the references did to the outline; nothing where another branch is the answer as well."""
    if _answering(case) != ["sized"]:
        return ""
    return (
        "The outline was enlarged: the smallest lesion among the retrieved cases covers "
        f"{100 * case.at_least:.1f} % of its image, and the decoder by itself outlined less than half of that."
    )


def _span(references: Sequence[ShownReference]) -> str:
    known = [r.text_similarity for r in references if math.isfinite(r.text_similarity)]
    if not known:
        return ""
    low, high = f"{min(known):.2f}", f"{max(known):.2f}"
    return low if low == high else f"{low} to {high}"
