"""What is particular to SQS, on a server: counts, FIFO, redrive, names, what it costs, what is left behind."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import boto3
import pytest

from qnb.brokers.base import Delivery, QueueSpec
from qnb.brokers.sqs import body as sqs_body
from qnb.brokers.sqs import settle as sqs_settle
from qnb.brokers.sqs.broker import SqsBroker
from qnb.brokers.sqs.consumer import SqsConsumer
from qnb.errors import AccessDenied, BadMessage, PayloadTooLarge
from qnb.message import Envelope, Note
from tests.servers.sqs import SqsServer
from tests.services import Services, with_options

Open = Callable[..., SqsBroker]


@pytest.fixture
def server(services: Services) -> SqsServer:
    return services.common(SqsServer)


@pytest.fixture
def prefix(services: Services) -> str:
    return services.word()


@pytest.fixture
def open_broker(server: SqsServer, prefix: str) -> Iterator[Open]:
    made: list[SqsBroker] = []

    def open_one(**options: object) -> SqsBroker:
        made.append(SqsBroker(with_options(server.url, **{"prefix": prefix, **options})))
        return made[-1]

    yield open_one
    for broker in made:
        broker.close()


@pytest.fixture
def aws(server: SqsServer) -> Any:
    """The bare client."""
    login = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("sqs", endpoint_url=server.endpoint, **login)


def take(consumer: SqsConsumer, count: int, within: float = 5.0) -> list[Delivery]:
    got: list[Delivery] = []
    end = time.monotonic() + within
    while len(got) < count and time.monotonic() < end:
        got += consumer.receive_many(count - len(got), end - time.monotonic())
    return got


def on_server(aws: Any, prefix: str) -> list[str]:
    urls: Sequence[str] = aws.list_queues(QueueNamePrefix=prefix).get("QueueUrls", [])
    return sorted(url.rpartition("/")[2].removeprefix(prefix + "-") for url in urls)


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_only_lapses_count(open_broker: Open) -> None:
    broker = open_broker(lease=1)
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=10)
    counts = []
    for lapse in (False, True, False, True, False):
        [got] = take(consumer, 1)
        counts.append(got.deliveries)
        if not lapse:
            consumer.release_many([got])
    assert counts == [1, 1, 2, 2, 3]


def test_what_nobody_receives_goes_back_uncounted(open_broker: Open) -> None:
    """A poll that goes on after a wake brings a message; the next consumer gets it, as new."""
    broker = open_broker(lease=30)
    first, second = broker.consume(["q"], prefetch=10), broker.consume(["q"], prefetch=10)
    for _ in range(20):
        assert not take(first, 1, within=0.1)  # its poll takes a second
        broker.publish_many([Envelope("q", b"x")])
        if until(lambda: first._ready or not broker._queues.waiting(broker._queues.open("q")), 2.0):
            break
        assert broker.purge("q") == 1  # the message came after the poll: once more
    else:
        pytest.fail("no poll brought a message")
    begun = time.monotonic()
    assert [(got.body, got.deliveries) for got in take(second, 1)] == [(b"x", 1)]
    assert time.monotonic() - begun < 3


def test_levels_are_made_when_asked_for(open_broker: Open, aws: Any, prefix: str) -> None:
    broker = open_broker()
    broker.declare(QueueSpec("q"))
    assert on_server(aws, prefix) == ["q", "q-dead"]
    broker.publish_many([Envelope("q", b"x", priority=7)])
    assert on_server(aws, prefix) == ["q", "q-dead", "q-p7"]
    assert list(broker.queues()) == ["q"]
    broker.remove("q")
    assert on_server(aws, prefix) == []


def test_strange_names_come_back(open_broker: Open) -> None:
    broker = open_broker()
    names = sorted(["my_queue", "a.fifo", "x-dead", "x-p5", "_x41", "grüße/{}", "qnb-bus-x"])
    for name in names:
        broker.declare(QueueSpec(name))
    assert list(broker.queues()) == names


def test_a_queue_is_made_with_what_was_asked_for(open_broker: Open, aws: Any, prefix: str) -> None:
    broker = open_broker(max_receives=7, retention=3600, tags="team=data,cost=a b")
    broker.declare(QueueSpec("q", lease=42.5))
    url = aws.get_queue_url(QueueName=f"{prefix}-q")["QueueUrl"]
    said = aws.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert (said["VisibilityTimeout"], said["MessageRetentionPeriod"]) == ("43", "3600")
    policy = json.loads(said["RedrivePolicy"])
    assert (policy["maxReceiveCount"], policy["deadLetterTargetArn"].endswith(f"{prefix}-q-dead")) == (7, True)
    assert aws.list_queue_tags(QueueUrl=url)["Tags"] == {"team": "data", "cost": "a b"}
    assert open_broker().consume(["q"], prefetch=1).lease == 10  # not looked at yet
    other = open_broker().consume(["q"], prefetch=1)
    other.receive_many(1, 0)
    assert other.lease == 43


def test_the_redrive_policy_is_a_safety_net(open_broker: Open, aws: Any, prefix: str) -> None:
    """A message that nobody counts, as its receivers die: after maxReceiveCount it is among the dead letters."""
    broker = open_broker(max_receives=2)
    broker.publish_many([Envelope("q", b"poison")])
    url = aws.get_queue_url(QueueName=f"{prefix}-q")["QueueUrl"]
    for _ in range(3):
        aws.receive_message(QueueUrl=url, VisibilityTimeout=0)
    assert until(lambda: broker.dead_letters("q"))
    [letter] = broker.dead_letters("q")
    assert (letter.body, "redrive policy" in letter.reason) == (b"poison", True)


def test_the_reason_is_an_attribute(open_broker: Open, aws: Any, prefix: str) -> None:
    broker = open_broker()
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=1)
    consumer.reject_many(take(consumer, 1), "lost: \x00 worker died")
    url = aws.get_queue_url(QueueName=f"{prefix}-q-dead")["QueueUrl"]
    [message] = aws.receive_message(QueueUrl=url, MessageAttributeNames=["All"])["Messages"]
    assert message["MessageAttributes"]["qnb-reason"]["StringValue"] == "lost: ? worker died"


@pytest.mark.parametrize("text", ["hello", '{"body": "celery"}', "qnb1|n=x|AAAA", "qnb1||not base64", "qnb1|", "grüße"])
def test_a_foreign_message_is_handed_on_as_it_is(open_broker: Open, aws: Any, prefix: str, text: str) -> None:
    broker = open_broker()
    broker.declare(QueueSpec("q"))
    aws.send_message(QueueUrl=aws.get_queue_url(QueueName=f"{prefix}-q")["QueueUrl"], MessageBody=text)
    consumer = broker.consume(["q"], prefetch=1)
    got = take(consumer, 1)
    assert [one.body for one in got] == [text.encode()]
    consumer.reject_many(got, str(BadMessage("not ours")))
    assert [letter.body for letter in broker.dead_letters("q")] == [text.encode()]


def test_longer_delays_than_sqs_has(open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent with the longest that there is, and again when it comes too early."""
    monkeypatch.setattr(sqs_settle, "LONGEST_DELAY", 1)
    broker = open_broker()
    begun = time.monotonic()
    broker.publish_many([Envelope("q", b"x", delay=3.3)])
    consumer = broker.consume(["q"], prefetch=1)
    assert [(got.body, got.deliveries) for got in take(consumer, 1)] == [(b"x", 1)]
    assert 3.2 < time.monotonic() - begun < 9


