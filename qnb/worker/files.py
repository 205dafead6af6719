"""What was put aside, as files that all lanes of a worker map: fetched once a worker, whatever its size."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from qnb.codec.parts import get_parts, names_of, put_parts
from qnb.errors import MessageError, PayloadTooLarge, QnbError, StorageFull
from qnb.message import Blob

if TYPE_CHECKING:
    from qnb.backends.base import Backend
    from qnb.codec.signing import Signer

_PREFIX = "qnb-blobs-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
KEPT_BYTES = 2 << 30  # of files that nothing needs just now


class Files:
    """A folder of one worker. A file is there under its name once it is whole; `fetch` and `take_in` by any thread."""

    def __init__(self, backend: Backend, signer: Signer, needed: Callable[[], set[str]]) -> None:
        self._backend = backend
        self._signer = signer
        self._needed = needed  # names of files that must stay, whatever room they take
        _remove_left_behind()
        self.folder, held = _make_folder()
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._coming: set[str] = set()  # names of files that a thread is fetching
        self._sizes: dict[str, int] = {}  # in the order of their last use
        self._wanted: dict[int, set[str]] = {}  # what each thread asked for last, which may be needed by nobody yet
        self._end = weakref.finalize(self, _remove, self.folder, held)

    def fetch(self, blobs: Iterable[Blob]) -> dict[str, QnbError]:
        """Have these here, at least until this thread asks for others.

        By name, why a file is not: MessageError when it is gone, StorageFull where there is no room for it.
        """
        wanted = {key: size for blob in blobs for key, size in names_of(blob)}
        faults: dict[str, QnbError] = {}
        if not wanted:
            self._wanted.pop(threading.get_ident(), None)
            return faults
        with self._lock:
            self._wanted[threading.get_ident()] = set(wanted)
        for key, size in wanted.items():
            try:
                self._fetch_one(key, size)
            except (MessageError, StorageFull) as error:
                faults[key] = error
        with self._lock:
            self._tidy()
        return faults

    def _fetch_one(self, key: str, size: int) -> None:
        """Once, whichever threads ask for it; who asks for others meanwhile does not wait for it."""
        with self._came:
            self._came.wait_for(lambda: key not in self._coming)
            if self._sizes.pop(key, None) is not None:
                self._sizes[key] = size
                return
            self._coming.add(key)
        try:
            self._write(key, size)
            with self._lock:
                self._sizes[key] = size
        finally:
            with self._came:
                self._coming.discard(key)
                self._came.notify_all()

    def _write(self, key: str, size: int) -> None:
        path = os.path.join(self.folder, key)
        try:
            with open(path + ".part", "wb") as file:
                for part in get_parts(self._backend.get_blob, self._signer, key, size):
                    file.write(part)
            os.rename(path + ".part", path)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ".part")
            if isinstance(error, OSError) and not isinstance(error, QnbError):
                raise StorageFull(f"cannot write to {self.folder}: {error}; TMPDIR names another place") from error
            raise

    def _tidy(self) -> None:
        """Lanes that have a file mapped keep what is in it."""
        if sum(self._sizes.values()) <= KEPT_BYTES:
            return
        needed = self._needed().union(*list(self._wanted.values()))
        for key in [key for key in self._sizes if key not in needed]:
            if sum(self._sizes.values()) <= KEPT_BYTES:
                return
            del self._sizes[key]
            os.unlink(os.path.join(self.folder, key))

    def take_in(self, aside: Iterable[tuple[str, Blob]], signer: Signer, faults: dict[str, QnbError]) -> None:
        """Put what lanes have left in folders here into the blob store, and have it at hand for calls to come.

        `faults` gets, by name, why something never will be stored; after any other error this is to be called again.
        """
        for folder, blob in aside:
            for key, size in names_of(blob):
                try:
                    self._take_one(os.path.join(folder, key), key, size, signer)
                except (StorageFull, PayloadTooLarge) as error:  # trying again would hold up all others
                    faults[key] = error
            shutil.rmtree(folder, ignore_errors=True)  # one taken in before an error is gone
        with self._lock:
            self._tidy()

    def _take_one(self, path: str, key: str, size: int, signer: Signer) -> None:
        if not os.path.exists(path):  # the one before had the same content
            return
        with open(path, "rb") as file:  # read, not mapped: what a process has mapped counts as its memory
            put_parts(self._backend, signer, key, size, partial(_read, file))
        with self._lock:
            os.rename(path, os.path.join(self.folder, key))
            self._sizes[key] = size

    def close(self) -> None:
        """Remove the folder."""
        self._end()


def fault_of(blobs: Iterable[Blob], faults: Mapping[str, QnbError]) -> QnbError | None:
    """Why one of these is not here, as `fetch` has told; None when all are."""
    return next((faults[key] for blob in blobs for key, _ in names_of(blob) if key in faults), None)


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _make_folder() -> tuple[str, int]:
    """A folder of this process, and the descriptor that holds its lock, which lanes do not inherit.

    It is the folder that is locked, and no file in it: what is locked so is left alone by systemd-tmpfiles too, which
    removes from /tmp what nobody has touched for days, as the file would be.
    """
    making = tempfile.mkdtemp(prefix="qnb-making-")
    held = os.open(making, _FOLDER)
    with contextlib.suppress(OSError):  # a file system without locks: nobody gets one, and nothing is removed
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # It gets its name once the lock is held: one of that name without a lock is nobody's.
    folder = os.path.join(os.path.dirname(making), _PREFIX + os.path.basename(making).removeprefix("qnb-making-"))
    os.rename(making, folder)
    return folder, held


def _remove(folder: str, held: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)


def _remove_left_behind() -> None:
    """Folders of workers that were killed, here or on another machine that has the same TMPDIR."""
    for name in os.listdir(tempfile.gettempdir()):
        if name.startswith(_PREFIX):
            folder = os.path.join(tempfile.gettempdir(), name)
            with contextlib.suppress(OSError):  # it is held, or another user's
                held = os.open(folder, _FOLDER)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(held)
