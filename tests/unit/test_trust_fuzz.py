"""Whatever a stranger sends, every parser that faces the wire gives a value or says BadMessage or BadSignature.

Two ways: hypothesis, which shrinks what it finds; and a plain loop over mutated messages, which is a hundred times
faster. `QNB_FUZZ_INPUTS=10000000 python -m pytest tests/unit/test_trust_fuzz.py --timeout 0` is the long run.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qnb.backends.schedules import Plan, Tick
from qnb.brokers import bus_parts
from qnb.brokers.sqs import body as sqs_body
from qnb.brokers.zookeeper.names import opened_pack
from qnb.brokers.zookeeper.presence import Card, opened_card
from qnb.brokers.zookeeper.queue import opened_letter
from qnb.codec.code import ANY_PYTHON, Archive, Code, write
from qnb.codec.code import read as read_code
from qnb.codec.outcomes import read_times, slice_outcomes
from qnb.codec.parts import names_of
from qnb.codec.payloads import (
    count_calls,
    decode_calls,
    decode_values,
    encode_columns,
    encode_pickled,
    encode_values,
    slice_calls,
    slice_values,
)
from qnb.codec.references import (
    blobs_of,
    decode_entries,
    decode_referring,
    encode_entries,
    encode_referring,
    split_values,
)
from qnb.codec.signing import FRAME, NOTE, OUTCOMES, Signer, decode, encode
from qnb.errors import BadMessage, BadSignature
from qnb.message import (
    DONE,
    FAILED,
    Blob,
    Command,
    Display,
    Event,
    Failure,
    Frame,
    Function,
    Note,
    Options,
    Outcomes,
    Progress,
    Reply,
    ValueOf,
)
from qnb.monitor.control import read_info
from qnb.session.runs import Detail

INPUTS = int(os.environ.get("QNB_FUZZ_INPUTS", "60000"))
SECONDS_AN_INPUT = 5.0  # far above any, and below what a hang would be
GROWTH_BYTES = 256 << 20
SIGNER = Signer(b"the key of the fuzz tests")


class Parser(NamedTuple):
    """`read` is what is looked at, `seeds` valid inputs of it."""

    read: Callable[[bytes], Any]
    seeds: list[bytes]


def never(data: Any) -> Any:
    """In the place of unpickling, which is nothing for bytes at random."""
    return data


def read_calls(data: bytes) -> None:
    """As a worker and its lane do."""
    count = count_calls(data)
    _, calls = decode_calls(data)
    assert len(list(calls)) == count
    assert count_calls(slice_calls(data, 0, 1)) == min(1, count)


def read_calls_unseen(data: bytes) -> None:
    """Without counting first."""
    list(decode_calls(data)[1])
    slice_calls(data, 0, 2)


def read_values(data: bytes) -> None:
    values, failed = decode_values(data, never)
    assert len(failed) <= len(values)
    slice_values(data, 0, 1)


def read_single_values(data: bytes) -> None:
    """As a worker does, which writes files under the names of what was put aside."""
    for value in split_values(data, range(2)).values():
        for key, size in (each for blob in blobs_of(value) for each in names_of(blob)):
            assert len(key) == 32
            assert set(key) <= set("0123456789abcdef")
            assert size >= 0


def read_outcomes(data: bytes) -> None:
    """As a session does, and as a worker that has to cut it."""
    outcomes = decode(data, Outcomes)
    read_times(outcomes.times)
    try:
        values, _ = decode_values(outcomes.values, never)
    except BadMessage:
        return
    assert not outcomes.values or len(values) == outcomes.count
    slice_outcomes(outcomes, 0, 1)


def read_part(data: bytes) -> None:
    """A queue of a QueueBus."""
    found = bus_parts.read(data)
    if isinstance(found, bus_parts.Part):
        incoming = bus_parts.Incoming("s.me", ordered=True)
        assert all(isinstance(note, Note) for note in incoming.take(found) + incoming.overdue())


def unseal(data: bytes) -> None:
    """Only what this key has sealed is opened."""
    for purpose in (FRAME, OUTCOMES, NOTE):
        try:
            body = SIGNER.unseal(purpose, data)
        except (BadMessage, BadSignature):
            continue
        assert SIGNER.seal(purpose, body) == data


def of(kind: Any) -> Callable[[bytes], Any]:
    return lambda data: decode(data, kind)


PAYLOADS = [
    encode_columns([[1, 2], ["a", "b"], [None, 2.5]], ("name",), True),
    encode_columns([[1, 2]], (), False),
    encode_pickled([b"one", b"two", b"three"]),
    encode_columns([[]], (), True),
]
VALUES = [encode_values([1, "a", None])[0], encode_values([[1], None, {2}])[0], b""]
FRAMES = [
    Frame("a-0", 3, 2, Function(b"h" * 16, "f", b"code"), PAYLOADS[0], Options(retries=2, timeout=1.5), "s.a", 1.0),
    Frame("a-1", 0, 1, Function(b"h" * 16, "f"), b"", blob="0" * 32, dead="why"),
]
OUTCOME = Outcomes(
    "a-0", 3, 3, bytes([DONE, FAILED, DONE]), VALUES[0], bytes(48), "w", 1.0, 2,
    {1: Failure("ValueError", "no", "…", b"pickle")}, {0: "printed"}, None, [],
    {0: [Display({"text/html": "<b>", "image/png": b"png", "a/json": {"a": [1]}}, {"image/png": {}}, 1, 7, "id")]},
)  # fmt: skip
PARTS = [bus_parts.ping(b"ticket", "s.me"), bus_parts.pong(b"ticket", "w.x", True, b"info")]
PARTS += [part for _, part in bus_parts.Outgoing(200).pack([Note("s.me", "outcomes", b"x" * 300)])]
PARTS += [part for _, part in bus_parts.Outgoing(2000).pack([Note("s.me", "reply", b"x"), Note("s.me", "event", b"")])]
INFO = {"pid": 1, "queues": ["qnb"], "key_id": "00000000", "done": 3}

PARSERS = {
    "unseal": Parser(unseal, [SIGNER.pack(FRAME, FRAMES[0]), SIGNER.seal(NOTE, b""), SIGNER.pack(OUTCOMES, OUTCOME)]),
    "Frame": Parser(of(Frame), [encode(frame) for frame in FRAMES]),
    "Outcomes": Parser(read_outcomes, [encode(OUTCOME), encode(Outcomes("a", 0, 3, b"", VALUES[1], b"", "w"))]),
    "calls": Parser(read_calls, PAYLOADS),
    "calls unseen": Parser(read_calls_unseen, PAYLOADS),
    "values": Parser(read_values, VALUES),
    "Progress": Parser(
        of(Progress),
        [
            encode(Progress("a-0", [1, 2], 2, "w", 1.0)),
            encode(Progress("a-0", [1], 2, "w", 1.0, 1, "text", 3, (1, 2, "note"), OUTCOME.displays[0])),
        ],
    ),
    "Command": Parser(of(Command), [encode(Command("revoke", {"tasks": ["a:1"], "to": None}, "id", "s.a"))]),
    "Reply": Parser(of(Reply), [encode(Reply("id", "w", {"a": [1, {"b": 2.0}]}, None))]),
    "Event": Parser(of(Event), [encode(Event("task-done", 1.0, "w", "a-0", detail={"x": 1}))]),
    "stored": Parser(of(tuple[str, int, int]), [encode(("a-0", 1, 2))]),
    "Detail": Parser(of(Detail), [encode(Detail(b"h", False, "text", {"retries": 3}, ["x"], [], ["blob"]))]),
    "presence": Parser(read_info, [encode(INFO), b""]),
    "parts of a queue": Parser(read_part, PARTS),
    "SQS": Parser(
        lambda data: sqs_body.read(data.decode("utf-8", "surrogateescape")),
        [sqs_body.write(b"body", 2, 1.5, True, 3).encode(), sqs_body.bell(3).encode()],
    ),
}
CODES = [
    Code("3.11", [("numpy", "numpy", "2.0")], [Archive("lib", "0" * 32)], "tasks", "add", True),
    Code("3.11", [], [Archive("lib", "f" * 32, b"zip")], pickle=b"pickle"),
]
CALLS = [("pickle", [ValueOf("a-0", 3, 2, False, "f"), Blob("0" * 32, 9, [("1" * 32, 7)], True)]), ("p", [])]
ENTRIES = [(b"pickle", []), (None, [Blob("0" * 32, 9, [("1" * 32, 7)])])]
PARSERS |= {
    "referring calls": Parser(decode_referring, [encode_referring([(data.encode(), refs) for data, refs in CALLS])]),
    "referring values": Parser(decode_entries, [encode_entries(ENTRIES)]),
    "single values": Parser(read_single_values, [*VALUES, encode_entries(ENTRIES)]),
    "code": Parser(read_code, [write(bytes(ANY_PYTHON), code) for code in CODES]),
    "plan": Parser(of(Plan), [encode(Plan(b"h", False, "", {}, "1s", "UTC", "f", "qnb", "f"))]),
    "tick": Parser(of(Tick), [encode(Tick(1.0, 2.0, "w", 3))]),
}
PARSERS |= {
    "pack of ZooKeeper": Parser(opened_pack, [encode((3, [b"one", b"two"]))]),
    "card of ZooKeeper": Parser(opened_card, [encode(Card(b"info"))]),
    "letter of ZooKeeper": Parser(opened_letter, [encode(("reason", b"body"))]),
}
# What msgpack and qnb care for: array and map heads with large counts, lengths, extensions, kinds of payload.
SPICES = [
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7, b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xd6\xff\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12, b"\xc1", b"\xc0", b"\x90", b"\x80", b"\xa1\xff", b"\x91" * 2000, b"\x81\x90" * 1500,
    b"c", b"p", b"m", b"q\x01", b"\x00" * 39,
]  # fmt: skip


def mutate(seed: bytes, rng: random.Random) -> bytes:
    """A few changes of the kinds that break parsers."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        how = rng.random()
        if how < 0.35 and data:
            data[at % len(data)] = rng.randrange(256)
        elif how < 0.45 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif how < 0.6:
            data[at:at] = rng.choice(SPICES)
        elif how < 0.7:
            spice = rng.choice(SPICES)
            data[at : at + len(spice)] = spice
        elif how < 0.8:
            del data[at:]
        elif how < 0.9:
            del data[at : at + rng.randint(1, 8)]
        else:
            data[at:at] = data[: rng.randint(0, 64)]
    return bytes(data)


