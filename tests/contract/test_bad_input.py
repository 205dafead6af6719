"""Issue 2's "Bad input": each gives one clear error or just works, and no other task is hurt."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.brokers.redis import server as redis_server
from qnb.codec import functions
from qnb.codec.signing import FRAME, Signer
from qnb.message import Envelope, Frame, Function
from qnb.registry import partner_url
from tests.contract.conftest import KEY, ROOT, Gate, new_place, run_python, until
from tests.servers.base import free_port
from tests.services import Services, with_options

SECONDS = 20.0
SECRET = "Sw0rdf!sh"


def others_are_well(session: qnb.Session) -> None:
    assert session.map(lambda i: i + 1, range(20)).results(SECONDS) == list(range(1, 21))
    assert session.submit(abs, -1).result(SECONDS) == 1


# Where to connect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, meant",
    [("rediss+sentinal://host", "redis"), ("reddis://host/0", "redis"), ("sqllite:", "sqlite"), ("memry:", "memory")],
)
def test_unknown_scheme(url: str, meant: str) -> None:
    with pytest.raises(qnb.UnknownScheme, match=f"did you mean {meant}") as caught:
        qnb.Session(url)
    assert "redis:" in str(caught.value), "and says which there are"


def test_unknown_scheme_of_a_backend() -> None:
    with pytest.raises(qnb.UnknownScheme, match="no backend"):
        qnb.Session("memory://here", backend="nosuch://x", workers=0)


def test_no_scheme_at_all() -> None:
    for text in ("localhost", "//host", "redis//host"):
        with pytest.raises(qnb.ConfigurationError, match="URL like redis://"):
            qnb.Session(text)


def test_missing_library() -> None:
    """hiredis is there in this environment: it is kept from being imported, in a process of its own."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("redis", "hiredis"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import qnb
try:
    qnb.Session("redis://localhost/0")
except qnb.MissingLibrary as error:
    print(error)
"""
    done = run_python(code)
    assert "pip install 'qnb[redis]'" in done.stdout, done.stdout + done.stderr
    assert "not installed" in done.stdout


def test_unreachable_server() -> None:
    port = free_port()
    begun = time.monotonic()
    with pytest.raises(qnb.BrokerUnavailable) as caught:
        qnb.Session(f"redis://user:{SECRET}@127.0.0.1:{port}/0", workers=0)
    assert time.monotonic() - begun < 5.0
    assert "127.0.0.1" in str(caught.value)
    assert str(port) in str(caught.value)
    assert SECRET not in repr(caught.value)


def test_a_server_that_does_not_answer() -> None:
    """It takes the connection and says nothing: the error still comes within 5 s."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(qnb.BrokerUnavailable, match=str(port)):
            qnb.Session(f"redis://127.0.0.1:{port}/0", workers=0)
        assert time.monotonic() - begun < 6.0  # 5 s and what a busy machine adds


def test_unknown_host() -> None:
    begun = time.monotonic()
    with pytest.raises(qnb.BrokerUnavailable, match=r"no-such-host\.invalid"):
        qnb.Session("redis://no-such-host.invalid:6379/0", workers=0)
    assert time.monotonic() - begun < 6.0


def test_wrong_password(services: Services) -> None:
    server = services.redis(requirepass="right")
    for login in (f":{SECRET}@", f"user:{SECRET}@", ""):
        with pytest.raises(qnb.AccessDenied) as caught:
            qnb.Session(server.url.replace("://", f"://{login}"), workers=0)
        chain: BaseException | None = caught.value
        while chain is not None:
            assert SECRET not in f"{chain!r} {chain}"
            chain = chain.__cause__ or chain.__context__
    url = server.url.replace("://", "://:right@")
    with qnb.Session(url, workers=1) as session:
        assert session.submit(abs, -1).result(SECONDS) == 1
        assert "right" not in repr(session)
        assert "right" not in repr(session.control.conf())


def test_wrong_arguments() -> None:
    for arguments in ({"on_interrupt": "explode"}, {"workers": -1}, {"key": "short"}):
        with pytest.raises(qnb.ConfigurationError):
            qnb.Session("memory://x", **arguments)  # type: ignore[arg-type]


# The key --------------------------------------------------------------------------------------------------------