def test_fifo_with_a_group_keeps_the_order(open_broker: Open) -> None:
    broker = open_broker(group="all", lease=1)
    for start in range(0, 40, 20):
        broker.publish_many([Envelope("q.fifo", b"%d" % number) for number in range(start, start + 20)])
    consumer = broker.consume(["q.fifo"], prefetch=100)
    seen: list[bytes] = []
    first = take(consumer, 1)
    consumer.release_many(first)
    while len(seen) < 40:
        got = consumer.receive_many(10, 5.0)
        assert got
        seen += [one.body for one in got]
        consumer.ack_many(got)
    assert seen == [b"%d" % number for number in range(40)]


def test_fifo_without_a_group_is_parallel_and_delays(open_broker: Open, aws: Any, prefix: str) -> None:
    broker = open_broker()
    begun = time.monotonic()
    broker.publish_many([Envelope("q.fifo", b"late", delay=2.2), *(Envelope("q.fifo", b"%d" % n) for n in range(5))])
    first, second = broker.consume(["q.fifo"], prefetch=2), broker.consume(["q.fifo"], prefetch=3)
    held = take(first, 2) + take(second, 3)
    assert {one.body for one in held} == {b"%d" % number for number in range(5)}
    second.ack_many(held[2:])
    assert [(one.body, one.deliveries) for one in take(second, 1)] == [(b"late", 1)]
    assert 2.1 < time.monotonic() - begun < 9
    first.reject_many(held[:1], "why")
    assert [letter.reason for letter in broker.dead_letters("q.fifo")] == ["why"]
    broker.publish_many([Envelope("q.fifo", b"urgent", priority=9)])
    assert [one.body for one in take(second, 1)] == [b"urgent"]
    assert on_server(aws, prefix) == ["q-dead.fifo", "q-p9.fifo", "q.fifo"]


