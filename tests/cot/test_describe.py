import re
from dataclasses import astuple

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cers.cot import describe as describe_module
from cers.cot.candidate import airy_spaces, most_conspicuous
from cers.cot.describe import describe
from cers.cot.measure import scene
from cers.cot.rationale import MAX_TOKENS, audit_rationale, parse_rationale, render, tokens

REPORT = "An axial MRI scan with one small glioma lesion."
POSITIONS = re.compile(r"\b(?:left|right|upper|lower|superior|inferior|anterior|posterior|\d+)\b", re.IGNORECASE)


def head(radius: int = 14, value: int = 210, blur: float = 0.8, noise: float = 3.0) -> tuple[NDArray, NDArray]:
    """A grey oval body on black with dark ventricles and one disc-shaped lesion; image and mask (160,160)."""
    image = np.zeros((160, 160), np.float32)
    mask = np.zeros((160, 160), np.uint8)
    cv2.ellipse(image, (80, 80), (60, 70), 0, 0, 360, 110, cv2.FILLED)
    for x in (73, 87):
        cv2.ellipse(image, (x, 90), (4, 14), 0, 0, 360, 40, cv2.FILLED)
    cv2.circle(mask, (52, 62), radius, 1, cv2.FILLED)
    image[mask > 0] = value
    image = cv2.GaussianBlur(image, (0, 0), blur)
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(bool)


def test_bright_disc() -> None:
    image, mask = head()
    rationale = describe(image, mask=mask)
    assert "hyperintense" in rationale.texture
    assert rationale.texture.startswith("Homogeneous")
    assert all(word in rationale.boundary for word in ("crisp", "convex", "round"))
    assert "solitary" in rationale.summary


def test_dark_disc_is_hypointense() -> None:
    image, mask = head(value=50)
    assert "hypointense" in describe(image, mask=mask).texture


def test_ring_has_a_core() -> None:
    image, mask = head(radius=18)
    cv2.circle(image, (52, 62), 11, 60, cv2.FILLED)
    texture = describe(image, mask=mask).texture
    assert "ring around a markedly hypointense necrotic core" in texture
    assert "homogeneous" not in texture


def test_two_lesions_are_paired() -> None:
    image, mask = head()
    second = np.zeros(mask.shape, np.uint8)
    cv2.circle(second, (108, 60), 9, 1, cv2.FILLED)
    image[second > 0] = 210
    assert "paired" in describe(image, mask=mask | (second > 0)).summary


def test_ragged_outline_is_not_smooth() -> None:
    image, _ = head(radius=18)
    angle = np.arctan2(*np.mgrid[-62:98, -52:108])
    distance = np.hypot(*np.mgrid[-62:98, -52:108])
    star = distance < 12 + 6 * np.cos(9 * angle)
    boundary = describe(image, mask=star).boundary
    assert "smooth" not in boundary
    assert "convex" not in boundary


def test_size_grows_with_the_lesion() -> None:
    order = ["tiny", "small", "smallish", "moderate", "large", "extensive"]
    words = [describe(head(r)[0], mask=head(r)[1]).summary.split()[0].lower() for r in (4, 8, 11, 14, 20, 30)]
    assert words == sorted(words, key=order.index)
    assert len(set(words)) >= 4


