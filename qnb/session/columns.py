"""What a Batch keeps of its calls: columns, about 40 bytes a call, and nothing that is an object per call."""

from __future__ import annotations

import array
from typing import Any

from qnb.codec.failures import unpack_failure
from qnb.codec.outcomes import read_times, slice_outcomes
from qnb.codec.output import Heard
from qnb.codec.payloads import Fetch, decode_values
from qnb.codec.pickling import loads
from qnb.message import DONE, FAILED, PENDING, Display, Failure, Outcomes, Progress


class Columns:
    """States, values, times and the rest of `count` calls."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.states = bytearray([PENDING]) * count
        self.attempts = bytearray(count)
        self.values: list[Any] = [None] * count
        self.queued = array.array("d", bytes(8 * count))
        self.started = array.array("d", bytes(8 * count))
        self.finished = array.array("d", bytes(8 * count))
        self.workers = array.array("H", bytes(2 * count))
        self.worker_names = [""]
        self.failures: dict[int, Failure] = {}
        self.errors: dict[int, BaseException] = {}
        self.outputs: dict[int, str] = {}
        self.displays: dict[int, list[Display]] = {}
        self.heard: dict[int, Heard] = {}  # output of calls that run
        self.steps: dict[int, tuple[float, float | None, str]] = {}  # their progress, and the last of those that ran
        self._worker_numbers = {"": 0}

    def worker_number(self, name: str) -> int:
        """Workers are kept as numbers; names once."""
        number = self._worker_numbers.get(name)
        if number is None:
            number = self._worker_numbers[name] = len(self.worker_names)
            self.worker_names.append(name)
        return number

    def queue(self, first: int, count: int, at: float, state: int) -> None:
        """These calls have been sent."""
        self.states[first : first + count] = bytes([state]) * count
        self.queued[first : first + count] = array.array("d", [at]) * count

    def fill(self, outcomes: Outcomes, fetch: Fetch | None = None) -> list[tuple[int, int]]:
        """Take outcomes in; the spans that were new. The first outcome of a call stays. `fetch`: what was put aside."""
        if 0 <= outcomes.first < self.count < outcomes.first + outcomes.count:
            # Attached to a stream that goes on: what came after is another's.
            outcomes = slice_outcomes(outcomes, 0, self.count - outcomes.first)
        first, count = outcomes.first, outcomes.count
        stop = first + count
        if first < 0 or stop > self.count:
            return []
        values, broken = decode_values(outcomes.values, loads, fetch)
        values = values or [None] * count
        states = bytearray(outcomes.states or bytes([DONE]) * count)
        for position, error in broken.items():
            states[position] = FAILED
            self.errors[first + position] = error
        new = self._new(first, stop)
        whole = new == [(first, count)]
        times = read_times(outcomes.times) if outcomes.times else array.array("d", bytes(16 * count))
        number = self.worker_number(outcomes.worker)
        for low, length in new:
            high, a, b = low + length, low - first, low - first + length
            self.values[low:high] = values if whole else values[a:b]
            self.started[low:high] = times[a:b]
            self.finished[low:high] = times[count + a : count + b]
            self.workers[low:high] = array.array("H", [number]) * length
            self.attempts[low:high] = bytes([min(outcomes.attempt, 255)]) * length
            for position, failure in outcomes.failures.items():
                if a <= position < b:
                    self.failures[first + position] = failure
            for position, output in outcomes.outputs.items():
                if a <= position < b:
                    self.outputs[first + position] = output
            for position, displays in outcomes.displays.items():
                if a <= position < b:
                    self.displays[first + position] = displays
            if self.heard:
                self._still(low, high, states, low - first)
            # States last: whoever sees a call as ended finds everything else in place.
            self.states[low:high] = states[a:b]
        return new

    def hear(self, progress: Progress) -> None:
        """What a call says that runs."""
        index = progress.indices[0]
        if not 0 <= index < self.count or self.states[index] >= DONE:
            return
        if progress.steps is not None:
            self.steps[index] = progress.steps
        if progress.output or progress.displays:
            heard = self.heard.get(index)
            if heard is None or heard.attempt != progress.attempt:
                heard = self.heard[index] = Heard(progress.attempt)
            if progress.output:
                heard.add(progress.offset, progress.output)
            heard.show(progress.displays)

    def _still(self, low: int, high: int, states: bytearray, start: int) -> None:
        """These calls have ended. Of one whose lane was killed, what was heard is all there will be."""
        for index in [i for i in self.heard if low <= i < high]:
            heard = self.heard.pop(index)
            if states[start + index - low] != DONE:
                self.outputs.setdefault(index, heard.text())
                if heard.displays:
                    self.displays.setdefault(index, sorted(heard.displays.values(), key=lambda d: d.number))

    def output(self, index: int) -> str:
        """What a call has printed, as far as it is known here."""
        heard = self.heard.get(index)
        return self.outputs.get(index, "") if heard is None else heard.text()

    def _new(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Spans in first … stop - 1 of calls that have not ended."""
        part = self.states[first:stop]
        if max(part, default=DONE) < DONE:
            return [(first, stop - first)]
        spans: list[tuple[int, int]] = []
        for index in range(first, stop):
            if part[index - first] < DONE:
                if spans and sum(spans[-1]) == index:
                    spans[-1] = (spans[-1][0], spans[-1][1] + 1)
                else:
                    spans.append((index, 1))
        return spans

    def error(self, index: int) -> BaseException | None:
        """The exception of a call that failed, made when first asked for."""
        error = self.errors.get(index)
        if error is None and (failure := self.failures.get(index)) is not None:
            error = self.errors[index] = unpack_failure(failure)
        return error

    def error_text(self, index: int) -> str | None:
        """Type and message of a failure in a line."""
        failure = self.failures.get(index)
        if failure is not None:
            return f"{failure.type_name}: {failure.message}" if failure.message else failure.type_name
        error = self.errors.get(index)
        return None if error is None else f"{type(error).__name__}: {error}"
