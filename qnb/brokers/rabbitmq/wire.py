"""AMQP frames as bytes: messages out and in, a batch at a time. All else is encoded and decoded by pika.

pika makes an object for each of a message's three frames and writes each by itself; this is several times faster.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pika import data, spec

METHOD, HEADER, BODY = spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY
DELIVER, ACK, NACK, RETURN = 0x003C003C, 0x003C0050, 0x003C0078, 0x003C0032
_HEADERS, _MODE, _PRIORITY, _EXPIRES, _ID, _TYPE = 1 << 13, 1 << 12, 1 << 11, 1 << 8, 1 << 7, 1 << 5
_USUAL = _MODE | _ID
_NOTE = _ID | _TYPE
_PERSISTENT = b"\x02"

_frame_head = struct.Struct(">BHI")
_publish_head = struct.Struct(">IH")
_header_head = struct.Struct(">HHQH")
_tag = struct.Struct(">Q")
_END = b"\xce"


class Properties(NamedTuple):
    """What of a message's properties matters here."""

    id: str = ""
    headers: Mapping[str, Any] = MappingProxyType({})
    priority: int = 0
    type: str = ""


class Content(NamedTuple):
    """A message to publish. `transient` ones do not outlive the server; `mandatory` ones come back when unroutable."""

    exchange: str
    key: str
    body: bytes
    properties: Properties
    transient: bool = False
    mandatory: bool = True


def short(text: str) -> bytes:
    """A short string: at most 255 bytes."""
    raw = text.encode()
    return bytes((len(raw),)) + raw


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _frame_head.pack(kind, channel, len(payload)) + payload + _END


def encode_content(channel: int, content: Content, body_max: int) -> bytes:
    """basic.publish with its header and body frames."""
    exchange, key, body, properties, transient, mandatory = content
    method = _publish_head.pack(0x003C0028, 0) + short(exchange) + short(key) + (b"\1" if mandatory else b"\0")
    flags, values = _encode_properties(properties, transient)
    header = _header_head.pack(60, 0, len(body), flags) + values
    parts = [_frame(METHOD, channel, method), _frame(HEADER, channel, header)]
    if len(body) <= body_max:
        if body:
            parts.append(_frame(BODY, channel, body))
    else:
        parts += [_frame(BODY, channel, body[at : at + body_max]) for at in range(0, len(body), body_max)]
    return b"".join(parts)


def _encode_properties(properties: Properties, transient: bool) -> tuple[int, bytes]:
    name, headers, priority, kind = properties
    flags, values = 0, b""
    if headers:
        flags |= _HEADERS
        pieces: list[bytes] = []
        data.encode_table(pieces, dict(headers))
        values = b"".join(pieces)
    if not transient:
        flags |= _MODE
        values += _PERSISTENT
    if priority:
        flags |= _PRIORITY
        values += bytes((priority,))
    if name:
        flags |= _ID
        values += short(name)
    if kind:
        flags |= _TYPE
        values += short(kind)
    return flags, values


def decode_header(payload: bytes) -> tuple[int, Properties]:
    """The size of the body, and the properties."""
    _, _, size, flags = _header_head.unpack_from(payload)
    if flags == _USUAL:
        return size, Properties(payload[16:].decode("utf-8", "replace"))
    if flags == _NOTE:
        end = 15 + payload[14]
        name, kind = payload[15:end], payload[end + 1 :]
        return size, Properties(name.decode("utf-8", "replace"), type=kind.decode("utf-8", "replace"))
    found = spec.BasicProperties()
    found.decode(payload[12:])
    return size, Properties(
        str(found.message_id or ""), dict(found.headers or {}), int(found.priority or 0), str(found.type or "")
    )


class Arrived(NamedTuple):
    """What basic.deliver says before the message itself comes."""

    consumer: str
    tag: int
    redelivered: bool


def decode_deliver(payload: bytes) -> Arrived:
    """A basic.deliver without exchange and routing key, which say nothing that the consumer does not know."""
    end = 5 + payload[4]
    (tag,) = _tag.unpack_from(payload, end)
    return Arrived(payload[5:end].decode(), tag, bool(payload[end + 8] & 1))


def decode_confirm(payload: bytes) -> tuple[int, bool]:
    """Tag and `multiple` of basic.ack and basic.nack."""
    (tag,) = _tag.unpack_from(payload, 4)
    return tag, bool(payload[12] & 1)


def encode_ack(channel: int, tag: int, multiple: bool) -> bytes:
    """basic.ack."""
    return _frame(METHOD, channel, struct.pack(">IQB", ACK, tag, multiple))


def encode_nack(channel: int, tag: int) -> bytes:
    """basic.nack of one message, back to its queue."""
    return _frame(METHOD, channel, struct.pack(">IQB", NACK, tag, 2))


def encode_method(channel: int, method: Any) -> bytes:
    """Any method, by pika."""
    payload = struct.pack(">I", method.INDEX) + b"".join(method.encode())
    return _frame(METHOD, channel, payload)


def decode_method(payload: bytes) -> Any:
    """Any method, by pika."""
    method = spec.methods[int.from_bytes(payload[:4])]()
    method.decode(payload, 4)
    return method


class Splitter:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[tuple[int, int, bytes]]:
        """(type, channel, payload) of each frame that is complete."""
        buffer = self._rest + received if self._rest else received
        frames, at, end = [], 0, len(buffer)
        while end - at >= 8:
            kind, channel, size = _frame_head.unpack_from(buffer, at)
            after = at + 8 + size
            if after > end:
                break
            if buffer[after - 1] != 0xCE:
                raise ValueError("a frame without its end: this is not AMQP 0-9-1")
            frames.append((kind, channel, buffer[at + 7 : after - 1]))
            at = after
        self._rest = buffer[at:]
        return frames
