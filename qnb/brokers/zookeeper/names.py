"""What the names of nodes say, and how bodies are packed into nodes. See zookeeper_queue.py for the tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

import msgspec

from qnb.message import UNREADABLE

PACK_BYTES = 32_768
PRIORITIES = 10

_SHARD = re.compile(r"(\d)(\d{13})[0-9a-f]{6}([0-9a-f]{8})\.(\d+)\.(\d+)$")
_MESSAGE = re.compile(r"m(\d{4})-(\d+)-(\d+)$")
_pack = msgspec.msgpack.Decoder(tuple[int, list[bytes]]).decode


def node_name(name: str) -> str:
    """A name as one step of a path."""
    return quote(name, safe="").replace(".", "%2E").replace("~", "%7E") or "%"


def name_of(node: str) -> str:
    return "" if node == "%" else unquote(node)


@dataclass(frozen=True, slots=True)
class ShardName:
    """What a shard's name says: in the order of names are its priority, highest first, and its time."""

    text: str
    priority: int
    due: float
    number: int
    count: int
    packs: int

    @classmethod
    def parse(cls, text: str) -> ShardName | None:
        """None when qnb has not named it."""
        found = _SHARD.match(text)
        if found is None:
            return None
        urgency, at, number, count, packs = found.groups()
        return cls(text, PRIORITIES - 1 - int(urgency), int(at) / 1000, int(number, 16), int(count), int(packs))


@dataclass(slots=True)
class Content:
    """What a shard's children say: its messages by index, and which are leased."""

    messages: dict[int, str]
    locked: set[int]
    packs: list[str]

    @classmethod
    def parse(cls, children: Iterable[str]) -> Content:
        content = cls({}, set(), [])
        for child in children:
            if child[0] == "l" and child[1:].isdigit():
                content.locked.add(int(child[1:]))
            elif child[0] == "p" and child[1:].isdigit():
                content.packs.append(child)
            elif found := _MESSAGE.match(child):
                content.messages[int(found[1])] = child
        return content

    def below(self, path: str) -> list[str]:
        """The paths of its messages and packs."""
        return [f"{path}/{node}" for node in (*self.messages.values(), *self.packs)]

    @property
    def free(self) -> list[str]:
        """The messages that nobody holds, in order."""
        return [self.messages[index] for index in sorted(self.messages.keys() - self.locked)]


def message_name(index: int, pack: int, base: int) -> str:
    """The node of a message: its place in the shard, the pack with its body, and how often it was delivered before."""
    return f"m{index:04d}-{pack}-{base}"


def message_parts(node: str) -> tuple[int, int, int]:
    """Index, pack and base of a message's node."""
    _, index, pack, base = re.split("[m-]", node)
    return int(index), int(pack), int(base)


def lock_name(index: int) -> str:
    return f"l{index:04d}"


def opened_pack(data: bytes) -> dict[int, bytes] | None:
    """The bodies in a pack by index; None when qnb has not written it."""
    try:
        first, bodies = _pack(data)
    except UNREADABLE:
        return None
    return dict(enumerate(bodies, first))


def packed(bodies: Sequence[bytes]) -> tuple[list[tuple[int, list[bytes]]], list[int]]:
    """Bodies in packs of about PACK_BYTES, each with the index of its first, and in which each is.

    A larger one is alone.
    """
    packs: list[tuple[int, list[bytes]]] = []
    places = []
    size = 0
    for index, body in enumerate(bodies):
        if not packs or size + len(body) > PACK_BYTES:
            packs.append((index, []))
            size = 0
        packs[-1][1].append(body)
        size += len(body)
        places.append(len(packs) - 1)
    return packs, places
