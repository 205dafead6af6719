"""`qnb worker --only`: functions of some modules, called by name with plain arguments; nothing else is opened."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.brokers.base import QueueSpec
from qnb.codec.code import ANY_PYTHON, Code, write
from qnb.codec.payloads import encode_pickled
from qnb.codec.signing import FRAME, Signer
from qnb.message import Envelope, Frame, Function
from tests.contract.conftest import KEY, ROOT, new_place, own_worker, until
from tests.services import Services

BROKERS = ("sqlite", "redis", "amqp")
SECONDS = 20.0
MODULE = """
import functools
import os
from os import getcwd

import qnb


class Odd(Exception):
    pass


def add(a, b=1):
    return a + b


def shape(data):
    return {"keys": list(data), "nested": [data, None, 2.5]}


def nothing():
    return "nothing"


def fail(text):
    raise Odd(text)


def measure(text):
    raise Odd(len(text))


def thing():
    return {1, 2}


async def later(x):
    return x + 1


@functools.lru_cache
def cached(x):
    return -x


def _hidden():
    return "hidden"


task = qnb.Task(add, None, None)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("only")
    (path / "only_tasks.py").write_text(MODULE)
    (path / "other_tasks.py").write_text("def run():\n    return 'run'\n")
    return path


@pytest.fixture(scope="module")
def narrow(kind: str, services: Services, folder: Path, environment: None) -> Iterator[qnb.Session]:
    """A session on a place whose only worker runs the functions of one module."""
    place = new_place(kind, services)
    command = [sys.executable, "-m", "qnb.cli", "worker", place, "--concurrency", "2", "--only", "only_tasks"]
    with (
        qnb.Session(place, workers=0) as session,
        open(folder / f"{kind}.log", "w") as log,
        own_worker(session, command, cwd=folder, stderr=log),
    ):
        yield session


def test_by_name(narrow: qnb.Session) -> None:
    assert "only_tasks" not in sys.modules, "this process need not have it"
    assert narrow.submit("only_tasks.add", 2).result(SECONDS) == 3
    assert narrow.submit("only_tasks.add", 2, b=40).result(SECONDS) == 42
    assert narrow.submit("only_tasks.nothing").result(SECONDS) == "nothing"
    assert narrow.submit("only_tasks.later", 1).result(SECONDS) == 2
    assert narrow.submit("only_tasks.cached", 1).result(SECONDS) == -1
    assert narrow.submit("only_tasks.task", 5).result(SECONDS) == 6
    data = {"a": [1, {"b": None}], "ü": b"bytes"}
    assert narrow.submit("only_tasks.shape", data).result(SECONDS) == {"keys": ["a", "ü"], "nested": [data, None, 2.5]}


def test_many_by_name(narrow: qnb.Session) -> None:
    futures = [narrow.submit("only_tasks.add", i, **({"b": i} if i % 2 else {})) for i in range(20)]
    assert [future.result(SECONDS) for future in futures] == [2 * i if i % 2 else i + 1 for i in range(20)]
    assert narrow.map("only_tasks.add", range(100)).results(SECONDS) == list(range(1, 101))
    assert narrow.map("only_tasks.shape", [{"x": 1}, {"y": [2]}])[1].result(SECONDS)["keys"] == ["y"]
    task = narrow.task("only_tasks.add", retries=1)
    assert task.submit(1).result(SECONDS) == 2
    assert narrow.sweep("only_tasks.add", {"a": [1, 2], "b": [3]}).results(SECONDS) == [4, 5]
    assert narrow.sweep("only_tasks.add", {"a": [1, 2]}, b=3).results(SECONDS) == [4, 5]


def test_a_run_that_was_attached_is_retried(narrow: qnb.Session) -> None:
    """Its large argument still travels with each call: who goes by names opens no pickle."""
    if not narrow.backend.blobs:
        pytest.skip("results travel, and runs cannot be attached")
    batch = narrow.map("only_tasks.measure", ["a long text " * 10_000] * 3)
    batch.wait(SECONDS)
    with qnb.Session(narrow.full_broker_url, workers=0) as other:
        again = other.attach(batch.run).retry()
        assert again.wait(SECONDS)
        assert {str(again[index].exception()) for index in range(3)} == {"only_tasks.Odd: 120000"}


