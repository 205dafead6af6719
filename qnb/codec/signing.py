"""Seal and unseal: HMAC-SHA256 over version, key id, purpose and body, checked before anything is opened.

A sealed message is: magic b"q", version (1 byte), key id (4 bytes), purpose (1 byte), MAC (32 bytes), body.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeVar

import msgspec

from qnb.codec.bounds import fault_of
from qnb.errors import BadMessage, BadSignature
from qnb.message import UNREADABLE, WIRE_VERSION

# What a sealed body is for: a body sealed for one purpose is refused for another.
FRAME, OUTCOMES, NOTE, CODE, BLOB, RUN = b"f", b"o", b"n", b"c", b"b", b"r"

_HEAD = b"q" + bytes([WIRE_VERSION])
_BODY = 39

T = TypeVar("T")


class Signer:
    """Seals and unseals with one key. Its repr names the key's id, never the key."""

    __slots__ = ("_head", "_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        self._head = _HEAD + hashlib.sha256(b"qnb key id" + key).digest()[:4]
        # HMAC by its definition, with both key blocks hashed once: half the time of hmac.digest for a small message,
        # and no copy of a large one.
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __repr__(self) -> str:
        return f"<Signer key id {self.key_id}>"

    @property
    def key_id(self) -> str:
        """Eight hex digits that tell keys apart and give nothing of the key away."""
        return self._head[2:].hex()

    def seal(self, purpose: bytes, body: bytes) -> bytes:
        """The body with its header and MAC in front."""
        head = self._head + purpose
        return b"".join((head, self._mac(head, body), body))

    def _mac(self, head: bytes, body: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(head)
        inner.update(body)
        outer.update(inner.digest())
        return outer.digest()

    def unseal(self, purpose: bytes, data: bytes) -> bytes:
        """The body, once its MAC is seen to hold; BadMessage or BadSignature otherwise."""
        if len(data) < _BODY or data[:1] != b"q":
            raise BadMessage(f"{len(data)} bytes that are not a message of qnb: something else writes to this queue")
        if data[1] != WIRE_VERSION:
            raise BadMessage(
                f"a message of wire version {data[1]}, this qnb speaks {WIRE_VERSION}: use the same qnb on both sides"
            )
        head, body = data[:7], data[_BODY:]
        if head[:6] != self._head:
            raise BadSignature(
                f"signed with key {head[2:6].hex()}, this side has key {self.key_id}: "
                "give both the same key (QNB_KEY, or Session(key=…) and `qnb worker --key-file`)"
            )
        if head[6:] != purpose:
            raise BadSignature(f"sealed for purpose {head[6:]!r}, not {purpose!r}: refused")
        if not hmac.compare_digest(data[7:_BODY], self._mac(head, body)):
            raise BadSignature("the signature does not hold: the message was changed on the way, and is not opened")
        return body

    def pack(self, purpose: bytes, message: msgspec.Struct) -> bytes:
        """Encode and seal a struct of message.py."""
        return self.seal(purpose, _encoder.encode(message))

    def unpack(self, purpose: bytes, data: bytes, kind: type[T]) -> T:
        """Unseal and decode a struct of message.py."""
        return decode(self.unseal(purpose, data), kind)


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[object]] = {}


def encode(message: object) -> bytes:
    """A struct of message.py as msgpack."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[T]) -> T:
    """A struct of message.py from msgpack; BadMessage when it is none."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message = decoder.decode(body)
    except UNREADABLE as error:
        raise BadMessage(f"not a {kind.__name__} of this version of qnb: {error}") from error
    if (fault := fault_of(message)) is not None:
        raise BadMessage(f"a {kind.__name__} that does not fit together: {fault}")
    return message  # type: ignore[return-value]
