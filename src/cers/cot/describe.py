"""The offline writer: a rationale from measurements alone, without network, key or chance.

With a mask it describes the lesion; without, the most conspicuous region, in the same words, so that the two texts
agree where they see the same thing. Coordinates and sides are left out on purpose (arXiv 2606.17958, section 2.1.1):
image features already carry them, and a mirrored image keeps its text. The summary repeats where the lesion lies and in
what kind of image, because these words survive when the region was missed (`cers annotate audit` chose the wording).
"""

import re
from bisect import bisect_right
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from cers.cot.candidate import airy_spaces, most_conspicuous
from cers.cot.measure import fit, measure_image, measure_region, scene
from cers.cot.rationale import Rationale

# Words for each measurement, with the values at which one gives way to the next. The cuts lie near the quantiles of
# lesions in brain MR and lung CT, so that each word is used about equally often. {x} is "intense" or "dense".
_Scale = tuple[tuple[float, ...], tuple[str, ...]]
_REGION: Mapping[str, _Scale] = {
    "count": ((1.5, 2.5, 4.5), ("solitary", "paired", "few", "multiple")),
    "size": (
        (0.006, 0.013, 0.022, 0.035, 0.07),
        ("tiny", "small", "smallish", "moderate", "large", "extensive"),
    ),
    "contrast": (
        (-0.2, -0.08, 0.0, 0.08, 0.2, 0.3, 0.42),
        (
            "markedly hypo{x}",
            "moderately hypo{x}",
            "slightly hypo{x}",
            "iso{x}",
            "slightly hyper{x}",
            "moderately hyper{x}",
            "clearly hyper{x}",
            "strikingly hyper{x}",
        ),
    ),
    "level": (
        (0.3, 0.6, 0.8, 0.86, 0.92),
        ("dark", "grey", "fairly bright", "bright", "very bright", "brightest"),
    ),
    "heterogeneity": (
        (0.08, 0.11, 0.14, 0.18),
        ("homogeneous", "nearly uniform", "mildly heterogeneous", "heterogeneous", "variegated"),
    ),
    "core": (
        (-0.12, -0.04, 0.03, 0.09, 0.16),
        (
            "ring around a markedly hypo{x} necrotic core",
            "ring around a slightly hypo{x} core",
            "of even core and rim",
            "with a slightly brighter centre",
            "fading outwards",
            "with a dominant bright centre",
        ),
    ),
    "graininess": ((0.5, 0.8, 1.2, 1.9), ("silky", "fine", "granular", "coarse", "mottled")),
    "sharpness": ((0.05, 0.08, 0.105, 0.14), ("blurred", "hazy", "fairly defined", "distinct", "crisp")),
    "sharp_share": ((0.55, 0.8, 0.93), ("mostly indistinct", "often interrupted", "focally indistinct", "continuous")),
    "solidity": ((0.78, 0.86, 0.92), ("deeply lobulated", "lobulated", "gently indented", "convex")),
    "eccentricity": ((0.5, 0.68, 0.82), ("round", "ovoid", "elongated", "linear")),
    "dark_neighbour": (
        (0.02, 0.15, 0.35),
        ("off cavities", "near a cavity", "beside cavities", "beside broad cavities"),
    ),
    "look_alikes": ((0.07, 0.12, 0.2, 0.35), ("hardly any", "few", "some", "frequent", "abundant")),
    "depth": ((0.4, 0.58, 0.78), ("superficial", "subsurface", "midway", "deep")),
    "aside": (
        (0.12, 0.2, 0.3, 0.44, 0.6),
        ("midline", "paramedian", "somewhat lateral", "lateral", "far lateral", "outermost"),
    ),
    "low": (
        (0.25, 0.35, 0.42, 0.52, 0.62),
        ("high", "fairly high", "mid height", "fairly low", "low", "lowest"),
    ),
}
_IMAGE: Mapping[str, _Scale] = {
    "extent": ((0.42, 0.5, 0.57, 0.63, 0.72), ("sparse", "narrow", "moderate", "broad", "wide", "filling")),
    "elongation": ((1.03, 1.1, 1.16, 1.25), ("squat", "circular", "oblong", "tall", "slender")),
    "noise": ((0.0065, 0.009, 0.011, 0.014), ("minimal", "low", "mild", "noticeable", "strong")),
    "asymmetry": ((0.12, 0.155, 0.19, 0.23), ("mirrored", "symmetric", "skewed", "lopsided", "unequal")),
    "dark_spaces": ((0.12, 0.15, 0.185, 0.23), ("scant", "modest", "ordinary", "prominent", "dominating")),
    "bright_structures": ((0.055, 0.07, 0.085, 0.11), ("faint", "thin", "usual", "bold", "massive")),
    "level": ((0.33, 0.36, 0.385, 0.42), ("dim", "dusky", "balanced", "light", "luminous")),
    "detail": ((0.034, 0.04, 0.045, 0.052), ("featureless", "soft", "textured", "detailed", "crowded")),
}
_DENSE = re.compile(r"\b(?:ct|tomograph\w*|x-?rays?|radiograph\w*|chest|lungs?|pulmonary|cr|dx)\b", re.IGNORECASE)
_UNSAID = re.compile(
    r"\b(?:an?|the|with|of|in|on|at|and|or|is|are|there|this|that|show(?:s|ing)?|scan|images?|slice|view|left|right"
    r"|upper|lower|middle|all|superior|inferior|anterior|posterior|quadrant|sided?)\b"
)
_NOT_A_NAME = re.compile(
    r"lesions?|unilateral|bilateral|infected|affected|tum(?:ou?)rs?|mass(?:es)?|areas?|regions?|axial|coronal|sagittal|transverse|mri?|ct|x-?ray|chest|t[12]\S*"
    r"|flair|contrast\S*|tiny|small|medium|sized|large|huge|extensive|single|solitary|multiple|several|few|many|no|zero"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|\d+\S*"
)


