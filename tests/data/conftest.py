from pathlib import Path

import pytest
from layout_files import touch


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A `folder` dataset of two labelled images and one unlabelled."""
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png", "unlabeled/c.jpg")
    return tmp_path
