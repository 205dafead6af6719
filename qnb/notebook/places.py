"""Where a session works, as people read it."""

from __future__ import annotations

import math
import os
from typing import Any

from qnb.codec.kept import told_size


def from_here(url: str) -> str:
    """A file's URL as one would type it in this folder; any other as it is."""
    return url.replace(f"sqlite:///{os.getcwd()}/", "sqlite:///")


def room_text(backend: Any) -> str:
    """What the file of an embedded backend takes on the disk, and may take; nothing of a server."""
    room = getattr(backend, "room", None)
    if room is None:
        return ""
    taken, most = room
    return told_size(taken) if most == math.inf else f"{told_size(taken)} of {told_size(most)} at most"
