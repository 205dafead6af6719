"""Features are told the truth: what a broker claims works on the real server, what it does not have is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields

import pytest

from qnb.brokers.base import QueueSpec
from qnb.errors import Unsupported
from qnb.features import Features, Support
from qnb.message import Envelope, Note
from tests.conformance.help import Place, bodies, messages, numbered, read, take


def _confirmed_publish(place: Place) -> None:
    place.broker().publish_many(messages(b"x"))
    assert place.broker().depth("q") in (1, None)


def _lease_extension(place: Place) -> None:
    broker = place.broker(lease=0.4)
    broker.publish_many(messages(b"x"))
    first, second = place.consumer(broker), place.consumer(broker)
    got = take(first, 1)
    first.extend_many(got, 5)
    assert take(second, 1, within=0.8) == []


def _redelivery(place: Place) -> None:
    broker = place.broker(lease=0.3)
    broker.publish_many(messages(b"x"))
    assert len(take(place.consumer(broker), 1)) == 1
    assert bodies(take(place.consumer(broker), 1)) == [b"x"]


def _delay(place: Place) -> None:
    broker = place.broker()
    begun = time.monotonic()
    broker.publish_many(messages(b"x", delay=0.3))
    assert bodies(take(place.consumer(broker), 1)) == [b"x"]
    assert 0.28 < time.monotonic() - begun < 0.3 + place.late


def _priority(place: Place) -> None:
    broker = place.broker()
    levels = broker.features.limits.priority_levels
    assert levels > 1
    broker.publish_many([Envelope("q", b"%d" % level, priority=level) for level in range(levels)])
    assert bodies(take(place.consumer(broker), levels)) == [b"%d" % level for level in reversed(range(levels))]


def _dead_letter(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(messages(b"x"))
    consumer = place.consumer(broker)
    consumer.reject_many(take(consumer, 1), "why")
    assert [(letter.body, letter.reason) for letter in broker.dead_letters("q")] == [(b"x", "why")]


def _monitoring(place: Place) -> None:
    broker = place.broker()
    watcher, worker = place.inbox(place.broker(), "watcher"), place.inbox(broker, "worker")
    worker.beat(b"load 3")
    assert [presence.info for presence in place.broker().bus().peers()] == [b"load 3"]
    broker.bus().post_many([Note("watcher", "event", b"task-done")])
    assert read(watcher, 1) == [Note("watcher", "event", b"task-done")]


def _remote_control(place: Place) -> None:
    session, worker = place.broker(), place.broker()
    asker, asked = place.inbox(session, "session"), place.inbox(worker, "worker")
    session.bus().post_many([Note("worker", "command", b"ping")])
    assert read(asked, 1) == [Note("worker", "command", b"ping")]
    worker.bus().post_many([Note("session", "reply", b"pong")])
    assert read(asker, 1) == [Note("session", "reply", b"pong")]


def _purge(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(3))
    assert broker.purge("q") == 3


def _queue_depth(place: Place) -> None:
    broker = place.broker()
    broker.publish_many(numbered(3))
    assert broker.depth("q") == 3


def _survives_restart(place: Place) -> None:
    assert place.case.restart is not None, "claimed, so tests/services.py has to say how to restart it"


CLAIMS: dict[str, Callable[[Place], None]] = {
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
    "survives_restart": _survives_restart,
}


def _settle(place: Place, how: str) -> None:
    broker = place.broker()
    broker.publish_many(messages(b"x"))
    consumer = place.consumer(broker)
    got = take(consumer, 1)
    consumer.reject_many(got, "no") if how == "reject" else consumer.extend_many(got, 5)


# What to ask for to be refused. A feature that is not here cannot be asked for, only be found missing.
REFUSALS: dict[str, Callable[[Place], object]] = {
    "delay": lambda place: place.broker().publish_many(messages(b"x", delay=1)),
    "priority": lambda place: place.broker().publish_many(messages(b"x", priority=1)),
    "dead_letter": lambda place: _settle(place, "reject"),
    "lease_extension": lambda place: _settle(place, "extend"),
    "purge": lambda place: place.broker().purge("q"),
    "monitoring": lambda place: place.broker().bus(),
    "remote_control": lambda place: place.broker().bus(),
}


def test_every_feature_has_a_check() -> None:
    assert set(CLAIMS) == {field.name for field in fields(Features)} - {"limits"}


@pytest.mark.parametrize("feature", CLAIMS)
def test_a_feature_works_or_is_refused(place: Place, feature: str) -> None:
    support = place.broker().features.table()[feature]
    if support is not Support.NONE:
        CLAIMS[feature](place)
    elif feature in REFUSALS:
        with pytest.raises(Unsupported):
            REFUSALS[feature](place)
    elif feature == "queue_depth":
        assert place.broker().depth("q") is None
    elif feature == "survives_restart":
        assert place.case.restart is None
    else:
        pytest.fail(f"{feature}: every broker has to have it")


def test_limits_are_plausible(place: Place) -> None:
    limits = place.broker().features.limits
    assert limits.priority_levels >= 1
    assert limits.message_bytes is None or limits.message_bytes >= 64 * 1024


def test_a_broker_says_who_it_is(place: Place) -> None:
    from qnb import registry

    broker = place.broker()
    assert registry.find("broker", broker.url) is type(broker)
    broker.declare(QueueSpec("q"))
    assert list(broker.queues()) == ["q"]
