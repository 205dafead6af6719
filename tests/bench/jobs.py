"""The work that every system is given: plain functions of a module that all workers can import."""

from __future__ import annotations

import os
import time


def noop(number: int) -> int:
    """Nothing but its own argument back."""
    return number


def echo(data: bytes) -> bytes:
    """The payload back."""
    return data


def slow(number: int, path: str) -> int:
    """50 ms that leave a start and an end in a file that is only appended to."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, b"S %d %d %.6f\n" % (number, os.getpid(), time.time()))
        time.sleep(0.05)
        os.write(file, b"E %d %d %.6f\n" % (number, os.getpid(), time.time()))
    finally:
        os.close(file)
    return number


JOBS = {job.__name__: job for job in (noop, echo, slow)}
