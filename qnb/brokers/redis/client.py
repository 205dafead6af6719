"""Links kept open and retried: what the Redis broker, bus and backend send their commands through.

Every command of qnb may be sent a second time when its reply was lost: publishing is at least once by contract, and
all others change nothing when repeated.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from qnb.brokers.redis.link import (
    CONNECT_SECONDS,
    REPLY_SECONDS,
    Command,
    Link,
    Reply,
    ServerError,
    Target,
    check_access,
    open_link,
)
from qnb.brokers.redis.scripts import SCRIPTS
from qnb.errors import BackendError, BackendUnavailable, BrokerError, BrokerUnavailable, QnbError, StorageFull

_log = logging.getLogger(__name__)

PATIENCE = 30.0
HEALTH_CHECK = 15.0
_PING_SECONDS = 3.0
_COARSE_SECONDS = 0.5
# The server will do it, but not yet: it is starting, failing over (which ends blocked reads: UNBLOCKED), or inside a
# long script.
_LATER = frozenset({"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "UNBLOCKED"})
# What a cluster says when a slot moves. ASK means that a key is at neither end for sure: following it would make keys
# at the new end that the old one still has, and the move would stop there. It is over when the answer is MOVED.
_MOVING = frozenset({"MOVED", "ASK"})
_ELSEWHERE = frozenset({"READONLY", "MOVED", "CLUSTERDOWN", "UNBLOCKED"})


_UNANSWERED: Reply = object()  # stands where a reply is still to come


class Kind(msgspec.Struct, frozen=True):
    """Which errors a user of links raises."""

    unavailable: type[QnbError]
    other: type[QnbError]


BROKER = Kind(BrokerUnavailable, BrokerError)
BACKEND = Kind(BackendUnavailable, BackendError)


class Outage:
    """How long the server has been away, and when to try again: at once, then with growing pauses."""

    def __init__(self, target: Target, kind: Kind, patience: float) -> None:
        self._target, self._kind, self._patience = target, kind, patience
        self._since: float | None = None
        self._tries = 0

    def over(self) -> None:
        if self._tries > 1:
            _log.warning("the Redis at %s is back", self._target.place)
        self._since, self._tries = None, 0

    def pause(self, error: Exception) -> float:
        """Seconds to wait before the next try; raises `unavailable` when patience is at its end."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since > self._patience:
            raise unreachable(self._target, self._kind, error) from error
        self._tries += 1
        if self._tries == 1:  # mostly a link that went stale while the server is there
            return 0.0
        if self._tries == 2:
            _log.warning(
                "the Redis at %s went away (%s); trying again for %.0f s", self._target.place, error, self._patience
            )
        return min(1.0, 0.02 * 2.0**self._tries) * random.uniform(0.75, 1.25)


def unreachable(target: Target, kind: Kind, error: Exception) -> QnbError:
    """The error of a server that cannot be reached, with what to check."""
    what = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "SSL" in type(error).__name__:
        check = "does this port speak TLS, and is its certificate from an authority you trust (ssl_ca_certs=…)?"
    elif target.socket_path:
        check = f"does the socket exist, and may you write to it? redis-cli -s {target.socket_path} ping"
    elif target.slot is not None:
        ask = "redis-cli -h {} -p {} cluster slots".format(*target.hosts[0])
        check = f"are the nodes of the cluster up, and can they be reached as they name each other? {ask}"
    elif target.master:
        check = f"are the sentinels up, and do they know the service {target.master!r}?"
    else:
        host, port = target.hosts[0]
        check = (
            f"is redis-server up, are host and port right, is a firewall between? redis-cli -h {host} -p {port} ping"
        )
    return kind.unavailable(f"no Redis at {target.place}: {what}; {check}")


