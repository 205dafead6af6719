"""Runs the calls of one Work, in whatever process or thread it is called."""

from __future__ import annotations

import array
import signal
import sys
import threading
from collections.abc import Callable
from time import time
from types import FrameType
from typing import Any

from qnb.codec.displays import left_out, size_of
from qnb.codec.failures import own_failure, pack_failure
from qnb.codec.functions import unpack
from qnb.codec.output import Ring
from qnb.codec.payloads import decode_calls, encode_values
from qnb.codec.pickling import loads
from qnb.codec.signing import OUTCOMES, Signer
from qnb.errors import CannotUnpickle, SoftTimeout
from qnb.message import DONE, FAILED, Display, Failure, Outcomes
from qnb.worker.protocol import FUNCTIONS_KEPT, Report, Work, remember
from qnb.worker.tape import Voice
from qnb.worker.teller import Teller, last_steps

# A work of many calls is cut short after this long, so that a wrong estimate holds up neither results nor other lanes.
HOLD_SECONDS = 0.1
# And when its calls have printed so many characters, of those that are kept.
HOLD_OUTPUT = 1 << 20
# Characters that the calls of a run may print in one lane before each keeps only a little.
MUCH_OUTPUT, LITTLE_OUTPUT = 1 << 24, 2048
# Bytes of displays that the calls of a run may show in one lane.
MUCH_SHOWN = 1 << 28
_RUNS_KEPT = 100

Mark = Callable[[int, int, float], None]  # (serial, index, Unix time): the call that starts now
Send = Callable[[Report], None]


class Runner:
    """Keeps the functions it has been given, and runs works; what they print is in its voice's tape."""

    def __init__(self, worker: str, signer: Signer, mark: Mark, send: Send, voice: Voice, teller: Teller) -> None:
        self.worker = worker
        self.voice = voice
        self.teller = teller
        self._heard: dict[str, int] = {}  # characters of output, by run
        self._shown: dict[str, int] = {}  # bytes of displays, by run
        self._spilling: set[bytes] = set()  # functions whose calls write past Python: looked at after each call
        self.signer = signer
        self.mark = mark
        self.send = send
        self._functions: dict[bytes, Callable[..., Any] | CannotUnpickle] = {}

    def within_bounds(self, run: str, text: str) -> str:
        """The output of a call: whole, or shortened when the calls of its run have printed much already."""
        heard = self._heard.get(run, 0)
        if heard > MUCH_OUTPUT and len(text) > LITTLE_OUTPUT:
            ring = Ring(LITTLE_OUTPUT)
            ring.add(text)
            text = ring.text()
        remember(self._heard, run, heard + len(text), _RUNS_KEPT)
        return text

    def few_enough(self, run: str, displays: list[Display]) -> tuple[list[Display], int]:
        """The displays of a call and their bytes; of a run that has shown too much, a word instead."""
        before, size = self._shown.get(run, 0), sum(map(size_of, displays))
        if before + size > MUCH_SHOWN:
            return [left_out(displays[0], len(displays), "the run has shown too much")], 100
        remember(self._shown, run, before + size, _RUNS_KEPT)
        return displays, size

    def function(self, work: Work) -> Callable[..., Any]:
        """The function of a work; CannotUnpickle each time when it cannot be opened here."""
        found = self._functions.get(work.hash)
        if found is None or work.code is not None:
            try:
                found = unpack(work.name, work.code or b"")
            except CannotUnpickle as error:
                found = error
            remember(self._functions, work.hash, found, FUNCTIONS_KEPT)
        if isinstance(found, CannotUnpickle):
            raise CannotUnpickle(str(found)) from found.__cause__
        return found

    def run(self, work: Work) -> None:
        """Run the calls in order; reports at the end, or after HOLD_SECONDS with the rest given back."""
        voice = self.voice
        voice.work = work
        if self.teller.dozing:
            self.teller.wake()
        record = Record(self, work)
        try:
            rest = self._run(work, record)
        finally:
            voice.work = None
        if voice.tape.spilled():
            remember_one(self._spilling, work.hash)
            record.listen(work.first + len(record.ends) - 1)
        if voice.steps is not None and (report := last_steps(voice)) is not None:
            self.send(report)
        record.report(rest)

    def _run(self, work: Work, record: Record) -> tuple[int, int] | None:
        pickled, calls = decode_calls(work.args)
        mark, serial, index = self.mark, work.serial, work.first
        if work.code is not None:
            mark(serial, index, record.begun)  # opening the function may take the process down, too
        try:
            function = self.function(work)
        except CannotUnpickle as error:
            record.fail_all(error)
            return None
        values, ends, last = record.values, record.ends, work.first + work.count - 1
        timed = _soft_timer(work.soft_timeout) if work.soft_timeout else None
        ended = record.begun
        parts = self.voice.tape.parts
        if spills := work.hash in self._spilling:
            parts.append("")
        for call in calls:
            mark(serial, index, ended)
            try:
                args, kwargs = loads(call) if pickled else call
                if timed is None:
                    values.append(function(*args, **kwargs))
                else:
                    values.append(timed(function, args, kwargs))
            except BaseException as error:
                record.fail(index, error)
            ended = time()
            ends.append(ended)
            if parts:
                heard = record.listen(index)
                if spills:
                    parts.append("")  # so that it is looked at after the next call, too
                if heard > HOLD_OUTPUT and index < last:
                    break
            if ended - record.begun > HOLD_SECONDS and index < last:
                break
            index += 1
        return (index + 1, last - index) if index < last else None


