"""What leaves the machine: decided on the bytes that a server received."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from llm_cases import job, write_cases
from llm_server import LlmServer
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from cers.annotate.pictures import draw, encode
from cers.annotate.redact import REDACTED, redact_image, redact_report
from cers.annotate.run import run_annotation
from cers.cot.store import AnnotationStore
from cers.data.case import Case
from cers.errors import CersError


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_cases(tmp_path_factory.mktemp("cases"), 6)


def received(cases: list[Case], labelled: int, tmp_path: Path, **settings: object) -> dict[str, list[bytes]]:
    """The pictures that a server got, by whether their prompt speaks of a mask."""
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        run_annotation(job(cases, server.url, labelled, **settings), store)
        pictures: dict[str, list[bytes]] = {"labelled": [], "unlabelled": []}
        for seen in server.seen:
            pictures["labelled" if "red overlay" in seen.texts[0] else "unlabelled"] += seen.images
    return pictures


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def redness(picture: NDArray[np.uint8]) -> int:
    return int((picture[..., 0].astype(int) - picture[..., 1]).max())


def test_only_labelled_cases_show_a_mask_and_it_is_where_the_lesion_is(cases: list[Case], tmp_path: Path) -> None:
    pictures = received(cases, 2, tmp_path)
    assert (len(pictures["labelled"]), len(pictures["unlabelled"])) == (2, 6)
    assert all(redness(decoded(data)) <= 2 for data in pictures["unlabelled"])
    shown = decoded(sorted(pictures["labelled"])[0])
    mask = np.asarray(Image.open(cases[0].mask or "")) > 0
    masks = [np.asarray(Image.open(case.mask or "")) > 0 for case in cases[:2]]
    red = (shown[..., 0].astype(int) - shown[..., 1] > 30)[: mask.shape[0]]
    assert max((red & m).sum() / (red | m).sum() for m in masks) > 0.9


def test_masks_of_other_cases_are_never_opened(cases: list[Case], tmp_path: Path) -> None:
    """The requests are the same bytes whatever those files hold, even nothing that can be read."""
    before = received(cases, 2, tmp_path / "a", image_format="png")
    hidden = tmp_path / "hidden.png"
    hidden.write_bytes(b"no mask at all")
    others = [replace(case, mask=hidden) if i >= 2 else case for i, case in enumerate(cases)]
    after = received(others, 2, tmp_path / "b", image_format="png")
    assert {k: sorted(v) for k, v in before.items()} == {k: sorted(v) for k, v in after.items()}
    asked = job(cases, "http://localhost:1/v1", 2)
    with pytest.raises(CersError, match="not labelled"):
        asked.request(asked.wanted()[-1]._replace(image=cases[4].id))


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_no_metadata_is_sent(tmp_path: Path, image_format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", "Doe^Jane")
    exif = Image.Exif()
    exif[0x010E] = "Doe^Jane"
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=info, exif=exif)
    assert b"Doe^Jane" in (tmp_path / "a.png").read_bytes()
    (data,) = received([Case("a", tmp_path / "a.png")], 0, tmp_path, image_format=image_format)["unlabelled"]
    assert b"Doe" not in data
    sent = Image.open(__import__("io").BytesIO(data))
    assert sent.format == image_format.upper()
    assert not sent.getexif()
    assert set(sent.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    if image_format == "png":
        assert (np.asarray(sent) == pixels).all()


def test_deep_images_are_windowed_and_large_ones_made_smaller(tmp_path: Path) -> None:
    deep = np.linspace(1000, 1400, 300 * 200).reshape(200, 300).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    case = Case("deep", tmp_path / "deep.png")
    (data,) = received([case], 0, tmp_path, max_side=128)["unlabelled"]
    sent = decoded(data)
    assert sent.shape == (85, 128, 3)
    assert sent.min() < 10
    assert sent.max() > 245


def test_dicom_does_not_leave(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"Doe^Jane" * 20)
    with LlmServer() as server, AnnotationStore(tmp_path / "s.db") as store:
        run_annotation(job([Case("a", tmp_path / "a.dcm")], server.url), store)
        assert not server.seen
        assert next(store.rows()).state == "failed"


def test_contour_leaves_the_lesion_as_it_is() -> None:
    image = np.full((60, 60), 100, np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    contour = draw(image, mask, max_side=128, overlay="contour", target="lesion")
    assert (contour[30, 30] == 100).all()
    assert redness(contour[20:21]) > 100
    filled = draw(image, mask, max_side=128, overlay="fill", target="lesion")
    assert redness(filled[30:31, 30:31]) > 20
    assert filled.shape[0] > 60  # the legend
    assert max(draw(image, mask, max_side=64, overlay="fill", target="lesion").shape) == 64
    assert draw(image, np.zeros_like(mask), max_side=128, overlay="fill", target="lesion") is image
    assert decoded(encode(contour, "png")).shape == contour.shape


def test_burnt_in_text_is_covered_and_the_middle_is_not() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((256, 256), np.uint8)
    cv2.ellipse(image, (128, 128), (80, 95), 0, 0, 360, 110, cv2.FILLED)
    cv2.circle(image, (140, 120), 18, 180, cv2.FILLED)
    image = np.clip(cv2.GaussianBlur(image, (0, 0), 2) + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    text = np.zeros_like(image)
    for place, words in (((4, 14), "DOE JANE 1967"), ((150, 250), "ID 4711"), ((4, 250), "R")):
        cv2.putText(text, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA)
    marked = np.maximum(image, text)
    covered = redact_image(marked)
    long_words = text.copy()
    long_words[230:, :40] = 0
    assert (covered[long_words > 128] == 0).mean() > 0.97
    assert (covered[60:200, 60:200] == marked[60:200, 60:200]).all()
    assert (redact_image(image) == image).mean() > 0.99


@pytest.mark.parametrize(
    ("report", "gone"),
    [
        ("Seen by Dr. Jane Doe on 12.03.1967.", ["Jane", "Doe", "1967"]),
        ("Patient: Doe, Jane; MRN: 00123456. Glioma of the left lobe.", ["Doe", "Jane", "123456"]),
        ("Reported by Prof. Dr. Müller-Lüdenscheidt, mail a.b@hospital.org", ["Müller", "Lüdenscheidt", "a.b@"]),
        ("Dr. med. Hans Huber; Prof. Dr. med. univ. A. Maier", ["Hans", "Huber", "Maier"]),
        ("DOE^JANE^A, born 5 March 1967, seen March 12, 2021", ["DOE", "JANE", "1967", "2021"]),
        ("Herr Schmidt, geb. 1967-03-12", ["Schmidt", "1967"]),
    ],
)
def test_names_in_reports_are_replaced(report: str, gone: list[str]) -> None:
    redacted = redact_report(report)
    assert REDACTED in redacted
    assert not [word for word in gone if word in redacted]
    assert "left lobe" in redacted or "left lobe" not in report


def test_findings_in_reports_are_kept() -> None:
    text = "Bilateral infection, 3 lesions of 12 mm, upper left lung. T1-weighted MR, 512x512; Hounsfield -300 to 40."
    assert redact_report(text) == text
