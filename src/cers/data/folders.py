"""Folders of images and of masks, and pairing the two by name. No pixel is read here."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cers.data.case import Case
from cers.data.names import IMAGE_SUFFIXES, aliases, key
from cers.data.problems import LISTED, Problem, some
from cers.errors import CersError, nearest

_ALONE = {
    "missing-mask": (
        "no mask of this name",
        "; an image nobody annotated belongs in unlabeled/, one without lesion needs an all-zero mask",
    ),
    "mask-without-image": ("no image of this name", "; rename or remove the mask"),
}


def child(root: Path, *names: str) -> Path | None:
    """The folder `root/names[0]/names[1]/…`, whatever the case of the letters, or None."""
    here = root
    for name in names:
        if not here.is_dir():
            return None
        exact = here / name
        if not exact.is_dir():
            match = [f for f in subfolders(here) if f.name.lower() == name.lower()]
            if not match:
                return None
            exact = match[0]
        here = exact
    return here


def subfolders(root: Path) -> list[Path]:
    """The visible folders in `root`, sorted by name."""
    return [Path(e.path) for e in entries(root) if e.is_dir() and not e.name.startswith("__")]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in `folder`, sorted by name, without what systems and programs hide or leave there.

    Raises:
        CersError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            visible = [e for e in found if not e.name.startswith((".", "~$")) and e.name != "Thumbs.db"]
            return sorted(visible, key=lambda e: e.name)
    except OSError as error:
        raise CersError(f"{folder} cannot be listed: {error.strerror}; mend its permissions") from None


def list_images(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """The images in `folder` by key, sorted. Hidden files are passed over; what else is left out becomes a problem."""
    images: dict[str, Path] = {}
    ignored: Counter[str] = Counter()
    for entry in entries(folder):
        if entry.is_dir():
            ignored["subfolder"] += 1
        elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
            ignored["".join(Path(entry.name).suffixes[-2:]) or entry.name] += 1
        elif not entry.is_file():
            problems.append(Problem("error", "missing-file", entry.path, "the link leads nowhere; restore its target"))
        elif (name := key(entry.name)) in images:
            message = f"same stem as {images[name].name}, and stems name the cases; keep one of the two or rename it"
            problems.append(Problem("error", "duplicate-id", entry.path, message))
        else:
            images[name] = Path(entry.path)
    problems += not_read(folder, ignored, f"images are {', '.join(IMAGE_SUFFIXES)}")
    return images


def not_read(folder: Path, kinds: Mapping[str, int], read: str) -> list[Problem]:
    """A warning that so many files of these `kinds` are passed over in `folder`, and what is `read` instead."""
    if not kinds:
        return []
    counts = ", ".join(f"{n}x {kind}" for kind, n in kinds.items())
    message = f"not read: {counts}; {read} directly in this folder"
    return [Problem("warning", "ignored-file", str(folder), message)]


def pair(
    images: Mapping[str, Path], masks_folder: Path | None, problems: list[Problem], part: str | None = None
) -> list[Case]:
    """A case per image with its mask from `masks_folder`. An image or a mask that stays alone becomes an error."""
    masks = list_images(masks_folder, problems) if masks_folder else {}
    found: dict[str, list[Path]] = {}
    alone: dict[str, Path] = {}
    for stem, path in masks.items():
        owner = next((a for a in aliases(stem) if a in images), None)
        if owner is None:
            alone[stem] = path
        else:
            found.setdefault(owner, []).append(path)
    for stem, paths in found.items():
        if len(paths) > 1:
            message = f"{len(paths)} masks for '{stem}': {some([p.name for p in paths])}; merge them into one"
            problems.append(Problem("error", "several-masks", str(paths[0]), message))
    bare = {stem: path for stem, path in images.items() if stem not in found}
    _report_alone("missing-mask", bare, list(alone), problems)
    _report_alone("mask-without-image", alone, list(bare), problems)
    return [Case(id=stem, image=path, mask=found.get(stem, [None])[0], part=part) for stem, path in images.items()]


def _report_alone(kind: str, alone: Mapping[str, Path], others: Sequence[str], problems: list[Problem]) -> None:
    lack, remedy = _ALONE[kind]
    for count, (stem, path) in enumerate(alone.items()):
        # Comparing names is slow: worth it for a typing error, not when two whole folders do not fit.
        hint = f"; {nearest(stem, others)}" if count < LISTED and 0 < len(others) <= 10 * LISTED else ""
        problems.append(Problem("error", kind, str(path), lack + hint + remedy))


def without_repeats(cases: Sequence[Case], problems: list[Problem]) -> list[Case]:
    """`cases` with every id once; a later case of the same id becomes an error."""
    seen: dict[str, Case] = {}
    for case in cases:
        first = seen.setdefault(case.id, case)
        if first is not case:
            message = f"same stem as {first.image}, and stems name the cases; keep one of the two or rename it"
            problems.append(Problem("error", "duplicate-id", str(case.image), message))
    return list(seen.values())
