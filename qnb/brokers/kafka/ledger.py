"""What has become of the messages of one partition: pure, and small enough to travel in the commit of its offset.

Kafka keeps one number a partition: everything below it is finished. A task queue finishes out of order. So the ledger
commits the contiguous finished prefix only, and writes the rest beside it, into the commit's metadata: which ones
beyond are finished, which are held, and how often each was handed out. Whoever takes over the partition reads that,
so that nothing finished is given out again and a message that killed its worker is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

# offset.metadata.max.bytes of a server is 4096 unless changed; the rest is for the count of what did not fit.
METADATA_BYTES = 4000
_FORMAT = "q1:"
_DONE, _WAITING, _HELD, _BEYOND = "dwh~"


class Ledger:
    """The state of a partition's messages, by offset.

    `base`: everything below is finished. `tries(offset)`: how often it was handed out without an end, before now.
    """

    __slots__ = ("_done", "_doubt", "_held", "_tries", "base")

    def __init__(self, base: int) -> None:
        self.base = base
        self._done: set[int] = set()
        self._held: set[int] = set()
        self._tries: dict[int, int] = {}
        self._doubt = base  # below this, whatever is not written down may have been handed out once

    def finished(self, offset: int) -> bool:
        """Whether it is over with this message."""
        return offset < self.base or offset in self._done

    def held(self, offset: int) -> bool:
        """Whether someone has it now."""
        return offset in self._held

    def tries(self, offset: int) -> int:
        """How often it was handed out before and neither finished nor given back."""
        return self._tries.get(offset, 1 if offset < self._doubt else 0)

    def hand_out(self, offset: int) -> int:
        """It is held now; how often it has been handed out, this time included."""
        self._held.add(offset)
        tries = self._tries[offset] = self.tries(offset) + 1
        return tries

    def hold(self, offset: int) -> None:
        """It is held now, by who had it already under another offset: not handed out once more."""
        self._held.add(offset)

    def give_back(self, offset: int, failed: bool) -> None:
        """It waits again. Counts as handed out when that `failed`."""
        if offset in self._held:
            self._held.discard(offset)
            if not failed:
                self._tries[offset] = max(0, self.tries(offset) - 1)

    def finish(self, offset: int) -> None:
        """It is over with this message; the base moves on as far as it can."""
        if self.finished(offset):
            return
        self._held.discard(offset)
        self._tries.pop(offset, None)
        self._done.add(offset)
        while self.base in self._done:
            self._done.discard(self.base)
            self.base += 1

    def finish_below(self, end: int) -> int:
        """Finish all below `end` that nobody holds; how many."""
        if not self._held or min(self._held) >= end:
            count = max(0, end - self.base - sum(1 for offset in self._done if offset < end))
            self._done = {offset for offset in self._done if offset >= end}
            self._tries = {offset: tries for offset, tries in self._tries.items() if offset >= end}
            self.base = max(self.base, end)
            while self.base in self._done:
                self._done.discard(self.base)
                self.base += 1
            return count
        waiting = [o for o in range(self.base, end) if o not in self._done and o not in self._held]
        for offset in waiting:
            self.finish(offset)
        return len(waiting)

    def skip_to(self, offset: int) -> None:
        """The log begins here: what was before is gone, deleted by its retention or by hand."""
        for each in [held for held in self._held if held < offset]:
            self._held.discard(each)
        self.finish_below(offset)

    @property
    def out_of_order(self) -> int:
        """How many are finished that the base cannot pass yet."""
        return len(self._done)

    def blockers(self) -> Iterator[int]:
        """The offsets that keep the base back, first the lowest."""
        last = max(self._done, default=self.base)
        return (offset for offset in range(self.base, last) if offset not in self._done)

    # ------------------------------------------------------------------------------------------ as text

    def encode(self, limit: int = METADATA_BYTES) -> str:
        """For the commit of `base`. What does not fit is only counted, and comes again when the partition moves."""
        parts, used, position = [_FORMAT], len(_FORMAT), self.base
        runs = list(self._as_runs())
        for index, (state, tries, length) in enumerate(runs):
            part = f"{state}{length}" + (f".{tries}" if tries else "") + ","
            if used + len(part) > limit:
                parts.append(self._rest(runs[index:]))
                break
            parts.append(part)
            used += len(part)
            position += length
        return "".join(parts)

    def _as_runs(self) -> Iterator[tuple[str, int, int]]:
        marked = {*self._done, *self._held, *self._tries}
        top = max(max(marked, default=self.base - 1) + 1, self._doubt)

        def state(offset: int) -> tuple[str, int]:
            if offset in self._done:
                return _DONE, 0
            return (_HELD if offset in self._held else _WAITING), self.tries(offset)

        for (kind, tries), group in groupby(range(self.base, top), state):
            yield kind, tries, sum(1 for _ in group)

    @staticmethod
    def _rest(runs: list[tuple[str, int, int]]) -> str:
        done = sum(length for state, _, length in runs if state == _DONE)
        held = sum(length for state, _, length in runs if state == _HELD)
        return f"{_BEYOND}{sum(length for _, _, length in runs)}.{done}.{held}"

    @classmethod
    def decode(cls, base: int, text: str) -> Ledger:
        """What was committed; what somebody held waits again, and counts. Text of a stranger is an empty ledger."""
        ledger = cls(base)
        position = base
        for state, length, more in _parts(text):
            for offset in range(position, position + length) if state != _BEYOND else ():
                if state == _DONE:
                    ledger._done.add(offset)
                elif more and more[0]:
                    ledger._tries[offset] = more[0]
            position += length
            if state == _BEYOND:
                ledger._doubt = position
                # What is written down counts for itself; only what did not fit is in doubt.
                for offset in range(base, position - length):
                    if offset not in ledger._done:
                        ledger._tries.setdefault(offset, 0)
        while ledger.base in ledger._done:
            ledger._done.discard(ledger.base)
            ledger.base += 1
        return ledger


def _parts(text: str) -> Iterator[tuple[str, int, list[int]]]:
    if not text.startswith(_FORMAT):
        return
    for part in text[len(_FORMAT) :].split(","):
        if part:
            length, *more = (int(number) for number in part[1:].split("."))
            yield part[0], length, more


def not_waiting(text: str) -> int:
    """How many messages at or after the committed offset do not wait: finished already, or held."""
    count = 0
    for state, length, more in _parts(text):
        if state in (_DONE, _HELD):
            count += length
        elif state == _BEYOND:
            count += sum(more[:2])
    return count
