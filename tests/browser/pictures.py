"""Take the pictures of the docs anew: `python -m tests.browser.pictures`.

The tests that drive the views take them, so that they show what is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
RUNS = {  # folder: which tests take its pictures, and which of theirs it has
    "views": ("test_views.py", "there_and_live or probed or pictures", "*.png"),
    "": ("test_first_notebook.py", "fit_to_be_seen", "first-tasks.png"),
}
COLOURS = 200  # as many as a view needs; a third of the bytes


def shrink(path: Path) -> None:
    """Draw a picture in few colours."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> int:
    """Every view in light and dark, 600 and 1600 pixels wide, and the picture of README.md; 0 when all is well."""
    failed = 0
    for folder, (tests, which, wanted) in RUNS.items():
        with tempfile.TemporaryDirectory() as taken:
            os.environ["QNB_PICTURES"] = taken
            failed += pytest.main(["-q", str(Path(__file__).with_name(tests)), "-k", which])
            for path in Path(taken).glob(wanted):
                shrink(path)
                shutil.copy(path, FOLDER / folder / path.name)
    return failed


if __name__ == "__main__":
    sys.exit(main())
