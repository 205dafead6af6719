"""The six smaller views, as a front end sees them: how often they speak, that they rest while hidden, that they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.notebooks.kernel import Kernel, Message, start_kernel, times

VIEWS = ("session", "workers", "queues", "brokers", "events", "runs")
SETUP = """
import gc, os, threading, time
os.environ["QNB_KEY"] = "a key for these tests"
for name in ("QNB_BROKER", "QNB_BACKEND"):
    os.environ.pop(name, None)
from collections import Counter
from comm import get_comm_manager
import qnb
from qnb.notebook import live, queues_view, runs_view
from qnb.notebook.stage import STAGE

session = qnb.Session("memory:", workers=2)
table = qnb.brokers()

def double(n):
    return 2 * n

def quadruple(n):
    return 4 * n

session.submit(double, 1).result(10)

def happen(seconds):
    # calls end, and whatever could say that something has changed says it
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        batch = session.map(double, range(100))
        while not batch.over:
            for view in STAGE.views():
                view.touch()
            time.sleep(0.002)

def settle(ready, seconds=10):
    end = time.monotonic() + seconds
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)

def gone():
    return STAGE._thread is None

def leave():
    for view in STAGE.views():
        view._left_at = 0.0
        view.freed.set()
    STAGE.wake()
    settle(gone)

def listeners():
    callbacks = get_ipython().events.callbacks
    return [len(session.collector.on_event), session.collector.listening, *map(len, callbacks.values())]

def count():
    gc.collect()
    kinds = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, live.LiveView))
    threads = Counter(thread.name for thread in threading.enumerate())
    return {
        "views": dict(kinds),
        "threads": threads.total(),
        "comms": len(get_comm_manager().comms),
        "listeners": listeners(),
    }