def test_blur_softens_the_margin() -> None:
    order = ["blurred", "hazy", "fairly defined", "distinct", "crisp"]

    def sharpness(blur: float) -> int:
        image, mask = head(blur=blur, value=170)
        boundary = describe(image, mask=mask).boundary
        return next(i for i, word in enumerate(order) if word in boundary)

    levels = [sharpness(blur) for blur in (0.8, 2.0, 4.0, 8.0)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > levels[-1]


def test_finds_the_lesion_without_mask_and_says_much_the_same() -> None:
    image, mask = head()
    found = most_conspicuous(scene(image), airy_spaces(scene(image)))
    assert found is not None
    assert (found & mask).sum() / (found | mask).sum() > 0.7
    free, informed, elsewhere = (
        set(render(describe(image, mask=m)).split()) for m in (None, mask, np.roll(mask, 50, axis=1))
    )
    assert len(free & informed) > len(free & elsewhere) + 4


def test_finds_opacities_in_air_filled_spaces() -> None:
    image = np.full((160, 160), 190, np.uint8)
    for x in (48, 112):
        cv2.ellipse(image, (x, 80), (26, 56), 0, 0, 360, 25, cv2.FILLED)
    mask = np.zeros_like(image)
    cv2.circle(mask, (48, 100), 12, 1, cv2.FILLED)
    image[mask > 0] = 110
    found = most_conspicuous(scene(image), airy_spaces(scene(image)))
    assert found is not None
    assert found[mask > 0].mean() > 0.8
    assert "hyperdense" in describe(image).texture


def test_modality_decides_the_words() -> None:
    image, mask = head()
    assert "hyperdense" in describe(image, mask=mask, modality="CT").texture
    assert "hyperdense" in describe(image, mask=mask, report="Pulmonary infection.").texture
    assert "hyperintense" in describe(image, mask=mask, report="Pulmonary mass.", modality="MR").texture


def test_report_gives_finding_number_and_size_but_no_position() -> None:
    image, mask = head()
    text = "Bilateral pulmonary infection, two infected areas, all left lung and middle right lung."
    for m in (mask, None):
        rationale = describe(image, mask=m, report=text)
        assert all("pulmonary infection" in aspect for aspect in astuple(rationale))
        assert "two infected areas" in rationale.summary
        assert not POSITIONS.search(render(rationale))
        assert describe(image, mask=m, report=text, use_report=False) == describe(image, mask=m, report=None)


def test_no_choice_of_words_is_over_long() -> None:
    longest = {
        prefix + name: max((word.format(x="intense") for word in words), key=tokens)
        for prefix, scales in (("", describe_module._REGION), ("image_", describe_module._IMAGE))
        for name, (_, words) in scales.items()
    }
    report = "Bilateral pulmonary infection, nine infected areas, seven more, eight others, all of the left lung."
    rationale = describe_module._written(longest | describe_module._reported(report))
    assert 100 < tokens(render(rationale)) <= MAX_TOKENS


def test_same_input_same_text() -> None:
    image, mask = head()
    assert describe(image, mask=mask, report=REPORT) == describe(image.copy(), mask=mask.copy(), report=REPORT)
    assert describe(image, report=REPORT) == describe(image.copy(), report=REPORT)


def test_mirroring_changes_no_word() -> None:
    image, mask = head()
    assert describe(image[:, ::-1].copy(), mask=mask[:, ::-1].copy()) == describe(image, mask=mask)


def test_colour_without_colour_changes_no_word() -> None:
    image, mask = head()
    assert describe(np.repeat(image[..., None], 3, axis=2), mask=mask) == describe(image, mask=mask)


def test_resolution_changes_no_size() -> None:
    image, mask = head()
    big = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    big_mask = cv2.resize(mask.astype(np.uint8), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST).astype(bool)
    small, large = describe(image, mask=mask), describe(big, mask=big_mask)
    assert small.summary.split()[:2] == large.summary.split()[:2]


def test_empty_mask_says_that_nothing_is_there() -> None:
    image, mask = head()
    assert "No focal lesion" in describe(image, mask=np.zeros_like(mask)).summary


def test_mask_of_another_shape_is_refused() -> None:
    image, mask = head()
    with pytest.raises(ValueError, match="does not fit"):
        describe(image, mask=mask[:80])


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
IMAGES = st.one_of(
    SHAPES.flatmap(lambda s: arrays(np.uint8, s)),
    SHAPES.flatmap(lambda s: arrays(np.uint8, (*s, 3))),
    SHAPES.flatmap(lambda s: st.integers(0, 255).map(lambda v: np.full(s, v, np.uint8))),
)


@settings(max_examples=60)
@given(IMAGES, st.data())
def test_any_image_gets_a_sound_text(image: NDArray[np.uint8], data: st.DataObject) -> None:
    mask = data.draw(st.one_of(st.none(), arrays(np.bool_, image.shape[:2])))
    text = render(describe(image, mask=mask, report=REPORT))
    assert audit_rationale(text, REPORT) == []
    assert render(parse_rationale(text)) == text
    assert not POSITIONS.search(text)
