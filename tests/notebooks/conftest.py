from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks.kernel import Kernel, start_kernel

LEAVE = """
from qnb.notebook.stage import STAGE
for view in STAGE.views():
    view._left_at = 0.0
    view.freed.set()
STAGE.hurry()
end = time.monotonic() + 5
while STAGE._thread is not None and time.monotonic() < end:
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for the tests of a file: each uses batches of its own."""
    with start_kernel(tmp_path_factory.mktemp("kernel")) as kernel:
        kernel.run("import threading, time\nfrom tests.notebooks.fake_batch import FakeBatch")
        yield kernel


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Kernel:
    """The shared kernel, with nothing on stage and nothing left to hear."""
    shared_kernel.run(LEAVE)
    shared_kernel.heard.clear()
    return shared_kernel


@pytest.fixture
def hasty_kernel(kernel: Kernel) -> Iterator[Kernel]:
    """The same, where views wait for nobody for long: with waits that are a tenth of what people get."""
    kernel.run("from qnb.notebook import live")
    kernel.run("waits = live.GRACE, live.HEARTBEAT\nlive.GRACE, live.HEARTBEAT = 0.5, 0.2")
    yield kernel
    kernel.run("live.GRACE, live.HEARTBEAT = waits")


@pytest.fixture
def fresh_kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel that the test may end."""
    with start_kernel(tmp_path) as kernel:
        kernel.run("import threading, time\nfrom tests.notebooks.fake_batch import FakeBatch")
        yield kernel