def fed(parser: Parser, data: bytes) -> None:
    """Whatever else comes out is a fault."""
    with contextlib.suppress(BadMessage, BadSignature):
        parser.read(data)


@pytest.mark.parametrize("name", PARSERS)
def test_seeds_are_read(name: str) -> None:
    """Else the mutations of them would end at the door."""
    for seed in PARSERS[name].seeds:
        if name != "unseal":
            PARSERS[name].read(seed)


@pytest.mark.parametrize("name", PARSERS)
def test_mutated(name: str) -> None:
    parser = PARSERS[name]
    rng = random.Random(f"{name} {os.environ.get('QNB_FUZZ_SEED', '1')}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seeds, slowest, number = list(parser.seeds), 0.0, max(1, INPUTS // len(PARSERS))
    for _ in range(number):
        data = mutate(rng.choice(seeds), rng)
        begun = time.perf_counter()
        try:
            parser.read(data)
        except (BadMessage, BadSignature):
            pass
        except BaseException:
            print(f"{name} is broken by {data!r}")
            raise
        else:
            if rng.random() < 0.05 and len(data) < 4096:
                seeds[rng.randrange(len(seeds)) if len(seeds) > 200 else len(seeds) :] = [data]  # on from what is read
        slowest = max(slowest, time.perf_counter() - begun)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{name}: {number:,} inputs, slowest {slowest * 1000:.1f} ms, memory + {grown >> 10} MiB")
    assert slowest < SECONDS_AN_INPUT
    assert grown * (1 if sys.platform == "darwin" else 1024) < GROWTH_BYTES


_few = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
_objects = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=20,
)


