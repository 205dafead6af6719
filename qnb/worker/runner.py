"""Runs the calls of one Work, in whatever process or thread it is called."""

from __future__ import annotations

import array
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from time import time
from types import FrameType
from typing import Any

from qnb.codec.archives import activate
from qnb.codec.code import read
from qnb.codec.displays import left_out, size_of
from qnb.codec.environment import differences, pip_line
from qnb.codec.failures import own_failure, pack_failure, told
from qnb.codec.functions import Opened, open_function
from qnb.codec.output import Ring
from qnb.codec.payloads import decode_calls
from qnb.codec.pickling import loads
from qnb.codec.plain import NO_ARGUMENTS, encode_plain_values
from qnb.codec.references import REFERRING, decode_referring
from qnb.codec.signing import OUTCOMES, Signer
from qnb.errors import CannotPickle, CannotUnpickle, SoftTimeout
from qnb.message import DONE, FAILED, Blob, Display, Failure, Outcomes
from qnb.worker.inputs import Inputs
from qnb.worker.only import NO_PICKLES, find_function
from qnb.worker.protocol import FUNCTIONS_KEPT, Report, Welcome, Work, remember
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


class Place:
    """The lane that calls run in."""

    __slots__ = ("inputs", "only", "signer", "worker")

    def __init__(self, welcome: Welcome) -> None:
        self.worker = welcome.worker
        self.signer = Signer(welcome.key)
        self.inputs = Inputs(welcome.folder)
        self.only = welcome.only

    def calls(self, work: Work) -> tuple[Callable[[Any], Any] | None, Iterable[Any]]:
        """The calls of a work, and what opens one as (args, kwargs); None where they are so already."""
        if work.args[:1] == REFERRING:
            return _unpickled if self.only else self.inputs.opener(work), decode_referring(work.args)
        pickled, calls = decode_calls(work.args)
        if not pickled:
            return None, calls
        return _unpickled if self.only else loads, calls


def _unpickled(call: Any) -> Any:
    """The arguments of a call where no pickle is opened: there are none."""
    if call != NO_ARGUMENTS:
        raise CannotUnpickle(NO_PICKLES)
    return (), {}


class Runner:
    """Keeps the functions it has been given, and runs works; what they print is in its voice's tape."""

    def __init__(self, place: Place, mark: Mark, send: Send, voice: Voice, teller: Teller) -> None:
        self.worker = place.worker
        self.only = place.only
        self.place = place
        self.voice = voice
        self.teller = teller
        self._heard: dict[str, int] = {}  # characters of output, by run
        self._shown: dict[str, int] = {}  # bytes of displays, by run
        self._spilling: set[bytes] = set()  # functions whose calls write past Python: looked at after each call
        self.signer = place.signer
        self.mark = mark
        self.send = send
        self._functions: dict[bytes, Opened | CannotUnpickle] = {}
        self.differs: dict[bytes, Sequence[tuple[str, str, str | None]]] = {}  # not told yet, by function

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
                found = self._open(work.name, work.code or b"")
            except CannotUnpickle as error:
                found = error
            else:
                if found.differs:
                    self.differs[work.hash] = found.differs
            remember(self._functions, work.hash, found, FUNCTIONS_KEPT)
        if isinstance(found, CannotUnpickle):
            raise CannotUnpickle(str(found)) from found.__cause__
        activate(found.archives)
        return found.function

    def _open(self, name: str, code: bytes) -> Opened:
        if not self.only:
            return open_function(name, code)
        parts = read(code)
        return Opened(find_function(code, self.only), (), differences(parts, by_reference=True), parts.packages)

    def share(self, other: Runner) -> None:
        """Have the functions of another, and tell what differs in its place."""
        self._functions, self.differs = other._functions, other.differs

    def explain(self, work: Work, error: BaseException) -> None:
        """A module that is missing here: say what brings it."""
        opened = self._functions.get(work.hash)
        packages = opened.packages if isinstance(opened, Opened) else ()
        if isinstance(error, ModuleNotFoundError) and error.name:
            error.add_note(f"worker {self.worker} does not have it: {pip_line(packages, error.name)}")

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
        opened, calls = self.place.calls(work)
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
                args, kwargs = call if opened is None else opened(call)
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
        self.aside: list[tuple[str, Blob]] = []
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
            self.again.append((index, told(error)))
        else:
            self.runner.explain(self.work, error)
            # The first frame is Runner.run's; a function that never got to run has only that one.
            failure = pack_failure(error, skip=1, as_text=bool(self.runner.only))
            self.failures[index - self.work.first] = failure

    def fail_all(self, error: CannotUnpickle) -> None:
        """None of the calls can be run."""
        now, failure = time(), own_failure(error)
        count = self.work.count
        self.values, self.ends = [None] * count, [now] * count
        self.failures = dict.fromkeys(range(count), failure)

    def report(self, rest: tuple[int, int] | None) -> None:
        """Send what there is."""
        try:
            report = self._reported(rest)
        except Exception as error:  # of what calls returned, raised or showed: whoever waits is told in any case
            self.give_up(error)
            report = self._reported(rest)
        self.runner.send(report)

    def give_up(self, error: Exception) -> None:
        """What the calls that have ended left cannot be told: nothing but that."""
        failure = own_failure(CannotPickle(f"the outcome cannot be told: {told(error)}"))
        self.ends = self.ends or [time()]
        self.values, again = [None] * len(self.ends), {index - self.work.first for index, _ in self.again}
        self.failures = {at: failure for at in range(len(self.ends)) if at not in again}
        self.outputs, self.displays, self.aside = {}, {}, []

    def _reported(self, rest: tuple[int, int] | None) -> Report:
        """Calls to be tried again cut it into several Outcomes, since they have none yet."""
        done, start = [], 0
        for index, _ in self.again:
            stop = index - self.work.first
            if stop > start:
                done.append(self._outcomes(start, stop))
            start = stop + 1
        if len(self.ends) > start:
            done.append(self._outcomes(start, len(self.ends)))
        seconds = self.ends[-1] - self.begun if self.ends else 0.0
        return Report(self.work.serial, len(self.ends), seconds, done, self.again, rest, None, self.aside)

    def _outcomes(self, start: int, stop: int) -> tuple[int, int, bytes, bytes]:
        work = self.work
        results = self.values[start:stop]
        plain = encode_plain_values(results) if self.runner.only else None
        if plain is None:
            encode = self.runner.place.inputs.encode_values
            values, unpicklable, aside = encode(work, work.first + start, results)
            self.aside += aside
        else:
            values, unpicklable = plain, {}
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
            self.runner.worker, work.queued_at, work.attempt, failures, outputs, None, self._differs(), displays,
        )  # fmt: skip
        return first, stop - start, states, self.runner.signer.pack(OUTCOMES, outcomes)

    def _differs(self) -> list[tuple[str, str, str | None]]:
        """What differs here from where the function comes from: told once a lane."""
        untold = self.runner.differs
        return list(untold.pop(self.work.hash, ())) if untold else []


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