def test_twelve_hours_are_said(open_broker: Open, caplog: pytest.LogCaptureFixture) -> None:
    broker = open_broker()
    broker.publish_many([Envelope("q", b"x")])
    consumer = broker.consume(["q"], prefetch=1)
    [got] = take(consumer, 1)
    got.token.received -= 12 * 3600 - 5
    with caplog.at_level(logging.WARNING, "qnb"):
        for _ in range(3):
            consumer.extend_many([got], 10)
    assert [record.getMessage().count("12 hours") for record in caplog.records] == [1]
    assert got.token.hidden_until - time.monotonic() < 6


def test_predefined_queues(open_broker: Open, aws: Any, prefix: str) -> None:
    """Made by somebody else, with other names; no other is made, and not one is looked for."""
    urls = {name: aws.create_queue(QueueName=f"{prefix}-{name}")["QueueUrl"] for name in ("theirs", "urgent", "grave")}
    said = f"q={urls['theirs']},q-p9={urls['urgent']},q-dead={urls['grave']}"
    before = on_server(aws, prefix)
    broker = open_broker(predefined_queues=said, mailboxes="no")
    broker.publish_many([Envelope("q", b"0"), Envelope("q", b"9", priority=9)])
    assert broker.depth("q") == 2
    consumer = broker.consume(["q"], prefetch=10)
    got = take(consumer, 2)
    assert [one.body for one in got] == [b"9", b"0"]
    assert consumer.lease == 30  # the queue's own
    consumer.reject_many(got[:1], "why")
    consumer.release_many(got[1:])
    assert [letter.body for letter in broker.dead_letters("q")] == [b"9"]
    assert (broker.purge("q"), list(broker.queues())) == (1, ["q"])
    inbox = broker.bus().join("me")
    broker.bus().post_many([Note("me", "event", b"x")])
    assert list(inbox.receive_many(1, 0.05)) == []
    assert not {"list_queues", "create_queue", "get_queue_url"} & broker.stats().keys()
    assert on_server(aws, prefix) == before