# Drawing takes far longer than parsing: what was drawn is fed to every parser.


@_few
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    for front in (b"", b"c", b"p", b"m", b"r", SIGNER.seal(FRAME, b"")[:7]):
        for parser in PARSERS.values():
            fed(parser, front + data)


@_few
@given(_objects)
def test_any_message_pack(value: Any) -> None:
    """Well-formed, and something else than what is expected."""
    data = msgspec.msgpack.encode(value)
    for front in (b"", b"c", b"p", b"m", b"r"):
        for parser in PARSERS.values():
            fed(parser, front + data)


@pytest.mark.parametrize("name", PARSERS)
@settings(_few, max_examples=25)
@given(st.data())
def test_one_field_of_another_kind(name: str, data: st.DataObject) -> None:
    """A valid message with one of its fields exchanged."""
    seed = data.draw(st.sampled_from(PARSERS[name].seeds))
    front = seed[:1] if seed[:1] in (b"c", b"p", b"m", b"r") else b""
    try:
        fields = msgspec.msgpack.decode(seed[len(front) :])
    except msgspec.DecodeError:
        return
    if isinstance(fields, list) and fields:
        at = data.draw(st.integers(0, len(fields) - 1))
        inner = fields[at]
        if isinstance(inner, list) and inner and data.draw(st.booleans()):
            inner[data.draw(st.integers(0, len(inner) - 1))] = data.draw(_objects)
        else:
            fields[at] = data.draw(_objects)
    elif isinstance(fields, dict) and fields:
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_objects)
    fed(PARSERS[name], front + msgspec.msgpack.encode(fields))