def test_wrong_key(services: Services, kind: str) -> None:
    """The session is told; what was refused is kept in the dead letters; with the right key all is well."""
    if kind == "memory":
        pytest.skip("threads of one process share its key")
    place = new_place(kind, services)
    with qnb.Session(place, workers=1) as right:
        assert right.submit(abs, -1).result(SECONDS) == 1
        wrong = qnb.Session(place, workers=0, key="another key, as long as it has to be")
        future, batch = wrong.submit(abs, -1), wrong.map(abs, range(3))
        with pytest.raises(Exception, match="key") as caught:
            future.result(SECONDS)
        assert type(caught.value).__name__ == "BadSignature"
        assert "QNB_KEY" in str(caught.value), "what to do"
        assert KEY not in str(caught.value)
        assert batch.wait(SECONDS)
        assert batch.counts == {"failed": 3}
        letters = until(lambda: right.broker.dead_letters("qnb"))
        assert all("key" in letter.reason for letter in letters)
        others_are_well(right)
        wrong.close()


# What cannot travel ---------------------------------------------------------------------------------------------


def test_function_that_cannot_be_pickled(session: qnb.Session) -> None:
    lock = threading.Lock()
    table = {"rows": [1, 2, {"handle": lock}]}

    def uses_lock() -> Any:
        return lock

    def uses_table() -> Any:
        return table

    with pytest.raises(qnb.CannotPickle, match="enclosing variable 'lock'") as caught:
        session.submit(uses_lock)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(qnb.CannotPickle, match="'handle'"):
        session.submit(uses_table)
    with pytest.raises(qnb.CannotPickle, match="'lock'"):
        session.map(uses_lock, [])
    others_are_well(session)


def test_global_that_cannot_be_pickled() -> None:
    code = """
import qnb, threading
guard = threading.Lock()
def f():
    def inner():
        return guard
    return inner()
with qnb.Session("memory://x", workers=1) as session:
    try:
        session.submit(f)
    except qnb.CannotPickle as error:
        print(error)
    print(session.submit(abs, -3).result(10))
"""
    done = run_python(code)
    assert "the global 'guard'" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("3\n")


def test_which_argument_cannot_travel(session: qnb.Session) -> None:
    lock = threading.Lock()

    def several(a: object, b: object = None) -> None: ...

    calls = {
        "argument 1 (a _thread.lock)": lambda: session.submit(several, 1, lock),
        "item 0 of item 'x' of argument 'b' (a _thread.lock)": lambda: session.submit(several, 1, b={"x": [lock]}),
        "argument 0 (a _thread.lock)": lambda: session.map(several, [lock], [2]),
        "argument 'a' (a _thread.lock)": lambda: session.sweep(several, {"a": [lock]}),
    }
    for said, call in calls.items():
        with pytest.raises(qnb.CannotPickle, match=re.escape(f"cannot pickle {said}:")):
            call()


def test_argument_that_cannot_be_pickled(session: qnb.Session) -> None:
    lock = threading.Lock()
    with pytest.raises(qnb.CannotPickle, match="lock"):
        session.submit(len, [lock])
    with pytest.raises(qnb.CannotPickle, match="generator"):
        session.submit(sum, (i for i in range(3)))
    with pytest.raises(qnb.CannotPickle, match="lock"):
        session.map(len, [[1], [lock]])
    others_are_well(session)


def test_result_that_cannot_be_pickled(session: qnb.Session) -> None:
    def make(index: int) -> Any:
        import threading

        return threading.Lock() if index == 1 else index

    future = session.submit(make, 1)
    with pytest.raises(qnb.CannotPickle, match="lock"):
        future.result(SECONDS)
    assert future.state == "failed"
    batch = session.map(make, range(3), chunksize=3)
    assert batch.wait(SECONDS)
    assert batch.counts == {"done": 2, "failed": 1}
    assert (batch[0].result(), batch[2].result()) == (0, 2), "its mates keep their values"
    others_are_well(session)


