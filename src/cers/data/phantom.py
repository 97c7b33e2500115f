"""A generated dataset for what CERS is about: lesions that pixels alone cannot tell from their look-alikes.

Each scan shows foci of two kinds, equal in brightness, size and shape. Under one diagnosis the first kind is the lesion
and the second a look-alike; under another it is the other way round. Only the words say which, and only cases of the
same diagnosis show what it means.
"""

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cers.data.phantom_drawing import (
    Body,
    Ellipse,
    Focus,
    Modality,
    Plane,
    Trait,
    draw_body,
    draw_focus,
    field,
    share_inside,
)
from cers.data.phantom_texts import DIAGNOSES, Diagnosis, Facts, Writer
from cers.errors import CersError
from cers.files import write_atomic

_NEGATIVE_EVERY = 10
# (lesions, look-alikes) per patient and how often: symmetric, lest the count give the role away.
_COUNTS = ((1, 1), (2, 1), (1, 2), (1, 0))
_COUNT_SHARES = (0.5, 0.175, 0.175, 0.15)
_NEGATIVE_COUNTS = ((0, 0), (0, 1), (0, 2))
_NEGATIVE_SHARES = (0.2, 0.6, 0.2)
# Width of a border, as a share of the radius.
_SOFTNESS = (0.2, 0.7)


@dataclass(frozen=True)
class Phantom:
    """One scan: `image` (S,S) 8 bit, `mask` and `look_alikes` (S,S), texts, patient and diagnosis."""

    id: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    look_alikes: NDArray[np.bool_]
    report: str
    rationale: str
    mask_rationale: str
    group: str
    label: str


@dataclass(frozen=True)
class _Patient:
    """A patient number, how many neighbouring slices there are, and what is wrong."""

    number: int
    slices: int
    diagnosis: Diagnosis
    lesions: int
    others: int


def phantoms(n: int, size: int = 128, seed: int = 0) -> Iterator[Phantom]:
    """`n` scans of `size` x `size` pixels: patients of 2 to 5 slices, every tenth patient without lesion.

    Equal arguments give equal scans; a larger `n` begins with the scans of a smaller one.
    """
    made = 0
    number = 0
    while made < n:
        patient = _patient(number, seed)
        for level in range(min(patient.slices, n - made)):
            yield _scan(patient, level, f"phantom_{made:05d}", size, seed)
            made += 1
        number += 1


def _patient(number: int, seed: int) -> _Patient:
    rng = np.random.default_rng([seed, number, 0])
    diagnosis = DIAGNOSES[number % len(DIAGNOSES)]
    negative = number % _NEGATIVE_EVERY == _NEGATIVE_EVERY - 1
    counts, shares = (_NEGATIVE_COUNTS, _NEGATIVE_SHARES) if negative else (_COUNTS, _COUNT_SHARES)
    lesions, others = counts[rng.choice(len(counts), p=shares)]
    return _Patient(number, int(rng.integers(2, 6)), diagnosis, lesions, others)


def _scan(patient: _Patient, level: int, name: str, size: int, seed: int) -> Phantom:
    """One slice. What belongs to the patient is drawn anew from the patient's generator, hence equal in all slices."""
    anatomy = np.random.default_rng([seed, patient.number, 1])
    slice_rng = np.random.default_rng([seed, patient.number, 2, level])
    drift = 0.15 * level
    body = draw_body(patient.diagnosis.modality, anatomy, size, drift)
    foci = _place_foci(patient, seed)
    middle = (level - (patient.slices - 1) / 2) / patient.slices
    picture = body.picture.copy()
    extents = np.zeros((2, size, size), np.bool_)
    for is_lesion, focus in foci:
        added, extent = draw_focus(_at_level(focus, middle, slice_rng), body, anatomy, drift)
        picture += added
        extents[int(is_lesion)] |= extent
    softness = float(np.mean([focus.softness for _, focus in foci])) if foci else 0.0
    facts = Facts(
        patient.diagnosis, patient.lesions, patient.others, (softness - _SOFTNESS[0]) / (_SOFTNESS[1] - _SOFTNESS[0])
    )
    writer = Writer(facts, slice_rng)
    return Phantom(
        id=name,
        image=_acquire(picture, patient.diagnosis.modality, anatomy, slice_rng),
        mask=extents[1],
        look_alikes=extents[0],
        report=writer.report(),
        rationale=writer.rationale(),
        mask_rationale=writer.mask_rationale(),
        group=f"patient_{patient.number:04d}",
        label=patient.diagnosis.names[0] if patient.lesions else "no lesion",
    )


def _place_foci(patient: _Patient, seed: int) -> list[tuple[bool, Focus]]:
    """(whether it is a lesion, focus), in the first slice's organs and without overlap, smaller if there is no room.

    Size, outline and contrast know nothing of the role.
    """
    # Coarse pixels suffice to place foci, and make the places independent of the size of the picture.
    body = draw_body(patient.diagnosis.modality, np.random.default_rng([seed, patient.number, 1]), 64, 0.0)
    rng = np.random.default_rng([seed, patient.number, 3])
    # Whoever comes first has more room and thus tends to be larger: a lesion must not always come first.
    roles = rng.permutation([True] * patient.lesions + [False] * patient.others)
    foci: list[tuple[bool, Focus]] = []
    shrink = 1.0
    while len(foci) < len(roles):
        foci = []
        for is_lesion in roles:
            trait = patient.diagnosis.target if is_lesion else patient.diagnosis.other
            tries = (_random_focus(trait, body.organs, patient.diagnosis.modality, shrink, rng) for _ in range(40))
            focus = next((f for f in tries if _fits(f, body, foci)), None)
            foci += [] if focus is None else [(bool(is_lesion), focus)]
        shrink *= 0.97
    return foci


