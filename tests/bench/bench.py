"""Starts the clients of a row and measures them in turn."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.bench.client import Client, Failed
from tests.bench.systems import Place, installed, system_class
from tests.bench.systems.ping_pong import Link
from tests.servers.base import Unavailable
from tests.services import BROKERS, Services

_DATABASES = 16


class Bench:
    """A run: the private server, the options, and what had to be left out."""

    def __init__(self, rounds: int, quick: bool) -> None:
        self.rounds, self.quick = (1, True) if quick else (rounds, False)
        self.services = Services()
        self.notes: list[str] = []
        self._server: str | None = None
        self._places = 0
        # What the caller has set must not reach what is measured.
        for name in ("PYTHONDONTWRITEBYTECODE", "QNB_BROKER", "QNB_BACKEND", "QNB_KEY"):
            os.environ.pop(name, None)

    @property
    def server(self) -> str:
        """The private Redis, started when first asked for; without a database."""
        if self._server is None:
            self._server = self.services.redis().url.rpartition("/")[0]
        return self._server

    def say(self, text: str) -> None:
        """How far it has come."""
        print(f"· {text}", file=sys.stderr, flush=True)

    def place(self, name: str = "") -> Place:
        """An empty database, an empty folder, and an empty place of the broker that this system works on."""
        self._places += 1
        url = f"{self.server}/{self._places % _DATABASES}"
        Link(url).ask(("FLUSHDB",))
        label = system_class(name).broker if name else ""
        return Place(url, self.services.folder(), self._broker(label) if label else "")

    def _broker(self, label: str) -> str:
        case = next(case for case in BROKERS if case.label == label)
        try:
            return case.place(self.services)
        except (Unavailable, pytest.skip.Exception, pytest.fail.Exception) as error:
            raise Failed(str(error)) from None

    def size(self, full: int, quick: int = 20) -> int:
        """How many: all, or next to nothing."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def client(self, name: str, place: Place | None = None) -> Iterator[Client]:
        """A client of a system; ended after use, with its workers."""
        client = Client(name, place or self.place(name))
        try:
            yield client
        finally:
            client.close()

    def here(self, names: Sequence[str]) -> list[str]:
        """Those of the systems that are installed; the rest is noted."""
        for name in names:
            if not installed(name):
                self.note(f"{name} is not installed: left out")
        return [name for name in names if installed(name)]

    def note(self, text: str) -> None:
        """Something to be said below the table."""
        if text not in self.notes:
            self.notes.append(text)

    def in_turn(self, names: Sequence[str], measure: Callable[[str], float], rounds: int = 0) -> dict[str, list[float]]:
        """Measure each in every round: A B, B A, A B, … A system that fails is left out, and noted."""
        found: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds or self.rounds):
            for name in list(found)[:: -1 if turn % 2 else 1]:
                try:
                    found[name].append(measure(name))
                except Failed as failure:
                    self.note(str(failure))
                    del found[name]
        return found

    def work(self, names: Sequence[str], work: str, **arguments: dict[str, Any] | Any) -> dict[str, list[float]]:
        """Start clients and have a work done by them."""
        with self.clients(names) as clients:
            return self.have_done(clients, list(clients), work, **arguments)

    @contextlib.contextmanager
    def clients(self, names: Sequence[str]) -> Iterator[dict[str, Client]]:
        """A client of each system with its workers up; what does not start is left out, and noted."""
        with contextlib.ExitStack() as stack:
            clients = {}
            for name in self.here(names):
                client = stack.enter_context(self.client(name))
                try:
                    self.say(f"start · {name}: {client.ask('start'):.1f} s")
                    clients[name] = client
                except Failed as failure:
                    self.note(str(failure))
                    client.close()  # what cannot be measured is not to take the time of others
            yield clients

    def have_done(
        self, clients: Mapping[str, Client], names: Sequence[str], work: str, **arguments: dict[str, Any] | Any
    ) -> dict[str, list[float]]:
        """Have a work done by clients in turn. An argument that is a dict has a value for each system."""

        def measure(name: str) -> float:
            chosen = {key: v[name] if isinstance(v, dict) else v for key, v in arguments.items()}
            value = float(clients[name].ask(work, **chosen))
            self.say(f"{work} · {name}: {value:,.4g}")
            return value

        return self.in_turn([name for name in names if name in clients], measure)
