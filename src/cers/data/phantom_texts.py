"""The words of phantoms: diagnoses that swap the roles of two kinds of foci, and what is written about a scan."""

from dataclasses import dataclass

import numpy as np

from cers.data.phantom_drawing import Modality, Trait


@dataclass(frozen=True)
class Kind:
    """How a kind of foci is called and described."""

    noun: str
    texture: tuple[str, ...]
    boundary: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """`target` is the kind of foci that is the lesion, `other` the kind that only looks like it, being `excuse`."""

    names: tuple[str, str]
    modality: Modality
    target: Trait
    other: Trait
    excuse: str


KINDS: dict[Trait, Kind] = {
    "even": Kind(
        "even patch",
        ("Homogeneous, one density throughout", "Smooth and uniform, without inner detail"),
        ("border follows the density gradually", "margin fades evenly into aerated lung"),
    ),
    "mottled": Kind(
        "mottled patch",
        ("Mottled, fine bright and dark grains", "Heterogeneous with coarse speckles inside"),
        ("border broken up by the grains", "margin frayed where speckles end"),
    ),
    "solid": Kind(
        "solid nodule",
        ("Solid, equally bright from centre to edge", "Uniform signal without a darker core"),
        ("no separate rim", "edge as bright as the centre"),
    ),
    "rimmed": Kind(
        "ring-like nodule",
        ("Bright ring about a darker core", "Ring enhancement, core of weaker signal"),
        ("bright rim traces the outer edge", "rim marks the border"),
    ),
    "pleural": Kind(
        "opacity at the chest wall",
        ("Uniform density against the pleura", "Plain peripheral opacity"),
        ("broad contact with the chest wall", "outer side merges with the pleura"),
    ),
    "hilar": Kind(
        "opacity beside the hilum",
        ("Uniform density about the hilar vessels", "Plain central opacity"),
        ("inner side merges with the mediastinum", "free of the chest wall"),
    ),
}

DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis(("organising pneumonia", "organising infiltrate"), "ct", "even", "mottled", "old scarring"),
    Diagnosis(("fungal infection", "invasive mycosis"), "ct", "mottled", "even", "passive atelectasis"),
    Diagnosis(("metastasis", "metastatic disease"), "mr", "rimmed", "solid", "an old gliotic scar"),
    Diagnosis(("lymphoma", "cerebral lymphoma"), "mr", "solid", "rimmed", "a healed abscess"),
    Diagnosis(("pleural empyema", "loculated empyema"), "xray", "pleural", "hilar", "a vessel seen end-on"),
    Diagnosis(("hilar adenopathy", "hilar node enlargement"), "xray", "hilar", "pleural", "an old pleural scar"),
)

_STUDIES: dict[Modality, tuple[str, ...]] = {
    "ct": ("axial CT of the chest", "chest CT in lung window"),
    "mr": ("axial contrast MR of the head", "brain MR after contrast"),
    "xray": ("frontal chest radiograph", "chest X-ray"),
}
_COUNTS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Facts:
    """What the words are about: how many foci of either kind a scan shows, and how soft their borders are (0 to 1)."""

    diagnosis: Diagnosis
    targets: int
    others: int
    softness: float


class Writer:
    """Writes about one scan, choosing among equal phrases with `rng`. No sentence tells where in the image to look."""

    def __init__(self, facts: Facts, rng: np.random.Generator) -> None:
        self.facts = facts
        self.rng = rng
        self.name = self._one(facts.diagnosis.names)

    def report(self) -> str:
        """One clinical sentence or two that name the diagnosis, or exclude a lesion."""
        study = self._one(_STUDIES[self.facts.diagnosis.modality])
        if not self.facts.targets:
            text = self._one(("{study}, no lesion.", "{study} without a lesion; incidental old changes at most."))
        else:
            text = self._one(
                (
                    "{study} with {count} of {name}.",
                    "{study}: findings of {name}, {count}.",
                    "{study}. Known {name}; {count} on this slice.",
                )
            )
        return _sentence(text.format(study=study, count=_plural(self.facts.targets, "lesion"), name=self.name))

    def rationale(self) -> str:
        """Four aspects from the whole scan and the suspected diagnosis; they do not say which focus is the lesion."""
        facts, kinds = self.facts, self._kinds()
        total = facts.targets + facts.others
        if not total:
            return _aspects("No focal change of texture", "Nothing to delineate", self._setting(), "No lesion seen")
        texture = f"{kinds[0].texture[0]}; another focus differs" if len(kinds) > 1 else "Foci of one kind only"
        if not facts.targets:
            return _aspects(texture, self._softness(), self._setting(), "Incidental old change, no lesion suspected")
        context = f"{self._setting()}; one focus stands out"
        if total > 1:
            context = f"{self._setting()}; of {_plural(total, 'focus')} alike in brightness not all need be {self.name}"
        summary = self._one(("Suspicious for {}", "Appearance raises {}", "Most in keeping with {}")).format(self.name)
        return _aspects(texture, self._softness(), context, summary)

    def mask_rationale(self) -> str:
        """Four aspects of the lesion itself, with what was left out and why."""
        facts = self.facts
        other = KINDS[facts.diagnosis.other].noun
        if not facts.targets:
            context = f"{_article(other)} is {facts.diagnosis.excuse}" if facts.others else self._setting()
            return _aspects("No lesion texture", "No lesion boundary", context, "No lesion")
        kind = KINDS[facts.diagnosis.target]
        context = f"{_article(other)} of like brightness is {facts.diagnosis.excuse} and not part of it"
        return _aspects(
            self._one(kind.texture),
            f"{self._softness()}; {self._one(kind.boundary)}",
            context if facts.others else f"{self._setting()}; no look-alike beside it",
            self._one(("{} is the {}", "{}: {} marked", "{} shown by the {}")).format(self.name, kind.noun),
        )

    def _kinds(self) -> list[Kind]:
        """The kinds of foci in sight, in an order that gives no role away."""
        facts = self.facts
        seen = [(facts.diagnosis.target, facts.targets), (facts.diagnosis.other, facts.others)]
        kinds = [KINDS[trait] for trait, count in seen if count]
        return kinds if self.rng.random() < 0.5 else kinds[::-1]

    def _softness(self) -> str:
        if self.facts.softness < 0.5:
            return self._one(("Fairly crisp margins", "Margins mostly traceable"))
        return self._one(("Blurred margins of low contrast", "Indistinct margins"))

    def _setting(self) -> str:
        return self._one(_STUDIES[self.facts.diagnosis.modality])

    def _one(self, options: tuple[str, ...]) -> str:
        return options[self.rng.integers(len(options))]


def _aspects(texture: str, boundary: str, context: str, summary: str) -> str:
    values = zip(("Texture", "Boundary", "Context", "Summary"), (texture, boundary, context, summary), strict=True)
    return "\n".join(f"{aspect}: {_sentence(text)}" for aspect, text in values)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(count: int, noun: str) -> str:
    plural = "foci" if noun == "focus" else f"{noun}s"
    return f"{_COUNTS[count]} {noun if count == 1 else plural}"
