"""The gallery that keeps what a call shows in bounded memory, and what becomes of displays that no message holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qnb.brokers.base import Turn
from qnb.codec.displays import LIVE, Gallery, size_of
from qnb.codec.output import Heard
from qnb.codec.signing import OUTCOMES, Signer, encode
from qnb.message import Display, Outcomes, Stored
from qnb.worker.settling import Settling

EVENTS = st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(["", "a", "b"]), st.booleans()), max_size=40)


def text(display: Display) -> str:
    return str(display.data["text/plain"])


@given(EVENTS, st.sampled_from([8_000, 60_000, 10_000_000]))
def test_head_and_tail_and_a_word_between(events: list[tuple[int, str, bool]], most: int) -> None:
    gallery, shown, ids = Gallery(most), [], {}
    for number, (size, id, update) in enumerate(events):
        content = f"{number} " + "x" * size
        gallery.show({"text/plain": content}, {}, number, id, update and bool(id))
        if not (update and id):
            ids[id] = len(shown)
            shown.append(content)
        elif id in ids:
            shown[ids[id]] = content
    kept = gallery.take(100, 100)
    assert sum(map(size_of, kept)) <= most + 700
    assert not gallery.take(0, 0)
    told = [text(display) for display in kept if "left out: they are too many" in text(display)]
    if not told:
        # One that is too large is not kept, and then it does not matter where it stood.
        assert [text(d) for d in kept if "left out" not in text(d)] == [
            content for content, d in zip(shown, kept, strict=True) if "left out" not in text(d)
        ]
    else:
        left = int(told[0].split()[1].replace(",", "").replace("a", "1"))
        assert left == len(shown) - len(kept) + 1


def test_news_are_what_changed_and_not_too_much() -> None:
    gallery = Gallery()
    gallery.show({"text/plain": "one"}, {}, 0, "id")
    gallery.show({"text/plain": "two"}, {}, 0)
    assert [text(display) for display in gallery.news()] == ["one", "two"]
    gallery._not_before = 0.0
    assert gallery.news() == []
    gallery.show({"text/plain": "three"}, {}, 0, "id", update=True)
    gallery.show({"text/plain": "x" * LIVE}, {}, 0)
    [news] = gallery.news()
    assert (news.number, text(news)) == (0, "three")
    assert [text(display)[:5] for display in gallery.take(0, 0)] == ["three", "two", "xxxxx"]


def test_after_much_has_been_told_there_is_a_pause() -> None:
    gallery = Gallery()
    gallery.show({"text/plain": "x" * (LIVE // 2)}, {}, 0)
    assert len(gallery.news()) == 1
    gallery.show({"text/plain": "more"}, {}, 0)
    assert gallery.news() == []
    gallery._not_before = 0.0
    assert len(gallery.news()) == 1


def test_places_in_a_shortened_text() -> None:
    gallery = Gallery()
    for at in (3, 50, 95):
        gallery.show({"text/plain": "x"}, {}, at)
    assert [display.at for display in gallery.take(100, 20)] == [3, 10, 15]


def test_what_is_heard_is_bounded() -> None:
    heard = Heard(1)
    for number in range(1000):
        heard.show([Display({"text/plain": "x"}, number=number)])
    assert list(heard.displays)[-1] == 999
    assert len(heard.displays) == 64


def test_no_call_fails_for_what_it_showed() -> None:
    """Where a message has a limit and nothing takes blobs, the displays go, and what was printed stays if it can."""
    signer = Signer(b"k" * 20)
    worker: Any = SimpleNamespace(
        signer=signer,
        broker=SimpleNamespace(
            features=SimpleNamespace(limits=SimpleNamespace(message_bytes=10_000)), partner=lambda backend: None
        ),
        backend=SimpleNamespace(blobs=False, url="small:"),
        bus=None,
        consumer=None,
        commands=SimpleNamespace(followers=lambda run: []),
    )
    for printed in ("short", "x" * 20_000):
        shown = {0: [Display({"image/png": b"x" * 20_000})]}
        outcomes = Outcomes("r", 0, 1, b"", b"m" + encode([17]), b"", "w", outputs={0: printed}, displays=shown)
        turn = Turn()
        Settling(worker)._add_outcome(turn, Stored("r", 0, 1, signer.pack(OUTCOMES, outcomes)), "s.me")
        [kept] = [signer.unpack(OUTCOMES, record.data, Outcomes) for record in turn.store]
        assert (kept.values, kept.states, kept.failures) == (outcomes.values, b"", {})
        if printed == "short":
            assert kept.outputs == {0: "short"}
            assert "left out" in text(kept.displays[0][0])
        else:
            assert "left out" in kept.outputs[0]
