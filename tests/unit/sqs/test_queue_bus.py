"""The bus made of mailboxes, over mailboxes in memory: order, doubles, presence, sweeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from qnb.brokers import bus as bus_module
from qnb.brokers import bus_sweep
from qnb.brokers.bus import QueueBus
from qnb.message import Note
from tests.unit.sqs.mailboxes import FakeMailboxes


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def read(inbox: bus_module.QueueInbox, count: int) -> list[Note]:
    got: list[Note] = []
    deadline = time.monotonic() + 10
    while len(got) < count and time.monotonic() < deadline:
        got += inbox.receive_many(count - len(got), 1.0)
    return got


class Bed:
    """Buses of several processes on the same mailboxes."""

    def __init__(self) -> None:
        self.boxes = FakeMailboxes()
        self._buses: list[QueueBus] = []

    def bus(self) -> QueueBus:
        self._buses.append(QueueBus(self.boxes))
        return self._buses[-1]

    def close(self) -> None:
        for bus in self._buses:
            bus.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_sweep, "MISS_SECONDS", 0.05)
    monkeypatch.setattr(bus_module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(bus_module, "KNOWN_ANSWER_SECONDS", 0.1)


def test_order_and_doubles_are_put_right(bed: Bed) -> None:
    bed.boxes = FakeMailboxes(shuffle=True)
    inbox = bed.bus().join("me")
    posters = [bed.bus() for _ in range(3)]

    def post(who: int) -> None:
        for start in range(0, 300, 20):
            posters[who].post_many([Note("me", "event", b"%d:%d" % (who, n)) for n in range(start, start + 20)])

    threads = [threading.Thread(target=post, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    got = [note.body.split(b":") for note in read(inbox, 900)]
    for who in range(3):
        assert [int(number) for name, number in got if int(name) == who] == list(range(300))
    assert list(inbox.receive_many(10, 1.5)) == []  # beyond what a gap is waited for


def test_a_note_over_the_limit_travels_in_parts(bed: Bed) -> None:
    bed.boxes = FakeMailboxes(shuffle=True)
    inbox = bed.bus().join("me")
    notes = [Note("me", "reply", b"small"), Note("me", "outcomes", bytes(range(256)) * 100), Note("me", "event", b"")]
    bed.bus().post_many(notes)
    assert read(inbox, 3) == notes


def test_a_hole_is_not_waited_for_for_ever(bed: Bed) -> None:
    bed.boxes = FakeMailboxes(shuffle=True)
    poster, inbox = bed.bus(), bed.bus().join("me")
    poster.post_many([Note("me", "event", b"0")])
    assert read(inbox, 1)
    lost = poster._outgoing.pack([Note("me", "event", b"x" * 3000)])
    bed.boxes.send_many(lost[1:])
    poster.post_many([Note("me", "event", b"2")])
    assert read(inbox, 1) == [Note("me", "event", b"2")]


def test_presence_costs_nothing_while_nobody_asks(bed: Bed) -> None:
    inbox = bed.bus().join("worker")
    before = bed.boxes.requests
    for _ in range(20):
        inbox.beat(b"info")
    assert bed.boxes.requests - before <= 1  # the poll that may just have begun
    assert [(p.peer, p.info) for p in bed.bus().peers()] == [("worker", b"info")]


def test_who_asks_leaves_no_mailbox(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "ASKER_SECONDS", 0.2)
    bed.bus().join("worker").beat()
    asking = bed.bus()
    assert [presence.peer for presence in asking.peers("worker")] == ["worker"]
    assert len(bed.boxes.boxes) == 2
    assert until(lambda: len(bed.boxes.boxes) == 1)
    assert [presence.peer for presence in asking.peers("worker")] == ["worker"]


def test_the_mailbox_of_a_dead_peer_is_swept(bed: Bed, quick: None) -> None:
    bed.boxes.make("dead")
    silent = bed.bus().join("silent")
    bus = bed.bus()
    bed.boxes.aged = 10.0
    for _ in range(5):
        time.sleep(0.06)
        bus.peers()
    assert "dead" in bed.boxes.find(), "too young"
    bed.boxes.aged = 2 * bus_sweep.MAILBOX_SECONDS
    for _ in range(5):
        time.sleep(0.06)
        bus.peers()
    assert "dead" not in bed.boxes.find()
    assert "silent" in bed.boxes.find(), "it never beats, but it lives"
    bus.post_many([Note("silent", "event", b"x")])
    assert read(silent, 1) == [Note("silent", "event", b"x")]


def test_one_who_answers_late_lives(bed: Bed, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent for a while, again and again, and in between it tells that it lives."""
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 0.05)
    bed.boxes.aged = 2 * bus_sweep.MAILBOX_SECONDS
    bed.bus().join("slow").beat()
    asking = bed.bus()
    for _ in range(3):
        bed.boxes.stopped = {"slow"}
        for _ in range(bus_sweep.MISSES - 1):
            time.sleep(0.06)
            assert list(asking.peers()) == []
        bed.boxes.stopped = set()
        assert until(lambda: not asking._sweeper._silent)
    assert "slow" in bed.boxes.find()


