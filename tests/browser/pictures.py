"""Take the pictures of the docs anew: `python -m tests.browser.pictures`.

The tests that drive the views take them, so that they show what is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "pictures" / "views"

if __name__ == "__main__":
    os.environ["QNB_PICTURES"] = str(FOLDER)
    sys.exit(pytest.main(["-q", str(Path(__file__).with_name("test_views.py"))]))
