"""A third party's store as a broker and a backend in forty lines: one table in a file, by qnb's adapters for tables."""

import sqlite3
import threading

from qnb.backends.table import TableBackend
from qnb.brokers.table import Table, TableBroker


class Shelf(Table):
    def open(self, address):
        self._lock = threading.RLock()
        self._front = address.options.get("prefix", "") + ":"
        self._file = sqlite3.connect(address.options["file"], timeout=10, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=OFF")
        self._file.execute("CREATE TABLE IF NOT EXISTS shelf(key TEXT PRIMARY KEY, row BLOB) WITHOUT ROWID")

    def scan(self, front, limit=None):
        front = self._front + front
        query = "SELECT substr(key, ?), row FROM shelf WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        with self._lock:
            return self._file.execute(query, (len(self._front) + 1, front, front + "\x7f", limit or -1)).fetchall()

    def swap(self, changes):
        with self._lock, self._file:
            self._file.execute("BEGIN IMMEDIATE")
            return [self._swap(self._front + key, old, new) for key, old, new in changes]

    def _swap(self, key, old, new):
        if old is None:
            return bool(self._file.execute("INSERT OR IGNORE INTO shelf VALUES(?, ?)", (key, new)).rowcount)
        if new is None:
            return bool(self._file.execute("DELETE FROM shelf WHERE key = ? AND row = ?", (key, old)).rowcount)
        return bool(self._file.execute("UPDATE shelf SET row = ? WHERE key = ? AND row = ?", (new, key, old)).rowcount)

    def shut(self):
        self._file.close()


class ShelfBroker(Shelf, TableBroker):
    scheme = "shelf"


class ShelfBackend(Shelf, TableBackend):
    scheme = "shelf"
