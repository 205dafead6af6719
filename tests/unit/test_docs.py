"""docs/: the site is built strictly and loads nothing from elsewhere; commands, options and names in it are there."""

from __future__ import annotations

import argparse
import ast
import contextlib
import html
import importlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

import qnb
from qnb import cli
from qnb.brokers.kafka.client import OWN as KAFKA_OPTIONS
from qnb.brokers.rabbitmq.target import OPTIONS as RABBITMQ_OPTIONS
from qnb.brokers.redis.link import OPTIONS as REDIS_OPTIONS
from qnb.brokers.sqs.options import KNOWN as SQS_OPTIONS
from qnb.brokers.zookeeper.target import _OPTIONS as ZOOKEEPER_OPTIONS
from tests.conformance.table import BEGIN, END, PAGES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EVERY = sorted(DOCS.rglob("*.md"))
ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//""")
ELSEWHERE_IN_CSS = re.compile(r"""url\(["']?(?:https?:)?//|@import\s""")
# Options that are of a place's results alone (docs/backends.md), or that there are not in spite of their name.
NOT_THERE = {"expires", "share"}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does it, by a process that knows no proxy and no network."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_command_that_makes_the_table_can_start_pytest() -> None:
    """Which warns, and ends with it, of plugins that were imported before."""
    code = "import sys, pytest, tests.conformance.table; sys.exit(pytest.main(['--collect-only', '-q', sys.argv[1]]))"
    command = [sys.executable, "-c", code, "tests/conformance/test_features.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("site")  # which is built once
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > len(EVERY)  # and 404.html
    for page in pages:
        found = [tag for tag in ELSEWHERE.findall(page.read_text()) if 'rel="canonical"' not in tag]
        assert not found, page
    for style in styles:
        assert not ELSEWHERE_IN_CSS.findall(style.read_text()), style


@pytest.mark.slow
@pytest.mark.xdist_group("site")  # which is built once
def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())
    for name in qnb.__all__:
        if name != "__version__":
            said = inspect.getdoc(getattr(qnb, name)) or ""
            assert " ".join(said.partition("\n")[0].replace("`", "").split()) in words, name


def test_every_public_name_is_in_the_reference() -> None:
    told = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    names = set(re.findall(r"^::: qnb\.(?:errors\.)?(\w+)$", told, re.MULTILINE))
    assert {name for name in qnb.__all__ if name != "__version__"} <= names


@pytest.mark.parametrize("page", [ROOT / "README.md", *EVERY], ids=lambda path: path.stem)
def test_code_is_code(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(TransformerManager().transform_cell(block))


@pytest.mark.parametrize("page", [ROOT / "README.md", *EVERY], ids=lambda path: path.stem)
def test_commands_are_commands(page: Path) -> None:
    for line in "".join(blocks(page, "sh")).splitlines():
        if line.startswith("qnb ") and not line.startswith("qnb key"):
            name, *words = shlex.split(line, comments=True)[1:]
            parser = argparse.ArgumentParser(prog=line)
            importlib.import_module(cli.COMMANDS[name][0]).add_arguments(parser, name)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                try:
                    parser.parse_intermixed_args(words)
                except SystemExit:
                    pytest.fail(said.getvalue())


@pytest.mark.parametrize(
    "broker, options",
    [
        ("kafka", KAFKA_OPTIONS),
        ("rabbitmq", RABBITMQ_OPTIONS),
        ("redis", REDIS_OPTIONS),
        ("sqs", SQS_OPTIONS),
        ("zookeeper", ZOOKEEPER_OPTIONS),
    ],
)
def test_every_option_is_on_the_brokers_page(broker: str, options: frozenset[str]) -> None:
    text = (DOCS / "brokers" / f"{broker}.md").read_text()
    missing = {option for option in options - NOT_THERE if not re.search(rf"^\|.*\b{option}\b", text, re.MULTILINE)}
    assert not missing


def test_the_brokers_table_is_one() -> None:
    tables = {page.read_text().partition(BEGIN)[2].partition(END)[0] for page in PAGES}
    assert len(tables) == 1
    assert "| purge |" in tables.pop()
