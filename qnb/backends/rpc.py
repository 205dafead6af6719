"""`rpc:` results travel to the session that asked, over the Bus of any broker, and are kept nowhere else.

A worker remembers the last it has sent, so that a session whose mailbox lost them (a broker that was restarted) can ask
again; a session remembers the last it has received. Both are bounded, and gone with their process.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from qnb.backends.memory import MemoryBackend
from qnb.errors import Unsupported
from qnb.message import Stored
from qnb.settings import parse_url

KEPT_BYTES = 64 * 2**20


class RpcBackend(MemoryBackend):
    """A store of this process alone. `rpc:?kept=BYTES` sets how much it remembers; default 64 MiB."""

    scheme: ClassVar[str] = "rpc"
    durable: ClassVar[bool] = False
    blobs: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        super().__init__(f"memory://rpc-{secrets.token_hex(8)}?{url.partition('?')[2]}")
        address = parse_url(url)
        self.url = str(address)
        self._kept = int(address.number("kept", KEPT_BYTES))
        self._size = 0
        self._order: deque[Stored] = deque()

    def store_many(self, outcomes: Sequence[Stored]) -> Sequence[Stored]:
        with self._space.lock:
            refused = super().store_many(outcomes)
            for record in outcomes:
                if record not in refused:
                    self._order.append(record)
                    self._size += len(record.data)
            while self._size > self._kept and len(self._order) > 1:
                oldest = self._order.popleft()
                self._size -= len(oldest.data)
                self._space.forget(oldest)
        return refused

    def put_blob(self, key: str, data: bytes) -> None:
        raise Unsupported("rpc: has no blob store: name another backend, as in Session(broker, backend='sqlite:')")

    def get_blob(self, key: str) -> bytes | None:
        return None
