"""The queues of one place on the server: found, made when they are not there, and their levels known."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qnb.brokers.base import DEFAULT_LEASE, QueueSpec
from qnb.brokers.sqs.client import Client, DeletedRecently, QueueExists, QueueGone, Refused
from qnb.brokers.sqs.names import FIFO, LEVEL, Names
from qnb.errors import AccessDenied, BrokerUnavailable, ConfigurationError, QnbError, Unsupported

log = logging.getLogger("qnb")

LEVELS = 10
# How long a queue that was removed a moment ago is waited for; SQS takes 60 seconds to forget it.
_FORGOTTEN_SECONDS = 65.0
_OLD_MESSAGE_SIZE = 256 * 1024
_WATCHED = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"]


@dataclass(frozen=True, slots=True)
class Place:
    """A queue of the server: the messages of one priority of a queue of ours."""

    queue: str
    level: int
    url: str

    @property
    def fifo(self) -> bool:
        return self.url.endswith(FIFO)


class Queues:
    """Names to URLs. Safe from any thread."""

    def __init__(self, client: Client, names: Names) -> None:
        self._client, self.names = client, names
        self._options = client.options
        self._lock = threading.RLock()
        self._places: dict[tuple[str, int], Place] = {}
        self._leases: dict[str, float] = {}
        self._dead: dict[str, str] = {}
        self.limit = client.options.message_size  # lower when a queue that was there takes less

    # Open ------------------------------------------------------------------------------------------------------

    def declare(self, spec: QueueSpec) -> None:
        """Make the queue, and remember its lease."""
        with self._lock:
            before = self._leases.get(spec.name)
            self._leases[spec.name] = spec.lease
            known = (spec.name, 0) in self._places
        place = self.open(spec.name)
        if known and before != spec.lease:
            self._set_lease(place.url, spec.lease)

    def open(self, queue: str, level: int = 0, patience: float = _FORGOTTEN_SECONDS) -> Place:
        """The place of these messages, made when it is not there.

        One that was removed a moment ago is waited for; DeletedRecently when patience is at its end.
        """
        found = self.find(queue, level)
        return found or self._make(queue, level, patience)

    def find(self, queue: str, level: int = 0) -> Place | None:
        """The same, None when it is not there."""
        with self._lock:
            found = self._places.get((queue, level))
        if found is not None:
            return found
        url = self._predefined(queue, level) if self._options.predefined else self._url(self.names.queue(queue, level))
        if url is None:
            return None
        if level == 0:
            self._look(queue, url)
        return self._keep(Place(queue, level, url))

    def forget(self, place: Place) -> None:
        """It is not there any more."""
        with self._lock:
            self._places.pop((place.queue, place.level), None)
            if place.level == 0:
                self._dead.pop(place.queue, None)

    def lease(self, queue: str) -> float:
        """How long a delivery of the queue may stay unsettled: as declared, else as the queue has it."""
        with self._lock:
            return self._leases.get(queue, DEFAULT_LEASE)

    def _keep(self, place: Place) -> Place:
        with self._lock:
            return self._places.setdefault((place.queue, place.level), place)

    def _predefined(self, queue: str, level: int) -> str | None:
        url = self._options.predefined.get(queue if level == 0 else f"{queue}{LEVEL}{level}")
        if url is None and level == 0:
            known = ", ".join(sorted(self._options.predefined))
            raise ConfigurationError(
                f"queue {queue} is not among the predefined queues of {self._options.shown}: {known}"
            )
        if url is None:
            raise Unsupported(
                f"priority {level} of queue {queue} needs a queue of its own, and only predefined ones are used: "
                f"have one made, and add {queue}{LEVEL}{level}=URL to predefined_queues"
            )
        return url

    def _url(self, name: str) -> str | None:
        try:
            return str(self._client.call("get_queue_url", QueueName=name)["QueueUrl"])
        except QueueGone:
            return None

    def _look(self, queue: str, url: str) -> None:
        """What a queue that was there says of itself."""
        try:
            wanted = ["VisibilityTimeout", "MaximumMessageSize"]
            said = self._client.call("get_queue_attributes", QueueUrl=url, AttributeNames=wanted)["Attributes"]
        except (QueueGone, AccessDenied) as error:
            log.debug("queue %s: its attributes are not known: %s", queue, error)
            return
        self.limit = min(self.limit, int(said.get("MaximumMessageSize", self.limit)))
        seconds = int(said.get("VisibilityTimeout", 0))
        with self._lock:
            own = self._leases.get(queue)
            if own is None and seconds:
                self._leases[queue] = float(seconds)
        if own is not None and math.ceil(own) != seconds:
            self._set_lease(url, own)

    def _set_lease(self, url: str, lease: float) -> None:
        """For others who look at the queue; here the lease is told at each receive."""
        if self._options.predefined:
            return
        try:
            value = {"VisibilityTimeout": str(math.ceil(lease))}
            self._client.call("set_queue_attributes", QueueUrl=url, Attributes=value)
        except (QueueGone, AccessDenied, Refused) as error:
            log.debug("the lease is not set on %s: %s", url, error)

    # Make ------------------------------------------------------------------------------------------------------

    def _make(self, queue: str, level: int, patience: float) -> Place:
        dead = self.dead(queue)
        attributes = {"VisibilityTimeout": str(math.ceil(self.lease(queue)))}
        if self._options.max_receives and dead is not None and (arn := self._arn(dead)):
            policy = {"deadLetterTargetArn": arn, "maxReceiveCount": self._options.max_receives}
            attributes["RedrivePolicy"] = json.dumps(policy)
        url = self.create(self.names.queue(queue, level), attributes, patience)
        return self._keep(Place(queue, level, url))

    def dead(self, queue: str, make: bool = True) -> str | None:
        """The URL of the queue's dead letters."""
        with self._lock:
            url = self._dead.get(queue)
        if url is None:
            if self._options.predefined:
                url = self._options.predefined.get(f"{queue}-dead")
            else:
                name = self.names.dead(queue)
                url = self._url(name) or (self.create(name, {}) if make else None)
        if url is not None:
            with self._lock:
                self._dead[queue] = url
        return url

    def create(self, name: str, attributes: dict[str, str], patience: float = _FORGOTTEN_SECONDS) -> str:
        """Make a queue of the server; its URL."""
        options = self._options
        wanted = {
            "MessageRetentionPeriod": str(options.retention),
            "MaximumMessageSize": str(options.message_size),
            **({"FifoQueue": "true"} if name.endswith(FIFO) else {}),
            **options.attributes,
            **attributes,
        }
        more: dict[str, Any] = {"tags": options.tags} if options.tags else {}
        end = time.monotonic() + patience
        told = False
        while True:
            try:
                return str(self._client.call("create_queue", QueueName=name, Attributes=wanted, **more)["QueueUrl"])
            except QueueExists:  # made by somebody else, who asked for something else
                if url := self._url(name):
                    return url
            except Refused as error:
                if "MaximumMessageSize" not in wanted or "MaximumMessageSize" not in str(error):
                    raise
                del wanted["MaximumMessageSize"]  # less than AWS takes since August 2025
                self.limit = min(self.limit, _OLD_MESSAGE_SIZE)
            except DeletedRecently as error:
                if not patience:
                    raise
                if time.monotonic() > end:
                    raise BrokerUnavailable(
                        f"queue {name} was removed and SQS does not let it be made again"
                    ) from error
                if not told:
                    log.warning(
                        "queue %s was removed just now: SQS lets it be made again after 60 seconds; waiting", name
                    )
                    told = True
                time.sleep(2.0)

    def _arn(self, url: str) -> str | None:
        try:
            said = self._client.call("get_queue_attributes", QueueUrl=url, AttributeNames=["QueueArn"])
            return str(said["Attributes"]["QueueArn"])
        except (QueueGone, AccessDenied) as error:
            log.debug("no redrive policy with %s: %s", url, error)
            return None

    # Look ------------------------------------------------------------------------------------------------------

    def listed(self, prefix: str) -> Iterator[tuple[str, str]]:
        """(name on the server, URL) of all that begin so."""
        more: dict[str, Any] = {}
        while True:
            answer = self._client.call("list_queues", QueueNamePrefix=prefix, MaxResults=1000, **more)
            for url in answer.get("QueueUrls", ()):
                yield url.rpartition("/")[2], url
            if not answer.get("NextToken"):
                return
            more = {"NextToken": answer["NextToken"]}

    def levels(self, queue: str) -> list[Place]:
        """The places of a queue that are there, highest priority first; its own comes last."""
        base = self.find(queue)
        found = [] if base is None else [base]
        if self._options.predefined:
            known = self._options.predefined
            levels = [level for level in range(1, LEVELS) if f"{queue}{LEVEL}{level}" in known]
            return sorted([*found, *(self.open(queue, level) for level in levels)], key=lambda place: -place.level)
        own = {self.names.queue(queue, level): level for level in range(1, LEVELS)}
        fifo = FIFO if queue.endswith(FIFO) else ""
        prefix = self.names.queue(queue).removesuffix(fifo) + LEVEL
        try:
            listed = list(self.listed(prefix))
        except AccessDenied as error:
            log.debug("%s: no levels of %s: %s", self._options.shown, queue, error)
            listed = []
        found += [self._keep(Place(queue, own[name], url)) for name, url in listed if name in own]
        return sorted(found, key=lambda place: -place.level)

    def waiting(self, place: Place) -> int | None:
        """How many messages wait, delayed ones too; None when it is not there."""
        try:
            said = self._client.call("get_queue_attributes", QueueUrl=place.url, AttributeNames=_WATCHED)["Attributes"]
        except QueueGone:
            self.forget(place)
            return None
        return sum(int(said.get(name, 0)) for name in _WATCHED)

    def all(self) -> list[str]:
        """The names of the queues in this place."""
        if self._options.predefined:
            found = self._options.predefined
            return sorted(name for name in found if self.names.is_own(f"{self.names.prefix}{name}"))
        return sorted(self.names.read(name) for name, _ in self.listed(self.names.prefix) if self.names.is_own(name))

    def remove(self, queue: str) -> None:
        """Remove all of a queue."""
        if self._options.predefined:
            raise Unsupported(f"queue {queue} is predefined: whoever made it removes it")
        places = self.levels(queue)
        urls = [place.url for place in places]
        if dead := self.dead(queue, make=False):
            urls.append(dead)
        for place in [*places, Place(queue, 0, "")]:
            self.forget(place)
        for answer in self._client.each(lambda url: self._client.call("delete_queue", QueueUrl=url), urls):
            if isinstance(answer, QnbError):
                raise answer
