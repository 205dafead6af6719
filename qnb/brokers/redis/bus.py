"""Presence and mailboxes on Redis: a stream for each peer, presence by the server's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from qnb.brokers.base import PRESENCE_SECONDS, Inbox, Presence
from qnb.brokers.redis.client import Client, Line, wait_until
from qnb.brokers.redis.link import Command, Reply, ServerError
from qnb.brokers.redis.scripts import MAILBOX_NOTES, new_script, script
from qnb.errors import BrokerError
from qnb.message import Note

# A mailbox whose reader is gone removes itself after this. Long enough for a laptop lid; what is lost beyond it the
# session finds in the backend.
_KEPT_SECONDS = 900.0
_KEEP_EVERY = 60.0
_WAKE = b"\0"

# peer, present (ms); blob: info.
_BEAT = new_script("""
local t = now()
for _, gone in ipairs(call('ZRANGEBYSCORE', P..'peers', '-inf', t - 60000, 'LIMIT', 0, 50)) do
  call('ZREM', P..'peers', gone)
  call('HDEL', P..'info', gone)
end
call('ZADD', P..'peers', t + args.present, args.peer)
call('HSET', P..'info', args.peer, ARGV[2])
return 1
""")

# prefix. Returns [peer, info, peer, info, …].
_PEERS = new_script("""
local found, size = {}, #args.prefix
for _, peer in ipairs(call('ZRANGEBYSCORE', P..'peers', '('..now(), '+inf')) do
  if string.sub(peer, 1, size) == args.prefix then
    found[#found + 1] = peer
    found[#found + 1] = call('HGET', P..'info', peer) or ''
  end
end
return found
""")

# peer, kept: ms. An empty stream, so that notes have where to go: XADD … NOMKSTREAM drops the rest.
_JOIN = new_script("""
local key = P..'in:'..args.peer
redis.pcall('XGROUP', 'CREATE', key, 'qnb', '0', 'MKSTREAM')
return call('PEXPIRE', key, args.kept)
""")


class RedisBus:
    """See Bus of the ports."""

    def __init__(self, client: Client, base: str) -> None:
        self._client, self._base = client, base

    def join(self, peer: str) -> Inbox:
        return RedisInbox(self._client, self._base, peer)

    def post_many(self, notes: Sequence[Note]) -> None:
        """Notes to mailboxes that are not there are dropped by the server."""
        if notes:
            self._client.all([post(self._base, note) for note in notes])

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        found = self._client.one(*script(_PEERS, self._base, {"prefix": prefix}))
        pairs = zip(found[::2], found[1::2], strict=True)
        return sorted((Presence(peer.decode(), info) for peer, info in pairs), key=lambda presence: presence.peer)


def post(base: str, note: Note) -> Command:
    """The command that puts a note into its mailbox."""
    return ("XADD", f"{base}in:{note.to}", "NOMKSTREAM", "MAXLEN", "~", MAILBOX_NOTES, "*", note.kind, note.body)


class RedisInbox:
    """See Inbox of the ports.

    What was handed out is removed from the server together with the next read, and not before: an exception in the
    middle of a read (Ctrl-C) loses nothing, the same notes are read again.
    """

    def __init__(self, client: Client, base: str, peer: str) -> None:
        self.peer = peer
        self._client, self._base = client, base
        self._key = f"{base}in:{peer}"
        self._line = Line(client, self._rest, self._nudge)
        self._opened = 0
        self._receiving = threading.Lock()
        self._awake = threading.Condition()
        self._woken = self._closed = False
        self._last = b"0-0"  # the last note that was handed out
        self._trimmed = b"0-0"  # up to here they are removed
        self._keep_at = 0.0
        self._join()

    def _join(self) -> None:
        self._client.one(*script(_JOIN, self._base, {"peer": self.peer, "kept": round(_KEPT_SECONDS * 1000)}))
        self._keep_at = time.monotonic() + _KEEP_EVERY

    def receive_after(
        self, commands: Sequence[Command], limit: int, timeout: float
    ) -> tuple[list[Reply] | None, Sequence[Note]]:
        """Run commands, then read once, in one round trip: their replies and the notes.

        No replies when the link broke: whether the server ran the commands is not known then.
        """
        with self._receiving:
            replies, notes, last = self._exchange(commands, limit, time.monotonic() + timeout)
        self._last = last  # see receive_many
        return replies, notes

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        deadline = time.monotonic() + timeout
        with self._receiving:
            notes, last = self._wait(limit, deadline)
        # Ctrl-C cannot come between these lines: Python looks for signals at calls and backward jumps only.
        self._last = last
        return notes

    def _wait(self, limit: int, deadline: float) -> tuple[list[Note], bytes]:
        while not self._closed:
            if self._woken:
                deadline = 0.0
            notes, last = self._read(limit, deadline)
            if notes or time.monotonic() >= deadline:
                self._woken = False
                return notes, last
            self._last = last
        return [], self._last

    def _read(self, limit: int, deadline: float) -> tuple[list[Note], bytes]:
        _, notes, last = self._exchange((), limit, deadline)
        return notes, last

    def _exchange(
        self, first: Sequence[Command], limit: int, deadline: float
    ) -> tuple[list[Reply] | None, list[Note], bytes]:
        now = time.monotonic()
        if now >= self._keep_at or self._opened != self._line.opened:
            self._join()  # also after each reconnection: the server may have come back without its data
            self._opened = self._line.opened
        wait = wait_until(deadline, self._keep_at)
        commands, handed = list(first), self._last
        if handed != self._trimmed:
            commands.append(("XTRIM", self._key, "MINID", "=", _after(handed)))
        commands.append(("XREAD", "COUNT", limit, *wait.block, "STREAMS", self._key, handed))
        replies = self._line.exchange(commands, wait, max(deadline, now))
        if replies is None:
            return None, [], handed
        for reply in replies[len(first) :]:
            if isinstance(reply, ServerError):
                raise self._client.translate(reply) from reply
        self._trimmed = handed
        if replies[-1] is None:
            return replies[: len(first)], [], handed
        entries = replies[-1][0][1]
        notes = [Note(self.peer, f[0].decode(), f[1]) for _, f in entries if f[0] != _WAKE]
        return replies[: len(first)], notes, entries[-1][0]

    def beat(self, info: bytes = b"") -> None:
        arguments = {"peer": self.peer, "present": round(PRESENCE_SECONDS * 1000)}
        self._client.one(*script(_BEAT, self._base, arguments, info))

    def wake(self) -> None:
        self._woken = True
        with self._awake:
            self._awake.notify_all()
        if self._receiving.locked():
            self._nudge()

    def _nudge(self) -> None:
        with suppress(BrokerError):  # then the read ends by itself: its link is broken too
            self._client.run((("XADD", self._key, "NOMKSTREAM", "*", _WAKE, b""),), patience=0.0)

    def _rest(self, seconds: float) -> None:
        with self._awake:
            if not (self._woken or self._closed):
                self._awake.wait(seconds)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.wake()
        left = self._receiving.acquire(timeout=5.0)
        try:
            commands: list[Command] = [
                ("ZREM", f"{self._base}peers", self.peer),
                ("HDEL", f"{self._base}info", self.peer),
            ]
            self._client.run([*commands, ("DEL", self._key)], patience=0.0)
        except BrokerError:
            pass  # the server is away; the mailbox removes itself
        finally:
            self._line.close()
            if left:
                self._receiving.release()


def _after(entry: bytes) -> bytes:
    """The smallest id above this one."""
    milliseconds, _, number = entry.partition(b"-")
    return milliseconds + b"-" + str(int(number) + 1).encode()
