"""Finds mailboxes without an owner, and removes them: what a killed peer left behind.

Every peer looks at a few mailboxes when it joins and once an hour, and whoever asks for the peers notices who does
not answer. One that stays silent to several pings, some seconds apart, and was not made just now, is removed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from qnb.errors import QnbError

if TYPE_CHECKING:
    from qnb.brokers.bus import Mailboxes

log = logging.getLogger("qnb")

# A mailbox is not removed before this age.
MAILBOX_SECONDS = 60.0
# Silent to so many pings, each so long after the last.
MISSES, MISS_SECONDS = 3, 5.0
# From so many unanswered questions on, a peer is asked and not waited for.
SUSPECT_MISSES = 2
# How often a peer looks around, and at how many.
LOOK_SECONDS, LOOK_MAILBOXES = 3600.0, 10
# An answer as young as this lets the next one take longer.
KNOWN_SECONDS = 10.0


class _Silence:
    """Of one mailbox. `questions` are all unanswered pings, `misses` those that were far enough apart."""

    def __init__(self) -> None:
        self.questions = 0
        self.misses = 0
        self.counted = 0.0


class Sweeper:
    """What one process knows of others' mailboxes. Safe from any thread."""

    def __init__(self, boxes: Mailboxes) -> None:
        self._boxes = boxes
        self._lock = threading.Lock()
        self._silent: dict[str, _Silence] = {}
        self._heard: dict[str, float] = {}
        self._look_at = time.monotonic() + 1.0
        self._looking: set[str] = set()
        self._again = False

    def expected(self, names: Collection[str]) -> set[str]:
        """Those whose answer is worth a wait."""
        with self._lock:
            return {n for n in names if n not in self._silent or self._silent[n].questions < SUSPECT_MISSES}

    def known(self, names: Collection[str]) -> set[str]:
        """Those that answered a moment ago."""
        since = time.monotonic() - KNOWN_SECONDS
        with self._lock:
            return {name for name in names if self._heard.get(name, since) > since}

    def heard(self, name: str) -> None:
        """It lives."""
        with self._lock:
            self._silent.pop(name, None)
            self._looking.discard(name)
            self._heard.pop(name, None)
            self._heard[name] = time.monotonic()
            while len(self._heard) > 10_000:
                del self._heard[next(iter(self._heard))]

    def missed(self, names: Collection[str]) -> None:
        """These did not answer."""
        now = time.monotonic()
        with self._lock:
            for name in names:
                silence = self._silent.setdefault(name, _Silence())
                silence.questions += 1
                if now - silence.counted >= MISS_SECONDS:
                    silence.misses += 1
                    silence.counted = now

    def sweep(self) -> None:
        """Remove what has been silent for long enough."""
        with self._lock:
            gone = [name for name, silence in self._silent.items() if silence.misses >= MISSES]
        for name in gone:
            try:
                address = self._boxes.find(name).get(name)
                age = None if address is None else self._boxes.age(address)
                if age is not None and age < MAILBOX_SECONDS:
                    continue
                if address is not None:
                    log.info("mailbox %s has no owner any more and is removed", name)
                    self._boxes.remove(address)
            except QnbError as error:  # perhaps it is not allowed to; somebody else's may be
                log.debug("mailbox %s cannot be removed: %s", name, error)
            with self._lock:
                self._silent.pop(name, None)

    # The look around -------------------------------------------------------------------------------------------

    def patience(self, longest: float) -> float:
        """How long nothing has to be done."""
        return min(longest, max(0.0, self._look_at - time.monotonic()))

    def to_ask(self, own: Collection[str]) -> list[str]:
        """Mailboxes to ping now; mostly none."""
        now = time.monotonic()
        with self._lock:
            if now < self._look_at:
                return []
            again, silent = self._again, set(self._looking)
            self._again = True
            self._look_at = now + MISS_SECONDS + 0.5  # also when listing them fails
        if again:  # those that have not answered since the last time
            self.missed(silent)
            self.sweep()
            with self._lock:
                self._looking &= self._silent.keys()
        else:
            names = [name for name in self._boxes.find() if name not in own]
            with self._lock:
                self._looking = set(random.sample(names, min(len(names), LOOK_MAILBOXES)))
        with self._lock:
            if not self._looking:
                self._again = False
                self._look_at = now + LOOK_SECONDS * random.uniform(0.8, 1.2)
            return list(self._looking)
