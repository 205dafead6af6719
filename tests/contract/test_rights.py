"""The rights that docs/brokers/*.md name are enough for a user who has no others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import qnb
from tests.servers.kafka import SecureKafkaServer
from tests.servers.rabbitmq import RabbitServer
from tests.services import Services

PAGES = Path(__file__).parents[2] / "docs" / "brokers"
USER, PASSWORD = "qnb", "a-password-of-the-tests"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


@pytest.fixture
def redis(services: Services) -> str:
    [line] = re.findall(r"^ACL SETUSER (.*)$", page("redis"), re.MULTILINE)
    server = services.redis(user=line.replace("PASSWORD", PASSWORD))
    return f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}/0"


@pytest.fixture
def rabbitmq(services: Services) -> str:
    server = services.own(RabbitServer)
    for line in re.findall(r"^rabbitmqctl (.*)$", page("rabbitmq"), re.MULTILINE):
        server.control(*shlex.split(line.replace("PASSWORD", PASSWORD)))
    return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{server.port}/work"


@pytest.fixture
def kafka(services: Services) -> str:
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        AdminClient,
        ResourceType,
    )
    from confluent_kafka.admin._acl import ResourcePatternType  # type: ignore[attr-defined]

    server = services.common(SecureKafkaServer)
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{server.port}"})
    text = page("kafka")
    wanted: list[tuple[str, ResourceType, str, ResourcePatternType]] = []
    loops = re.findall(r"^for operation in ([\w ]+); do\n.* --(topic|group) (\S+)", text, re.MULTILINE)
    for words, kind, name in loops:
        found = ResourceType.TOPIC if kind == "topic" else ResourceType.GROUP
        wanted += [(word, found, name, ResourcePatternType.PREFIXED) for word in words.split()]
    [line] = re.findall(r"^\$acl (.* --cluster)$", text, re.MULTILINE)
    cluster = (ResourceType.BROKER, "kafka-cluster", ResourcePatternType.LITERAL)
    wanted += [(word, *cluster) for word in re.findall(r"--operation (\w+)", line)]
    assert len(wanted) == 11
    for word, kind_of, name, pattern in wanted:
        operation = AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).upper()]
        rule = AclBinding(kind_of, name, pattern, "User:bob", "*", operation, AclPermissionType.ALLOW)
        for future in admin.create_acls([rule]).values():
            future.result(10)
    return f"kafka://bob:bob-secret@{server.login_url}"


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "kafka"])
def test_the_rights_are_enough(broker: str, request: pytest.FixtureRequest) -> None:
    """Of a session and of a worker: calls, priorities, delays, cancels, control, queues and dead letters."""
    url = request.getfixturevalue(broker)
    with qnb.Session(url, workers=1) as session:
        task = session.task(abs)
        assert task.submit(-1).result(60) == 1
        assert task.options(priority=5).map(range(-20, 0)).results(60) == list(range(20, 0, -1))
        late = task.options(delay=0.2).submit(-3)
        assert late.result(60) == 3
        assert task.options(delay=60).submit(-4).cancel()
        assert list(session.control.ping(timeout=10).values()) == ["pong"]
        queue = session.queue
        assert list(session.broker.queues()) == [queue]
        assert list(session.broker.dead_letters(queue)) == []
        assert session.broker.depth(queue) is not None
        session.broker.purge(queue)
    with qnb.Session(url) as session:
        session.broker.remove(queue)
