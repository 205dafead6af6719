"""What SQS refuses: one clear error that names the remedy, and never the secret."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from qnb.brokers.base import QueueSpec
from qnb.brokers.sqs.broker import SqsBroker
from qnb.errors import (
    AccessDenied,
    BrokerUnavailable,
    ConfigurationError,
    PayloadTooLarge,
    PublishFailed,
    QnbError,
    Unsupported,
)
from qnb.message import Envelope
from tests.unit.sqs.fake import FakeSqs, fake_sqs


@pytest.fixture
def fake() -> Iterator[FakeSqs]:
    with fake_sqs() as made:
        yield made


def opened(url: str) -> SqsBroker:
    broker = SqsBroker(url)
    broker.close()
    return broker


@pytest.mark.parametrize(
    "says, words",
    [
        ("key", "refuses the credentials"),
        ("secret", "refuses the credentials"),
        ("expired", "whether they have expired"),
        ("clock", "set the clock"),
    ],
)
def test_refused_at_the_door(fake: FakeSqs, says: str, words: str) -> None:
    fake.says["ListQueues"] = says
    with pytest.raises(AccessDenied, match=words) as caught:
        opened(fake.url())
    assert "s3cretWord" not in str(caught.value)


def test_who_may_not_list_goes_on(fake: FakeSqs) -> None:
    fake.says["ListQueues"] = "right"
    broker = SqsBroker(fake.url())
    broker.publish_many([Envelope("q", b"x")])
    assert "s3cretWord" not in broker.url + repr(broker._options)
    broker.close()


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port} cannot be reached.*endpoint_url"):
        opened(f"sqs://a:b@127.0.0.1:{port}/")
    assert time.monotonic() - begun < 5


def test_somebody_who_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="no answer within 5 seconds"):
            opened(f"sqs://a:b@127.0.0.1:{mute.getsockname()[1]}/")
        assert time.monotonic() - begun < 5.5


def test_no_right_to_make_queues(fake: FakeSqs) -> None:
    fake.says |= {"GetQueueUrl": "gone", "CreateQueue": "right"}
    broker = SqsBroker(fake.url())
    with pytest.raises(AccessDenied, match=r"sqs:CreateQueue.*predefined_queues="):
        broker.declare(QueueSpec("q"))
    with pytest.raises(AccessDenied, match="predefined_queues="):
        broker.publish_many([Envelope("q", b"x")])
    broker.close()


def test_predefined_queues_are_used_and_nothing_is_made(fake: FakeSqs) -> None:
    fake.says |= {"CreateQueue": "right", "ListQueues": "right", "GetQueueUrl": "right"}
    base = f"http://127.0.0.1:{fake.port}/1/"
    broker = SqsBroker(fake.url(f"&predefined_queues=q={base}theirs,q-p9={base}urgent&queue_url={base}other"))
    broker.declare(QueueSpec("q"))
    broker.publish_many([Envelope("q", b"x"), Envelope("other", b"y"), Envelope("q", b"z", priority=9)])
    sent = {body["QueueUrl"] for name, body in fake.asked if name == "SendMessageBatch"}
    assert sent == {base + "theirs", base + "other", base + "urgent"}
    assert list(broker.queues()) == ["other", "q"]
    with pytest.raises(Unsupported, match="q-p5=URL"):
        broker.publish_many([Envelope("q", b"x", priority=5)])
    with pytest.raises(ConfigurationError, match="not among the predefined queues"):
        broker.publish_many([Envelope("unknown", b"x")])
    with pytest.raises(Unsupported, match="predefined"):
        broker.remove("q")
    assert not {"CreateQueue", "DeleteQueue", "SetQueueAttributes"} & {name for name, _ in fake.asked}
    broker.close()


def test_a_predefined_queue_that_is_not_there(fake: FakeSqs) -> None:
    fake.says["GetQueueAttributes"] = "gone"
    with pytest.raises(ConfigurationError, match=r"https://x/1/q is not there"):
        opened(fake.url("&queue_url=https://x/1/q"))


def test_a_busy_server_is_asked_again(fake: FakeSqs) -> None:
    broker = SqsBroker(fake.url())
    fake.says["SendMessageBatch"] = ["busy", "down"]
    broker.publish_many([Envelope("q", b"x")])
    assert fake.count("SendMessageBatch") == 3
    broker.close()


def test_patience_has_an_end(fake: FakeSqs) -> None:
    broker = SqsBroker(fake.url("&patience=0.2"))
    fake.says["SendMessageBatch"] = "down"
    with pytest.raises(BrokerUnavailable, match="out of order or busy"):
        broker.publish_many([Envelope("q", b"x")])
    broker.close()


def test_entries_that_fail_are_named_and_busy_ones_sent_again(fake: FakeSqs) -> None:
    broker = SqsBroker(fake.url())
    problems = [
        {"Id": number, "Code": code, "SenderFault": False, "Message": ""}
        for number, code in (("1", "InternalError"), ("2", "InvalidMessageContents"))
    ]
    done = [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "0"}]
    fake.says["SendMessageBatch"] = [{"Successful": done, "Failed": problems}]
    batch = [Envelope("q", b"%d" % number) for number in range(3)]
    with pytest.raises(PublishFailed, match="InvalidMessageContents") as caught:
        broker.publish_many(batch)
    assert caught.value.failed == batch[2:]
    [again] = [body for name, body in fake.asked if name == "SendMessageBatch"][1:]
    assert [entry["Id"] for entry in again["Entries"]] == ["1"]
    broker.close()


def test_a_queue_that_takes_less(fake: FakeSqs) -> None:
    broker = SqsBroker(fake.url())
    fake.says["SendMessageBatch"] = "size"
    with pytest.raises(PayloadTooLarge, match="MaximumMessageSize"):
        broker.publish_many([Envelope("q", b"x")])
    fake.says = {"GetQueueAttributes": {"Attributes": {"MaximumMessageSize": "2048", "VisibilityTimeout": "30"}}}
    before = broker.features.limits.message_bytes
    broker.declare(QueueSpec("small"))
    assert (broker.features.limits.message_bytes or 0) < 2048 < (before or 0)
    broker.close()


def test_a_batch_that_is_too_large_is_cut(fake: FakeSqs) -> None:
    broker = SqsBroker(fake.url())
    fake.says["SendMessageBatch"] = ["size"]
    broker.publish_many([Envelope("q", b"%d" % number) for number in range(5)])
    assert [len(body["Entries"]) for name, body in fake.asked if name == "SendMessageBatch"] == [5, 2, 3]
    broker.close()


def test_a_queue_removed_just_now_is_waited_for(fake: FakeSqs, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("qnb.brokers.sqs.queues.time.sleep", waits.append)
    fake.says |= {"GetQueueUrl": "gone", "CreateQueue": ["recently", "recently"]}
    broker = SqsBroker(fake.url("&max_receives=0"))
    broker.declare(QueueSpec("q"))
    assert len(waits) == 2
    broker.close()


def test_a_mailbox_whose_name_is_not_free_gets_another(fake: FakeSqs) -> None:
    fake.says |= {"CreateQueue": ["recently"], "ReceiveMessage": "gone"}
    broker = SqsBroker(fake.url())
    broker.bus().join("me").close()
    names = [body["QueueName"] for name, body in fake.asked if name == "CreateQueue"]
    assert names[0] == "qnb-bus-me"
    assert names[1].startswith("qnb-bus-me--r")
    broker.close()


@pytest.mark.parametrize(
    "url, words",
    [
        ("sqs://onlykey@/", "half a login"),
        ("sqs://?regoin=eu-west-1", "no option regoin"),
        ("sqs://?lease=50000&region=x", "up to 12 hours"),
        ("sqs://?wait=21", "from 1 to 20"),
        ("sqs://?endpoint_url=localhost", "endpoint_url"),
        ("sqs://?predefined_queues=q", "NAME=VALUE"),
        ("sqs://?predefined_queues=q=x", "https://"),
    ],
)
def test_bad_urls(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        opened(url)


def test_no_credentials_and_no_region(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        opened("sqs://?region=eu-west-1")
    with pytest.raises(ConfigurationError, match="region=eu-west-1"):
        opened("sqs://a:b@")
    with pytest.raises(AccessDenied, match="profile"):
        opened("sqs://?profile=nonesuch&region=eu-west-1")


def test_closed_is_closed(fake: FakeSqs) -> None:
    broker = opened(fake.url())
    with pytest.raises(QnbError, match="is closed"):
        broker.publish_many([Envelope("q", b"x")])
