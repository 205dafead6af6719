"""Fires schedules: every worker looks, and whoever first claims a tick publishes its call.

A claim is a lease: when its worker dies before it has published, another claims the tick after that. A thread of its
own, so that a backend that is slow holds up no lease.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from qnb.backends.schedules import Fired, Plan, Schedules, Tick
from qnb.brokers.base import QueueSpec
from qnb.codec.cadence import Cadence
from qnb.codec.claims import lighten
from qnb.codec.parts import put_sealed
from qnb.codec.signing import FRAME
from qnb.errors import MessageError, QnbError
from qnb.message import Envelope, Frame, Function, RunRecord

if TYPE_CHECKING:
    from qnb.worker.loop import Worker

log = logging.getLogger(__name__)

LOOK_SECONDS = 30.0  # between looks for schedules that nobody has told of
PUBLISH_SECONDS = 1.0  # between attempts to publish a tick that was claimed
LATE_SECONDS = 5.0
FAULT_MOST_SECONDS = 60.0
_SHORTEST = 0.02


class _Schedule(msgspec.Struct):
    record: RunRecord
    plan: Plan
    cadence: Cadence
    due: float  # when the last tick was due that is known to be fired; before the first, when it all began
    number: int = -1  # of that tick
    at: float = 0.0  # when to look at it again
    faults: int = 0  # in a row
    mine: tuple[int, Tick, float] | None = None  # claimed here and not published: until when


class Clock:
    """Of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._kept = Schedules(worker.backend, worker.signer)
        self._all: dict[str, _Schedule] = {}
        self._gone: set[str] = set()
        self._look_at = 0.0
        self._alarm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qnb-clock", daemon=True)

    def start(self) -> None:
        """Begin; where no backend keeps anything there is nothing to do."""
        if self._worker.backend.blobs:
            self._thread.start()

    def wake(self) -> None:
        """Schedules have come or gone."""
        self._look_at = 0.0
        self._alarm.set()

    @property
    def busy(self) -> bool:
        """Whether there are schedules: a reason to stay without work and without a session."""
        return bool(self._all)

    def close(self) -> None:
        """Fire no more."""
        self._alarm.set()

    def _run(self) -> None:
        while not self._worker.closing:
            try:
                pause = self._turn(time.time())
            except QnbError as error:
                log.warning("schedules of worker %s, trying again: %s", self._worker.options.name, error)
                pause = PUBLISH_SECONDS
            except Exception:
                log.exception("schedules of worker %s, trying again", self._worker.options.name)
                pause = LOOK_SECONDS
            self._alarm.wait(pause)
            self._alarm.clear()

    def _turn(self, now: float) -> float:
        """Do what is due; seconds until there is more to do."""
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(now)
        for run, schedule in list(self._all.items()):
            if schedule.at <= now and not self._worker.closing:
                try:
                    self._see_to(run, schedule, now)
                except Exception as error:  # the others are not to wait for it
                    schedule.faults += 1
                    schedule.at = max(schedule.at, now + min(FAULT_MOST_SECONDS, 2.0 ** min(schedule.faults, 10)))
                    _tell(run, error)
                else:
                    schedule.faults = 0
        times = [self._look_at, *(schedule.at for schedule in self._all.values())]
        return max(_SHORTEST, min(times) - time.time())

    def _look(self, now: float) -> None:
        """Which schedules there are."""
        for run in self._kept.runs():
            if run in self._gone:
                continue
            try:
                loaded = self._kept.load(run)
                if loaded is None or loaded[1].cancelled:
                    self._drop(run)
                elif run not in self._all:
                    record, plan = loaded
                    cadence = Cadence(plan.every, plan.zone, record.created_at)
                    begun = record.created_at if plan.last is None else plan.last.due
                    self._all[run] = _Schedule(record, plan, cadence, begun)
                elif now - loaded[1].renewed_at > self._kept.kept_seconds / 4:
                    self._kept.renew(*loaded, now)
            except (MessageError, ValueError) as error:
                log.warning("schedule %s is left alone: %s", run, error)
                self._gone.add(run)
            except Exception as error:  # looked at again with the next look
                _tell(run, error)
        kept = self._kept.kept_seconds
        self._look_at = min(self._look_at, now + max(1.0, kept / 8))

    def _drop(self, run: str) -> None:
        self._all.pop(run, None)
        self._gone.add(run)

    def _see_to(self, run: str, schedule: _Schedule, now: float) -> None:
        """Publish what is claimed here, claim what is due, and say when to look again."""
        if schedule.mine is not None:
            number, tick, until = schedule.mine
            schedule.mine = None
            if now < until:
                self._fire(run, schedule, number, tick, until)
                return
        fired = self._kept.fired(run, max(0, schedule.number, (schedule.record.count or 0) - 1))
        last = fired[-1] if fired else None
        if last is not None:
            schedule.number, schedule.due = last.number, last.tick.due
            if not last.sent:
                self._take_over(run, schedule, last, now)
                return
        due = schedule.cadence.due(schedule.due, now)
        if due is None:
            schedule.at = schedule.cadence.after(schedule.due)
            return
        number = max(schedule.number + 1, schedule.record.count or 0)
        tick = Tick(due[0], now, self._worker.options.name, due[1])
        if self._kept.claim(run, number, 0, tick):
            self._fire(run, schedule, number, tick, Fired(number, tick, 1, sent=False).lease_until)
        else:
            schedule.at = now + _SHORTEST  # another worker was first: see what it has done

    def _take_over(self, run: str, schedule: _Schedule, last: Fired, now: float) -> None:
        """A tick was claimed and is not published: its worker is at it, or has died."""
        if now < last.lease_until:
            schedule.at = last.lease_until
            return
        tick = replace(last.tick, at=now, worker=self._worker.options.name)
        if self._kept.claim(run, last.number, last.claims, tick):
            log.warning("tick %d of schedule %s was left by worker %s", last.number, run, last.tick.worker)
            self._fire(run, schedule, last.number, tick, Fired(last.number, tick, last.claims + 1, False).lease_until)
        else:
            schedule.at = now + _SHORTEST

    def _fire(self, run: str, schedule: _Schedule, number: int, tick: Tick, until: float) -> None:
        """Publish the call of a tick that is claimed here."""
        schedule.mine = (number, tick, until)
        schedule.at = time.time() + PUBLISH_SECONDS  # when what follows raises
        loaded = self._kept.load(run)
        if loaded is None or loaded[1].cancelled or run in self._worker.logic.revoked:
            self._drop(run)
            return
        record, plan = loaded
        self._publish(record, plan, number, tick)
        self._kept.published(run, number, tick)
        schedule.mine = None
        schedule.number, schedule.due = number, tick.due
        schedule.at = schedule.cadence.after(tick.due)
        self._say(record, tick)
        record = replace(record, count=max(record.count or 0, number + 1))
        self._note(record, replace(plan, last=tick, missed=plan.missed + tick.missed), tick.at)
        schedule.record = record

    def _note(self, record: RunRecord, plan: Plan, now: float) -> None:
        """Write down how many were fired; a schedule that was cancelled meanwhile stays so."""
        if now - plan.renewed_at > self._kept.kept_seconds / 4:
            self._kept.renew(record, plan, now)
        else:
            self._kept.save(record, plan)
        if record.run in self._worker.logic.revoked:
            self._kept.cancel(record.run)
            self._drop(record.run)

    def _publish(self, record: RunRecord, plan: Plan, number: int, tick: Tick) -> None:
        worker = self._worker
        options = plan.wire
        if plan.expires is not None:
            options = replace(options, expires=tick.at + plan.expires)
        function = Function(plan.hash, plan.function, None, plan.is_async)
        frame = Frame(record.run, number, 1, function, plan.args, options, "", tick.at, blob=plan.blob)
        put = partial(put_sealed, worker.backend, worker.signer.about(record.run))
        frame = lighten(frame, worker.broker.features.limits.message_bytes, put)
        worker.broker.declare(QueueSpec(plan.queue))
        body = worker.signer.pack(FRAME, frame)
        worker.broker.publish_many([Envelope(plan.queue, body, f"{record.run}:{number}", options.priority)])

    def _say(self, record: RunRecord, tick: Tick) -> None:
        late = tick.at - tick.due
        if tick.missed or late > LATE_SECONDS:
            log.warning(
                "schedule %s (%s) is fired once, %.0f s late: no worker was there for it, %d ticks before were missed",
                record.name, record.run, late, tick.missed,
            )  # fmt: skip


def _tell(run: str, error: Exception) -> None:
    """Of a fault that may pass: in a line where the remedy is in it, else with all there is."""
    known = isinstance(error, QnbError)
    log.warning("schedule %s, trying again: %s", run, error if known else repr(error), exc_info=not known)
