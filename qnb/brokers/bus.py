"""A Bus made of nothing but mailboxes, for servers that have queues and no broadcast, and charge by the request.

A peer is present when it answers: nobody reports to anybody while nobody asks, so an idle peer costs its long poll
and nothing else. Who asks lists the mailboxes, sends each a ping, and waits for the answers in its own mailbox.
A mailbox whose owner does not answer is removed by whoever notices, after a while; a living owner makes it anew.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from qnb.brokers.base import PRESENCE_SECONDS, Presence
from qnb.brokers.bus_parts import PART, PING, Incoming, Outgoing, ping, pong, read
from qnb.brokers.bus_sweep import Sweeper
from qnb.brokers.memory.bus import Gate
from qnb.errors import QnbError
from qnb.message import Note

log = logging.getLogger("qnb")

# One long poll; servers cut it to what they have.
POLL_SECONDS = 20.0
# How long answers are waited for: of peers that were never asked, and of those that answered the last time.
ANSWER_SECONDS, KNOWN_ANSWER_SECONDS = 1.0, 2.0
# A mailbox that was made only to ask is kept for the next question.
ASKER_SECONDS = 20.0
# Peers that only ask; nobody asks them.
ASKER_PREFIX = "~"


class MailboxGone(Exception):
    """The mailbox that is read is not there (any more)."""


class Mailboxes(Protocol):
    """What a broker has to offer for a QueueBus: mailboxes by the names of peers (any text). Safe from any thread.

    `message_bytes` is the limit of a message. `ordered`: messages of one sender arrive in order.
    """

    message_bytes: int
    ordered: bool

    def make(self, name: str) -> str:
        """A new, empty mailbox; one that is there under this name is removed. Its address, by which it is read."""

    def find(self, prefix: str = "") -> Mapping[str, str]:
        """The mailboxes that are there: name → address."""

    def age(self, address: str) -> float | None:
        """Seconds since it was made; None when it is not there."""

    def send_many(self, messages: Sequence[tuple[str, bytes]]) -> Collection[str]:
        """Returns when all are sent; the names of mailboxes that are not there. Those messages are dropped."""

    def receive(self, address: str, timeout: float) -> Sequence[bytes]:
        """Messages as soon as there are any, and off the server; none after `timeout` seconds or sooner.

        MailboxGone when it is not there. Called by one thread a mailbox.
        """

    def remove(self, address: str) -> None:
        """Remove the mailbox, where it is there. A receive that waits on it may go on to its timeout."""


class _Question:
    """One peers() that waits for answers."""

    def __init__(self, names: Collection[str]) -> None:
        self.answers: dict[str, tuple[bool, bytes]] = {}
        self.waiting = set(names)
        self.answered = threading.Event()
        if not self.waiting:
            self.answered.set()

    def answer(self, peer: str, present: bool, info: bytes) -> None:
        self.answers[peer] = (present, info)
        self.waiting.discard(peer)
        if not self.waiting:
            self.answered.set()


class QueueInbox:
    """See Inbox of the ports. A thread reads the mailbox, so that pings are answered whatever the owner does.

    Notes are numbered as they arrive, and forgotten at the receive after the one that gave them out: an exception in
    the middle of a receive (Ctrl-C) loses nothing.
    """

    def __init__(self, bus: QueueBus, boxes: Mailboxes, peer: str) -> None:
        self.peer = peer
        self.used = time.monotonic()  # for askers
        self._bus, self._boxes = bus, boxes
        self._notes: dict[int, Note] = {}
        self._arrived = self._next = self._forgotten = 0
        self._gate = Gate()
        self._woken = False
        self._closed = threading.Event()
        self._beaten: float | None = None
        self._info = b""
        self._incoming = Incoming(peer, ordered=boxes.ordered)
        self._address = boxes.make(peer)
        self._thread = threading.Thread(target=self._read, name=f"qnb inbox {peer}", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether it still is the mailbox of this peer."""
        return not self._closed.is_set()

    def presence(self) -> tuple[bool, bytes]:
        """Whether the owner has beaten of late, and what it said."""
        beaten = self._beaten
        present = beaten is not None and time.monotonic() - beaten < PRESENCE_SECONDS
        return present, self._info

    # For its owner ---------------------------------------------------------------------------------------------

    def receive_many(self, limit: int, timeout: float) -> Sequence[Note]:
        end = time.monotonic() + timeout
        for number in range(self._forgotten, self._next):
            self._notes.pop(number, None)
        self._forgotten = self._next
        while True:
            upto = min(self._next + limit, self._arrived)
            notes = [self._notes[number] for number in range(self._next, upto)]
            now = time.monotonic()
            if notes or self._woken or self._closed.is_set() or now >= end:
                self._woken = False
                # Ctrl-C cannot come between these lines: Python looks for signals at calls and backward jumps only.
                self._next = upto
                return notes
            self._gate.wait(end - now)

    def beat(self, info: bytes = b"") -> None:
        self._info = info
        self._beaten = time.monotonic()

    def wake(self) -> None:
        self._woken = True
        self._gate.open()

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._gate.open()
        self._bus.left(self)
        try:
            self._boxes.remove(self._address)
        except QnbError as error:  # the server is away; who finds the mailbox later removes it
            log.debug("mailbox %s is left behind: %s", self.peer, error)

    # The thread ------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                self._turn()
                failures = 0
            except MailboxGone:
                self._restore()
            except Exception as error:
                # Whatever it is, a peer that reads no longer would be deaf for good.
                if not self._closed.is_set() and failures == 0:
                    level = logging.WARNING if isinstance(error, QnbError) else logging.ERROR
                    log.log(level, "mailbox of %s: %s; trying again", self.peer, error, exc_info=level > 30)
                failures += 1
                self._closed.wait(min(0.1 * 2**failures, 5.0) * random.uniform(0.8, 1.2))

    def _turn(self) -> None:
        patience = min(POLL_SECONDS if (gap := self._incoming.patience) is None else gap, self._bus.patience(self))
        answers: list[tuple[str, bytes]] = []
        for data in self._boxes.receive(self._address, patience):
            message = read(data)
            if self._closed.is_set():
                return
            if message is None:
                log.debug("mailbox of %s: not a message of a bus", self.peer)
            elif message.kind == PART:
                self._add(self._incoming.take(message))
            elif message.kind == PING:
                answers.append((message.reply_to, pong(message.ticket, self.peer, *self.presence())))
            else:
                self._bus.answered(message.ticket, message.peer, message.present, message.info)
        self._add(self._incoming.overdue())
        if answers:
            self._boxes.send_many(answers)
        self._bus.housekeep(self)

    def _add(self, notes: Sequence[Note]) -> None:
        for note in notes:
            self._notes[self._arrived] = note
            self._arrived += 1
        if notes:
            self._gate.open()

    def _restore(self) -> None:
        """Somebody took this peer for dead and removed its mailbox; or has joined under its name."""
        if self._closed.is_set():
            return
        found = self._boxes.find(self.peer).get(self.peer)
        if found is None:
            log.info("the mailbox of %s was removed; making it anew", self.peer)
            self._address = self._boxes.make(self.peer)
        elif found == self._address:  # the list is late
            self._closed.wait(1.0)
        else:
            log.warning("somebody else has joined as %s; nothing is received here any more", self.peer)
            self._closed.set()
            self._gate.open()
            self._bus.left(self)


