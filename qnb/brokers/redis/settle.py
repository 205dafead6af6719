"""Settling a whole turn of a worker in one round trip, when results live on the broker's own Redis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import msgspec

from qnb.brokers.base import Consumer, Turn
from qnb.brokers.redis.bus import post
from qnb.brokers.redis.client import Client
from qnb.brokers.redis.consumer import RedisConsumer, Token
from qnb.brokers.redis.link import Command, Target
from qnb.brokers.redis.scripts import MAILBOX_NOTES, MINE, new_script, script
from qnb.brokers.redis.server import Server
from qnb.errors import PayloadTooLarge
from qnb.message import Envelope, Note, Stored

# proto-max-bulk-len is 512 MB unless the server's owner changed it; the server hangs up on more.
LARGEST_VALUE = 512 * 1024 * 1024 - 1024
HEAD_BITS = 32  # in the bits of a run's starts: which lengths its records have
# Above these the script is faster: it is sent an outcome once that is both stored and posted, and takes this side less
# time for many.
_PLAIN_BYTES = 32 * 1024
_PLAIN_PARTS = 24
_MARK_SECONDS = 60.0
_MARKS = 10_000

# store: [run, first, count, blob of its data, bits of count], post: [peer, kind, blob], me, items as in ACK;
# out: "{prefix}:" of the backend, expires (ms). Blobs are counted from 0; an outcome that is stored and posted crosses
# the wire once.
# Returns the positions (from 0) of refused records.
#
# One script, so one step: the record that won is posted before any other turn can store or post. A reader that takes
# the first outcome it sees of a call therefore has the one that is stored, and the note of a refused record, which
# could only contradict it, is left out.
_SETTLE = new_script(
    MINE,
    f"local mailbox_notes, head_bits = {MAILBOX_NOTES}, {HEAD_BITS}",
    """