def test_result_that_cannot_be_opened_here(session: qnb.Session) -> None:
    """It needs a module that only the worker has, or opening it raises."""

    class Picky:
        def __init__(self, how: str) -> None:
            self.how = how

        def __reduce__(self) -> Any:
            return (__import__, ("no_such_module_here",)) if self.how == "module" else (int, ("x",))

    def make(how: str) -> Any:
        return Picky(how) if how else "good"

    future = session.submit(make, "module")
    with pytest.raises(qnb.CannotUnpickle, match="no_such_module_here"):
        future.result(SECONDS)
    assert future.state == "failed"
    with pytest.raises(qnb.CannotUnpickle, match="invalid literal"):
        session.submit(make, "value").result(SECONDS)
    batch = session.map(make, ["", "module", ""], chunksize=3)
    assert batch.wait(SECONDS)
    assert batch.counts == {"done": 2, "failed": 1}
    assert batch[2].result() == "good"
    others_are_well(session)


def test_argument_that_cannot_be_opened_there(session: qnb.Session) -> None:
    class Picky:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module_there",)

    with pytest.raises(qnb.CannotUnpickle, match="no_such_module_there"):
        session.submit(len, Picky()).result(SECONDS)
    picky = Picky()
    with pytest.raises(qnb.CannotUnpickle, match="no_such_module_there"):
        session.submit(lambda: picky).result(SECONDS)
    others_are_well(session)


@pytest.fixture(scope="module")
def narrow(kind: str, services: Services, environment: None) -> Iterator[qnb.Session]:
    """A session whose broker takes messages of at most 50,000 bytes, and whose backend takes what is larger."""
    url = new_place(kind, services)
    backend = f"sqlite:///{services.folder()}/large.db" if partner_url(url) == "rpc:" else None
    with qnb.Session(with_options(url, max_message=50_000), backend, workers=1) as session:
        assert session.broker.features.limits.message_bytes == 50_000
        yield session


def test_argument_over_the_limit(narrow: qnb.Session) -> None:
    """It goes through the blob store by itself; results do as well, and what is tried again."""
    data = os.urandom(300_000)
    assert narrow.submit(len, data).result(SECONDS) == 300_000
    assert narrow.submit(lambda d: d[::-1], data).result(SECONDS) == data[::-1]
    assert narrow.map(len, [data, b"x", data], chunksize=3).results(SECONDS) == [300_000, 1, 300_000]
    assert narrow.submit(lambda: len(data)).result(SECONDS) == 300_000, "in the function itself"
    others_are_well(narrow)


def test_argument_over_the_limit_tried_again(narrow: qnb.Session, tmp_path: Path, kind: str) -> None:
    name, data = str(tmp_path / "count"), os.urandom(200_000)

    def flaky(data: bytes) -> int:
        with open(name, "a+") as file:
            file.write("x")
            if file.tell() < 2:
                raise ValueError("again")
        return len(data)

    assert narrow.task(retries=2, backoff=0.01)(flaky).submit(data).result(SECONDS) == 200_000
    if kind != "memory":
        lost = narrow.task(max_deliveries=1)(lambda i, d: os._exit(1) if i == 1 else len(d))
        batch = lost.map(range(3), [data] * 3, chunksize=3)
        assert batch.wait(SECONDS)
        assert batch.counts == {"done": 2, "lost": 1}
    others_are_well(narrow)


# Python versions ------------------------------------------------------------------------------------------------