# What the fields say of each other ------------------------------------------------------------------------------


def change(message: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(message, **fields)


@pytest.mark.parametrize(
    "message",
    [
        change(FRAMES[0], count=0),
        change(FRAMES[0], count=-1),
        change(FRAMES[0], count=2**62),
        change(FRAMES[0], first=-1),
        change(FRAMES[0], first=2**62),
        change(FRAMES[0], attempt=0),
        change(FRAMES[0], attempt=2**62),
        change(FRAMES[0], function=Function(b"short", "f")),
        change(FRAMES[0], options=Options(priority=10)),
        change(FRAMES[1], blob=""),
        change(OUTCOME, count=2),
        change(OUTCOME, count=2**40, states=b"", times=b"", values=b""),
        change(OUTCOME, states=bytes([DONE, 2, DONE])),
        change(OUTCOME, states=bytes([DONE, 200, DONE])),
        change(OUTCOME, states=bytes([DONE])),
        change(OUTCOME, times=bytes(47)),
        change(OUTCOME, values=VALUES[1][:1] + encode([None])),
        change(OUTCOME, failures={3: Failure("E", "m")}),
        change(OUTCOME, failures={-1: Failure("E", "m")}),
        change(OUTCOME, outputs={7: "x"}),
        change(OUTCOME, displays={7: OUTCOME.displays[0]}),
        change(OUTCOME, displays={-1: []}),
        change(OUTCOME, first=-5),
        Progress("a-0", [-1], 2, "w", 1.0),
        Progress("a-0", [2**62], 2, "w", 1.0),
        Progress("a-0", [1], DONE, "w", 1.0),
        Progress("a-0", [1], -1, "w", 1.0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_does_not_fit_together(message: Any) -> None:
    with pytest.raises(BadMessage, match="fit together"):
        decode(encode(message), type(message))


@pytest.mark.parametrize(
    "content",
    [
        (-1, ["a", "b"], [[1]]), (2, [], [[1]]), (0, [], []), (1, [], [[1], [2]]), (1, ["a"], [[1], [2, 3]]),
        (0, ["a", "a"], [[1], [2]]), (2**60, [], [[1]]),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(content: Any) -> None:
    for read in (count_calls, decode_calls, lambda data: slice_calls(data, 0, 1)):
        with pytest.raises(BadMessage):
            read(b"c" + encode(content))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["", "../../home", "a/b", "0" * 31, "G" * 32, "0" * 32 + "\n"])
def test_shipped_modules_whose_name_is_no_hash(name: str) -> None:
    """It would be the name of a folder."""
    with pytest.raises(BadMessage, match="no hash"):
        read_code(write(bytes(ANY_PYTHON), Code("", archives=[Archive("lib", name)])))
