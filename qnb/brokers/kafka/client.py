"""Kafka's clients: their settings out of the URL, their log, and their errors in qnb's words."""

from __future__ import annotations

import logging
import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from qnb.errors import AccessDenied, BrokerError, BrokerUnavailable, ConfigurationError, PayloadTooLarge, QnbError
from qnb.settings import Address

log = logging.getLogger("qnb.kafka")


class _Calm(logging.Filter):
    """librdkafka says several times a second that a server is away: once in half a minute will do, as a warning."""

    def __init__(self) -> None:
        super().__init__()
        self._again = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if "FAIL [" not in str(record.args) + str(record.msg):
            return True
        now = time.monotonic()
        calm, self._again = now < self._again, max(self._again, now + 30.0 if now >= self._again else 0.0)
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return not calm


log.addFilter(_Calm())
log.addFilter(lambda record: "CONFWARN" not in str(record.args))  # a setting that is for the other kind of client
log.addHandler(logging.NullHandler())  # librdkafka tells of each lost connection: for those who configure logging

PORT = 9092
CONNECT_SECONDS = 4.5
PATIENCE = 30.0
MESSAGE_BYTES = 8 * 1024 * 1024
# What is qnb's own in the query; all else is librdkafka's.
OWN = frozenset({"prefix", "lease", "max_message", "partitions", "max_partitions", "replication", "patience", "share"})

UNAVAILABLE = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._WAIT_COORD,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_CONTROLLER,
}
_LOGIN = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM}
_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_TOO_OLD = {KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT}
GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}


def settings_of(address: Address) -> dict[str, Any]:
    """librdkafka's settings of a URL: its hosts, its login, and every setting of its query by its own name."""
    hosts = address.hosts or (("localhost", None),)
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(f"{f'[{host}]' if ':' in host else host}:{port or PORT}" for host, port in hosts),
        "client.id": "qnb",
        "logger": log,
        "error_cb": Faults(),  # without one, errors come up in whatever call is under way
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 500,
        "topic.metadata.propagation.max.ms": 3000,
        "socket.nagle.disable": True,
    }
    if address.user:
        settings |= {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": address.user}
    if address.password:
        settings["sasl.password"] = address.password
    for name, value in address.options.items():
        if name not in OWN:
            settings[name.replace("_", ".")] = value
    return settings


def without_group(settings: dict[str, Any]) -> dict[str, Any]:
    """For a reader that is in no group: not what is meant for members of one."""
    member = ("max.poll.interval.ms", "session.timeout.ms", "heartbeat.interval.ms", "group.instance.id")
    return {name: value for name, value in settings.items() if name not in member}


def code_of(error: BaseException | KafkaError) -> int | None:
    """librdkafka's code of an error."""
    found = error.args[0] if isinstance(error, KafkaException) and error.args else error
    return int(found.code()) if isinstance(found, KafkaError) else None


def translate(error: BaseException | KafkaError, url: str, doing: str) -> QnbError:
    """An error of the client in qnb's words. `doing` says what was asked for, and of which topic."""
    code = code_of(error)
    found = error.args[0] if isinstance(error, KafkaException) and error.args else error
    words = found.str() if isinstance(found, KafkaError) else str(found)
    front = f"{url}: {doing}: {words}"
    if code in _LOGIN:
        return AccessDenied(
            f"{front}: the server refused the login; check user, password, sasl_mechanism and security_protocol"
        )
    if code in _RIGHTS:
        return AccessDenied(f"{front}: the user lacks this right on the {_RIGHTS[code]}: add an ACL that allows it")
    if code in _TOO_LARGE:
        return PayloadTooLarge(f"{front}: raise max.message.bytes of the topic, or lower max_message in the URL")
    if code in _TOO_OLD:
        return ConfigurationError(f"{front}: the server is too old for this; Kafka 2.3 and newer were tried")
    if code == KafkaError.POLICY_VIOLATION:
        return ConfigurationError(f"{front}: a policy of the server forbids it; make the topic by hand")
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        return ConfigurationError(f"{front}: fewer servers than copies: set replication=1 in the URL")
    if code in GONE:
        return BrokerError(f"{front}: the topic is not there; publish again, or allow this user to create topics")
    if code == KafkaError._INVALID_ARG:
        return ConfigurationError(f"{front}: check the librdkafka settings in the URL")
    if code is None or code in UNAVAILABLE:
        return BrokerUnavailable(f"{front}: check that Kafka runs there and that security_protocol is right")
    return BrokerError(front)


class Faults:
    """Hears what librdkafka says of itself, and remembers what no patience will mend."""

    def __init__(self) -> None:
        self.login: KafkaError | None = None
        self.fatal: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if error.code() in _LOGIN:
            self.login = error
        if error.fatal():
            self.fatal = error
        log.info("%s", error.str())


def connect(settings: dict[str, Any], url: str) -> tuple[AdminClient, Any]:
    """An administrator's client and the first metadata; BrokerUnavailable or AccessDenied within 5 seconds."""
    faults = Faults()
    try:
        admin = AdminClient({**settings, "error_cb": faults})
    except (KafkaException, ValueError, TypeError) as error:
        raise (
            translate(error, url, "settings of the client")
            if code_of(error)
            else ConfigurationError(f"{url}: {error}: check the librdkafka settings in the URL")
        ) from error
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        left = deadline - time.monotonic()
        try:
            return admin, admin.list_topics(timeout=max(0.1, min(left, 1.0)))
        except KafkaException as error:
            admin.poll(0)
            if faults.login is not None:
                raise translate(faults.login, url, "connect") from error
            if code_of(error) not in UNAVAILABLE or left <= 0:
                raise translate(error, url, f"no answer from {settings['bootstrap.servers']}") from error
            time.sleep(0.05)
