"""Small image files with masks, and jobs over them, for the tests of annotation by a language model."""

from pathlib import Path

import cv2
import numpy as np

from cers.annotate.job import Job
from cers.annotate.settings import AnnotateConfig
from cers.data.case import Case


def write_cases(folder: Path, n: int, size: int = 48) -> list[Case]:
    """`n` cases with a grey image, a disc as mask and a report, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cases = []
    for i in range(n):
        image = cv2.GaussianBlur(rng.integers(0, 255, (size, size)).astype(np.uint8), (0, 0), 1.5)
        mask = np.zeros((size, size), np.uint8)
        cv2.circle(mask, (10 + i % (size - 20), size // 2), 6, 255, cv2.FILLED)
        paths = folder / f"case{i:04}.png", folder / f"case{i:04}_mask.png"
        for path, pixels in zip(paths, (image, mask), strict=True):
            cv2.imwrite(str(path), pixels)
        cases.append(Case(f"case{i:04}", paths[0], paths[1], report=f"Report number {i}."))
    return cases


def job(cases: list[Case], url: str, labelled: int = 0, **settings: object) -> Job:
    """All of `cases`, the first `labelled` of them with their masks shown."""
    config = AnnotateConfig.model_validate({"model": "gpt-5.2", "base_url": url, "timeout": 60, **settings})
    return Job.of(cases, [case.id for case in cases[:labelled]], config)
