"""Google's emulator of Pub/Sub: a jar that gcloud brings (`gcloud components install pubsub-emulator`)."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.base import QUICK_JAVA, Server, free_port, port_is_open

_JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"


def find_jar() -> str | None:
    """The emulator's jar: QNB_PUBSUB_EMULATOR_JAR, else where gcloud puts it."""
    named = os.environ.get("QNB_PUBSUB_EMULATOR_JAR")
    if named:
        return named
    for root in _roots():
        found = sorted(glob.glob(str(root / _JAR)))
        if found:
            return found[-1]
    return None


def _roots() -> Iterator[Path]:
    if os.environ.get("CLOUDSDK_ROOT_DIR"):
        yield Path(os.environ["CLOUDSDK_ROOT_DIR"])
    gcloud = shutil.which("gcloud")
    if gcloud:
        yield Path(gcloud).resolve().parents[1]
    home = Path.home()
    yield from (Path("/usr/lib/google-cloud-sdk"), Path("/usr/share/google-cloud-sdk"), Path("/opt/google-cloud-sdk"))
    yield from (Path("/snap/google-cloud-cli/current"), home / "google-cloud-sdk", Path("/root/google-cloud-sdk"))


class PubsubServer(Server):
    """The emulator, or where there is none (or QNB_PUBSUB_EMULATOR_JAR is "double") the double beside this file.

    Neither keeps anything over a restart.
    """

    stands_for = "Google Cloud Pub/Sub"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"pubsub://test@{self.host}"
        jar, java = find_jar(), shutil.which("java")
        if jar is None or jar == "double" or java is None:
            lacks = "java" if jar and jar != "double" else "gcloud components install pubsub-emulator"
            self._command = [sys.executable, "-m", "tests.servers.pubsub_double", str(self.port)]
            self.version = f"a double of Pub/Sub (for Google's emulator: {lacks})"
        else:
            number = re.search(r"emulator-([\d.]+)-all", jar)
            self._command = [java, *QUICK_JAVA, "-Xmx512m", "-jar", jar, "--host=127.0.0.1", f"--port={self.port}"]
            self.version = f"Google's Pub/Sub emulator {number[1] if number else jar}"

    def command(self) -> Sequence[str]:
        return self._command

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[2])}

    def up(self) -> bool:
        return port_is_open(self.port) and "Server started" in self.log()


def spoil(url: str, queue: str) -> None:
    """Make a queue that refuses messages: its topic wants them to be of a schema."""
    from google.pubsub_v1.types import pubsub, schema

    from qnb.brokers.pubsub import types as types
    from qnb.brokers.pubsub.broker import PubsubBroker
    from qnb.brokers.pubsub.link import CREATE_TOPIC, Method

    def plain(kind: Any) -> Any:
        return type(kind.pb(kind()))

    broker = PubsubBroker(url)
    link, name = broker._link, broker._shelf.name(queue)
    project, word = f"projects/{link.project}", f"never-{broker._shelf.options.prefix}"
    record = '{"type": "record", "name": "Never", "fields": [{"name": "never", "type": "int"}]}'
    wanted = plain(schema.Schema)(type_=schema.Schema.Type.AVRO.value, definition=record)
    create = Method("/google.pubsub.v1.SchemaService/CreateSchema", plain(schema.Schema), "parent", "")
    link.call(create, plain(schema.CreateSchemaRequest)(parent=project, schema=wanted, schema_id=word))
    strict = plain(pubsub.SchemaSettings)(schema=f"{project}/schemas/{word}", encoding=schema.Encoding.JSON.value)
    link.call(CREATE_TOPIC, types.Topic(name=link.topic(name), schema_settings=strict))
    broker.close()
