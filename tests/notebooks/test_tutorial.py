"""docs/tutorial.md: each of its Python blocks is a cell of a kernel on the embedded broker, and does what it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks.kernel import Kernel, start_kernel

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
PROMISE = "  # → "


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    for name in ("QNB_BROKER", "QNB_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QNB_KEY", "the key of the tutorial's test, used for nothing else")
    with start_kernel(tmp_path) as started:
        yield started


def shown(kernel: Kernel, block: str) -> str:
    """Run a block; what its last line gives, as text."""
    messages = kernel.run(block, 60)
    texts = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "execute_result"]
    return "".join(texts)


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(kernel: Kernel) -> None:
    kept = 0
    for block in BLOCKS:
        _, promised, value = block.rstrip().rpartition(PROMISE)
        given = shown(kernel, block)
        if promised:
            assert ast.literal_eval(given) == ast.literal_eval(value), block
            kept += 1
        assert block.count(PROMISE) == bool(promised), f"a promise is kept by the last line alone:\n{block}"
    assert kept >= 15
    assert len(BLOCKS) >= 25
