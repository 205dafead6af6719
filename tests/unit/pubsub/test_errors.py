"""What can be wrong between here and Pub/Sub: one clear error that names the remedy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qnb.brokers.pubsub.broker import PubsubBroker
from qnb.brokers.pubsub.target import Target, target_of
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError, PayloadTooLarge, PublishFailed, Unsupported
from qnb.message import Envelope
from qnb.settings import parse_url
from tests.conformance.help import messages, take
from tests.servers.base import free_port
from tests.servers.pubsub_double import Double
from tests.unit.pubsub.conftest import Open


def test_nobody_there() -> None:
    port = free_port()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*does it run there"):
        PubsubBroker(f"pubsub://test@127.0.0.1:{port}")
    assert time.monotonic() - begun < 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_somebody_there_who_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            PubsubBroker(f"pubsub://test@127.0.0.1:{port}")
        assert time.monotonic() - begun < 5


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "PUBSUB_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r"gcloud auth application-default login.*GOOGLE_APPLICATION_CREDENTIALS"
    ):
        PubsubBroker("pubsub://my-project")


@pytest.mark.parametrize(
    "method,right",
    [
        ("CreateTopic", "pubsub.topics.create"),
        ("CreateSubscription", "pubsub.subscriptions.create"),
        ("Publish", "pubsub.topics.publish"),
    ],
)
def test_a_missing_right_is_named(double: Double, broker: Open, method: str, right: str) -> None:
    double.deny = (method,)
    with pytest.raises(AccessDenied, match=f"{right}.*create=false"):
        broker().publish_many(messages(b"x"))


def test_a_login_that_is_over(double: Double, broker: Open) -> None:
    """grpc says it in these words, and calls it unavailable; trying on would not help."""
    double.fail = ("Publish", "Getting metadata from plugin failed with error: ('invalid_grant: Bad Request')")
    begun = time.monotonic()
    with pytest.raises(AccessDenied, match="gcloud auth application-default login"):
        broker().publish_many(messages(b"x"))
    assert time.monotonic() - begun < 5


def test_a_consumer_without_the_right_says_so(double: Double, broker: Open) -> None:
    consumer = broker().consume(["q"], prefetch=1)
    double.deny = ("Pull",)
    with pytest.raises(AccessDenied, match=r"pubsub\.subscriptions\.consume"):
        consumer.receive_many(1, 5.0)


def test_without_the_right_to_look_and_to_list(double: Double, broker: Open) -> None:
    double.deny = ("GetTopic", "ListTopics")
    opened = broker()
    opened.publish_many([Envelope("q", b"0"), Envelope("q", b"5", priority=5)])
    consumer = opened.consume(["q"], prefetch=10)
    assert sorted(delivery.body for delivery in take(consumer, 2)) == [b"0", b"5"], "the hint tells of the level"


def test_made_beforehand(double: Double, broker: Open) -> None:
    broker().publish_many([*messages(b"before"), Envelope("q", b"urgent", priority=9)])
    double.deny = ("CreateTopic", "CreateSubscription")
    modest = broker(create="false")
    modest.publish_many(messages(b"x"))
    consumer = modest.consume(["q"], prefetch=10)
    assert [delivery.body for delivery in take(consumer, 3)] == [b"urgent", b"before", b"x"]
    with pytest.raises(PublishFailed, match=r"create=false: gcloud pubsub topics create qnb\+another") as caught:
        modest.publish_many([*messages(b"y"), *messages(b"z", queue="another")])
    assert [envelope.body for envelope in caught.value.failed] == [b"z"]
    with pytest.raises(ConfigurationError, match="gcloud pubsub subscriptions create"):
        modest.consume(["another"], prefetch=1).receive_many(1, 5.0)


def test_over_the_limit(broker: Open) -> None:
    opened = broker()
    largest = opened.features.limits.message_bytes
    assert largest is not None
    opened.publish_many(messages(b"x" * largest))
    with pytest.raises(PayloadTooLarge):
        opened.publish_many(messages(b"x" * (largest + 1)))
    assert len(take(opened.consume(["q"], prefetch=10), 1)[0].body) == largest


def test_a_delay_longer_than_messages_are_kept(broker: Open) -> None:
    with pytest.raises(Unsupported, match="keeps messages for 600 s"):
        broker(retention=600).publish_many(messages(b"x", delay=601))


@pytest.mark.parametrize(
    "url,target",
    [
        ("pubsub://my-project", Target("my-project", "pubsub.googleapis.com:443", False)),
        ("gcpubsub://projects/my-project", Target("my-project", "pubsub.googleapis.com:443", False)),
        ("pubsub://p@localhost:8085", Target("p", "localhost:8085", True)),
        ("pubsub://p@localhost", Target("p", "localhost:8085", True)),
        ("pubsub://p?emulator=box:1", Target("p", "box:1", True)),
        (
            "pubsub://p?endpoint=us-east1-pubsub.googleapis.com",
            Target("p", "us-east1-pubsub.googleapis.com:443", False),
        ),
        ("pubsub:", Target("", "pubsub.googleapis.com:443", False)),
    ],
)
def test_urls(monkeypatch: pytest.MonkeyPatch, url: str, target: Target) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    assert target_of(parse_url(url)) == target


def test_the_emulator_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "localhost:8432")
    assert target_of(parse_url("pubsub://p")) == Target("p", "localhost:8432", True)


@pytest.mark.parametrize(
    "url",
    [
        "pubsub://localhost:8085",
        "gcpubsub://projects/",
        "pubsub:?emulator=localhost:1",
        "pubsub://p@localhost:1?prefix=1x",
        "pubsub://p@localhost:1?prefix=google",
        "pubsub://p@localhost:1?create=perhaps",
        "pubsub://p@localhost:1?lease=0",
        "pubsub://p@localhost:1?retention=1",
    ],
)
def test_urls_that_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    with pytest.raises(ConfigurationError):
        PubsubBroker(url)


def test_a_queue_name_that_is_too_long(broker: Open) -> None:
    with pytest.raises(ConfigurationError, match="too long"):
        broker().publish_many(messages(b"x", queue="x" * 300))


def test_grpc_is_silent_on_stderr() -> None:
    code = f"""
from qnb.registry import open_broker
try:
    open_broker("pubsub://test@127.0.0.1:{free_port()}")
except ConnectionError:
    print("refused")
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("GRPC_VERBOSITY", "GRPC_TRACE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


@pytest.mark.parametrize("what", [lambda broker: broker.queues(), lambda broker: broker.publish_many(messages(b"x"))])
def test_closed(broker: Open, what: Callable[[PubsubBroker], object]) -> None:
    opened = broker()
    opened.close()
    opened.close()
    with pytest.raises(BrokerUnavailable, match="open a new one"):
        what(opened)
