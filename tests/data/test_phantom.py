import csv
import os
import re
import signal
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

from cers.data.manifest import read_manifest
from cers.data.phantom import Phantom, phantoms, write_phantoms
from cers.data.phantom_texts import DIAGNOSES
from cers.errors import CersError

SIZE = 96
KNOWN = {d.names[0]: d for d in DIAGNOSES}


@pytest.fixture(scope="module")
def scans() -> list[Phantom]:
    return list(phantoms(500, SIZE, seed=1))


def one_per_patient(scans: list[Phantom]) -> list[Phantom]:
    return list({scan.group: scan for scan in scans}.values())


def features(image: np.ndarray, focus: np.ndarray) -> list[float]:
    """Mean, deviation, area, compactness, core over border, place: what pixels tell about one focus."""
    values = image[focus].astype(float)
    (outline,), _ = cv2.findContours(focus.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    core = cv2.erode(focus.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    core_mean = image[core].mean() if core.any() else values.mean()
    y, x = np.nonzero(focus)
    compactness = cv2.arcLength(outline, True) ** 2 / len(values)
    border = image[focus & ~core].mean() if (focus & ~core).any() else values.mean()
    return [
        values.mean(),
        values.std(),
        len(values),
        compactness,
        core_mean - border,
        abs(x.mean() - SIZE / 2),
        y.mean(),
    ]


def foci(scans: list[Phantom]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, role (True for a lesion) and diagnosis of every focus where lesion and look-alike meet."""
    rows, roles, diagnoses = [], [], []
    for scan in scans:
        if not (scan.mask.any() and scan.look_alikes.any()):
            continue
        for role, extent in ((True, scan.mask), (False, scan.look_alikes)):
            count, labels = cv2.connectedComponents(extent.astype(np.uint8))
            for part in (labels == k for k in range(1, count)):
                if part.sum() >= 12:
                    rows.append(features(scan.image, part))
                    roles.append(role)
                    diagnoses.append(list(KNOWN).index(scan.label))
    return np.array(rows), np.array(roles), np.array(diagnoses)


def test_equal_arguments_give_equal_scans_and_more_scans_begin_alike() -> None:
    first, second = list(phantoms(7, 64, 3)), list(phantoms(12, 64, 3))
    for a, b in zip(first, second, strict=False):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert (a.id, a.report, a.rationale, a.mask_rationale) == (b.id, b.report, b.rationale, b.mask_rationale)
    other = next(phantoms(1, 64, 4))
    assert (other.image != first[0].image).any()


def test_scans_are_eight_bit_and_use_the_range(scans: list[Phantom]) -> None:
    for scan in scans[:60]:
        assert scan.image.shape == (SIZE, SIZE)
        assert scan.image.dtype == np.uint8
        assert scan.image.max() > 130
        assert (scan.image == 255).mean() < 0.05


def test_every_role_is_visible_and_apart(scans: list[Phantom]) -> None:
    for scan in scans:
        assert scan.mask.any() == (scan.label != "no lesion")
        assert not (scan.mask & scan.look_alikes).any()
        assert scan.mask.mean() < 0.2
    with_both = np.mean([s.mask.any() and s.look_alikes.any() for s in scans])
    assert with_both > 0.6


def test_a_tenth_shows_no_lesion_but_mostly_look_alikes(scans: list[Phantom]) -> None:
    negative = [scan for scan in scans if not scan.mask.any()]
    assert 0.06 < len(negative) / len(scans) < 0.14
    assert np.mean([scan.look_alikes.any() for scan in negative]) > 0.5


def test_slices_of_a_patient_are_neighbours(scans: list[Phantom]) -> None:
    patients = defaultdict(list)
    for scan in scans:
        patients[scan.group].append(scan)
    sizes = [len(slices) for slices in list(patients.values())[:-1]]
    assert set(sizes) == {2, 3, 4, 5}
    within, between = [], []
    groups = list(patients.values())
    for k in range(60):
        first, second = (cv2.GaussianBlur(s.image, (0, 0), 1.5).astype(float) for s in groups[k][:2])
        # Six diagnoses take turns, so that this patient has the same body and diagnosis.
        stranger = cv2.GaussianBlur(groups[k + 6][0].image, (0, 0), 1.5).astype(float)
        within.append(np.corrcoef(first.ravel(), second.ravel())[0, 1])
        between.append(np.corrcoef(first.ravel(), stranger.ravel())[0, 1])
    assert np.mean(np.array(within) > np.array(between)) > 0.95
    assert max(within) < 0.9999
    assert len({slices[0].label for slices in groups}) == len(DIAGNOSES) + 1


def test_brightness_size_shape_and_place_do_not_tell_the_role(scans: list[Phantom]) -> None:
    rows, roles, _ = foci(one_per_patient(scans))
    assert len(roles) > 200
    pvalues = [ks_2samp(column[roles], column[~roles]).pvalue for column in rows.T]
    # Seven tests: Bonferroni.
    assert min(pvalues) > 0.05 / len(pvalues)


def test_pixels_alone_mislead_and_the_diagnosis_resolves(scans: list[Phantom]) -> None:
    """A forest over what pixels tell about a focus guesses its role; told the diagnosis, it knows."""
    rows, roles, diagnoses = foci(one_per_patient(scans))
    forest = RandomForestClassifier(60, random_state=0)

    def accuracy(inputs: np.ndarray) -> float:
        return float(np.mean(cross_val_predict(forest, inputs, roles, cv=5) == roles))

    one_hot = np.eye(len(KNOWN))[diagnoses]
    crossed = (one_hot[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    assert accuracy(rows) < 0.62
    assert accuracy(np.hstack([one_hot, crossed])) > 0.8


def test_report_determines_the_diagnosis(scans: list[Phantom]) -> None:
    for scan in scans:
        named = {d.names[0] for d in DIAGNOSES if any(name in scan.report.lower() for name in d.names)}
        assert named == ({scan.label} if scan.mask.any() else set())


def test_diagnoses_of_a_modality_swap_the_roles() -> None:
    by_modality = defaultdict(list)
    for diagnosis in DIAGNOSES:
        by_modality[diagnosis.modality].append((diagnosis.target, diagnosis.other))
    for first, second in by_modality.values():
        assert first == second[::-1]


def test_rationales_have_four_aspects_vary_and_name_no_place(scans: list[Phantom]) -> None:
    pattern = re.compile(r"Texture: .+\.\nBoundary: .+\.\nContext: .+\.\nSummary: .+\.")
    for scan in scans:
        for text in (scan.rationale, scan.mask_rationale):
            assert pattern.fullmatch(text), text
            assert not re.search(r"\d|\b(left|right|upper|lower|anterior|posterior)\b", text.lower()), text
    assert len({scan.report for scan in scans}) > 40
    assert len({scan.rationale for scan in scans}) > 200
    assert len({scan.mask_rationale for scan in scans}) > 150


def test_mask_free_rationale_does_not_say_which_focus_is_the_lesion(scans: list[Phantom]) -> None:
    """Where both kinds are in sight, what it says about texture does not depend on which of them is the target."""
    first = defaultdict(list)
    for scan in scans:
        if scan.mask.any() and scan.look_alikes.any() and scan.label in ("metastasis", "lymphoma"):
            first[scan.label].append("solid" in scan.rationale.lower().split("\n")[0])
    assert abs(np.mean(first["metastasis"]) - np.mean(first["lymphoma"])) < 0.25


def test_written_folder_reads_back(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_phantoms(tmp_path / "p", n=12, size=64, seed=2, progress=lambda *n: told.append(n))
    assert told == [(k, 12) for k in range(1, 13)]
    assert not [p for p in tmp_path.iterdir() if p.name != "p"]
    cases = {case.id: case for case in read_manifest(tmp_path / "p" / "manifest.csv", [])}
    for scan in phantoms(12, 64, 2):
        case = cases[scan.id]
        assert (case.report, case.rationale, case.mask_rationale) == (scan.report, scan.rationale, scan.mask_rationale)
        assert (case.group, case.label, case.part) == (scan.group, scan.label, None)
        np.testing.assert_array_equal(cv2.imread(str(case.image), cv2.IMREAD_UNCHANGED), scan.image)
        assert case.mask is not None
        mask = cv2.imread(str(case.mask), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, scan.mask * np.uint8(255))
    for name, column in (("text", "text"), ("cot_mask", "cot"), ("cot_no_mask", "cot")):
        with (tmp_path / "p/reports" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 12
        assert set(rows[0]) == {"image", column}


@pytest.mark.parametrize("wrong", [{"n": 0}, {"size": 16}, {"size": 5000}, {"seed": -1}])
def test_senseless_numbers_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(CersError, match="phantoms need"):
        write_phantoms(tmp_path / "p", **wrong)
    assert not (tmp_path / "p").exists()


def test_a_filled_folder_is_not_touched_and_an_empty_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(CersError, match="not empty"):
        write_phantoms(tmp_path, n=2, size=64)
    (tmp_path / "empty").mkdir()
    write_phantoms(tmp_path / "empty", n=2, size=64)
    assert (tmp_path / "empty/manifest.csv").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_leaves_no_half_dataset(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        write_phantoms(tmp_path / "p", n=6, size=64, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not (tmp_path / "p").exists()
    write_phantoms(tmp_path / "p", n=6, size=64)
    assert len(list((tmp_path / "p/images").iterdir())) == 6


def test_two_thousand_images_per_minute_and_core() -> None:
    rates = []
    for seed in range(3):
        start = time.process_time()
        made = sum(1 for _ in phantoms(20, 128, seed))
        rates.append(60 * made / (time.process_time() - start))
    assert max(rates) > 2000


def test_slices_of_one_patient_show_the_same_foci(scans: list[Phantom]) -> None:
    """Foci are placed once per patient: their number stays, and they move by little from slice to slice."""
    for first, second in pairwise(scans):
        if first.group == second.group and first.mask.any():
            assert (first.mask & second.mask).any()
            assert 0.3 < first.mask.sum() / second.mask.sum() < 3


def test_more_pixels_show_the_same_foci() -> None:
    for coarse, fine in zip(phantoms(20, 64), phantoms(20, 128), strict=True):
        shrunk = cv2.resize(fine.mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) >= 0.5
        overlap, total = (shrunk & coarse.mask).sum(), shrunk.sum() + coarse.mask.sum()
        assert 2 * overlap >= 0.9 * total