def test_what_can_be_imported_here_too(narrow: qnb.Session, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function object goes by its name, for its module has it."""
    spec = importlib.util.spec_from_file_location("only_tasks", folder / "only_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    only_tasks = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "only_tasks", only_tasks)
    spec.loader.exec_module(only_tasks)
    assert narrow.submit(only_tasks.add, 2).result(SECONDS) == 3
    assert narrow.map(only_tasks.shape, [[1, 2]]).results(SECONDS) == [{"keys": [1, 2], "nested": [[1, 2], None, 2.5]}]


def test_an_exception_comes_as_text(narrow: qnb.Session) -> None:
    future = narrow.submit("only_tasks.fail", "as asked")
    with pytest.raises(qnb.RemoteError, match="Odd: as asked") as caught:
        future.result(SECONDS)
    assert "raise Odd(text)" in caught.value.remote_traceback
    assert future.state == "failed"


def test_a_result_that_is_not_plain(narrow: qnb.Session) -> None:
    assert narrow.submit("only_tasks.thing").result(SECONDS) == {1, 2}


@pytest.mark.parametrize(
    "name, why",
    [
        ("only_tasks._hidden", "no public function"),
        ("only_tasks.getcwd", "no function 'getcwd' of its own"),
        ("only_tasks.os", "no function 'os' of its own"),
        ("only_tasks.Odd", "no function 'Odd' of its own"),
        ("only_tasks.nonesuch", "no function 'nonesuch' of its own"),
        ("other_tasks.run", "another module than only_tasks"),
        ("os.getcwd", "another module than only_tasks"),
        ("only_tasks.os.getcwd", "another module than only_tasks"),
    ],
)
def test_other_names(narrow: qnb.Session, name: str, why: str) -> None:
    with pytest.raises(qnb.QnbError, match=why):
        narrow.submit(name).result(SECONDS)


def test_a_shipped_function_is_refused(narrow: qnb.Session, tmp_path: Path) -> None:
    path = str(tmp_path / "written")

    def write_file() -> None:
        open(path, "w").close()

    with pytest.raises(qnb.Refused, match=r"write_file was shipped.*only_tasks alone.*another worker"):
        narrow.submit(write_file).result(SECONDS)
    batch = narrow.map(lambda x: open(path, "w").close(), range(3))
    assert batch.wait(SECONDS)
    assert batch.counts == {"failed": 3}
    assert not os.path.exists(path)
    assert narrow.submit("only_tasks.add", 2).result(SECONDS) == 3, "and it goes on"


class Trap:
    """What it does when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_no_pickle_is_opened(narrow: qnb.Session, tmp_path: Path) -> None:
    """Signed with the right key: as function, as code beside a reference, and as argument."""
    paths = [tmp_path / name for name in ("function", "argument", "both")]
    code = write(bytes(ANY_PYTHON), Code("", module="only_tasks", name="add"))
    plain = narrow.submit("only_tasks.add", 1).id  # what a session sends
    assert narrow.state(plain) in ("queued", "pending", "done", "running", "unknown")
    frames = []
    for number, path in enumerate(paths):
        trap = pickle.dumps(Trap(str(path)), 5)
        body = code
        if path.name != "argument":
            body = write(bytes(ANY_PYTHON), Code("", module="only_tasks", name="add", pickle=trap))
        args = encode_pickled([trap if path.name != "function" else pickle.dumps(((), {}), 5)])
        function = Function(bytes([number]) * 16, "trap", body)
        frames.append(Frame(f"trap-{number}", 0, 1, function, args, reply_to=narrow.peer))
    narrow.broker.declare(QueueSpec("qnb"))
    signer = Signer(KEY.encode())
    narrow.broker.publish_many([Envelope("qnb", signer.pack(FRAME, frame), f"{frame.run}:0") for frame in frames])
    assert narrow.submit("only_tasks.add", 2).result(SECONDS) == 3, "what came after it has been run"
    for path in paths:
        assert not path.exists()


def test_the_trap_would_have_worked(session: qnb.Session, tmp_path: Path) -> None:
    """With a worker that opens pickles."""
    path = tmp_path / "written"
    function = session.ship_function(abs)
    frame = Frame("trap-9", 0, 1, function, encode_pickled([pickle.dumps(Trap(str(path)), 5)]))
    session.broker.publish_many([Envelope("qnb", Signer(KEY.encode()).pack(FRAME, frame), "trap-9:0")])
    until(path.exists)


def test_an_argument_that_is_not_plain(narrow: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(qnb.CannotPickle, match=r"argument 1 is a set: .*by its name takes what JSON has"):
        narrow.submit("only_tasks.add", 1, {1, 2})
    with pytest.raises(qnb.CannotPickle, match=r"b is a tuple"):
        narrow.submit("only_tasks.add", 1, b=(1, 2))
    with pytest.raises(qnb.CannotPickle, match=r"argument 1 is a set"):
        narrow.map("only_tasks.add", [1, 2], [3, {4}])
    with pytest.raises(qnb.CannotPickle, match=r"b is a tuple"):
        narrow.sweep("only_tasks.add", {"b": [1, (1, 2)]}, a=1)
    monkeypatch.setattr("qnb.session.session.require_plain", lambda *columns: None)  # a session that sends it anyway
    with pytest.raises(qnb.Refused, match="an argument that JSON has no form for"):
        narrow.map("only_tasks.add", [{1}]).results(SECONDS)


@pytest.mark.parametrize("name", ["", "add", "only_tasks.", "only tasks.add", "only_tasks.add()"])
def test_names_that_are_none(narrow: qnb.Session, name: str) -> None:
    with pytest.raises(qnb.ConfigurationError, match="names no function"):
        narrow.submit(name)


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qnb.cli", "worker", "memory:", "--only", "nonesuch"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--only nonesuch: there is no such module here" in done.stderr


def test_by_name_on_any_worker(session: qnb.Session) -> None:
    assert session.submit("os.path.basename", "a/b").result(SECONDS) == "b"
    with pytest.raises(qnb.CannotUnpickle, match=r"no module 'nonesuch'.*pip install nonesuch"):
        session.submit("nonesuch.run").result(SECONDS)
