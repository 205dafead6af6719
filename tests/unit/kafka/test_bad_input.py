"""What goes wrong with Kafka is told once, in one sentence that has the remedy, and without a password."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
)
from confluent_kafka.admin._acl import ResourcePatternType  # type: ignore[attr-defined]
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from qnb.brokers.base import Delivery
from qnb.brokers.kafka.broker import KafkaBroker
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError, PayloadTooLarge
from qnb.message import Envelope
from tests.servers.base import free_port
from tests.servers.kafka import SecureKafkaServer
from tests.services import Services


def test_nobody_there_is_told_within_five_seconds() -> None:
    port = free_port()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{port}.*check that Kafka runs"):
        KafkaBroker(f"kafka://user:topsecret@127.0.0.1:{port}?security_protocol=SASL_PLAINTEXT")
    assert time.monotonic() - begun < 5.5


def test_the_client_library_says_nothing_by_itself() -> None:
    code = (
        f"from qnb.brokers.kafka.broker import KafkaBroker; KafkaBroker('kafka://u:topsecret@127.0.0.1:{free_port()}')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.returncode == 1
    assert "BrokerUnavailable" in said.stderr
    assert "%3|" not in said.stderr
    assert "topsecret" not in said.stderr.replace(code, "")


@pytest.mark.parametrize(
    "query, words",
    [
        ("no.such.setting=1", "no.such.setting"),
        ("security_protocol=WRONG", "security.protocol"),
        ("prefix=a/b", "prefix"),
        ("lease=soon", "lease"),
    ],
)
def test_settings_that_are_none(query: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        KafkaBroker(f"kafka://127.0.0.1:{free_port()}?{query}")


@pytest.fixture(scope="module")
def secure(services: Services) -> SecureKafkaServer:
    return services.common(SecureKafkaServer)


def test_a_wrong_password(secure: SecureKafkaServer) -> None:
    begun = time.monotonic()
    with pytest.raises(AccessDenied, match=r"refused the login.*sasl_mechanism") as caught:
        KafkaBroker(f"kafka://alice:not-this-one@{secure.login_url}")
    assert "not-this-one" not in str(caught.value)
    assert time.monotonic() - begun < 5.5


def test_a_login_that_is_right(secure: SecureKafkaServer, services: Services) -> None:
    broker = KafkaBroker(f"kafka://alice:alice-secret@{secure.login_url}&prefix={services.word()}")
    broker.publish_many([Envelope("q", b"x")])
    assert broker.depth("q") == 1
    assert "alice-secret" not in broker.url + repr(vars(broker)["url"])
    broker.close()


def allow(secure: SecureKafkaServer, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    """Give bob rights on everything whose name begins so."""
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{secure.port}"})
    for operation in operations:
        acl = AclBinding(kind, name, ResourcePatternType.PREFIXED, "User:bob", "*", operation, AclPermissionType.ALLOW)
        for future in admin.create_acls([acl]).values():
            future.result(10)


def test_no_right_to_make_the_topic(secure: SecureKafkaServer, services: Services) -> None:
    word = services.word()
    broker = KafkaBroker(f"kafka://bob:bob-secret@{secure.login_url}&prefix={word}")
    with pytest.raises(AccessDenied, match=rf"create topic {word}\.q\.q .*ACL"):
        broker.publish_many([Envelope("q", b"x")])
    broker.close()


def test_no_right_to_write_or_to_read(secure: SecureKafkaServer, services: Services) -> None:
    word = services.word()
    owner = KafkaBroker(f"kafka://alice:alice-secret@{secure.login_url}&prefix={word}")
    owner.publish_many([Envelope("q", b"x")])
    allow(secure, ResourceType.TOPIC, word, AclOperation.DESCRIBE)
    broker = KafkaBroker(f"kafka://bob:bob-secret@{secure.login_url}&prefix={word}")
    with pytest.raises(AccessDenied, match=rf"write to topic {word}\.q\.q.*ACL"):
        broker.publish_many([Envelope("q", b"y")])
    with pytest.raises(AccessDenied, match=rf"group {word}\.\w+.*ACL"):
        broker.consume(["q"], prefetch=1).receive_many(1, 10.0)
    broker.close()
    owner.close()


def test_a_topic_that_takes_less_than_we_do(broker: KafkaBroker, url: str) -> None:
    topic = broker._names.topic("small")
    asked = broker._admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": "2000"})])
    asked[topic].result(10)
    with pytest.raises(PayloadTooLarge, match=rf"{topic}.*max\.message\.bytes"):
        broker.publish_many([Envelope("small", b"x" * 5000)])
    broker.publish_many([Envelope("small", b"x" * 500)])
    assert broker.depth("small") == 1


def test_a_message_of_a_stranger_is_handed_out_like_any_other(broker: KafkaBroker) -> None:
    from confluent_kafka import Producer

    broker.publish_many([Envelope("q", b"ours")])
    producer = Producer({"bootstrap.servers": broker._settings["bootstrap.servers"]})
    producer.produce(broker._names.topic("q"), b"theirs", key=b"k", headers={"due": b"soon", "deliveries": b"many"})
    producer.produce(broker._names.topic("q"), None)
    producer.flush()
    consumer = broker.consume(["q"], prefetch=10)
    got: list[Delivery] = []
    deadline = time.monotonic() + 10
    while len(got) < 3 and time.monotonic() < deadline:
        got += consumer.receive_many(10, 1.0)
    assert sorted(delivery.body for delivery in got) == [b"", b"ours", b"theirs"]
    consumer.ack_many(got)
    assert broker.depth("q") == 0
