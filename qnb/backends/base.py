"""The port of a backend: outcomes, runs, blobs and revocations. Everything it keeps is sealed by its caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from qnb.message import RunRecord, Stored

RESULT_SECONDS = 7 * 86400.0


class Backend(Protocol):
    """Keeps what outlives a kernel. Safe from any thread. The first outcome stored for a call wins.

    The constructor takes the URL, connects, and raises within 5 seconds when that fails. All take `expires`
    (seconds; default 7 days) and `prefix` in the URL's query.
    """

    scheme: ClassVar[str]
    durable: ClassVar[bool]  # False: what it keeps does not outlive this process
    blobs: ClassVar[bool] = True  # False: no blob store, so that a message has to hold all that belongs to it
    url: str  # without password

    def __init__(self, url: str) -> None: ...

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        """Store records; returns those refused because one with the same run and `first` is there already.

        A record is kept whole or refused whole. The caller cuts what it has left of a refused one and tries again.
        """

    def fetch_many(self, run: str, spans: Sequence[tuple[int, int]] | None = None) -> Sequence[Stored]:
        """The stored records that touch any of these (first, count) spans, by `first`; all of the run for None."""

    def save_run(self, record: RunRecord) -> None:
        """Store or replace the record of a run."""

    def load_run(self, run: str) -> RunRecord | None:
        """The record of a run, or None."""

    def list_runs(self, limit: int = 1000) -> Sequence[RunRecord]:
        """The newest runs first."""

    def forget_run(self, run: str) -> None:
        """Drop the run, its outcomes and its revocations."""

    def put_blob(self, key: str, data: bytes) -> None:
        """Store bytes under a name; the name comes from the content, so a second put changes nothing."""

    def get_blob(self, key: str) -> bytes | None:
        """The bytes, or None."""

    # A backend may have `forget_blobs(keys)`: drop these now. Where it has not, they go when they expire.

    def revoke_many(self, spans: Sequence[tuple[str, int, int]]) -> None:
        """Remember (run, first, count) as never to be started, so that workers that start later know."""

    def revoked(self) -> Sequence[tuple[str, int, int]]:
        """Every remembered revocation that has not expired."""

    def close(self) -> None: ...
