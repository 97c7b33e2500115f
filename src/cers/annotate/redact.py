"""What could name a person: burnt-in text at an image's borders, and names, dates and numbers in a report.

Both work by pattern and can miss: look at what is sent (`cers annotate show`) before trusting them.
"""

import re

import cv2
import numpy as np
from numpy.typing import NDArray

REDACTED = "[redacted]"
_BORDER = 0.2  # share of the side in which text is looked for
_NAME = r"[A-ZÀ-ÖØ-Þ][\w'’\-]+"
_MONTH = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-z]*"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:(?:\b(?:Dr|Prof|Mr|Mrs|Ms|Miss|Herrn?|Frau|Mme|Sr|Sra)\b\.?)\s*(?:(?:med|rer|nat|univ)\b\.?\s*)*)+"
        rf"(?:[A-Z]\.\s*)*{_NAME}(?:\s+{_NAME})*",
        rf"\b{_NAME}(?:\^{_NAME})+",  # as DICOM writes names
        rf"(?i:\b(?:patient(?:'s)?(?:\s+name)?|name|surname|physician|referred\s+by|reported\s+by|radiologist|signed(?:\s+by)?)"
        rf"\s*[:=]\s*){_NAME}(?:[\s,]+{_NAME})*",
        rf"(?i:\b(?:signed|reported|dictated|referred)\s+by\s+){_NAME}(?:[\s,]+{_NAME})*",
        r"[\w.+\-]+@[\w\-]+\.[\w.\-]+",
        r"\b\d{1,4}[./\-]\d{1,2}[./\-]\d{2,4}\b",
        rf"(?i:\b\d{{1,2}}\.?\s*{_MONTH}\.?,?\s*\d{{4}}|\b{_MONTH}\.?\s*\d{{1,2}},?\s*\d{{4}})\b",
        r"(?i:\b(?:MRN|ID|accession|case|chart|SSN|tel|phone)\b[\s.:#no]*)[A-Z]{0,3}\d[\d\-/]{3,}",
        r"\b\d{6,}\b",
    )
)


def redact_report(text: str) -> str:
    """`text` with names after titles and labels, e-mail addresses, dates and long numbers replaced."""
    for pattern in _PATTERNS:
        text = pattern.sub(REDACTED, text)
    return text


def redact_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`image` (H,W) or (H,W,3) with black boxes over lines of text near its borders.

    Text is what a row of small, thin, high-contrast strokes looks like; in doubt a box is drawn.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    redacted = image.copy()
    for x, y, width, height in _lines_of_text(grey):
        margin = max(2, height // 4)
        redacted[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin] = 0
    return redacted


def _lines_of_text(grey: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    side = min(grey.shape)
    stroke = cv2.getStructuringElement(cv2.MORPH_RECT, (max(3, side // 40) | 1,) * 2)
    # Thin and bright on dark, or thin and dark on bright.
    thin = np.maximum(
        cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, stroke), cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, stroke)
    )
    strokes = (thin > max(60, 0.35 * float(np.ptp(grey)))).astype(np.uint8)
    joined = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((3, max(7, side // 20)), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    found = []
    for x, y, width, height, _ in stats[1:].tolist():
        inked = float(strokes[y : y + height, x : x + width].mean())
        if (
            5 <= height <= 0.12 * side
            and width >= 1.2 * height
            and inked > 0.15
            and _near_border(grey, x, y, width, height)
        ):
            found.append((x, y, width, height))
    return found


def _near_border(grey: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> bool:
    rows, columns = grey.shape
    vertical = min(y + height / 2, rows - y - height / 2) / rows
    horizontal = min(x, columns - x - width) / columns
    return bool(vertical < _BORDER or horizontal < _BORDER / 4)