def describe(
    image: NDArray[np.uint8],
    *,
    mask: NDArray[np.bool_] | None = None,
    report: str | None = None,
    modality: str | None = None,
    use_report: bool = True,
) -> Rationale:
    """A rationale of `image` (H,W) or (H,W,3): of the lesion in `mask` (H,W), or of what stands out if that is None.

    `modality` is free text such as "MR" or "CT"; without it the report and then the image decide between the words
    hyperintense and hyperdense. Of `report` only finding, number and size are used, and nothing if `use_report` is off.

    Raises:
        ValueError: `mask` has another shape than `image`.
    """
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"mask {mask.shape} does not fit image {image.shape[:2]}")
    report = report if use_report else None
    view = scene(image)
    airy = airy_spaces(view)
    if mask is None:
        region = most_conspicuous(view, airy)
    else:
        region = fit(mask.astype(np.uint8) * np.uint8(255), cv2.INTER_AREA) >= 128
        region = region if region.any() else fit(mask.astype(np.uint8), cv2.INTER_NEAREST).astype(bool)
    words = {f"image_{name}": word for name, word in _worded(measure_image(view), _IMAGE, "").items()}
    words |= _reported(report)
    if region is None or not region.any():
        return _nothing_found(words)
    x = "dense" if _is_dense(airy is not None, report, modality) else "intense"
    measured = measure_region(view, region, view.body if airy is None else airy)
    return _written(words | _worded(measured, _REGION, x))


def _worded(measured: Mapping[str, float], scales: Mapping[str, _Scale], x: str) -> dict[str, str]:
    return {name: words[bisect_right(cuts, measured[name])].format(x=x) for name, (cuts, words) in scales.items()}


def _written(w: Mapping[str, str]) -> Rationale:
    return Rationale(
        texture=f"{w['heterogeneity'].capitalize()}, {w['contrast']} {w['lesion']}, {w['core']}; {w['level']}, "
        f"{w['graininess']}; {w['image_noise']} noise.",
        boundary=f"Margin of the {w['lesion']} {w['sharpness']} and {w['sharp_share']}; outline {w['solidity']}, "
        f"{w['eccentricity']}.",
        context=f"{w['depth'].capitalize()} {w['lesion']}, {w['aside']}, {w['low']}, {w['dark_neighbour']}; "
        f"{w['look_alikes']} mimics. {_background(w)}",
        summary=f"{w['size'].capitalize()} {w['count']} {w['contrast']} {w['lesion']}, {w['depth']}, {w['aside']}, "
        f"{w['low']}, in a {_body(w)}{w['reported']}.",
    )


def _nothing_found(w: Mapping[str, str]) -> Rationale:
    return Rationale(
        texture=f"No focal change of texture; {w['image_noise']} noise.",
        boundary="No lesion margin to be seen.",
        context=_background(w),
        summary=f"No focal lesion stands out{w['reported']}.",
    )


def _background(w: Mapping[str, str]) -> str:
    return (
        f"Body {w['image_extent']}, {w['image_elongation']}, {w['image_asymmetry']}; tissue {w['image_level']}, "
        f"{w['image_detail']}; {w['image_dark_spaces']} dark spaces, {w['image_bright_structures']} rim."
    )


def _body(w: Mapping[str, str]) -> str:
    return (
        f"{w['image_extent']}, {w['image_elongation']}, {w['image_asymmetry']} body of {w['image_level']}, "
        f"{w['image_detail']} tissue"
    )


def _is_dense(airy: bool, report: str | None, modality: str | None) -> bool:
    stated = " ".join(filter(None, (modality, report)))
    if re.search(r"\b(?:mri?|t1|t2|flair)\b", stated, re.IGNORECASE):
        return False
    return airy or bool(_DENSE.search(stated))


def _reported(report: str | None) -> dict[str, str]:
    """The finding's name, and what else is said of finding, number and size, without words that state a position."""
    said = _UNSAID.sub(" ", (report or "").lower())
    words = list(dict.fromkeys(re.findall(r"[a-z0-9]+", said)))
    name = [word for word in words if not _NOT_A_NAME.fullmatch(word)][:2]
    rest = [word for word in words if word not in (*name, "lesion", "lesions")][:5]
    return {
        "lesion": " ".join([*name, "lesion"]),
        "reported": f", reported as {' '.join(rest)}" if rest else "",
    }
