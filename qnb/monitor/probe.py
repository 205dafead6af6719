"""Try every feature of a broker on the live server: on a place of its own, in seconds, and leave nothing behind."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qnb.brokers.base import PROBE_PREFIX, Broker, Consumer, Delivery, QueueSpec
from qnb.errors import QnbError
from qnb.features import Support
from qnb.message import Envelope, Note
from qnb.registry import open_broker

PROBE_SECONDS = 9.0  # for all features together, with what it takes to clean up
LEASE_SECONDS = 1.0
STOP_SECONDS = 1.0
LEFT_SECONDS = 60.0  # a probe's queue that is so old is nobody's: its server hung when it was to be removed
_WORD = PROBE_PREFIX


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen of a feature. `worked` is None when it could not be tried; `seconds` is how long the try took."""

    feature: str
    support: Support
    worked: bool | None
    seconds: float
    said: str


class _Failed(Exception):
    """What the server did instead."""


class _Trial:
    """One feature's own queue and peers on the server under test."""

    def __init__(self, broker: Broker, name: str, deadline: float) -> None:
        self.broker = broker
        self.queue = name
        self.deadline = deadline
        self._consumers: list[Consumer] = []

    def publish(self, *bodies: bytes, delay: float = 0.0, priority: int = 0) -> None:
        self.broker.publish_many([Envelope(self.queue, body, "", priority, delay) for body in bodies])

    def consumer(self) -> Consumer:
        consumer = self.broker.consume([self.queue], prefetch=100)
        self._consumers.append(consumer)
        return consumer

    def take(self, consumer: Consumer, count: int) -> list[Delivery]:
        got: list[Delivery] = []
        while len(got) < count:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise _Failed(f"{len(got)} of {count} messages came in time")
            got += consumer.receive_many(count - len(got), left)
        return got

    def stop(self) -> None:
        """End what waits."""
        self.deadline = 0.0
        for consumer in self._consumers:
            consumer.wake()

    def close(self) -> str:
        """Release and remove all of it; what went wrong with that."""
        trouble = ""
        for consumer in self._consumers:
            try:
                consumer.close()
            except Exception as error:
                trouble = f"; not released: {error}"
        try:
            self.broker.remove(self.queue)
        except Exception as error:
            trouble += f"; not removed: {error}"
        return trouble


def _confirmed_publish(trial: _Trial) -> str:
    begun = time.monotonic()
    trial.publish(*(b"%d" % number for number in range(10)))
    return f"10 messages confirmed in {(time.monotonic() - begun) * 1000:.1f} ms"


def _lease_extension(trial: _Trial) -> str:
    trial.publish(b"x")
    first = trial.consumer()
    held = trial.take(first, 1)
    first.extend_many(held, 30)
    if trial.consumer().receive_many(1, 2 * LEASE_SECONDS):
        raise _Failed("another consumer got it after the first lease")
    first.ack_many(held)
    return f"held for {2 * LEASE_SECONDS:g} s on a lease of {first.lease:g} s, and settled"


def _redelivery(trial: _Trial) -> str:
    trial.publish(b"x")
    trial.take(trial.consumer(), 1)
    begun = time.monotonic()
    second = trial.consumer()
    [again] = trial.take(second, 1)
    second.ack_many([again])
    if again.deliveries < 2:
        raise _Failed("it came again, and is not counted as a redelivery")
    return f"came to another consumer {time.monotonic() - begun:.1f} s after it was let lapse"


def _delay(trial: _Trial) -> str:
    consumer = trial.consumer()
    begun = time.monotonic()
    trial.publish(b"x", delay=0.5)
    consumer.ack_many(trial.take(consumer, 1))
    seconds = time.monotonic() - begun
    if seconds < 0.45:
        raise _Failed(f"it came after {seconds:.2f} s instead of 0.5 s")
    return f"asked for 0.5 s, came after {seconds:.2f} s"


def _priority(trial: _Trial) -> str:
    levels = trial.broker.features.limits.priority_levels
    trial.broker.publish_many([Envelope(trial.queue, b"%d" % level, "", level) for level in range(levels)])
    consumer = trial.consumer()
    got = [int(delivery.body) for delivery in trial.take(consumer, levels)]
    if got[0] != levels - 1:
        raise _Failed(f"level {got[0]} came before level {levels - 1}")
    return f"{levels} levels came in the order {' '.join(map(str, got))}"


def _dead_letter(trial: _Trial) -> str:
    trial.publish(b"x")
    consumer = trial.consumer()
    consumer.reject_many(trial.take(consumer, 1), "the reason")
    while not (letters := trial.broker.dead_letters(trial.queue)):
        if time.monotonic() > trial.deadline:
            raise _Failed("the rejected message is not among the dead letters")
        time.sleep(0.05)
    if letters[0].reason != "the reason":
        raise _Failed(f"its reason is {letters[0].reason!r}")
    return "kept aside, with the reason"


def _monitoring(trial: _Trial) -> str:
    bus, peer = trial.broker.bus(), f"p.{trial.queue}"
    inbox = bus.join(peer)
    try:
        begun = time.monotonic()
        inbox.beat(b"here")
        while not [one for one in bus.peers("p.") if one.peer == peer and one.info == b"here"]:
            if time.monotonic() > trial.deadline:
                raise _Failed("a peer that is there is not seen")
            time.sleep(0.05)
        return f"a peer was seen {time.monotonic() - begun:.2f} s after its first beat"
    finally:
        inbox.close()