class Record:
    """Collects the ends of consecutive calls and reports them as Outcomes."""

    def __init__(self, runner: Runner, work: Work) -> None:
        self.runner = runner
        self.work = work
        self.begun = time()
        self.values: list[Any] = []
        self.ends: list[float] = []
        self.failures: dict[int, Failure] = {}
        self.again: list[tuple[int, str]] = []
        self.outputs: dict[int, str] = {}
        self.displays: dict[int, list[Display]] = {}
        self._heard = 0

    def listen(self, index: int) -> int:
        """The call at `index` has ended, and has printed; how much all of them have so far, of what is kept."""
        tape, position = self.runner.voice.tape, index - self.work.first
        if text := tape.take():
            text = self.runner.within_bounds(self.work.run, self.outputs.get(position, "") + text)
            self.outputs[position] = text
            self._heard += len(text)
        if tape.shown:
            shown, size = self.runner.few_enough(self.work.run, tape.shown)
            self.displays[position] = self.displays.get(position, []) + shown
            tape.shown = []
            self._heard += size
        return self._heard

    def fail(self, index: int, error: BaseException) -> None:
        """The call at `index`, next in order, raised."""
        self.values.append(None)
        if self.work.attempt <= self.work.retries:
            self.again.append((index, f"{type(error).__name__}: {error}"))
        else:
            # The first frame is Runner.run's; a function that never got to run has only that one.
            self.failures[index - self.work.first] = pack_failure(error, skip=1)

    def fail_all(self, error: CannotUnpickle) -> None:
        """None of the calls can be run."""
        now, failure = time(), own_failure(error)
        count = self.work.count
        self.values, self.ends = [None] * count, [now] * count
        self.failures = dict.fromkeys(range(count), failure)

    def report(self, rest: tuple[int, int] | None) -> None:
        """Send what there is. Calls to be tried again cut it into several Outcomes, since they have none yet."""
        done, start = [], 0
        for index, _ in self.again:
            stop = index - self.work.first
            if stop > start:
                done.append(self._outcomes(start, stop))
            start = stop + 1
        if len(self.ends) > start:
            done.append(self._outcomes(start, len(self.ends)))
        seconds = self.ends[-1] - self.begun if self.ends else 0.0
        self.runner.send(Report(self.work.serial, len(self.ends), seconds, done, self.again, rest))

    def _outcomes(self, start: int, stop: int) -> tuple[int, int, bytes, bytes]:
        work = self.work
        values, unpicklable = encode_values(self.values[start:stop])
        failures = {i - start: f for i, f in self.failures.items() if start <= i < stop}
        for position, error in unpicklable.items():
            failures[position] = own_failure(error)
        states = b""
        if failures:
            states = bytes(FAILED if i in failures else DONE for i in range(stop - start))
        starts = [self.begun, *self.ends][start:stop]
        times = array.array("d", starts + self.ends[start:stop])
        if sys.byteorder == "big":
            times.byteswap()
        first = work.first + start
        outputs = {i - start: text for i, text in self.outputs.items() if start <= i < stop} if self.outputs else {}
        displays = {i - start: d for i, d in self.displays.items() if start <= i < stop} if self.displays else {}
        outcomes = Outcomes(
            work.run, first, stop - start, states, values, times.tobytes(),
            self.runner.worker, work.queued_at, work.attempt, failures, outputs, None, displays,
        )  # fmt: skip
        return first, stop - start, states, self.runner.signer.pack(OUTCOMES, outcomes)


def remember_one(kept: set[bytes], key: bytes) -> None:
    """Put a function into a set that is emptied rather than grow without end."""
    if len(kept) >= FUNCTIONS_KEPT:
        kept.clear()
    kept.add(key)


def _soft_timer(seconds: float) -> Callable[..., Any] | None:
    """A caller that raises SoftTimeout inside the function; None in a thread, where no signal can reach it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return None

    def ring(signum: int, frame: FrameType | None) -> None:
        raise SoftTimeout(f"the task has run for its soft_timeout of {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)

    def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function(*args, **kwargs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return call