def test_another_python_version(session: qnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two bytes that say which Python made a function are changed on the way; see the next test for a real one."""
    with monkeypatch.context() as patch:
        patch.setattr(functions, "_python", lambda function: bytes([3, 9]))
        future = session.submit(lambda: 1)
    with pytest.raises(qnb.CannotUnpickle, match=r"shipped by Python 3\.9, this worker runs 3\.\d+") as caught:
        future.result(SECONDS)
    assert "start the worker with" in str(caught.value)
    others_are_well(session)


def _other_python() -> str | None:
    """A Python of another minor version that has what a worker needs; QNB_OTHER_PYTHON names one."""
    named = os.environ.get("QNB_OTHER_PYTHON")
    for name in [named] if named else [f"python3.{minor}" for minor in range(11, 15) if minor != sys.version_info[1]]:
        path = shutil.which(str(name))
        probe = "import msgspec, cloudpickle, sys; print(sys.version_info[1])"
        if path is not None:
            done = subprocess.run([path, "-c", probe], capture_output=True, text=True, check=False)
            if done.returncode == 0 and int(done.stdout) != sys.version_info[1]:
                return path
    return None


def test_a_worker_of_another_python(services: Services, tmp_path: Path) -> None:
    python = _other_python()
    if python is None:
        pytest.skip("no other Python with msgspec and cloudpickle here; QNB_OTHER_PYTHON can name one")
    place = new_place("sqlite", services)
    with qnb.Session(place, workers=0) as session:
        worker = subprocess.Popen(
            [python, "-m", "qnb.cli", "worker", place, "--concurrency", "1"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert session.submit(abs, -1).result(SECONDS) == 1, "what is imported there is good for all versions"
            with pytest.raises(qnb.CannotUnpickle, match="this worker runs"):
                session.submit(lambda: 1).result(SECONDS)
            assert session.map(abs, [-1, -2]).results(SECONDS) == [1, 2]
        finally:
            worker.terminate()
            worker.wait(20)


# The folder .qnb ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A small file system in memory on this folder."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a file system of limited size can be mounted as root on Linux only")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path, "1m"), qnb.Session(f"sqlite:///{tmp_path}/t.db", workers=0) as session:
        errors = []
        for _ in range(6):
            try:
                error = session.submit(len, os.urandom(400_000)).exception(0.5)  # the same twice would be kept once
            except TimeoutError:  # it found room, and there is no worker
                continue
            errors.append(error)
        assert errors
        for error in errors:
            assert type(error).__name__ == "StorageFull"
            assert str(tmp_path) in str(error) or "disk" in str(error)
        session.shutdown(wait=False, cancel_futures=False)
        session.close()


def test_full_disk_from_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path, "64k"):
        (tmp_path / "filler").write_bytes(b"x" * 60_000)
        with pytest.raises(qnb.QnbError) as caught:
            qnb.Session(f"sqlite:///{tmp_path}/t.db", workers=0)
        assert type(caught.value).__name__ == "StorageFull"


def test_read_only_folder(tmp_path: Path) -> None:
    """Root may write anywhere, so for root it is a file system mounted read-only."""
    code = "import qnb\ntry:\n    qnb.Session(workers=0)\nexcept qnb.QnbError as e:\n    print(type(e).__name__, e)"
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        done = run_python(code, cwd=tmp_path)
        tmp_path.chmod(0o700)
    else:
        with mounted(tmp_path, "64k"):
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
            done = run_python(code, cwd=tmp_path)
    assert done.stdout.startswith("StorageFull"), done.stdout + done.stderr
    assert ".qnb" in done.stdout
    assert "another file" in done.stdout, "what to do"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"these are notes, and no database at all" * 100)
    with pytest.raises(qnb.QnbError, match=r"t\.db"):
        qnb.Session(f"sqlite:///{tmp_path}/t.db", workers=0)


# Messages of others ---------------------------------------------------------------------------------------------


def test_foreign_messages(session: qnb.Session) -> None:
    """Corrupt, foreign, cut short, of another version or key: to the dead letters with the reason, others unhurt."""
    signer, other = Signer(KEY.encode()), Signer(b"some other key of somebody else")
    frame = Frame("run-0", 0, 1, Function(b"h" * 16, "f", b"\0\0code"), b"p\x91\xc4\x00")
    good = signer.pack(FRAME, frame)
    flipped = bytearray(good)
    flipped[-1] ^= 1
    bodies = {
        "empty": b"",
        "foreign": b'{"task": "celery.ping", "id": "1"}' * 3,
        "cut short": good[:30],
        "changed": bytes(flipped),
        "version": b"q\x63" + good[2:],
        "other key": other.pack(FRAME, frame),
        "other purpose": signer.pack(b"o", frame),
        "no frame": signer.seal(FRAME, b"\xc1"),
        "other fields": signer.seal(FRAME, b"\x91\x01"),
        "blob that is gone": signer.pack(FRAME, Frame("run-0", 0, 1, frame.function, b"", blob="nosuchblob")),
        "code that is gone": signer.pack(FRAME, Frame("run-0", 0, 1, Function(b"gone" * 4, "f"), b"p\x90")),
    }
    before = len(session.broker.dead_letters("qnb", 1000))
    mixed = [session.submit(abs, -1)]
    for name, body in bodies.items():
        session.broker.publish_many([Envelope("qnb", body, name)])
        mixed.append(session.submit(abs, -2))
    assert [future.result(SECONDS) for future in mixed] == [1] + [2] * len(bodies)
    found = until(lambda: len(session.broker.dead_letters("qnb", 1000)) == before + len(bodies) or None)
    assert found
    letters = session.broker.dead_letters("qnb", 1000)[: len(bodies)]
    assert {letter.body for letter in letters} == set(bodies.values()), "kept as they were"
    assert all(len(letter.reason) > 20 for letter in letters)
    others_are_well(session)


def test_payload_that_is_none(session: qnb.Session) -> None:
    """Signed and yet nonsense inside, as a faulty client would send: the worker and its lanes survive."""
    signer = Signer(KEY.encode())
    code = functions.pack(abs)
    frames = [
        Frame("nobody-0", 0, 2, code, b"zzz"),
        Frame("nobody-1", 0, 3, code, b"p\x91\xc4\x01x"),
        Frame("nobody-2", 0, 1, code, b"p\x91\xc4\x01x"),
        Frame("nobody-3", 0, 1, Function(b"x" * 16, "f", b"\0\0not a pickle"), b"c\x93\x90\x90\x90"),
    ]
    session.broker.publish_many([Envelope("qnb", signer.pack(FRAME, frame)) for frame in frames])
    others_are_well(session)
    until(lambda: session.broker.depth("qnb") in (0, None))
    others_are_well(session)
    stats = session.control.stats()
    assert stats
    assert until(lambda: all(reply["held_frames"] == 0 for reply in session.control.stats().values()))


def test_foreign_notes(session: qnb.Session, caplog: pytest.LogCaptureFixture) -> None:
    from qnb.message import Note

    with caplog.at_level(logging.CRITICAL):
        for to in (session.peer, *("w." + name for name in session.workers.names)):
            for kind in ("outcomes", "reply", "command", "event", "nonsense"):
                session.bus.post_many([Note(to, kind, b"garbage"), Note(to, kind, b"")])
        others_are_well(session)
        assert session.control.ping()


# Redis set in a way that loses tasks ----------------------------------------------------------------------------


def test_redis_that_evicts(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_warned", set())
    server = services.redis(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    with pytest.warns(redis_server.RedisSettingsWarning, match="noeviction") as caught:
        qnb.Session(server.url, workers=0).close()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qnb.Session(server.url, workers=0).close()


def test_redis_without_persistence(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_warned", set())
    server = services.redis(save='""')
    with pytest.warns(redis_server.RedisSettingsWarning, match="appendonly yes") as caught:
        qnb.Session(server.url, workers=0).close()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qnb.Session(server.url, workers=0).close()


# Ctrl-C ---------------------------------------------------------------------------------------------------------

# Between a line that says "waiting" and the waiting an interrupt would come too early: so another thread says it, once
# the main one is there.
ANNOUNCE = """
import sys, threading, time, qnb
from pathlib import Path
folder = sys.argv[2]
def announce():
    name = None
    while name != "wait_for":
        time.sleep(0.005)
        frame = sys._current_frames()[threading.main_thread().ident]
        while (name := frame.f_code.co_name) != "wait_for" and frame.f_back is not None:
            frame = frame.f_back
    print("waiting", flush=True)
def announced():
    threading.Thread(target=announce, daemon=True).start()
"""
INTERRUPTED = """
def wait_at_gate():
    import os, time
    open(folder + "/started", "w").close()
    while not os.path.exists(folder + "/opened"):
        time.sleep(0.005)
    return "the value"
with qnb.Session(sys.argv[1], workers=1) as session:
    future, other = session.submit(wait_at_gate), session.submit(abs, -1)
    batch = session.map(abs, range(3))
    announced()
    try:
        future.result()
    except KeyboardInterrupt:
        print("interrupted", future.state, flush=True)
    Path(folder, "opened").touch()
    print(future.result(20), other.result(20), batch.results(20), flush=True)
    try:
        print("again", flush=True)
        session.map(wait_at_gate.__class__(wait_at_gate.__code__, {"folder": folder + "/b"}), []).results()
    finally:
        pass
"""


def test_interrupt(kind: str, services: Services, tmp_path: Path) -> None:
    """Ctrl-C ends the waiting and nothing else: workers are not reached by it, and the value still comes."""
    place = new_place(kind, services)
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCE + INTERRUPTED, place, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    until(lambda: (tmp_path / "started").exists())
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    os.killpg(process.pid, signal.SIGINT)  # to the whole foreground group, as a terminal does
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    assert out.startswith("interrupted"), out + err
    assert "the value 1 [0, 1, 2]" in out


TWICE = """
def wait_at_gate(i):
    import os, time
    open(folder + "/started", "w").close()
    while not os.path.exists(folder + "/opened"):
        time.sleep(0.005)
    return i
with qnb.Session(sys.argv[1], workers=1) as session:
    batch = session.map(wait_at_gate, range(5), chunksize=1)
    announced()
    try:
        batch.results()
    except KeyboardInterrupt:
        Path(folder, "opened").touch()
        batch.wait(20)
        print(dict(batch.counts), flush=True)
"""


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_twice(kind: str, services: Services, tmp_path: Path, times: int) -> None:
    """Once says that the run goes on; once more within a second cancels it."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCE + TWICE, new_place(kind, services), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "waiting\n"
    until(lambda: (tmp_path / "started").exists())
    os.kill(process.pid, signal.SIGINT)
    assert "goes on; interrupt once more within a second to cancel it" in process.stderr.readline()
    if times == 2:
        os.kill(process.pid, signal.SIGINT)
        assert "is cancelled" in process.stderr.readline()
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    assert ("'cancelled': 4" in out or "'cancelled': 3" in out) == (times == 2), out


# Kernels and workers in any order -------------------------------------------------------------------------------

SECOND = """
import sys, qnb
with qnb.Session(sys.argv[1], workers=1) as session:
    name = sys.argv[2]
    assert session.map(lambda i: (name, i), range(200)).results(30) == [(name, i) for i in range(200)]
    assert [session.submit(abs, -i).result(30) for i in range(20)] == list(range(20))
    print("well")
"""


def test_kernels_on_the_same_file(tmp_path: Path) -> None:
    """Several at once, started at the same moment on a file that is not there yet."""
    place = f"sqlite:///{tmp_path}/shared.db"
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(run_python(SECOND, place, f"kernel{n}"))) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.stdout for done in found] == ["well\n"] * 3, [done.stderr[-2000:] for done in found]


