"""Finding the server to talk to: the master that sentinels name, or the node of a cluster that has the place's slot.

Imported only when a URL needs it. All keys of a place have one hash tag, so all of them live in one slot, and all
commands of a client go to the one master that has it at the time.
"""

from __future__ import annotations

import functools
import random
import socket
import time
from collections.abc import Sequence

from qnb.brokers.redis.link import Command, Link, Reply, ServerError, Target, check_access, dial, login_of
from qnb.errors import AccessDenied, ConfigurationError, QnbError

Place = tuple[str, int]


def ask(target: Target, place: Place, commands: Sequence[Command], tls: bool, deadline: float) -> list[Reply]:
    """The replies of one server, over a link of their own."""
    sock = dial(place, deadline)
    if tls:
        from qnb.brokers.redis.secure import secure

        sock = secure(sock, target, place[0])
    link = Link(sock)
    try:
        replies: list[Reply] = []
        link.send(commands)
        link.read_into(replies, len(commands), max(0.05, deadline - time.monotonic()))
        return replies
    finally:
        link.close()


def _share(deadline: float, servers: int) -> float:
    """A deadline for the next of so many servers: one that hangs must not use up the time of all."""
    now = time.monotonic()
    return now + max(0.2, (deadline - now) / max(1, min(servers, 3)))


# ------------------------------------------------------------ Sentinel


def find_master(target: Target, deadline: float) -> Place:
    """Host and port of the master, as the first sentinel that answers says now."""
    user, password = target.sentinel_login
    commands: list[Command] = [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.master or "")]
    if password is not None:
        commands.insert(0, ("AUTH", user, password) if user else ("AUTH", password))
    troubles: list[str] = []
    # In any order: neither a sentinel that is away nor one that is cut off from the others is always asked first.
    sentinels = random.sample(target.hosts, len(target.hosts))
    for left, place in zip(range(len(sentinels), 0, -1), sentinels, strict=True):
        try:
            *login, found = ask(target, place, commands, target.sentinel_tls, _share(deadline, left))
        except OSError as error:
            if isinstance(error, QnbError):
                raise
            troubles.append(f"{place[0]}:{place[1]}: {error.strerror or error}")
            continue
        for reply in (*login, found):
            if isinstance(reply, ServerError):
                _check_sentinel(reply, target)
                troubles.append(f"{place[0]}:{place[1]}: {reply}")
                break
        else:
            if found is not None:
                return found[0].decode(), int(found[1])
            troubles.append(f"{place[0]}:{place[1]}: knows no {target.master!r}")
    raise ConnectionError(f"no sentinel names the master of {target.master!r} ({'; '.join(troubles)})")


def _check_sentinel(error: ServerError, target: Target) -> None:
    if error.code in ("NOAUTH", "WRONGPASS", "NOPERM") or "AUTH" in str(error):
        hint = "give sentinel_password (and sentinel_user)"
        raise AccessDenied(f"{target.shown}: the sentinel refuses access: {hint} ({error})") from error


# ------------------------------------------------------------ Cluster


class Cluster:
    """What this process knows of a cluster: which node has the slot, and which nodes to ask. Safe from any thread."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._nodes: tuple[Place, ...] = ()
        self.owner: Place | None = None

    def connect(self, deadline: float) -> tuple[socket.socket, str]:
        """A connection to the node that has the slot, and its host; asks around when that is not known."""
        owner = self.owner
        if owner is not None:
            try:
                return dial(owner, _share(deadline, 2)), owner[0]
            except OSError:
                self.forget()
        found = self._find(deadline)
        sock = dial(found, deadline)
        self.owner = found
        return sock, found[0]

    def forget(self) -> None:
        """Ask the nodes again before the next connection."""
        self.owner = None

    def learn(self, error: ServerError) -> None:
        """From "MOVED slot host:port"; other errors say only that the slot is not where it was."""
        old, self.owner = self.owner, None
        if error.code == "MOVED":
            host, _, port = str(error).split(" ")[-1].rpartition(":")
            host = host.strip("[]") or (old[0] if old else "")
            if port.isdigit() and host not in ("", "?"):
                self.owner = (host, int(port))

    def _find(self, deadline: float) -> Place:
        target, troubles = self._target, []
        login = login_of(target)
        commands: list[Command] = [*([login] if login else []), ("CLUSTER", "SLOTS")]
        # In any order, see find_master: a node that is cut off tells of yesterday.
        nodes = list(dict.fromkeys((*self._nodes, *target.hosts)))
        random.shuffle(nodes)
        for left, place in zip(range(len(nodes), 0, -1), nodes, strict=True):
            try:
                replies = ask(target, place, commands, target.tls is not None, _share(deadline, left))
            except OSError as error:
                if isinstance(error, QnbError):
                    raise
                troubles.append(f"{place[0]}:{place[1]}: {error.strerror or error}")
                continue
            refusal = next((reply for reply in replies if isinstance(reply, ServerError)), None)
            if refusal is not None:
                self._check(refusal, at_login=refusal is replies[0] and login is not None)
                troubles.append(f"{place[0]}:{place[1]}: {refusal}")
            elif found := self._read(replies[-1], place):
                return found
            else:
                troubles.append(f"{place[0]}:{place[1]}: slot {target.slot} is served by none")
        raise ConnectionError(f"no node of the cluster is known that has slot {target.slot} ({'; '.join(troubles)})")

    def _check(self, error: ServerError, at_login: bool) -> None:
        check_access(error, self._target, at_login)
        if error.code == "ERR":  # "This instance has cluster support disabled"
            remedy = "a server that is no cluster is named redis://host:port/0"
            raise ConfigurationError(f"{self._target.shown}: {remedy} ({error})") from error

    def _read(self, ranges: Reply, asked: Place) -> Place | None:
        """Remember the nodes; the master of the slot. Where a node gives no host it means its own."""
        owner: Place | None = None
        nodes: dict[Place, None] = {}
        for first, last, *members in ranges:
            places = [((m[0] or b"").decode() or asked[0], int(m[1])) for m in members]
            places = [(asked[0] if host == "?" else host, port) for host, port in places]
            nodes |= dict.fromkeys(places)
            if self._target.slot is not None and first <= self._target.slot <= last:
                owner = places[0]
        self._nodes = tuple(nodes)
        return owner


@functools.lru_cache(maxsize=64)
def cluster_of(target: Target) -> Cluster:
    """One for all links of this process that want the same."""
    return Cluster(target)
