"""What a frame left behind in the blob store: its code, its arguments, modules, and what its calls refer to."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from qnb.codec.archives import is_here, unpack_archive
from qnb.codec.code import has_archives_elsewhere, read
from qnb.codec.outcomes import gaps, spans_of
from qnb.codec.parts import get_sealed
from qnb.codec.payloads import count_calls
from qnb.codec.references import REFERRING, Reference, decode_referring
from qnb.codec.signing import BLOB, CODE
from qnb.errors import BadMessage, MessageError, QnbError, StorageFull
from qnb.message import Blob, Frame
from qnb.worker.files import fault_of
from qnb.worker.only import look
from qnb.worker.protocol import remember

if TYPE_CHECKING:
    from qnb.worker.loop import Worker

log = logging.getLogger(__name__)

FULL_TIMES = 5  # that a frame comes whose files cannot be written, before its calls fail
_KEPT = 1000


class Brought(msgspec.Struct):
    """What calls of a frame refer to. `refused`: calls that will never get theirs, and why, each with the index of its
    first; `delay`: seconds after which the whole frame is to come again, for want of room."""

    references: list[Reference] = []
    refused: list[tuple[int, int, QnbError]] = []
    delay: float | None = None


class Opening:
    """Of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._full: dict[tuple[str, int], int] = {}  # how often a frame's files could not be written

    def open(self, frame: Frame) -> Frame:
        """With its code and its arguments; MessageError and ShippingError where that can never be."""
        function, only = frame.function, self._worker.options.only
        if function.code is None:
            code = self._blob(function.hash.hex(), CODE)
            frame = replace(frame, function=replace(function, code=code))
        if frame.blob is not None:
            frame = replace(frame, args=self._blob(frame.blob, BLOB), blob=None)
        if only:
            look(frame, only)
        if has_archives_elsewhere(frame.function.code or b""):
            self._bring_archives(frame.function.code or b"")
        if frame.first < 0 or count_calls(frame.args) != frame.count:
            raise BadMessage(f"a frame of run {frame.run} says that it has {frame.count} calls, and has not")
        return frame

    def _bring_archives(self, code: bytes) -> None:
        """Modules that a function needs, and lanes find in a folder."""
        for archive in read(code).archives:
            if archive.data is None and not is_here(archive):
                unpack_archive(archive, self._blob(archive.hash, BLOB))

    def _blob(self, key: str, purpose: bytes) -> bytes:
        worker = self._worker
        sealed = get_sealed(worker.backend.get_blob, worker.signer, key)
        if sealed is None:
            raise MessageError(f"the backend no longer has the blob {key} that the message is about: submit it again")
        content = worker.signer.unseal(purpose, sealed)
        if not hashlib.sha256(content).hexdigest().startswith(key):
            raise MessageError(f"the blob {key} has another content than its name says: refused")
        return content

    def bring(self, frame: Frame, stored: Sequence[tuple[int, int]]) -> Brought:
        """Have at hand what was put aside for those of its calls that have no outcome in `stored`."""
        brought = Brought()
        if frame.args[:1] != REFERRING:
            self._worker.files.fetch(())
            return brought
        calls = decode_referring(frame.args)
        left = [i for first, count in gaps(frame.first, frame.count, stored) for i in range(first, first + count)]
        each = {index: calls[index - frame.first][1] for index in left}
        faults = self._worker.files.fetch(blobs_among([one for several in each.values() for one in several]))
        if any(isinstance(error, StorageFull) for error in faults.values()):
            times = self._full.pop((frame.run, frame.first), 0) + 1
            if times < FULL_TIMES:
                remember(self._full, (frame.run, frame.first), times, _KEPT)
                log.warning("a frame of run %s goes back for a while: %s", frame.run, next(iter(faults.values())))
                brought.delay = 2.0 ** (times - 1)
                return brought
        gone: dict[QnbError, list[int]] = {}
        for index, references in each.items():
            if error := fault_of(blobs_among(references), faults):
                gone.setdefault(error, []).append(index)
            else:
                brought.references += references
        brought.refused = [(*span, error) for error, indices in gone.items() for span in spans_of(indices)]
        return brought


def blobs_among(references: Sequence[Reference]) -> list[Blob]:
    """Those of them that were put aside."""
    return [each for each in references if isinstance(each, Blob)]
