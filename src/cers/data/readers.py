"""One small reader per dataset layout, and the registry of all of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cers.data.case import Case
from cers.data.folders import child, list_images, pair
from cers.data.manifest import find_manifest, read_manifest
from cers.data.problems import Problem

LVIT_FOLDERS = {"train": "Train_Folder", "val": "Val_Folder", "test": "Test_Folder"}
_NO_LESION = "no_tumor"
_CHANNEL = "_0000"  # how nnU-Net names the first channel


@dataclass(frozen=True)
class Layout:
    """How to know a layout and how to read it; `needs` says in words what `fits` looks for."""

    needs: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, list[Problem]], list[Case]]


def _unlabelled(root: Path, problems: list[Problem]) -> list[Case]:
    """Images nobody annotated: every layout of folders may have them beside its own."""
    folders = filter(None, (child(root, name) for name in ("unlabeled", "unlabelled")))
    return [Case(id=stem, image=image) for folder in folders for stem, image in list_images(folder, problems).items()]


# ---- BRISC 2025


def _brisc(root: Path, problems: list[Problem]) -> list[Case]:
    cases = []
    for part in ("train", "test"):
        if images := child(root, "segmentation_task", part, "images"):
            masks = child(root, "segmentation_task", part, "masks")
            cases += pair(list_images(images, problems), masks, problems, part)
    return cases + _unlabelled(root, problems)


def negative_cases(root: Path, problems: list[Problem]) -> list[Case]:
    """BRISC's tumour-free images: looked at by experts, so a case without lesion rather than without mask."""
    cases = [
        Case(id=stem, image=image, negative=True, label=_NO_LESION, part=part)
        for part in ("train", "test")
        if (folder := child(root, "classification_task", part, _NO_LESION))
        for stem, image in list_images(folder, problems).items()
    ]
    if not cases:
        message = f"data.negatives=true needs classification_task/{{train,test}}/{_NO_LESION}; set it to false"
        problems.append(Problem("error", "no-negatives", str(root), message))
    return cases


# ---- frames/ and masks/ (MosMedData+, the CERS authors), images/ and masks/ (folder)


def _folders(images_name: str) -> Callable[[Path, list[Problem]], list[Case]]:
    def read(root: Path, problems: list[Problem]) -> list[Case]:
        images = child(root, images_name)
        cases = pair(list_images(images, problems), child(root, "masks"), problems) if images else []
        return cases + _unlabelled(root, problems)

    return read


def _mosmed(root: Path, problems: list[Problem]) -> list[Case]:
    return _lvit(root, problems) if _is_lvit(root) else _folders("frames")(root, problems)


# ---- LViT's layout, and QaTa-COV19 as published


def _lvit(root: Path, problems: list[Problem]) -> list[Case]:
    cases = []
    for part, name in LVIT_FOLDERS.items():
        if images := child(root, name, "img"):
            cases += pair(list_images(images, problems), child(root, name, "labelcol"), problems, part)
    return cases + _unlabelled(root, problems)


def _is_lvit(root: Path) -> bool:
    return any(child(root, name, "img") for name in LVIT_FOLDERS.values())


def _is_lvit_qata(root: Path) -> bool:
    """QaTa's labels alone are called `mask_<image>`."""
    folders = [child(root, name, "labelcol") for name in LVIT_FOLDERS.values()]
    return any(next(folder.glob("mask_*"), None) for folder in folders if folder)


def _qata(root: Path, problems: list[Problem]) -> list[Case]:
    if _is_lvit(root):
        return _lvit(root, problems)
    cases = []
    for part, name in (("train", "Train Set"), ("test", "Test Set")):
        if images := child(root, name, "Images"):
            cases += pair(list_images(images, problems), child(root, name, "Ground-truths"), problems, part)
    return cases + _unlabelled(root, problems)


# ---- nnU-Net, 2-D


def _nnunet(root: Path, problems: list[Problem]) -> list[Case]:
    cases = []
    for suffix, part in (("Tr", "train"), ("Ts", "test")):
        folder, labels = child(root, f"images{suffix}"), child(root, f"labels{suffix}")
        if folder is None:
            continue
        images = {}
        for stem, image in list_images(folder, problems).items():
            if stem.endswith(_CHANNEL):
                images[stem.removesuffix(_CHANNEL)] = image
            else:
                message = f"name does not end in {_CHANNEL}; cases of one channel are read, called <case>{_CHANNEL}"
                problems.append(Problem("error", "channel", str(image), message))
        if part == "test" and labels is None:
            cases += [Case(id=stem, image=image, part=part) for stem, image in images.items()]
        else:
            cases += pair(images, labels, problems, part)
    return cases + [replace(case, id=case.id.removesuffix(_CHANNEL)) for case in _unlabelled(root, problems)]


def _has(*paths: str) -> Callable[[Path], bool]:
    return lambda root: all(child(root, *path.split("/")) for path in paths)


def _is_cers(root: Path) -> bool:
    return _has("frames", "masks")(root) and bool(child(root, "reports") or (root / "text.csv").is_file())


# `auto` takes the first that fits.
LAYOUTS: dict[str, Layout] = {
    "brisc": Layout("segmentation_task/{train,test}/{images,masks}", _has("segmentation_task"), _brisc),
    "qata": Layout(
        "{Train Set,Test Set}/{Images,Ground-truths}, or LViT's {Train,Val,Test}_Folder/{img,labelcol}",
        lambda root: bool(_has("Train Set/Images")(root) or _has("Test Set/Images")(root) or _is_lvit_qata(root)),
        _qata,
    ),
    "nnunet": Layout("imagesTr and labelsTr with 2-D images", _has("imagesTr", "labelsTr"), _nnunet),
    "manifest": Layout(
        "a .csv or .parquet table with a column 'image', or a folder with such a manifest.csv",
        lambda path: find_manifest(path) is not None,
        read_manifest,
    ),
    "cers": Layout("frames, masks, and text.csv or reports", _is_cers, _folders("frames")),
    "mosmed": Layout(
        "frames and masks, or LViT's {Train,Val,Test}_Folder/{img,labelcol}",
        lambda root: _has("frames", "masks")(root) or _is_lvit(root),
        _mosmed,
    ),
    "folder": Layout("images and masks, and maybe unlabeled and reports", _has("images", "masks"), _folders("images")),
}