def _fits(focus: Focus, body: Body, others: list[tuple[bool, Focus]]) -> bool:
    apart = all(np.hypot(focus.x - f.x, focus.y - f.y) > 1.2 * (focus.radius + f.radius) for _, f in others)
    return apart and share_inside(focus, body) > 0.8


def _random_focus(
    trait: Trait, organs: tuple[Ellipse, ...], modality: Modality, shrink: float, rng: np.random.Generator
) -> Focus:
    organ = organs[rng.integers(len(organs))]
    radius = shrink * rng.uniform(0.12, 0.19)
    outward = np.sign(organ.x) if organ.x else 1.0
    if modality == "xray":
        # The trait is the place: on the outer wall of a lung, or at its inner side.
        bearing = rng.uniform(-0.9, 0.6) if trait == "pleural" else np.pi + rng.uniform(-0.25, 0.6)
        depth = 0.95 if trait == "pleural" else 0.55
    else:
        bearing, depth = rng.uniform(0, 2 * np.pi), 0.75 * np.sqrt(rng.uniform(0.05, 1))
    return Focus(
        trait=trait,
        x=organ.x + outward * depth * (organ.width - 0.6 * radius) * np.cos(bearing),
        y=organ.y + depth * (organ.height - 0.6 * radius) * np.sin(bearing),
        radius=radius,
        stretch=rng.uniform(1.0, 1.25),
        angle=rng.uniform(0, np.pi),
        waves=tuple((rng.uniform(0, 0.3 / k), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)),
        softness=rng.uniform(*_SOFTNESS),
        contrast={"ct": 0.26, "mr": 0.16, "xray": 0.15}[modality] * rng.uniform(0.75, 1.25),
    )


def _at_level(focus: Focus, middle: float, rng: np.random.Generator) -> Focus:
    """The focus as a slice cuts it: smaller away from the middle of the stack, and a little shifted."""
    values = vars(focus) | {
        "radius": focus.radius * np.sqrt(1 - (1.4 * middle) ** 2),
        "x": focus.x + rng.normal(0, 0.008),
        "y": focus.y + rng.normal(0, 0.008),
    }
    return Focus(**values)


def _acquire(
    picture: Plane, modality: Modality, patient_rng: np.random.Generator, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The scanner: uneven gain, noise, and a patient's own contrast; MR noise is Rician, hence bright in air."""
    size = picture.shape[0]
    gain = 1 + (0.1 if modality == "mr" else 0.04) * field(patient_rng, size, 2)
    level, gamma = patient_rng.uniform((0.012, 0.85), (0.035, 1.15))
    noise = rng.normal(0, level, (2, size, size))
    seen = np.clip(picture, 0, None) * gain + noise[0]
    seen = np.hypot(seen, noise[1]) if modality == "mr" else np.clip(seen, 0, None)
    levels: Plane = np.rint(255 * np.clip(seen, 0, 1) ** gamma)
    return levels.astype(np.uint8)


def write_phantoms(
    folder: Path,
    *,
    n: int = 400,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `n` phantoms as a dataset: images/, masks/, reports/ and manifest.csv, which names groups and diagnoses.

    The folder appears when it is complete: it is filled under a temporary name.

    Raises:
        CersError: `folder` holds something already or cannot be written, or a number makes no sense.
    """
    if n < 1 or seed < 0 or not 64 <= size <= 1024:
        raise CersError(f"phantoms need n >= 1, seed >= 0 and a size from 64 to 1024, not n={n}, seed={seed}, {size=}")
    if folder.exists() and not folder.is_dir():
        raise CersError(f"{folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        raise CersError(f"{folder} is not empty; choose another folder or delete it")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for part in ("images", "masks"):
            (temporary / part).mkdir(parents=True)
        scans = []
        for scan in phantoms(n, size, seed):
            _write_png(temporary / "images" / f"{scan.id}.png", scan.image)
            _write_png(temporary / "masks" / f"{scan.id}.png", scan.mask.astype(np.uint8) * np.uint8(255))
            scans.append(_row(scan))
            if progress is not None:
                progress(len(scans), n)
        _write_tables(temporary, scans)
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        raise CersError(f"cannot write {folder}: {error.strerror}; free space or choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _row(scan: Phantom) -> dict[str, str]:
    return {
        "image": f"images/{scan.id}.png",
        "mask": f"masks/{scan.id}.png",
        "report": scan.report,
        "cot": scan.rationale,
        "mask_cot": scan.mask_rationale,
        "group": scan.group,
        "label": scan.label,
        "part": "",
    }


def _write_tables(folder: Path, rows: list[dict[str, str]]) -> None:
    write_atomic(folder / "manifest.csv", _csv(rows))
    for name, column, header in (
        ("text", "report", "text"),
        ("cot_mask", "mask_cot", "cot"),
        ("cot_no_mask", "cot", "cot"),
    ):
        table = [{"image": Path(row["image"]).name, header: row[column]} for row in rows]
        write_atomic(folder / "reports" / f"{name}.csv", _csv(table))


def _csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".png", pixels)
    path.write_bytes(data.tobytes())