def test_one_who_joins_looks_for_the_dead(bed: Bed, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 0.1)
    bed.boxes.aged = 2 * bus_sweep.MAILBOX_SECONDS
    bed.boxes.make("dead")
    bed.bus().join("living")
    bed.bus().join("joiner")
    assert until(lambda: set(bed.boxes.find()) == {"living", "joiner"})


def test_who_has_looked_around_does_not_look_again(bed: Bed, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 0.05)
    looks: list[str] = []
    find = bed.boxes.find

    def counted(prefix: str = "") -> Mapping[str, str]:
        looks.append(prefix)
        return find(prefix)

    monkeypatch.setattr(bed.boxes, "find", counted)
    for peer in ("one", "two", "three"):
        bed.bus().join(peer)
    assert until(lambda: len(looks) == 3)
    assert not until(lambda: len(looks) > 3, 1.5)


def test_the_look_around_comes_back(bed: Bed, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(bus_sweep, "LOOK_SECONDS", 0.1)
    bed.bus().join("living")
    bed.bus().join("other")
    time.sleep(1.5)  # they have looked around
    bed.boxes.aged = 2 * bus_sweep.MAILBOX_SECONDS
    bed.boxes.make("dead")
    assert until(lambda: set(bed.boxes.find()) == {"living", "other"})


def test_a_removed_mailbox_is_made_anew(bed: Bed) -> None:
    inbox = bed.bus().join("me")
    [address] = bed.boxes.find("me").values()
    bed.boxes.remove(address)
    assert until(lambda: "me" in bed.boxes.find())
    bed.bus().post_many([Note("me", "event", b"x")])
    assert read(inbox, 1) == [Note("me", "event", b"x")]


def test_who_is_overtaken_does_not_fight(bed: Bed) -> None:
    first = bed.bus().join("me")
    second = bed.bus().join("me")
    assert until(lambda: not first.open)
    first.close()
    bed.bus().post_many([Note("me", "event", b"x")])
    assert read(second, 1) == [Note("me", "event", b"x")]


def test_a_dead_peer_is_not_waited_for_again_and_again(bed: Bed) -> None:
    bed.boxes.make("dead")
    bed.bus().join("living").beat()
    bus = bed.bus()
    for _ in range(bus_sweep.SUSPECT_MISSES):
        assert [presence.peer for presence in bus.peers()] == ["living"]
    begun = time.monotonic()
    assert [presence.peer for presence in bus.peers()] == ["living"]
    assert time.monotonic() - begun < bus_module.ANSWER_SECONDS / 2


def test_what_is_no_message_is_passed_over(bed: Bed) -> None:
    inbox = bed.bus().join("me")
    bed.boxes.send_many(
        [("me", data) for data in (b"", b"x", b"\x93\x00", b"\x96\x02\x01\x02\x03\x04\x05", b"\xff" * 9)]
    )
    bed.bus().post_many([Note("me", "event", b"x")])
    assert read(inbox, 1) == [Note("me", "event", b"x")]