"""
SHOW = """
display(session, session.workers, table)
queues_view.display(session)
runs_view.display(session)
session.events()
"""
MEANWHILE = """
later = session.task(queue="later")(double)
waiting = later.submit(1)
happen(2.5)  # longer than from one heartbeat to the next
quadruples = session.map(quadruple, range(40))
quadruples.wait(10)
"""
# What each has to know when it is seen again.
CAUGHT_UP: dict[str, Callable[[Message], bool]] = {
    "session": lambda said: any(run[1] == "quadruple" and run[3] == 40 for run in said["state"]["runs"]),
    "workers": lambda said: sum(row["done"] for row in said["state"]["workers"]) > 100,
    "queues": lambda said: any(row["queue"] == "later" and row["depth"] == 1 for row in said["state"]["queues"]),
    "brokers": lambda said: bool(said["state"]["brokers"][0]["measured"]),
    "events": lambda said: len(said["events"]) > 100,
    "runs": lambda said: any(row["name"] == "quadruple" and row["ends"][0] == 40 for row in said["state"]["runs"]),
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with start_kernel(tmp_path_factory.mktemp("kernel")) as kernel:
        kernel.run(SETUP)
        yield kernel


def models(messages: list[Message]) -> dict[str, list[str]]:
    """Of each view the comms of its models, in order."""
    found: dict[str, list[str]] = {name: [] for name in VIEWS}
    for content in [m["content"] for m in messages if m["msg_type"] == "comm_open"]:
        kind = content["data"]["state"].get("_anywidget_id", "")
        if kind:
            found[kind.rpartition(".")[2].removesuffix("Widget").lower()].append(content["comm_id"])
    return found


def show(kernel: Kernel) -> dict[str, str]:
    """Show all of them anew; the comm of each."""
    kernel.run("leave()")
    return {name: comms[-1] for name, comms in models(kernel.run(SHOW)).items()}


def of(comm: str, messages: list[Message]) -> list[Message]:
    """What one model sent."""
    return [m for m in messages if m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == comm]


def each(kernel: Kernel, comms: dict[str, str], kind: str) -> None:
    """Listen until each view has said something of that kind."""
    silent = set(comms.values())
    while silent:
        silent.discard(kernel.until(lambda m: bool(kernel.said(kind, [m])))["content"]["comm_id"])


@dataclass(frozen=True)
class Left:
    """What was there before views were shown and after they had gone, and what was published between."""

    before: dict[str, Any]
    after: dict[str, Any]
    heard: list[Message]

    def closed(self) -> set[str]:
        """The comms that were closed."""
        return {m["content"]["comm_id"] for m in self.heard if m["msg_type"] == "comm_close"}


@contextmanager
def leaving(kernel: Kernel) -> Iterator[list[Left]]:
    """Counts before and after; what comes of it is in the list at the end."""
    kernel.run("leave()")
    before, begun = kernel.value("count()"), len(kernel.heard)
    found: list[Left] = []
    yield found
    kernel.run(f"settle(gone)\nsettle(lambda: threading.active_count() <= {before['threads']})")
    found.append(Left(before, kernel.value("count()"), kernel.heard[begun:]))


@pytest.fixture(scope="module")
def reruns(kernel: Kernel) -> Left:
    """A cell showed all of them 200 times, and then was something else. Nobody looked: the cell alone says that its
    outputs are gone."""
    with leaving(kernel) as found:
        for _ in range(200):
            kernel.request(SHOW.replace("table", "qnb.brokers()"), cell="here")
        kernel.ended(kernel.request("pass", cell="here"), 100)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_two_hundred_runs_of_a_cell_leave_nothing_behind(reruns: Left, name: str) -> None:
    opened = models(reruns.heard)[name]
    assert len(opened) == 200
    assert set(opened) <= reruns.closed()
    assert reruns.after == reruns.before


@pytest.fixture(scope="module")
def closed(kernel: Kernel) -> Left:
    """Each view was shown, looked at, and its output closed."""
    with leaving(kernel) as found:
        kernel.run("grace, live.GRACE = live.GRACE, 0.2")
        for comm in show(kernel).values():
            kernel.send(comm, {"kind": "ready", "view": "a", "n": 0})
            kernel.send(comm, {"kind": "gone", "view": "a", "n": 1})
    kernel.run("live.GRACE = grace")
    return found[0]


@pytest.mark.parametrize("name", VIEWS)
def test_a_closed_output_frees_its_view(closed: Left, name: str) -> None:
    assert set(models(closed.heard)[name]) <= closed.closed()
    assert closed.after == closed.before


@pytest.fixture(scope="module")
def flood(kernel: Kernel) -> dict[str, list[float]]:
    """When each view spoke, while more happened than could be told."""
    comms = show(kernel)
    heard = kernel.run("happen(2.5)")
    return {name: times(of(comm, heard)) for name, comm in comms.items()}


@pytest.mark.parametrize("name", VIEWS)
def test_at_most_ten_messages_a_second(flood: dict[str, list[float]], name: str) -> None:
    sent = flood[name]
    assert len(sent) > 10
    assert max(sum(begin <= moment < begin + 1 for moment in sent) for begin in sent) <= 10


@dataclass(frozen=True)
class Rest:
    """Views that were hidden while much happened: their comms, what was published, and which threads ran at the end."""

    comms: dict[str, str]
    heard: list[Message]
    threads: list[str]


@pytest.fixture(scope="module")
def rest(kernel: Kernel) -> Rest:
    comms = show(kernel)
    for comm in comms.values():
        kernel.send(comm, {"kind": "ready", "view": "a", "n": 0})
    each(kernel, comms, "snapshot")
    for comm in comms.values():
        kernel.send(comm, {"kind": "hidden", "view": "a", "n": 1})
        kernel.send(comm, {"kind": "ask", "id": "1", "what": "nothing", "with": {}})
    each(kernel, comms, "answer")  # which comes after whatever was said before it was hidden
    kernel.send(comms["brokers"], {"kind": "ask", "id": "2", "what": "probe", "with": {"place": 0}})
    heard = kernel.run(MEANWHILE)
    return Rest(comms, heard, kernel.value("[thread.name for thread in threading.enumerate()]"))


@pytest.mark.parametrize("name", VIEWS)
def test_a_hidden_view_says_nothing_and_asks_nobody(kernel: Kernel, rest: Rest, name: str) -> None:
    said = kernel.said(messages=of(rest.comms[name], rest.heard))
    assert [word for word in said if word["kind"] not in ("ack", "answer")] == []
    if name != "events":  # whose thread is the stream's, which goes on
        assert f"qnb-{name}" not in rest.threads


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_is_seen_again_catches_up(kernel: Kernel, rest: Rest, name: str) -> None:
    def knows(message: Message) -> bool:
        words = kernel.said(messages=of(rest.comms[name], [message]))
        return any(CAUGHT_UP[name](word) for word in words if word["kind"] in ("state", "delta"))

    kernel.send(rest.comms[name], {"kind": "shown", "view": "a", "n": 2})
    kernel.until(knows, 5)


def test_the_session_view_says_what_the_folder_takes(kernel: Kernel) -> None:
    """On the disk, with all the files of an embedded session; also in what is saved."""
    kernel.run("leave()\nembedded = qnb.Session(workers=1)")
    [comm] = models(kernel.run("embedded"))["session"]
    kernel.run("embedded.map(os.urandom, [300_000] * 20).results()")
    taken = kernel.value("sum(entry.stat().st_size for entry in os.scandir('.qnb'))")
    assert taken > 6_000_000

    def is_true(word: Message) -> bool:
        number, unit, rest = word["state"]["room"].split(" ", 2)
        return (unit, rest) == ("MB", "of 4.3 GB at most") and abs(float(number) - taken / 1e6) < 0.06

    said = kernel.until(lambda m: any(map(is_true, kernel.said("state", of(comm, [m])))), 5)
    [output] = [m["content"]["data"] for m in kernel.run("embedded") if m["msg_type"] == "display_data"]
    for kind in ("text/plain", "text/html"):
        assert kernel.said(messages=[said])[0]["state"]["room"] in output[kind]
    kernel.run("leave()\nembedded.close()")
