"""What a call prints: the ring that keeps it, the tape that catches it, the teller that tells it while it runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qnb
from qnb.brokers.base import Turn
from qnb.codec.functions import Opened
from qnb.codec.output import Heard, Ring, shown
from qnb.codec.signing import OUTCOMES, Signer, encode
from qnb.message import Outcomes, Stored
from qnb.worker.inside import _plain, progress, track
from qnb.worker.protocol import Report, Welcome, Work
from qnb.worker.runner import HOLD_OUTPUT, LITTLE_OUTPUT, Place, Runner
from qnb.worker.settling import Settling
from qnb.worker.tape import VOICE, Console, Spill, Tape, Voice, sound, spill_file
from qnb.worker.teller import LIVE_CHARACTERS, VOICES, Teller, hear, last_steps

WORK = Work(7, "r", 0, 1, b"h", "f", None, b"", 0.0)
TEXTS = st.lists(st.text("ab\n", max_size=40), max_size=40)


@given(TEXTS, st.integers(2, 60))
def test_a_ring_keeps_head_and_tail(texts: list[str], kept: int) -> None:
    ring = Ring(kept)
    for text in texts:
        ring.add(text)
    whole, half = "".join(texts), kept // 2
    assert ring.length == len(whole)
    if len(whole) <= 2 * half:
        assert ring.text() == whole
        assert ring.dropped == 0
        return
    head, _, tail = ring.text().partition("… ")
    said, _, tail = tail.partition(" characters left out …\n")
    assert whole.startswith(head.removesuffix("\n"))
    assert whole.endswith(tail)
    assert len(head) <= half + 1
    assert len(tail) <= half
    cut = "\n" in whole[:half]  # else the line that says it begins with a line end of its own
    assert int(said.replace(",", "")) == len(whole) - len(head) - len(tail) + (not cut)
    assert ring.dropped == len(whole) - 2 * half


@given(TEXTS, st.integers(2, 60), st.data())
def test_a_ring_gives_what_is_new(texts: list[str], kept: int, data: st.DataObject) -> None:
    ring, whole, told = Ring(kept), "", 0
    for text in texts:
        ring.add(text)
        whole += text
        if data.draw(st.booleans()):
            offset, new = ring.since(told)
            assert offset >= told
            assert whole[offset:] == new
            told = ring.length


@given(TEXTS, st.data())
def test_what_is_heard_twice_or_not_at_all(texts: list[str], data: st.DataObject) -> None:
    heard, whole, missed = Heard(1), "", False
    for text in texts:
        start = data.draw(st.integers(0, len(whole)))
        whole += text
        if data.draw(st.booleans()):
            heard.add(start, whole[start:])
        else:
            missed = True
    if not missed:
        assert heard.text() == whole
    assert len(heard.text()) <= len(whole) + 40 * len(texts)


def test_a_piece_after_a_gap_stands_at_its_end() -> None:
    heard = Heard(1)
    heard.add(0, "first\n")
    heard.add(1000, "last\n")
    assert heard.text() == "first\n… 994 characters left out …\nlast\n"
    assert heard.since(1000) == (1000, "last\n")


def test_a_bar_is_shown_as_it_was_last() -> None:
    assert shown("a\n 1%\r 2%\r 3%\nb\r\n") == "a\n 3%\nb\r\n"
    assert shown("50%\r") == "50%\r"


@given(TEXTS)
def test_a_tape_gives_each_call_its_own(texts: list[str]) -> None:
    tape = Tape()
    for text in texts:
        assert not tape.parts
        tape.write(text)
        assert tape.parts, "the runner looks at this alone"
        assert tape.take() == text


def test_a_tape_in_bounded_memory() -> None:
    tape = Tape()
    most = 0
    for number in range(300_000):
        tape.write(f"{number}\n")
        most = max(most, len(tape.parts))
    assert most < 10_000
    text = tape.take()
    assert text.startswith("0\n1\n")
    assert text.endswith("\n299999\n")
    assert len(text) < 66_000
    assert not tape.parts


def test_a_tape_is_told_from_another_thread() -> None:
    """News are pieces of one text in order, whatever the writer does meanwhile."""
    tape, heard, over = Tape(), Heard(1), threading.Event()

    def listen() -> None:
        while not over.is_set():
            heard.add(*tape.news(1 << 20))
        heard.add(*tape.news(1 << 20))

    thread = threading.Thread(target=listen)
    thread.start()
    for number in range(5000):
        tape.write(f"{number}\n")
    over.set()
    thread.join()
    assert heard.text() == tape.take() == "".join(f"{number}\n" for number in range(5000))


def test_only_text_is_written() -> None:
    tape = Tape()
    with pytest.raises(TypeError):
        tape.write(b"bytes")  # type: ignore[arg-type]
    assert not tape.parts
    assert sound("half \ud800") == "half \\ud800"


def test_a_console_is_a_stream() -> None:
    tape = Tape()
    console = Console(tape, 1)
    print("text", file=console, flush=True)
    console.writelines(["a", "b\n"])
    console.buffer.write("é".encode()[:1])
    console.buffer.write("é".encode()[1:])
    assert not console.isatty()
    assert console.writable()
    assert console.fileno() == 1
    assert tape.take() == "text\nab\né"


@pytest.fixture
def spill() -> Iterator[int]:
    descriptor = spill_file()
    yield descriptor
    os.close(descriptor)


def test_a_spill_of_much(spill: int) -> None:
    tape = Tape(Spill(spill))
    assert not tape.spilled()
    os.write(spill, b"one\n")
    assert tape.spilled()
    assert tape.take() == "one\n"
    os.write(spill, b"first\n" + b"x" * 3_000_000 + b"\nlast\n")
    text = tape.take()
    assert text.startswith("first\n")
    assert text.endswith("\nlast\n")
    assert len(text) < 66_000
    assert os.fstat(spill).st_size == 0, "it does not grow for ever"
    os.write(spill, b"two\n")
    assert tape.take() == "two\n"


def voice_of(tape: Tape | None = None) -> Voice:
    return Voice("w", lambda: (7, 0, 1.0), tape or Tape(), WORK)


def test_live_output_is_limited() -> None:
    sent: list[Report] = []
    voices = [voice_of() for _ in range(3 * VOICES)]
    teller = Teller(lambda: voices, sent.append)
    for voice in voices:
        voice.tape.write("x" * (2 * LIVE_CHARACTERS))
    teller.tell()
    assert not sent, "nothing of calls that have not run for a period"
    for turn in range(1, 5):
        teller.tell()
        assert len(sent) <= turn * VOICES
    assert len(sent) == len(voices), "each has its turn"
    assert all(len(report.said.output) == LIVE_CHARACTERS for report in sent if report.said)
    teller.tell()
    assert len(sent) == len(voices), "nothing new, nothing told"


def test_of_many_that_talk_all_the_time_each_is_told() -> None:
    sent: list[Report] = []
    voices = [Voice("w", lambda number=number: (number, 0, 1.0), Tape(), WORK) for number in range(1, 3 * VOICES)]  # type: ignore[misc]
    teller = Teller(lambda: voices, sent.append)
    for _ in range(6):
        for voice in voices:
            voice.tape.write("x")
        teller.tell()
    assert {report.serial for report in sent} == set(range(1, 3 * VOICES))


def test_the_newest_progress_wins() -> None:
    voice = voice_of()
    token = VOICE.set(voice)
    try:
        hear(voice)
        assert list(track(range(1000))) == list(range(1000))
        progress(3, 10, "x" * 1000)
        _, said = hear(voice) or pytest.fail("nothing told")
        assert said.steps == (3, 10, "x" * 200)
        assert hear(voice) is None
        progress(4, 10)
        report = last_steps(voice)
        assert report is not None
        assert report.said is not None
        assert report.said.steps == (4, 10, "")
        encode(report)
    finally:
        VOICE.reset(token)


def test_outside_of_tasks() -> None:
    assert qnb.current() is None
    qnb.progress(1, 2)
    assert list(qnb.track(iter("ab"))) == ["a", "b"]
    assert _plain(2**70) == 2.0**70


def test_a_runner_that_is_shouted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much output ends a work early, and shortens what calls of that run may keep."""
    sent: list[Report] = []
    voice = voice_of()
    runner = Runner(Place(Welcome(b"k" * 20, "w")), lambda *_: None, sent.append, voice, Teller(list, sent.append))
    monkeypatch.setattr(sys, "stdout", Console(voice.tape, 1))
    runner._functions[b"h"] = Opened(lambda n: print("y" * 60_000))

    first, kept = 0, 0
    while first < 1000:
        start = b"c" + encode([1, [], [list(range(first, 1000))]])
        runner.run(Work(7, "r", first, 1000 - first, b"h", "f", None, start, 0.0))
        report = sent.pop()
        for _, count, _, data in report.done:
            outcomes = Signer(b"k" * 20).unpack(OUTCOMES, data, Outcomes)
            assert set(outcomes.outputs) == set(range(count))
            kept += sum(map(len, outcomes.outputs.values()))
            assert sum(map(len, outcomes.outputs.values())) < 2 * HOLD_OUTPUT
        first += report.ran
    assert kept < (1 << 24) + 65_536 + 1000 * (LITTLE_OUTPUT + 40)