@contextlib.contextmanager
def worker(place: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "qnb.cli", "worker", place, "--concurrency", "1"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_worker_before_the_session(kind: str, services: Services) -> None:
    if kind == "memory":
        pytest.skip("memory: has no workers of other processes")
    place = new_place(kind, services)
    with worker(place) as process:
        assert process.stderr is not None
        assert "1 lanes" in process.stderr.readline()
        with qnb.Session(place, workers=0) as session:
            others_are_well(session)


def test_worker_after_the_session(kind: str, services: Services) -> None:
    if kind == "memory":
        pytest.skip("memory: has no workers of other processes")
    place = new_place(kind, services)
    with qnb.Session(place, workers=0) as session:
        future, batch = session.submit(abs, -1), session.map(abs, range(10))
        session.flush()
        with worker(place):
            assert future.result(SECONDS) == 1
            assert batch.results(SECONDS) == list(range(10))
            assert not session.submit(abs, -2).exception(SECONDS)


def test_no_worker_is_said(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    with qnb.Session(new_place("sqlite", services), workers=0) as session:
        future = session.submit(abs, -1)
        with pytest.raises(TimeoutError, match="queued"):
            future.result(3.0)
        assert "no worker serves queue 'qnb'" in caplog.text
        assert "qnb worker" in caplog.text
        assert future.cancel()


def test_a_gate_is_not_hurt_by_anything(session: qnb.Session, gate: Gate) -> None:
    """While one call runs, every kind of bad input goes by; it ends as if nothing had been."""
    running = session.submit(gate.task, "well")
    gate.wait()
    for bad in (lambda: session.submit(threading.Lock), lambda: session.submit(int, "x")):
        with contextlib.suppress(qnb.QnbError):
            bad().exception(SECONDS)
    session.broker.publish_many([Envelope("qnb", b"garbage")])
    others_are_well(session)
    gate.open()
    assert running.result(SECONDS) == "well"