local refused, silent, runs = {}, {}, {}
for i, s in ipairs(args.store) do
  local data = struct.pack('>I4', s[3])..ARGV[s[4] + 2]
  local key, starts = args.out..'out:'..s[1], args.out..'starts:'..s[1]
  if call('HSETNX', key, s[2], data) == 0 and call('HGET', key, s[2]) ~= data then
    refused[#refused + 1] = i - 1
    silent[s[4]] = true
  else
    silent[s[4]] = false
  end
  call('SETBIT', starts, s[2] + head_bits, 1)
  runs[s[1]] = runs[s[1]] or {}
  runs[s[1]][s[5]] = true
end
for run, widths in pairs(runs) do
  for width in pairs(widths) do call('SETBIT', args.out..'starts:'..run, width, 1) end
  call('PEXPIRE', args.out..'starts:'..run, args.expires)
  call('PEXPIRE', args.out..'out:'..run, args.expires)
end
for _, n in ipairs(args.post) do
  if not silent[n[3]] then
    call('XADD', P..'in:'..n[1], 'NOMKSTREAM', 'MAXLEN', '~', mailbox_notes, '*', n[2], ARGV[n[3] + 2])
  end
end
for _, m in ipairs(args.items) do
  local key = stream(m[1], m[2])
  if mine(key, m[3], m[4]) then
    call('XACK', key, 'qnb', m[3])
    call('XDEL', key, m[3])
  end
end
return refused
""",
)


class Home(msgspec.Struct, frozen=True):
    """Where a backend keeps outcomes: how to get there, what its keys start with, how long they stay (ms)."""

    target: Target
    server: Server
    base: str
    expires: int

    def shared_by(self, target: Target, server: Server) -> bool:
        """Whether that is the same data, perhaps under another name of the host."""
        same_server = bool(server.run_id) and server.run_id == self.server.run_id
        same_data = (self.target.db, self.target.slot) == (target.db, target.slot)
        return self.target == target or (same_server and same_data)


class Blobs(msgspec.Struct):
    """Bytes that go along with a script, each once: an outcome is mostly stored and posted in the same turn."""

    values: list[bytes] = []
    places: dict[int, int] = {}

    def place(self, value: bytes) -> int:
        """The position of these very bytes."""
        at = self.places.get(id(value))
        if at is None:
            at = self.places[id(value)] = len(self.values)
            self.values.append(value)
        return at


def settle_command(
    base: str,
    home: Home,
    store: Sequence[Stored],
    post: Sequence[Note] = (),
    ack: tuple[str, Sequence[Token]] = ("", ()),
) -> Command:
    """Store, post and ack as one step; its reply are the positions of the refused records. `ack`: consumer, tokens."""
    blobs = Blobs()
    for record in store:
        check_size(len(record.data), f"the outcome of {record.run}:{record.first}")
    arguments = {
        "store": [(s.run, s.first, s.count, blobs.place(s.data), s.count.bit_length()) for s in store],
        "post": [(note.to, note.kind, blobs.place(note.body)) for note in post],
        "me": ack[0],
        "items": ack[1],
        "out": home.base,
        "expires": home.expires,
    }
    return script(_SETTLE, base, arguments, *blobs.values)


def check_size(size: int, what: str) -> None:
    """PayloadTooLarge when Redis would hang up on it."""
    if size > LARGEST_VALUE:
        raise PayloadTooLarge(f"{what} has {size:,} bytes; a value in Redis may have {LARGEST_VALUE:,}")


def _is_small(turn: Turn) -> bool:
    parts = len(turn.store) + len(turn.post) + len(turn.ack)
    return parts <= _PLAIN_PARTS and sum(len(record.data) for record in turn.store) <= _PLAIN_BYTES


class RedisSettle:
    """See Settle of the ports.

    Two ways, with the same effect. The plain one is a transaction of the server's own commands: half the time of the
    script, for small turns whose deliveries are held beyond doubt. It posts the note of a refused record too, behind
    that of the record that won, since each turn is one step.
    """

    def __init__(self, client: Client, base: str, home: Home, publish: Callable[[Sequence[Envelope]], None]) -> None:
        self._client, self._base, self._home, self._publish = client, base, home, publish
        self._marked: dict[tuple[str, int], float] = {}
        self._mark_every = min(_MARK_SECONDS, home.expires / 100_000)

    def __call__(self, consumer: Consumer, turn: Turn) -> Sequence[Stored]:
        if not isinstance(consumer, RedisConsumer):
            raise TypeError("this settles deliveries of a Redis consumer only")
        # Retries are rare, and none may be acked before it is confirmed to be back in its queue: its own round trip.
        if turn.publish:
            self._publish(turn.publish)
            turn.publish = []  # a turn that fails later is tried again as a whole
        if not (turn.store or turn.post or turn.ack):
            return []
        if _is_small(turn) and consumer.surely_holds(turn.ack):
            refused = self._plainly(consumer, turn)
        else:
            ack = (consumer.name, [delivery.token for delivery in turn.ack])
            positions = self._client.one(*settle_command(self._base, self._home, turn.store, turn.post, ack))
            refused = [turn.store[position] for position in positions]
        consumer.settled(turn.ack)
        return refused

    def _plainly(self, consumer: RedisConsumer, turn: Turn) -> list[Stored]:
        out = self._home.base
        commands: list[Command] = [
            ("HSETNX", f"{out}out:{s.run}", s.first, s.count.to_bytes(4) + s.data) for s in turn.store
        ]
        commands += [("SETBIT", f"{out}starts:{s.run}", HEAD_BITS + s.first, 1) for s in turn.store]
        marked = self._mark(turn.store, commands)
        commands += [post(self._base, note) for note in turn.post]
        commands += consumer.plain_ack(turn.ack)
        replies = self._client.transaction(commands)
        self._marked.update(marked)
        return [s for s, kept in zip(turn.store, replies, strict=False) if not kept and not self._is_stored(s)]

    def _mark(self, store: Sequence[Stored], commands: list[Command]) -> dict[tuple[str, int], float]:
        """Add what need not be said with each record: its length's bit, and when its run expires."""
        now = time.monotonic()
        if len(self._marked) > _MARKS:
            self._marked.clear()
        due = {(s.run, s.count.bit_length()) for s in store}
        due = {pair for pair in due if now - self._marked.get(pair, -math.inf) > self._mark_every}
        for run, bits in due:
            starts = f"{self._home.base}starts:{run}"
            commands.append(("SETBIT", starts, bits, 1))
            commands += [("PEXPIRE", key, self._home.expires) for key in (starts, f"{self._home.base}out:{run}")]
        return dict.fromkeys(due, now)

    def _is_stored(self, record: Stored) -> bool:
        """Refused, but by itself: this turn was sent twice, for its reply had been lost."""
        found = self._client.one("HGET", f"{self._home.base}out:{record.run}", record.first)
        return bool(found == record.count.to_bytes(4) + record.data)
