"""A network that can be cut."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading


class Proxy:
    """TCP to a server, which can be cut: connections are closed and new ones refused until it is mended."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._cut = self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Close everything; new connections are closed at once."""
        with self._lock:
            self._cut = True
            for one in list(self._pairs):
                self._drop(one)

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def close(self) -> None:
        """End."""
        self._closed = True
        self._thread.join()
        self.cut()
        self._listener.close()

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one)
        one.close()
        if other is not None and other in self._pairs:
            self._drop(other)

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.1):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._pairs:
                        self._pass(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        ours, _ = self._listener.accept()
        if self._cut:
            ours.close()
            return
        theirs = socket.create_connection(self._target)
        self._pairs[ours], self._pairs[theirs] = theirs, ours
        for one in (ours, theirs):
            self._selector.register(one, selectors.EVENT_READ)

    def _pass(self, one: socket.socket) -> None:
        try:
            data = one.recv(65536)
            if data:
                self._pairs[one].sendall(data)
                return
        except OSError:
            pass  # reset by either side: the pair is done with
        self._drop(one)
