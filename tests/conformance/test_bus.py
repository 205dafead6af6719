"""The bus: mailboxes and presence, enough for events, control and replies."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest

from qnb.brokers.base import PRESENCE_SECONDS, QueueSpec
from qnb.errors import PayloadTooLarge, Unsupported
from qnb.message import Note
from tests.conformance.help import Later, Place, bodies, messages, read, take, waits

POSTER = """
import sys
from qnb.message import Note
from qnb.registry import open_broker
broker = open_broker(sys.argv[1])
inbox = broker.bus().join("child")
inbox.beat(b"from afar")
print("there", flush=True)
for note in inbox.receive_many(10, 10.0):
    broker.bus().post_many([Note("parent", "reply", note.body * 2)])
sys.stdin.readline()
"""


def notes_to(peer: str, count: int, start: int = 0, kind: str = "event") -> list[Note]:
    return [Note(peer, kind, b"%d" % number) for number in range(start, start + count)]


def test_notes_arrive_in_order(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    sent = [Note("me", "outcomes", b""), Note("me", "command", bytes(range(256))), Note("me", "reply", b"x" * 100_000)]
    broker.bus().post_many(sent)
    assert read(inbox, 3) == sent
    assert inbox.receive_many(10, 0) == []
    assert inbox.peer == "me"


def test_posting_nothing_is_no_error(place: Place) -> None:
    place.broker().bus().post_many([])


def test_only_the_addressee_gets_it(place: Place) -> None:
    broker = place.broker()
    one, two = place.inbox(broker, "one"), place.inbox(broker, "two")
    broker.bus().post_many([*notes_to("two", 2), *notes_to("one", 1, start=5)])
    assert [note.body for note in read(two, 2)] == [b"0", b"1"]
    assert [note.body for note in read(one, 1)] == [b"5"]


def test_a_note_to_nobody_is_no_error(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    broker.bus().post_many([Note("nobody", "event", b"x"), Note("me", "event", b"y")])
    assert [note.body for note in read(inbox, 1)] == [b"y"]


def test_nothing_is_lost_between_join_and_the_first_receive(place: Place) -> None:
    broker, other = place.broker(), place.broker()
    inbox = place.inbox(broker, "me")
    for number in range(20):
        other.bus().post_many(notes_to("me", 1, number))
    assert read(inbox, 20) == notes_to("me", 20)


def test_receive_is_bounded_and_does_not_wait_to_fill_up(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    broker.bus().post_many(notes_to("me", 25))
    begun = time.monotonic()
    got = [inbox.receive_many(10, 10.0) for _ in range(3)]
    assert time.monotonic() - begun < place.late
    lengths = [len(notes) for notes in got]
    if place.case.pushes and lengths != [10, 10, 5]:
        assert max(lengths) <= 10
        got.append(read(inbox, 25 - sum(lengths)))
    else:
        assert lengths == [10, 10, 5]
    assert [note for notes in got for note in notes] == notes_to("me", 25)


def test_receive_gives_up_after_its_timeout(place: Place) -> None:
    inbox = place.inbox(place.broker(), "me")
    inbox.receive_many(1, 0)
    begun = time.monotonic()
    assert inbox.receive_many(1, 0.3) == []
    assert 0.28 < time.monotonic() - begun < 0.3 + place.late


def test_a_waiting_reader_is_told_at_once(place: Place) -> None:
    inbox, other = place.inbox(place.broker(), "me"), place.broker()
    waiting = Later(lambda: inbox.receive_many(1, 30.0))
    time.sleep(0.2)
    other.bus().post_many(notes_to("me", 1))
    assert waiting.result(40) == notes_to("me", 1)
    assert waiting.seconds < 3.0  # at once, on a busy machine; it waits for 30


def test_wake_ends_a_receive_that_waits_and_loses_nothing(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    for _ in range(3):
        waiting = Later(lambda: inbox.receive_many(1, 30.0))
        time.sleep(0.1)
        inbox.wake()
        assert waiting.result(place.late) == []
    inbox.wake()
    broker.bus().post_many(notes_to("me", 7))
    assert read(inbox, 7, limit=2) == notes_to("me", 7)


def test_close_ends_a_receive_that_waits(place: Place) -> None:
    inbox = place.inbox(place.broker(), "me")
    waiting = Later(lambda: inbox.receive_many(1, 30.0))
    time.sleep(0.1)
    inbox.close()
    inbox.close()
    assert waiting.result(place.late) == []


def test_thousands_of_notes_from_several_threads_keep_their_order(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")

    def post(who: int) -> None:
        for start in range(0, 1000, 50):
            batch = [Note("me", "event", b"%d:%d" % (who, number)) for number in range(start, start + 50)]
            broker.bus().post_many(batch)

    posters = [Later(partial(post, who)) for who in range(3)]
    got = [note.body.split(b":") for note in read(inbox, 3000, within=30, limit=97)]
    for poster in posters:
        poster.result()
    for who in range(3):
        assert [int(number) for name, number in got if int(name) == who] == list(range(1000))


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """KeyboardInterrupt in this thread, again and again; the list has one entry for each."""
    happened: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        happened.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield happened
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()  # while its warnings are still ignored


# An interrupt while a connection is being made leaves a socket to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_receiving_loses_nothing(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    total = 600

    def post() -> None:
        for number in range(total):
            broker.bus().post_many(notes_to("me", 1, number))
            time.sleep(0.001)

    poster = threading.Thread(target=post)
    got: list[Note] = []
    deadline = time.monotonic() + 90
    with interruptions() as happened:
        poster.start()
        while (len(got) < total or not happened) and time.monotonic() < deadline:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 * 1.3 ** (len(happened) % 20))
                got += inbox.receive_many(5, 0.5)
            except KeyboardInterrupt:
                continue
            try:  # noqa: SIM105 - to enter suppress() is a call, and the interrupt may come in it
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
    poster.join()
    assert got == notes_to("me", total)
    assert happened


def interrupted(number: int, receive: Callable[[], Sequence[Note]]) -> tuple[Sequence[Note], bool]:
    """What it gives, and whether KeyboardInterrupt came: where Python looks for signals, after a call into C, the one
    of that number.

    Not in the locks of the standard library: one that is interrupted while it is entered stays held, in any program.
    """
    left = number

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event == "c_return" and frame.f_code.co_filename != threading.__file__:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    try:
        sys.setprofile(look)
        return receive(), False
    except KeyboardInterrupt:
        return [], True
    finally:
        sys.setprofile(None)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("waiting", [False, True], ids=["there", "waiting"])
def test_ctrl_c_after_any_call_of_receive_loses_nothing(place: Place, waiting: bool) -> None:
    """After the first, after the second and so on, until there are no more; a wait may have any number of them."""
    broker, other = place.broker(), place.broker()
    inbox = place.inbox(broker, "me")
    inbox.receive_many(1, 0)
    got: list[Note] = []
    number, came = 0, True
    while came and number < 40:

        def post(number: int = number) -> None:
            time.sleep(0.02 if waiting else 0)
            other.bus().post_many(notes_to("me", 1, number))

        poster = Later(post)
        if not waiting:
            poster.result()
        some, came = interrupted(number, lambda: inbox.receive_many(5, 2.0))
        poster.result()
        number += 1
        got += some
        got += read(inbox, number - len(got))
        assert got == notes_to("me", number)
    if place.case.label != "amqp":  # whose reader calls nothing but a lock
        assert number > 1, "it was never interrupted"
    gc.collect()  # while its warnings are still ignored


def test_presence(place: Place) -> None:
    broker, other = place.broker(), place.broker()
    one, two = place.inbox(broker, "worker.b"), place.inbox(broker, "worker.a")
    silent = place.inbox(broker, "silent")
    assert list(other.bus().peers()) == []
    one.beat(b"first")
    two.beat()
    one.beat(b"second \0\xff")
    found = other.bus().peers()
    assert [(presence.peer, presence.info) for presence in found] == [("worker.a", b""), ("worker.b", b"second \0\xff")]
    assert [presence.peer for presence in other.bus().peers("worker.b")] == ["worker.b"]
    assert list(other.bus().peers("nobody")) == []
    one.close()
    assert [presence.peer for presence in other.bus().peers()] == ["worker.a"]
    broker.bus().post_many(notes_to("silent", 1))
    assert read(silent, 1) == notes_to("silent", 1), "one that never beats gets notes all the same"


def test_presence_ends_when_the_beats_do(place: Place) -> None:
    broker = place.broker()
    living, dying = place.inbox(broker, "living"), place.inbox(broker, "dying")
    dying.beat()
    begun = time.monotonic()
    gone_after = None
    while gone_after is None and time.monotonic() - begun < PRESENCE_SECONDS + place.late:
        living.beat()
        peers = [presence.peer for presence in broker.bus().peers()]
        assert "living" in peers
        if "dying" not in peers:
            gone_after = time.monotonic() - begun
        time.sleep(0.1)
    assert gone_after is not None
    assert PRESENCE_SECONDS - 0.2 < gone_after < PRESENCE_SECONDS + 3.0  # a busy machine is late


def test_broadcast(place: Place) -> None:
    """A command to everybody: who is present is asked, and each gets a note. The replies come to the asker."""
    broker = place.broker()
    asker = place.inbox(place.broker(), "asker")
    workers = [place.inbox(broker, f"worker.{number}") for number in range(5)]
    for worker in workers:
        worker.beat()
    names = [presence.peer for presence in broker.bus().peers("worker.")]
    assert names == [f"worker.{number}" for number in range(5)]
    broker.bus().post_many([Note(name, "command", b"ping") for name in names])
    for worker in workers:
        assert [note.body for note in read(worker, 1)] == [b"ping"]
        broker.bus().post_many([Note("asker", "reply", worker.peer.encode())])
    assert sorted(note.body.decode() for note in read(asker, 5)) == names


def test_a_peer_in_another_process(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "parent")
    process = place.process(POSTER, place.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert [(presence.peer, presence.info) for presence in broker.bus().peers("child")] == [("child", b"from afar")]
    broker.bus().post_many([Note("child", "command", b"ab")])
    assert read(inbox, 1) == [Note("parent", "reply", b"abab")]


def test_rejoining_starts_afresh(place: Place) -> None:
    broker = place.broker()
    first = place.inbox(broker, "me")
    broker.bus().post_many(notes_to("me", 3))
    first.close()
    second = place.inbox(broker, "me")
    assert second.receive_many(10, 0) == []
    broker.bus().post_many(notes_to("me", 1, 9))
    assert read(second, 1) == notes_to("me", 1, 9)


def test_publish_and_receive(place: Place) -> None:
    """A call goes out and its outcome comes in, in one step."""
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    broker.declare(QueueSpec("q"))
    worker = place.broker()
    consumer = place.consumer(worker)

    def serve(count: int) -> None:
        for _ in range(count):
            for delivery in take(consumer, 1):
                worker.bus().post_many([Note("me", "outcomes", delivery.body)])
                consumer.ack_many([delivery])

    serving = Later(lambda: serve(22))
    for number in range(20):
        assert broker.publish_and_receive(messages(b"%d" % number), inbox, 10, 5.0) == notes_to(
            "me", 1, number, "outcomes"
        )
    choices: list[dict[str, Any]] = [{"priority": 5}, {"delay": 0.1}]
    for options in choices:
        assert broker.publish_and_receive(messages(b"0", **options), inbox, 10, 5.0) == notes_to("me", 1, 0, "outcomes")
    serving.result()
    assert broker.publish_and_receive(messages(b"unanswered"), inbox, 10, 0.2) == []
    assert broker.publish_and_receive([], inbox, 10, 0) == []
    assert bodies(take(consumer, 1)) == [b"unanswered"]


def test_publish_and_receive_refuses_what_publish_refuses(place: Place) -> None:
    broker = place.broker(max_message=10)
    inbox = place.inbox(broker, "me")
    with pytest.raises(PayloadTooLarge):
        broker.publish_and_receive(messages(b"x" * 11), inbox, 10, 0)
    with pytest.raises(Unsupported):
        broker.publish_and_receive(messages(b"x", priority=99), inbox, 10, 0)
    assert waits(broker, "q", 0)


def test_publish_and_receive_takes_the_notes_that_are_there(place: Place) -> None:
    broker = place.broker()
    inbox = place.inbox(broker, "me")
    broker.bus().post_many(notes_to("me", 5))
    got = list(broker.publish_and_receive(messages(b"x"), inbox, 3, 5.0))
    assert got == notes_to("me", 3)
    assert read(inbox, 2) == notes_to("me", 2, 3)
    assert waits(broker, "q", 1)
