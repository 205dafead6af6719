"""A Redis that says what a test wants it to say."""

from __future__ import annotations

import socket
import threading

import hiredis

Replies = dict[bytes, bytes | list[bytes]]


class FakeRedis:
    """Answers each command from a table of inline replies, a list one after the other; what is not there gets +OK.

    An empty reply closes the connection. `seen` has the names of all commands, in order.
    """

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self.seen: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        reader = hiredis.Reader()
        with link:
            while data := link.recv(65536):
                reader.feed(data)
                while (command := reader.gets()) is not False:
                    self.seen.append(command[0])
                    answer = self._answer(command[0])
                    if not answer:
                        return
                    link.sendall(answer)

    def _answer(self, name: bytes) -> bytes:
        found = self._replies.get(name, b"+OK\r\n")
        if isinstance(found, bytes):
            return found
        return found.pop(0) if len(found) > 1 else found[0]

    def close(self) -> None:
        self._listener.close()


def information(text: str = "# Server\r\nredis_version:7.0.0\r\n") -> Replies:
    """What INFO and CONFIG GET save say."""
    save = b"*2\r\n$4\r\nsave\r\n$1\r\nx\r\n"
    return {b"INFO": b"$%d\r\n%s\r\n" % (len(text), text.encode()), b"CONFIG": save}
