"""Take the pictures of the docs anew: `python -m tests.browser.pictures`.

The tests that drive the views take them, so that they show what is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "docs" / "pictures" / "views"
COLOURS = 200  # as many as a view needs; a third of the bytes


def shrink(path: Path) -> None:
    """Draw a picture in few colours."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> int:
    """Pictures of every view in light and dark, 600 and 1600 pixels wide; 0 when all is well."""
    os.environ["QNB_PICTURES"] = str(FOLDER)
    tests = str(Path(__file__).with_name("test_views.py"))
    failed = pytest.main(["-q", tests, "-k", "there_and_live or probed or pictures"])
    for path in FOLDER.glob("*.png"):
        shrink(path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