def test_mailboxes_need_rights(open_broker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = open_broker()
    call = broker._client.call

    def denied(operation: str, *arguments: Any, **more: Any) -> Any:
        if operation == "create_queue":
            raise AccessDenied("no")
        return call(operation, *arguments, **more)

    monkeypatch.setattr(broker._client, "call", denied)
    with pytest.raises(AccessDenied, match=r"qnb-bus-\*.*mailboxes=no"):
        broker.bus().join("me")


def test_nothing_is_left_behind(open_broker: Open, aws: Any, prefix: str) -> None:
    broker, other = open_broker(), open_broker()
    long = "w." + "a-very-long-host-name.of.a-very-long-domain." * 3
    inboxes = [broker.bus().join(peer) for peer in ("w.host-1.local", long, "s.ü")]
    for inbox in inboxes:
        inbox.beat(inbox.peer.encode())
    assert sorted(p.peer for p in other.bus().peers()) == sorted(inbox.peer for inbox in inboxes)
    assert [p.info.decode() for p in open_broker().bus().peers(long)] == [long]
    other.bus().post_many([Note(long, "event", b"x")])
    assert list(inboxes[1].receive_many(1, 5.0)) == [Note(long, "event", b"x")]
    assert len(on_server(aws, prefix)) >= 4
    for each in (broker, other):
        each.close()
    assert until(lambda: len(on_server(aws, prefix)) == 1), "the third broker's, which asked, and is open"


def test_what_idling_costs(open_broker: Open) -> None:
    """Polls get longer the longer nothing comes, whatever receive_many's timeout; beats cost nothing."""
    broker = open_broker()
    consumer, inbox = broker.consume(["q"], prefetch=1), broker.bus().join("w.x")
    consumer.receive_many(1, 0)
    inbox.receive_many(1, 1.5)  # looks around for what the dead left behind
    before = broker.stats()
    begun = time.monotonic()
    for _ in range(60):
        inbox.beat(b"x")
        inbox.receive_many(1, 0)
        assert not consumer.receive_many(1, 0.1)
    used = {name: count - before.get(name, 0) for name, count in broker.stats().items()}
    assert time.monotonic() - begun > 6
    assert used["receive_message"] <= 4 + 1  # 1, 2, 4 and 8 seconds; and the inbox's
    assert used["requests"] <= used["receive_message"] + 1


def test_requests_are_counted(open_broker: Open) -> None:
    broker = open_broker()
    broker.declare(QueueSpec("q"))
    before = broker.stats()["requests"]
    broker.publish_many([Envelope("q", b"%d" % number) for number in range(95)])
    stats = broker.stats()
    assert (stats["send_message_batch"], stats["requests"] - before) == (10, 10)
    assert stats["requests"] == sum(count for name, count in stats.items() if name != "requests")


def test_batches_stay_below_the_size(open_broker: Open) -> None:
    broker = open_broker()
    sizes = [100_000, 100_000, 10, 190_000, 10, 60_000, 60_000, 60_000]
    broker.publish_many([Envelope("q", b"%d" % n + b"x" * size) for n, size in enumerate(sizes)])
    got = take(broker.consume(["q"], prefetch=10), len(sizes))
    assert sorted(len(one.body) - 1 for one in got) == sorted(sizes)


def test_a_server_with_a_lower_limit_is_met(open_broker: Open) -> None:
    """ministack's is that of AWS before August 2025."""
    broker = open_broker(message_size=1024 * 1024)
    before = broker.features.limits.message_bytes or 0
    broker.declare(QueueSpec("q"))
    limit = broker.features.limits.message_bytes or 0
    assert limit < before / 3.9
    broker.publish_many([Envelope("q", b"x" * limit)])
    with pytest.raises(PayloadTooLarge):
        broker.publish_many([Envelope("q", b"x" * (limit + 1))])
    assert [len(one.body) for one in take(broker.consume(["q"], prefetch=1), 1)] == [limit]


def test_bodies_read_what_they_write() -> None:
    for data, failures, due, level in itertools.product((b"", b"x", bytes(range(256))), (0, 3), (0.0, 1.5), (0, 9)):
        text = sqs_body.write(data, failures, due, far=bool(due), level=level)
        assert sqs_body.read(text) == sqs_body.Body(data, failures, due, bool(due), level)
        assert len(text) <= sqs_body.text_bytes(data)
    assert len(sqs_body.write(b"x" * sqs_body.room(1000), 999, 1e10, far=True, level=9)) <= 1000
