"""A Batch as text and as HTML, and numbers as people read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qnb.notebook import words
from qnb.notebook.failures import GroupedFailures
from qnb.notebook.fallback import batch_html, batch_text, snapshot_text
from qnb.notebook.snapshot import short, take
from tests.notebooks.fake_batch import FakeBatch

CASES = json.loads((Path(__file__).parents[2] / "widgets/tests/words.json").read_text())


@pytest.mark.parametrize(
    "say, value, expected",
    [(getattr(words, name), *case) for name, cases in CASES.items() for case in cases],
)
def test_words_are_those_of_the_front_end(say: Callable[..., str], value: Any, expected: str) -> None:
    assert (say(*value) if isinstance(value, list) else say(value)) == expected


def half_done(total: int = 100) -> FakeBatch:
    batch = FakeBatch(total)
    batch.move(range(total // 2), "running")
    batch.move(range(total // 2 - 2), "done")
    batch.move([3, 7, 14], "failed")
    return batch


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the one that is supposed where there is none."""
    monkeypatch.setenv("COLUMNS", "100")


def test_text_has_name_bar_counts_failures_and_rows() -> None:
    lines = batch_text(half_done()).splitlines()
    assert lines[0].startswith("simulate  48 of 100 · 48 %  ")
    assert lines[1] == "[##################x>....................]  45 done  3 failed  2 running  50 queued"
    assert lines[2] == "ValueError × 3: seed must be positive, got -3"
    assert lines[3].split() == ["call", "seed", "density", "side", "result", "state", "time", "worker"]
    assert len(lines) == 4 + 8 + 1
    assert lines[-1] == "8 of 100 rows, the last that changed"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_is_no_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, snapshot_text(take(half_done()), width).splitlines())) <= width


@pytest.mark.parametrize("total", [0, 1, 3, 100_000])
def test_any_size_can_be_shown(total: int) -> None:
    batch = FakeBatch(total)
    assert f"0 of {total:,}" in batch_text(batch) or total == 0
    batch.finish()
    assert f"{total:,} call" in batch_text(batch)
    assert f"{total:,} call" in batch_html(batch)
    assert len(batch_html(batch)) < 20_000


def test_a_small_batch_is_shown_whole_and_a_large_one_by_what_moved() -> None:
    assert [row.index for row in take(FakeBatch(12)).rows] == list(range(12))
    batch = FakeBatch(1000)
    batch.move(range(500), "done")
    batch.move([500, 501, 502], "running")
    assert [row.index for row in take(batch).rows] == [494, 495, 496, 497, 498, 499, 500, 501]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_needs_no_script_no_sheet_and_no_network() -> None:
    parser = Tags()
    parser.feed(batch_html(half_done()))
    assert not parser.open
    assert {tag for tag, _ in parser.tags} <= set("div strong span b table thead tbody tr th td".split())  # noqa: SIM905
    assert not re.search(r"https?:|url\(|<style|class=", batch_html(half_done()))
    assert sum(tag == "tr" for tag, _ in parser.tags) == 9


def test_html_is_read_on_light_and_on_dark() -> None:
    """Text keeps the colour of the page; red alone is ours, and is read on both."""
    colours = set(re.findall(r"(?<!-)color:([^;\"]+)", batch_html(half_done())))
    assert colours == {"#d64545"}


def test_markup_in_values_is_escaped() -> None:
    batch = FakeBatch(2, name="<lambda>")
    html = batch_html(batch)
    assert "<lambda>" not in html
    assert "&lt;lambda&gt;" in html


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_values_of_any_kind_become_short_cells() -> None:
    batch = FakeBatch(1)
    row = batch.rows([0])[0]
    batch.rows = lambda _: [row | {"seed": Unprintable(), "density": 1 / 3}]  # type: ignore[method-assign]
    [shown] = take(batch).rows
    assert shown.parameters == ("<Unprintable: its repr raised RuntimeError>", "0.333333", "'left'")
    assert short("a\n b   c", 10) == "a b c"
    assert short("x" * 99, 10) == "x" * 9 + "…"


def test_failures_are_grouped_when_there_are_new_ones() -> None:
    batch = FakeBatch(100)
    grouped = GroupedFailures(batch)
    assert grouped.groups() == ()
    batch.move([0], "failed")
    assert grouped.groups()[0][:2] == ("ValueError", 1)
    batch.move([1], "done")
    grouped.groups()
    assert batch.grouped == 1
