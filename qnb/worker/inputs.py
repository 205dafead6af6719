"""What calls refer to, and what they leave aside, as a lane sees it: values that came with a work, and files."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from qnb.codec.kept import describe
from qnb.codec.parts import key_of, open_object
from qnb.codec.payloads import encode_pickles, encode_plain
from qnb.codec.pickling import Apart, dumps_home, loads
from qnb.codec.references import Call, Reference, encode_entries, load_value, loads_referring
from qnb.errors import CannotPickle
from qnb.message import Blob, task_id
from qnb.worker.protocol import Work

LARGE_BYTES = 4 << 20  # a result from this size on is put aside
APART_BYTES = 1 << 20  # and with it memory of its own from this size on
_KEPT_BYTES = 64 << 20  # of objects that many calls share; the newest stays, whatever its size
_KEPT = 16


class Inputs:
    """Of one lane. `folder`: where files are; None where the backend has no blob store."""

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self._objects: dict[str, tuple[Any, int]] = {}  # loaded, by key, with their size

    def opener(self, work: Work) -> Callable[[Call], Any]:
        """Opens the calls of a work: (args, kwargs), with what they refer to in place."""
        values = work.values

        def find(reference: Reference) -> Any:
            if isinstance(reference, Blob):
                return self.load(reference, fresh=work.attempt > 1)
            indices = range(reference.first, reference.first + reference.count)
            found = [load_value(values[task_id(reference.run, index)], loads, self.load) for index in indices]
            return found[0] if reference.one else found

        def open_call(call: Call) -> Any:
            return loads_referring(call[0], [find(reference) for reference in call[1]])

        return open_call

    def load(self, blob: Blob, fresh: bool = False) -> Any:
        """The object. It is this call's own, and writing to an array of it copies; but one that many calls of a run
        were given is the lane's, unless it is an array or a table, or a `fresh` one is asked for."""
        kept = None if fresh or not blob.shared else self._objects.get(blob.key)
        if kept is not None:
            return kept[0]
        value = open_object(bytes(self._map(blob.key, blob.size)), [self._map(*buffer) for buffer in blob.buffers])
        size = blob.size + sum(size for _, size in blob.buffers)
        if blob.shared and not fresh and not _is_array(value):
            self._keep(blob.key, value, size)
        return value

    def _keep(self, key: str, value: Any, size: int) -> None:
        self._objects[key] = (value, size)
        while len(self._objects) > 1 and (
            len(self._objects) > _KEPT or sum(size for _, size in self._objects.values()) > max(_KEPT_BYTES, size)
        ):
            del self._objects[next(iter(self._objects))]

    def _map(self, key: str, size: int) -> mmap.mmap | bytearray:
        if not size:
            return bytearray()
        assert self.folder is not None
        with open(os.path.join(self.folder, key), "rb") as file:
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)

    def encode_values(
        self, work: Work, first: int, values: list[Any]
    ) -> tuple[bytes, dict[int, CannotPickle], list[tuple[str, Blob]]]:
        """Results as bytes, the errors of those that cannot be pickled, and what was put aside, with its folder."""
        if not work.keep and (plain := encode_plain(values)) is not None:
            return plain, {}, []
        apart = Apart(APART_BYTES if self.folder is not None else sys.maxsize)
        entries: list[tuple[bytes | None, list[Blob]]] = []
        failed: dict[int, CannotPickle] = {}
        aside: list[tuple[str, Blob]] = []
        for position, value in enumerate(values):
            pickled = None
            apart.buffers.clear()
            try:
                pickled = None if value is None and not work.keep else dumps_home(value, apart)
            except CannotPickle as error:
                failed[position] = error
                apart.buffers.clear()
            if pickled is not None and (work.keep or apart.buffers or len(pickled) >= LARGE_BYTES):
                task = task_id(work.run, first + position) if work.keep else None
                try:
                    entries.append(self._entry(task, value, pickled, apart, aside))
                except CannotPickle as error:
                    failed[position] = error
                    entries.append((None, []))
                except (OSError, MemoryError) as error:  # a full disk, mostly
                    failed[position] = CannotPickle(
                        f"the result cannot be put aside in {self.folder}: {error!r}; TMPDIR names another place"
                    )
                    entries.append((None, []))
            else:
                entries.append((pickled, []))
        if not aside:
            return encode_pickles([pickled for pickled, _ in entries]), failed, []
        return encode_entries(entries), failed, aside

    def _entry(
        self, task: str | None, value: Any, pickled: bytes, apart: Apart, aside: list[tuple[str, Blob]]
    ) -> tuple[bytes | None, list[Blob]]:
        """A value that may have to be put aside; that of a `task` is kept there."""
        size = len(pickled) + sum(memory.nbytes for memory in apart.buffers)
        if self.folder is None or (size < LARGE_BYTES and task is None):
            return dumps_home(value), []
        import shutil  # which most lanes never need, either of them
        import tempfile

        folder = tempfile.mkdtemp(prefix="out-", dir=self.folder)
        try:
            buffers = [(_write(folder, memory), memory.nbytes) for memory in apart.buffers]
            blob = Blob(_write(folder, pickled), len(pickled), buffers)
        except BaseException:  # what was written of it would stay
            shutil.rmtree(folder, ignore_errors=True)
            raise
        aside.append((folder, blob))
        return (None if task is None else describe(task, value, size)), [blob]


def _write(folder: str, content: bytes | memoryview) -> str:
    key = key_of(content)
    with open(os.path.join(folder, key), "wb") as file:
        file.write(content)
    return key


def _is_array(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in ("numpy", "pandas")
