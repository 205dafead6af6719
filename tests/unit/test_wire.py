"""docs/wire.md says what message.py does; and a frame can be read by that page alone."""

from __future__ import annotations

import hashlib
import hmac
import re
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qnb import message
from qnb.codec import signing
from qnb.codec.code import Archive, Code
from qnb.codec.payloads import encode_columns
from qnb.codec.signing import FRAME, Signer
from qnb.message import Frame, Function, Options

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
STRUCTS = [
    value for value in vars(message).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
]  # fmt: skip
KEY = b"a key for the tests of the wire"


def table(name: str) -> list[list[str]]:
    """The rows below the heading row whose first cell is this name."""
    found = re.search(rf"^\| {name} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, f"docs/wire.md has no table of {name}"
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]


def type_name(kind: Any) -> str:
    """A type as the page writes it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("nil" if a is type(None) else type_name(a) for a in arguments)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is dict:
        return f"map of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    return str(kind.__name__)


def default_name(field: msgspec.structs.FieldInfo) -> str:
    """A default as the page writes it."""
    if field.default_factory is not msgspec.NODEFAULT:
        return repr(field.default_factory())
    if field.default is msgspec.NODEFAULT:
        return ""
    if field.default is True:
        return "true"
    if isinstance(field.default, msgspec.Struct):
        return type(field.default).__name__
    if isinstance(field.default, list):
        return "[]"
    words: dict[Any, str] = {None: "nil", False: "false", "": '""'}
    return (
        words.get(field.default, repr(field.default))
        if field.default != 0
        else repr(field.default).replace("False", "false")
    )


@pytest.mark.parametrize("struct", [*STRUCTS, Code, Archive], ids=lambda struct: struct.__name__)
def test_fields(struct: type[msgspec.Struct]) -> None:
    rows = [row[:3] for row in table(struct.__name__)]
    assert rows == [[f.name, type_name(f.type), default_name(f)] for f in msgspec.structs.fields(struct)]


def test_arrays_and_maps() -> None:
    maps = {struct.__name__ for struct in STRUCTS if not struct.__struct_config__.array_like}
    assert maps == set(re.findall(r"(\w+) is a map, not an array", PAGE))


def test_states() -> None:
    assert [(int(row[0]), row[1]) for row in table("byte")] == list(enumerate(message.STATES))


def test_purposes_and_version() -> None:
    letters = {row[0].strip("`").encode() for row in table("purpose")}
    assert letters == {signing.FRAME, signing.OUTCOMES, signing.NOTE, signing.CODE, signing.BLOB, signing.RUN}
    assert f"wire version: `{message.WIRE_VERSION}`" in PAGE


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """MessagePack by its specification, as far as a frame needs it: nothing of qnb, nothing of msgspec."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    if byte >= 0xE0:
        return byte - 256, at + 1
    if byte & 0xF0 == 0x90 or byte in (0xDC, 0xDD):
        size = {0xDC: 2, 0xDD: 4}.get(byte, 0)
        count = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else byte & 0x0F
        items, at = [], at + 1 + size
        for _ in range(count):
            item, at = decode(data, at)
            items.append(item)
        return items, at
    if byte & 0xE0 == 0xA0 or 0xD9 <= byte <= 0xDB or 0xC4 <= byte <= 0xC6:
        size = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}.get(byte, 0)
        length = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else byte & 0x1F
        start = at + 1 + size
        raw = data[start : start + length]
        return (raw if 0xC4 <= byte <= 0xC6 else raw.decode()), start + length
    if byte in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[byte], at + 1
    if byte == 0xCB:
        import struct

        return struct.unpack(">d", data[at + 1 : at + 9])[0], at + 9
    size = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}[byte]
    return int.from_bytes(data[at + 1 : at + 1 + size], "big", signed=byte >= 0xD0), at + 1 + size


def test_a_frame_read_by_the_page_alone() -> None:
    args = encode_columns([[1, -70000, 3], ["a", "ü", None], [0.5, True, b"x"]], ["scale"], plain=True)
    frame = Frame(
        "9f86d08188-3", 17, 3, Function(b"h" * 16, "f", None), args, Options(2, 0.5, 60.0), "s.9f86d08188", 1e9
    )
    sealed = Signer(KEY).pack(FRAME, frame)
    head, mac, body = sealed[:7], sealed[7:39], sealed[39:]
    assert head == b"q\x01" + hashlib.sha256(b"qnb key id" + KEY).digest()[:4] + b"f"
    assert hmac.new(KEY, head + body, hashlib.sha256).digest() == mac
    fields, end = decode(body)
    assert end == len(body)
    read = dict(zip([row[0] for row in table("Frame")], fields, strict=True))
    options = dict(zip([row[0] for row in table("Options")], read["options"], strict=True))
    assert (read["run"], read["first"], read["count"], read["reply_to"]) == ("9f86d08188-3", 17, 3, "s.9f86d08188")
    assert read["function"] == [b"h" * 16, "f", None, False]
    assert (options["retries"], options["backoff"], options["timeout"], options["expires"]) == (2, 0.5, 60.0, None)
    assert read["args"][:1] == b"c"
    (positional, names, columns), _ = decode(read["args"], 1)
    calls = [(row[:positional], dict(zip(names, row[positional:], strict=True))) for row in zip(*columns, strict=True)]
    assert calls == [((1, "a"), {"scale": 0.5}), ((-70000, "ü"), {"scale": True}), ((3, None), {"scale": b"x"})]


def test_a_frame_written_by_the_page_alone() -> None:
    """Shorter arrays stand for defaults, and what comes after the known fields is ignored."""
    function = b"\x92" + b"\xc4\x10" + b"h" * 16 + b"\xa1f"
    short = b"\x95" + b"\xa3r-0" + b"\x00\x01" + function + b"\xc4\x02p\x90"
    head = b"q\x01" + hashlib.sha256(b"qnb key id" + KEY).digest()[:4] + b"f"
    sealed = head + hmac.new(KEY, head + short, hashlib.sha256).digest() + short
    assert Signer(KEY).unpack(FRAME, sealed, Frame) == Frame("r-0", 0, 1, Function(b"h" * 16, "f"), b"p\x90")
    long = b"\x9c" + msgspec.msgpack.encode(Frame("r-0", 0, 1, Function(b"h" * 16, "f"), b"p\x90"))[1:] + b"\xa5later"
    assert Signer(KEY).unpack(FRAME, Signer(KEY).seal(FRAME, long), Frame).run == "r-0"