def _remote_control(trial: _Trial) -> str:
    bus = trial.broker.bus()
    here, there = bus.join(f"p.{trial.queue}.asks"), bus.join(f"p.{trial.queue}.answers")
    try:
        begun = time.monotonic()
        bus.post_many([Note(there.peer, "command", b"ping")])
        _read(there, b"ping", trial.deadline)
        bus.post_many([Note(here.peer, "reply", b"pong")])
        _read(here, b"pong", trial.deadline)
        return f"command and reply in {(time.monotonic() - begun) * 1000:.0f} ms"
    finally:
        here.close()
        there.close()


def _read(inbox: object, body: bytes, deadline: float) -> None:
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Failed("a note did not arrive")
        if any(note.body == body for note in inbox.receive_many(10, left)):  # type: ignore[attr-defined]
            return


def _purge(trial: _Trial) -> str:
    trial.publish(b"1", b"2", b"3")
    dropped = trial.broker.purge(trial.queue)
    if trial.consumer().receive_many(1, 0.3):
        raise _Failed("a message came after the purge")
    return f"{dropped} of 3 messages dropped"


def _queue_depth(trial: _Trial) -> str:
    trial.publish(b"1", b"2", b"3")
    while (depth := trial.broker.depth(trial.queue)) != 3:
        if time.monotonic() > trial.deadline - 1:
            raise _Failed(f"3 messages wait, and it says {depth}")
        time.sleep(0.1)
    return "3 messages wait, and it says 3"


_TRIALS: dict[str, Callable[[_Trial], str]] = {
    "confirmed_publish": _confirmed_publish,
    "lease_extension": _lease_extension,
    "redelivery": _redelivery,
    "delay": _delay,
    "priority": _priority,
    "dead_letter": _dead_letter,
    "monitoring": _monitoring,
    "remote_control": _remote_control,
    "purge": _purge,
    "queue_depth": _queue_depth,
}


def probe(url: str, seconds: float = PROBE_SECONDS) -> Sequence[Measured]:
    """Try each feature that the broker of this URL claims, all at once, and say what was seen.

    Works on queues and peers of its own, which it removes, however it ends. Raises BrokerUnavailable, AccessDenied …,
    when there is no connection; what a single feature meets is told in its row.
    """
    word = f"{_WORD}{int(time.time()):x}-{secrets.token_hex(4)}"
    deadline = time.monotonic() + seconds
    broker: Broker = open_broker(_with_short_lease(url))
    try:
        table = broker.features.table()
        tried = [name for name, support in table.items() if support is not Support.NONE and name in _TRIALS]
        trials = {name: _Trial(broker, f"{word}-{name}", deadline - 1.0) for name in tried}
        found: dict[str, Measured] = {}

        def run(name: str) -> None:
            found[name] = _try(trials[name], name, table[name])

        threads = [threading.Thread(target=run, args=(name,), name=f"qnb-probe-{name}", daemon=True) for name in tried]
        threads.append(threading.Thread(target=_remove_old, args=(broker,), name="qnb-probe-old", daemon=True))
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            _clean_up(trials.values(), [thread for thread in threads if thread.is_alive()])
        return [found.get(name) or _untried(name, support, seconds) for name, support in table.items()]
    finally:
        broker.close()


def _clean_up(trials: Iterable[_Trial], running: Sequence[threading.Thread]) -> None:
    """Out of time, or interrupted: what still runs is ended, and what it made is removed."""
    if not running:
        return
    for trial in trials:
        trial.stop()
    for thread in running:
        thread.join(STOP_SECONDS)
    for trial in trials:
        with contextlib.suppress(QnbError):  # it is gone, or the server is
            trial.broker.remove(trial.queue)


def _remove_old(broker: Broker) -> None:
    """Remove what earlier probes could not."""
    with contextlib.suppress(QnbError):  # it is there for the next probe, too
        for queue in broker.queues(_WORD):
            when = queue.removeprefix(_WORD).partition("-")[0]
            if re.fullmatch("[0-9a-f]{8}", when) and time.time() - int(when, 16) > LEFT_SECONDS:
                broker.remove(queue)


def _with_short_lease(url: str) -> str:
    front, _, query = url.partition("?")
    pairs = [pair for pair in query.split("&") if pair and not pair.startswith("lease=")]
    return f"{front}?{'&'.join([*pairs, f'lease={LEASE_SECONDS:g}'])}"


def _try(trial: _Trial, name: str, support: Support) -> Measured:
    begun = time.monotonic()
    worked = False
    try:
        trial.broker.declare(QueueSpec(trial.queue, LEASE_SECONDS))
        said, worked = _TRIALS[name](trial), True
    except _Failed as error:
        said = str(error)
    except Exception as error:  # of whatever kind: it is told in the row, and the queue is removed all the same
        said = f"{type(error).__name__}: {error}"
    said += trial.close()
    return Measured(name, support, worked, time.monotonic() - begun, said)


def _untried(name: str, support: Support, seconds: float) -> Measured:
    if support is Support.NONE:
        return Measured(name, support, None, 0.0, "asking for it raises Unsupported")
    if name in _TRIALS:
        return Measured(name, support, False, seconds, f"no answer within {seconds:g} s")
    return Measured(name, support, None, 0.0, "not tried here: it would take a restart of the server")
