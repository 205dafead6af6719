from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.lab import Server, find_chromium, launch, serve

ROOT = Path(__file__).parents[2]


# For this folder only: Playwright keeps an event loop running, in which no other test could run its own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests. Without one they are left out; in CI they fail."""
    executable = find_chromium()
    if executable is None:
        reason = (
            "no Chromium here: install chromium, run `playwright install chromium`, or set QNB_CHROMIUM to its path"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with launch(executable) as browser:
        yield browser


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A JupyterLab whose kernels can import qnb and these tests."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {"PYTHONPATH": path, "QNB_BROKER": "", "QNB_BACKEND": "", "QNB_KEY": "a key for these tests"}
    with serve(tmp_path_factory.mktemp("lab"), environment) as server:
        yield server


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: QNB_PICTURES, else a temporary folder."""
    folder = os.environ.get("QNB_PICTURES")
    return Path(folder) if folder else tmp_path_factory.mktemp("pictures")
