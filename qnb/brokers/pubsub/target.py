"""Where Pub/Sub is: the project, the emulator or the service, and how to connect to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from qnb.brokers.pubsub.types import grpc
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError
from qnb.settings import Address, pubsub_emulator

SERVICE = "pubsub.googleapis.com:443"
# Looking for credentials asks a machine of Google's cloud for them, which takes its time where there is none.
CREDENTIAL_SECONDS = 4.0
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 4 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 4_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
LOG_IN = (
    "log in with `gcloud auth application-default login`, or let GOOGLE_APPLICATION_CREDENTIALS name the key file of "
    "a service account; for the emulator set PUBSUB_EMULATOR_HOST, or ?emulator=host:port in the URL"
)


@dataclass(frozen=True, slots=True)
class Target:
    """`host` is host:port. `project` is "" where the credentials are to name it."""

    project: str
    host: str
    emulated: bool

    @property
    def told(self) -> str:
        """How messages name it."""
        return f"the Pub/Sub emulator at {self.host}" if self.emulated else f"Pub/Sub at {self.host}"


def target_of(address: Address) -> Target:
    """pubsub://project, pubsub://project@host:port (an emulator), gcpubsub://projects/project."""
    project, emulator = "", address.options.get("emulator") or None
    if address.user:
        project = address.user
        emulator = emulator or f"{address.host}:{address.port(8085)}"
    elif address.hosts:
        if address.hosts[0][1] is not None:
            raise ConfigurationError(
                f"{address}: a project has no port; the emulator is named as in pubsub://project@localhost:8085"
            )
        project = address.host
    parts = address.path.strip("/").split("/")
    if project in ("projects", "") and parts[0]:
        project = parts[-1] if parts[0] == "projects" else parts[0]
    if project == "projects":
        raise ConfigurationError(f"{address} names no project: it looks like pubsub://my-project")
    emulator = emulator or pubsub_emulator()
    if emulator:
        emulator = emulator.removeprefix("http://").rstrip("/")
        if not project:
            raise ConfigurationError(f"{address} names no project; any name will do for an emulator: pubsub://test")
        return Target(project, emulator if ":" in emulator else f"{emulator}:8085", True)
    endpoint = address.options.get("endpoint", SERVICE)
    return Target(project, endpoint if ":" in endpoint else f"{endpoint}:443", False)


def connect(target: Target) -> tuple[Any, str]:
    """A channel, and the project. For the service with the application default credentials."""
    if target.emulated:
        return grpc.insecure_channel(target.host, options=_OPTIONS), target.project
    from google.pubsub_v1.services.subscriber.transports.grpc import SubscriberGrpcTransport

    credentials, project = _credentials(target)
    channel = SubscriberGrpcTransport.create_channel(target.host, credentials=credentials, options=list(_OPTIONS))
    return channel, project


def _credentials(target: Target) -> tuple[Any, str]:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.pubsub_v1.services.subscriber.transports import SubscriberTransport

    found: list[Any] = []

    def look() -> None:
        try:
            found.append(google.auth.default(scopes=SubscriberTransport.AUTH_SCOPES))
        except (GoogleAuthError, OSError, ValueError) as error:
            found.append(error)

    looking = threading.Thread(target=look, name="qnb pubsub credentials", daemon=True)
    looking.start()
    looking.join(CREDENTIAL_SECONDS)
    if not found:
        raise BrokerUnavailable(
            f"{target.told}: no credentials within {CREDENTIAL_SECONDS:.0f} s, and the server that gives them to "
            f"machines of Google's cloud does not answer: {LOG_IN}"
        )
    if isinstance(found[0], DefaultCredentialsError):
        raise ConfigurationError(f"{target.told}: no credentials found: {LOG_IN}") from found[0]
    if isinstance(found[0], BaseException):
        raise AccessDenied(f"{target.told}: the credentials cannot be used: {LOG_IN}") from found[0]
    credentials, project = found[0]
    project = target.project or project
    if not project:
        raise ConfigurationError("the credentials name no project: put it into the URL, as in pubsub://my-project")
    return credentials, project
