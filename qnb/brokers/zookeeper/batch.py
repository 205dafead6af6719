"""Operations of ZooKeeper, and many of them in few transactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import RolledBackError, RuntimeInconsistency
from kazoo.protocol.serialization import CheckVersion, Delete, SetData

from qnb.brokers.zookeeper.link import ANSWERS, Link, Operation, Start
from qnb.errors import BrokerError

BATCH_OPERATIONS = 250
_OPERATION_BYTES = 64  # of an operation beside its path and data: headers, lengths, ACL
_FAILURES = 2  # of single items, after which a transaction is taken apart
_WINDOW = 16  # transactions on their way at once


def exists(path: str) -> Start:
    return lambda client: client.exists_async(path)


def children(path: str, watch: Callable[..., None] | None = None) -> Start:
    return lambda client: client.get_children_async(path, watch)


def data_of(path: str) -> Start:
    """Data and stat of a node."""
    return lambda client: client.get_async(path)


def stat_of(path: str, watch: Callable[..., None] | None = None) -> Start:
    """The stat of a node; None when it is not there, and the watch tells when it comes."""
    return lambda client: client.exists_async(path, watch)


def delete(path: str, version: int = -1) -> Operation:
    return Delete(path, version)


def put(path: str, data: bytes, version: int = -1) -> Operation:
    return SetData(path, data, version)


def same(path: str, version: int) -> Operation:
    """Fails when the node has another version."""
    return CheckVersion(path, version)


def failure(results: Sequence[Any]) -> tuple[int, Exception] | None:
    """Which operation of a transaction failed and why; None when it was done."""
    if not any(isinstance(result, Exception) for result in results):
        return None
    for place, result in enumerate(results):
        if isinstance(result, Exception) and not isinstance(result, (RolledBackError, RuntimeInconsistency)):
            return place, result
    return 0, results[0]


def size_of(operation: Operation) -> int:
    """Bytes of it in a packet, at most."""
    return len(operation.path.encode()) + len(getattr(operation, "data", b"")) + _OPERATION_BYTES


@dataclass(slots=True, eq=False)
class Item:
    """Operations that belong together; `results` when they were done, `error` when they were not."""

    operations: Sequence[Operation]
    results: Sequence[Any] | None = None
    error: Exception | None = None


def chunks(items: Sequence[Item], packet: int) -> list[list[Item]]:
    """Items packed into transactions the server takes."""
    packed: list[list[Item]] = []
    count = size = 0
    for item in items:
        more = sum(map(size_of, item.operations))
        if not packed or count + len(item.operations) > BATCH_OPERATIONS or size + more > packet:
            packed.append([])
            count = size = 0
        packed[-1].append(item)
        count, size = count + len(item.operations), size + more
    return packed


def commit_items(link: Link, items: Sequence[Item], tail: Sequence[Operation] = (), *, once: bool = False) -> None:
    """Do each item whole or not at all, as many at once as go into a transaction.

    `tail` is done along with each transaction, if it can be. With `once`, raises Lost instead of trying again. What
    the server does not do for reasons other than ANSWERS is raised in the end.
    """
    room = link.target.packet - sum(map(size_of, tail))
    waiting = [_Batch(chunk, list(tail)) for chunk in chunks(items, room)]
    send = link.attempt if once else link.call_many
    while waiting:
        now, waiting = waiting[:_WINDOW], waiting[_WINDOW:]
        for batch, results in zip(now, send([link.commit(batch.operations) for batch in now]), strict=True):
            waiting += _sort_out(link, batch, results)
    for item in items:
        if isinstance(item.error, BrokerError):
            raise item.error


@dataclass(slots=True)
class _Batch:
    """A transaction; `failures` counts those before it in which one of its items failed."""

    items: list[Item]
    tail: list[Operation]
    failures: int = 0

    @property
    def operations(self) -> list[Operation]:
        return [*(operation for item in self.items for operation in item.operations), *self.tail]


def _sort_out(link: Link, batch: _Batch, results: Sequence[Any]) -> list[_Batch]:
    """Note what was done; of a transaction that failed, what is to be tried again."""
    failed = failure(results)
    place = 0
    if failed is None:
        for item in batch.items:
            item.results = results[place : place + len(item.operations)]
            place += len(item.operations)
        return []
    at, error = failed
    rest = []
    for item in batch.items:
        if place <= at < place + len(item.operations):
            item.error = (
                error if isinstance(error, ANSWERS) else link.translate(error, item.operations[at - place].path)
            )
        else:
            rest.append(item)
        place += len(item.operations)
    tail = batch.tail if at < place else []
    failures = batch.failures + 1
    # The next one fails at the next item, if there is another: a few cost a try each, and after that each goes alone.
    parts = [rest] if failures <= _FAILURES else [[item] for item in rest]
    return [_Batch(part, tail, failures) for part in parts if part]