class QueueBus:
    """See Bus of the ports. A broker has one and closes it: what its inboxes hear, its peers() makes use of."""

    def __init__(self, boxes: Mailboxes) -> None:
        self._boxes = boxes
        self._outgoing = Outgoing(boxes.message_bytes)
        self._lock = threading.RLock()
        self._inboxes: list[QueueInbox] = []
        self._asking: dict[bytes, _Question] = {}
        self._numbers = itertools.count(1)
        self._name = os.urandom(6)
        self._sweeper = Sweeper(boxes)

    def join(self, peer: str) -> QueueInbox:
        inbox = QueueInbox(self, self._boxes, peer)
        with self._lock:
            self._inboxes.append(inbox)
        self._outgoing.forget([peer])
        return inbox

    def post_many(self, notes: Sequence[Note]) -> None:
        if not notes:
            return
        messages = self._outgoing.pack(notes)
        try:
            self._outgoing.forget(self._boxes.send_many(messages))
        except BaseException:
            self._outgoing.forget({to for to, _ in messages})
            raise

    def peers(self, prefix: str = "") -> Sequence[Presence]:
        names = {name for name in self._boxes.find(prefix) if not name.startswith(ASKER_PREFIX)}
        with self._lock:
            own = {inbox.peer: inbox for inbox in self._inboxes if inbox.open and inbox.peer in names}
        found = {peer: inbox.presence() for peer, inbox in own.items()}
        if others := names - found.keys():
            found |= self._ask(others)
        return [Presence(peer, info) for peer, (present, info) in sorted(found.items()) if present]

    def _ask(self, names: Collection[str]) -> dict[str, tuple[bool, bytes]]:
        """What these peers answer in time."""
        question = _Question(self._sweeper.expected(names))
        known = self._sweeper.known(names)
        ticket = self._name + next(self._numbers).to_bytes(6)
        self._asking[ticket] = question
        try:
            begun = time.monotonic()
            self._send_pings(names, ticket, self._asker())
            question.answered.wait(max(0.0, begun + ANSWER_SECONDS - time.monotonic()))
            if question.waiting & known:  # they answered a moment ago: rather late than dead
                question.answered.wait(max(0.0, begun + KNOWN_ANSWER_SECONDS - time.monotonic()))
        finally:
            del self._asking[ticket]
        answers = dict(question.answers)
        self._sweeper.missed(set(names) - answers.keys())
        self._sweeper.sweep()
        return answers

    def _send_pings(self, names: Collection[str], ticket: bytes, asker: QueueInbox) -> None:
        data = ping(ticket, asker.peer)
        for gone in self._boxes.send_many([(name, data) for name in names]):
            self.answered(ticket, gone, present=False, info=b"")

    def _asker(self) -> QueueInbox:
        """A mailbox for answers: one of a peer of this process, or one for asking alone."""
        with self._lock:
            for inbox in self._inboxes:
                if inbox.open:
                    inbox.used = time.monotonic()
                    return inbox
            return self.join(ASKER_PREFIX + os.urandom(6).hex())

    def close(self) -> None:
        """Close what is open, so that nothing is left behind."""
        with self._lock:
            inboxes = list(self._inboxes)
        for inbox in inboxes:
            inbox.close()

    # For the inboxes -------------------------------------------------------------------------------------------

    def answered(self, ticket: bytes, peer: str, present: bool, info: bytes) -> None:
        """An answer to a ping; one that comes late at least tells that the peer lives."""
        self._sweeper.heard(peer)
        question = self._asking.get(ticket)
        if question is not None:
            question.answer(peer, present, info)

    def left(self, inbox: QueueInbox) -> None:
        """An inbox is closed."""
        with self._lock:
            if inbox in self._inboxes:
                self._inboxes.remove(inbox)

    def patience(self, inbox: QueueInbox) -> float:
        """How long the inbox may poll before housekeep() wants to be called."""
        if inbox.peer.startswith(ASKER_PREFIX):
            return ASKER_SECONDS / 4
        return self._sweeper.patience(POLL_SECONDS)

    def housekeep(self, inbox: QueueInbox) -> None:
        """Between two polls of any inbox: look for mailboxes without an owner; leave what was made to ask."""
        if inbox.peer.startswith(ASKER_PREFIX):
            if time.monotonic() - inbox.used > ASKER_SECONDS and not self._asking:
                inbox.close()
            return
        with self._lock:
            own = {each.peer for each in self._inboxes}
        if names := self._sweeper.to_ask(own):
            self._send_pings(names, self._name, inbox)
