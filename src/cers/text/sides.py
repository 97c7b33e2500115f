"""Left and right in a text."""

import re

_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


def mirrored_words(text: str) -> str:
    """What `text` would say of the mirrored image: left for right and right for left, and nothing else changed."""
    return _SIDE.sub(lambda side: _OTHER.get(side[0]) or _OTHER[side[0].lower()], text)
