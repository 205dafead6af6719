from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.lab import Notebook, Server, find_chromium, launch, open_notebook, serve

Open = Callable[..., AbstractContextManager[Notebook]]
IMPORTS = "import os, time\nfrom tests.notebooks.fake_batch import FakeBatch"
ROOT = Path(__file__).parents[2]
expect.set_options(timeout=30_000)  # for a machine that has much else to do: what is there sooner ends the wait


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


@pytest.fixture
def write(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Open:
    """Opens a notebook of these cells."""

    def opener(*cells: str) -> AbstractContextManager[Notebook]:
        return written(server, browser, f"{request.node.name}.ipynb", IMPORTS, *cells)

    return opener


@contextlib.contextmanager
def written(server: Server, browser: Browser, name: str, *cells: str, classic: bool = False) -> Iterator[Notebook]:
    """Write a notebook of these cells and open it; its kernel ends with it."""
    import nbformat  # takes seconds to import

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, server.root / name)
    try:
        with open_notebook(server, browser, name, classic=classic) as notebook:
            yield notebook
    finally:
        server.end_kernels(name)