def test_who_wrote_past_python(spill: int) -> None:
    """Which of many calls it was is known once the function is known to do so."""
    sent: list[Report] = []
    voice = voice_of(Tape(Spill(spill)))
    signer = Signer(b"k" * 20)
    runner = Runner(Place(Welcome(b"k" * 20, "w")), lambda *_: None, sent.append, voice, Teller(list, sent.append))
    runner._functions[b"h"] = Opened(lambda n: os.write(spill, b"%d\n" % n) if n % 2 else None)
    found: dict[int, str] = {}
    for first, count in ((1, 1), (2, 10)):
        calls = b"c" + encode([1, [], [list(range(first, first + count))]])
        runner.run(Work(7, "r", first, count, b"h", "f", None, calls, 0.0))
        [done] = sent.pop().done
        outcomes = signer.unpack(OUTCOMES, done[3], Outcomes)
        found |= {first + position: text for position, text in outcomes.outputs.items()}
    assert found == {number: f"{number}\n" for number in (1, 3, 5, 7, 9, 11)}


def test_no_call_fails_for_what_it_printed() -> None:
    """Where a message has a limit and nothing takes blobs, the output goes and the value stays."""
    signer = Signer(b"k" * 20)
    limits = SimpleNamespace(message_bytes=10_000)
    worker: Any = SimpleNamespace(
        signer=signer,
        broker=SimpleNamespace(features=SimpleNamespace(limits=limits), partner=lambda backend: None),
        backend=SimpleNamespace(blobs=False, url="small:"),
        bus=None,
        consumer=None,
        commands=SimpleNamespace(followers=lambda run: []),
    )
    outcomes = Outcomes("r", 0, 1, b"", b"m" + encode([17]), b"", "w", outputs={0: "x" * 20_000})
    turn = Turn()
    Settling(worker)._add_outcome(turn, Stored("r", 0, 1, signer.pack(OUTCOMES, outcomes)), "s.me")
    [kept] = [signer.unpack(OUTCOMES, record.data, Outcomes) for record in turn.store]
    assert (kept.values, kept.states, kept.failures) == (outcomes.values, b"", {})
    assert "left out" in kept.outputs[0]
    assert [note.kind for note in turn.post] == ["outcomes"]