class Client:
    """A pool of links to one server. Safe from any thread."""

    def __init__(self, target: Target, kind: Kind, patience: float = PATIENCE, health: float = HEALTH_CHECK) -> None:
        self.target, self.kind, self.patience = target, kind, patience
        self._health = health
        self.later = _LATER if target.slot is None else _LATER | _MOVING
        self._idle: deque[tuple[Link, float]] = deque()
        self._closing = threading.Event()

    def connect(self) -> None:
        """The first link, without patience; a server that is just loading its data is waited for."""
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                self._idle.append((open_link(self.target), time.monotonic()))
                return
            except OSError as error:
                if isinstance(error, QnbError):
                    raise
                raise unreachable(self.target, self.kind, error) from error
            except ServerError as error:
                if error.code not in self.later or time.monotonic() > deadline:
                    raise self.translate(error) from error
                time.sleep(0.05)

    def outage(self) -> Outage:
        return Outage(self.target, self.kind, self.patience)

    def run(self, commands: Sequence[Command], patience: float | None = None, whole: bool = False) -> list[Reply]:
        """Their replies, in order; refusals are ServerErrors among them. Survives a restart of the server.

        Only what was not answered is sent again; all of it when it is a `whole`.
        """
        replies, trouble = self._exchange(commands)
        if trouble is None and ServerError not in map(type, replies):
            return replies
        outage = Outage(self.target, self.kind, self.patience if patience is None else patience)
        replies += [_UNANSWERED] * (len(commands) - len(replies))
        while todo := [i for i, reply in enumerate(replies) if self._again(reply)]:
            self._pause(outage, trouble, [replies[i] for i in todo])
            if whole:
                todo = list(range(len(commands)))
            got, trouble = self._exchange([commands[i] for i in todo])
            got += [_UNANSWERED] * (len(todo) - len(got))
            for i, reply in zip(todo, got, strict=True):
                replies[i] = reply
        outage.over()
        return replies

    def transaction(self, commands: Sequence[Command]) -> list[Reply]:
        """All of them as one step, or none; the first refusal is raised."""
        replies = self.run((("MULTI",), *commands, ("EXEC",)), whole=True)
        done = replies.pop()
        # EXEC itself says only that something before it was refused.
        self._raise_first((*replies, *(done if isinstance(done, list) else (done,))))
        results: list[Reply] = done
        return results

    def one(self, *command: str | bytes | int) -> Reply:
        """The reply to one command; a refusal is raised."""
        reply = self.run((command,))[0]
        if isinstance(reply, ServerError):
            raise self.translate(reply) from reply
        return reply

    def all(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies to all; the first refusal is raised."""
        replies = self.run(commands)
        self._raise_first(replies)
        return replies

    def _raise_first(self, replies: Sequence[Reply]) -> None:
        if ServerError in map(type, replies):
            refusal = next(reply for reply in replies if isinstance(reply, ServerError))
            raise self.translate(refusal) from refusal

    def _exchange(self, commands: Sequence[Command]) -> tuple[list[Reply], OSError | None]:
        """As many replies as came, and what went wrong if not all did."""
        got: list[Reply] = []
        try:
            link = self._take()
        except OSError as error:
            if isinstance(error, QnbError):
                raise
            return got, error
        except ServerError as error:  # at login
            if error.code not in self.later:
                raise self.translate(error) from error
            return got, ConnectionError(str(error))
        try:
            link.send(commands)
            link.read_into(got, len(commands), REPLY_SECONDS)
        except BaseException as error:
            # Ctrl-C too: half a reply may be on the way, and the next user of this link would read it.
            link.close()
            self._drop_idle()
            if isinstance(error, OSError):
                return got, error
            raise
        if self._closing.is_set():
            link.close()
        elif ServerError in map(type, got) and self.is_astray(got):
            link.close()  # a new link finds the new master
            self._drop_idle()
        else:
            self._idle.append((link, time.monotonic()))
        return got, None

    def _again(self, reply: Reply) -> bool:
        return reply is _UNANSWERED or (
            isinstance(reply, ServerError) and (reply.code in self.later or reply.code == "NOSCRIPT")
        )

    def is_astray(self, replies: Sequence[Reply]) -> bool:
        """Whether a link with these replies leads to a master that is none, or not of this slot, any more."""
        told = next((r for r in replies if isinstance(r, ServerError) and r.code in _ELSEWHERE), None)
        if told is not None and self.target.slot is not None:
            from qnb.brokers.redis.route import cluster_of

            cluster_of(self.target).learn(told)
        return told is not None

    def _pause(self, outage: Outage, trouble: OSError | None, replies: Sequence[Reply]) -> None:
        missing = [reply for reply in replies if isinstance(reply, ServerError) and reply.code == "NOSCRIPT"]
        if missing and trouble is None:  # a fresh server, or one whose scripts were flushed
            self.load_scripts()
            if len(missing) == len(replies):
                return
        refusal = next((reply for reply in replies if isinstance(reply, ServerError)), None)
        if self._closing.wait(outage.pause(trouble or refusal or ConnectionError("no reply"))):
            raise self.kind.unavailable(f"the connection to {self.target.place} was closed")

    def _take(self) -> Link:
        while True:
            try:
                link, used = self._idle.pop()
            except IndexError:
                return open_link(self.target)
            if time.monotonic() - used < self._health or _answers(link):
                return link
            link.close()

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                self._idle.pop()[0].close()
            except IndexError:
                return

    def load_scripts(self) -> None:
        """Have the server know all scripts."""
        self.run([("SCRIPT", "LOAD", text) for text in SCRIPTS.values()])

    def translate(self, error: ServerError) -> QnbError:
        """A refusal as an error of qnb."""
        try:
            check_access(error, self.target)
        except QnbError as denied:
            return denied
        place = self.target.place
        if error.code == "OOM":
            remedy = "raise its maxmemory, purge a queue or forget old runs"
            return StorageFull(f"the Redis at {place} has no memory left: {remedy} ({error})")
        if error.code == "MISCONF":
            remedy = "free its disk, and see its log"
            return StorageFull(f"the Redis at {place} cannot save to its disk and takes no writes: {remedy} ({error})")
        if error.code in ("MOVED", "CROSSSLOT"):
            remedy = "write redis+cluster: (rediss+cluster: with TLS) for redis:"
            return self.kind.other(f"the Redis at {place} is a node of a cluster: {remedy} ({error})")
        return self.kind.other(f"the Redis at {place} says: {error}")

    def close(self) -> None:
        self._closing.set()
        self._drop_idle()


def _answers(link: Link) -> bool:
    replies: list[Reply] = []
    try:
        link.send([("PING",)])
        link.read_into(replies, 1, _PING_SECONDS)
    except OSError:
        return False
    return True


class Wait(msgspec.Struct, frozen=True):
    """How long a read may block: for `seconds`, if there are any.

    Redis looks at the timeouts of blocked clients when something happens or ten times a second. Where that is too
    coarse the wait is `exact`: this end keeps the time, and the server's own timeout comes later.
    """

    seconds: float
    exact: bool

    @property
    def block(self) -> tuple[str | int, ...]:
        """The option of XREAD and XREADGROUP."""
        if self.seconds <= 0:
            return ()
        return ("BLOCK", max(1, math.ceil(self.seconds * 1000)) + (1000 if self.exact else 0))


AT_ONCE = Wait(0.0, False)


def wait_until(deadline: float, appointment: float) -> Wait:
    """A wait until the deadline of a caller, or until an appointment before it that is to be kept."""
    now = time.monotonic()
    seconds = min(deadline, appointment) - now
    return Wait(max(0.0, seconds), seconds > 0 and (appointment < deadline or seconds < _COARSE_SECONDS))


class Line:
    """One link of its own for a thread that waits on the server; opened again when it breaks."""

    def __init__(self, client: Client, rest: Callable[[float], object], nudge: Callable[[], object]) -> None:
        """`rest` pauses that thread; `nudge` has the server end its blocked read."""
        self._client, self._rest, self._nudge = client, rest, nudge
        self._outage = client.outage()
        self._link: Link | None = None
        self.opened = 0  # how often: what depends on the server's memory is to be made again after each

    @property
    def connected(self) -> bool:
        """Whether the link has not broken since the last exchange, as far as is known."""
        return self._link is not None

    def exchange(self, commands: Sequence[Command], wait: Wait, deadline: float) -> list[Reply] | None:
        """The replies. None when the link broke: look again. Then this has paused, but not beyond the deadline."""
        replies: list[Reply] = []
        try:
            if self._link is None:
                self._link = open_link(self._client.target)
                self.opened += 1
            self._link.send(commands)
            self._read(self._link, replies, len(commands), wait)
            if ServerError not in map(type, replies):
                self._outage.over()
                return replies
            trouble = next((r for r in replies if isinstance(r, ServerError) and r.code in self._client.later), None)
            if trouble is None:
                return replies
            self._client.is_astray(replies)
            self.close()
            self._pause(trouble, deadline)
        except OSError as error:
            self.close()
            if isinstance(error, QnbError):
                raise
            self._pause(error, deadline)
        except ServerError as error:  # at login
            self.close()
            if error.code not in self._client.later:
                raise self._client.translate(error) from error
            self._pause(error, deadline)
        except BaseException:
            self.close()  # half a reply may be on the way
            raise
        return None

    def _read(self, link: Link, replies: list[Reply], count: int, wait: Wait) -> None:
        if wait.exact:
            try:
                link.read_into(replies, count, max(0.001, wait.seconds))
                return
            except TimeoutError:
                self._nudge()
                count -= len(replies)
        link.read_into(replies, count, wait.seconds + REPLY_SECONDS)

    def _pause(self, error: Exception, deadline: float) -> None:
        try:
            pause = self._outage.pause(error)
        except QnbError:
            self._rest(min(1.0, max(0.0, deadline - time.monotonic())))  # who calls again at once would spin
            raise
        pause = min(pause, deadline - time.monotonic())
        if pause > 0:
            self._rest(pause)

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
