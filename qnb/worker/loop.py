"""The threads round the logic: one receives, one settles, one keeps leases, presence and commands."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from qnb.backends.base import Backend
from qnb.brokers.base import PRESENCE_SECONDS, Broker, Delivery, QueueSpec
from qnb.codec.outcomes import gaps
from qnb.codec.signing import FRAME, NOTE, Signer, decode, encode
from qnb.errors import MessageError, QnbError, ShippingError
from qnb.message import DEFAULT_QUEUE, SESSION_PREFIX, WORKER_PREFIX, Command, Frame, Note, Stored
from qnb.worker import actions as act
from qnb.worker.clock import Clock
from qnb.worker.commands import Commands, worker_info
from qnb.worker.dependencies import Dependencies, needed_files
from qnb.worker.files import Files
from qnb.worker.graph import Known
from qnb.worker.intake import Intake
from qnb.worker.lanes import Lanes
from qnb.worker.limits import Limits
from qnb.worker.logic import WorkerLogic
from qnb.worker.opening import Opening
from qnb.worker.pool import Lane, LaneDied
from qnb.worker.protocol import Welcome
from qnb.worker.settling import Settling

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05
AWAKE_SECONDS = 2.0
STAY_SECONDS = 0.001
STILLBORN_LANES = 5
MUTE_SECONDS = 5.0


class WorkerOptions(msgspec.Struct, frozen=True):
    """How a worker runs. `linger`: end after so many seconds without work and without a session; None: never.
    `only`: modules whose functions alone are run, called by name, and no pickle is opened."""

    name: str
    queues: Sequence[str] = (DEFAULT_QUEUE,)
    concurrency: int = 1
    pool: str = "process"
    linger: float | None = None
    only: Sequence[str] = ()


class Worker:
    """Takes frames from a broker and runs their calls in lanes."""

    def __init__(self, broker: Broker, backend: Backend, key: bytes, options: WorkerOptions) -> None:
        self.broker = broker
        self.backend = backend
        self.options = options
        self.peer = WORKER_PREFIX + options.name
        self.signer = Signer(key)
        self.logic = WorkerLogic(options.name, options.concurrency)
        self.started_at = time.time()
        self.stopped = threading.Event()
        self.failed = False
        self.files = Files(backend, self.signer, partial(needed_files, self))
        self.dependencies = Dependencies(self)
        self.opening = Opening(self)
        folder = self.files.folder if backend.blobs else None
        self.lanes = Lanes(Welcome(key, options.name, folder, tuple(options.only)), options.pool)
        self.lock = self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._settling_here = False  # the receiving thread settles a turn
        self._stillborn = 0  # lanes in a row that died before they had told anything
        self._actions: deque[act.Action] = deque()
        self._closing = self.cold = self._dozing = False
        self._last_work = self._looked = time.monotonic()
        for queue in options.queues:
            broker.declare(QueueSpec(queue))
        self.bus = broker.bus()
        self.inbox = self.bus.join(self.peer)
        self.commands = Commands(self)
        self.consumer = broker.consume(list(options.queues), prefetch=64)
        self.intake = Intake(broker, self.consumer, options.queues)
        self.settling = Settling(self)
        self.clock = Clock(self)
        self._threads = [
            threading.Thread(target=self._guard, args=(body,), name=f"qnb-{body.__name__.strip('_')}", daemon=True)
            for body in (self._receive, self._settle, self._keep, self.dependencies.run)
        ]

    # Life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads and the lanes; returns at once."""
        for run, first, count in self.backend.revoked():
            self.logic.revoked.setdefault(run, []).append((first, count))
        self._do(self.logic.start())
        for thread in self._threads:
            thread.start()
        self.clock.start()

    @property
    def closing(self) -> bool:
        """Whether it is on its way to its end."""
        return self._closing or self.stopped.is_set()

    def stop(self, cold: bool = False) -> None:
        """Warm: finish what runs, give back the rest, end. Cold: what runs is killed and given back."""
        self.cold = self.cold or cold
        self._closing = True
        self.lanes.ring()
        self.clock.close()
        self.consumer.wake()

    def join(self) -> None:
        """Wait until all is settled and closed. Signals are handled meanwhile."""
        while not self.stopped.wait(0.5):
            pass
        for thread in self._threads:
            thread.join(2.0)

    def _guard(self, body: object) -> None:
        try:
            body()  # type: ignore[operator]
        except BaseException:
            log.exception("worker %s stops: a fault of its own", self.options.name)
            self.failed = self.cold = self._closing = True
            try:
                with self._lock:
                    self._kill_all()
            finally:
                self.stopped.set()
                self.lanes.ring()

    # Receive -------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        while not self._closing:
            with self._room:
                room = self.logic.room()
                if not room:
                    self._room.wait(1.0)
                    continue
            try:
                deliveries = self.consumer.receive_many(room, 5.0)
            except QnbError as error:
                log.warning("cannot receive, trying on: %s", error)
                self.stopped.wait(1.0)
                continue
            for delivery in deliveries:
                try:
                    lane = self._take(delivery, alone=len(deliveries) == 1)
                    if lane is not None:
                        self._stay(lane)
                except QnbError as error:
                    log.warning("cannot look after a delivery, it goes back: %s", error)
                    self._do([act.Release(delivery, 1.0)])

    def _take(self, delivery: Delivery, alone: bool) -> Lane | None:
        """Give a delivery to the logic. A lane that was given its only, short call is unwatched, and returned."""
        try:
            sealed = self.signer.unpack(FRAME, delivery.body, Frame)
        except MessageError as error:
            log.warning("a message on queue %s goes to the dead letters: %s", delivery.queue, error)
            self._do([act.Reject(delivery, str(error))])
            return None
        try:
            frame = self.opening.open(sealed)
        except (MessageError, ShippingError) as error:  # its sender is known, and is told
            log.warning("a message on queue %s goes to the dead letters: %s", delivery.queue, error)
            self._do([*self.logic.refuse(sealed, error), act.Reject(delivery, str(error))])
            return None
        stored: Sequence[Stored] = ()
        if delivery.deliveries > 1:
            stored = self.backend.fetch_many(frame.run, [(frame.first, frame.count)])
        spans = [(record.first, record.count) for record in stored]
        if stored and frame.reply_to:
            # Whoever stored them may have died before telling.
            self.bus.post_many([Note(frame.reply_to, "outcomes", record.data) for record in stored])
        brought = self.opening.bring(frame, spans)
        if brought.delay is not None:
            self._do([act.Release(delivery, brought.delay)])
            return None
        if brought.refused:
            for first, count, why in brought.refused:
                self._do(self.logic.refuse(msgspec.structs.replace(frame, first=first, count=count), why))
                spans.append((first, count))
            if not gaps(frame.first, frame.count, spans):
                log.warning("a message on queue %s goes to the dead letters: %s", delivery.queue, why)
                self._do([act.Reject(delivery, str(why))])
                return None
        with self._lock:
            self._last_work = time.monotonic()
            actions = self.logic.received(delivery, frame, spans, time.time())
            lane = self._short(actions) if alone else None
            self.lanes.stay_with(lane)
            self._do(actions)
        if brought.references:
            self.dependencies.taken(frame, brought.references)  # nothing of it can raise: the frame is held
        return lane

    def learn(self, run: str, known: Mapping[int, Known]) -> None:
        """Calls that others here wait for have ended."""
        with self._lock:
            self._do(self.logic.learn(run, known, time.time()))
            self._room.notify_all()

    def expire(self) -> None:
        """End calls whose time is over while they wait for others."""
        with self._lock:
            self._do(self.logic.expire(time.time()))

    def _short(self, actions: list[act.Action]) -> Lane | None:
        if len(actions) != 1 or not isinstance(actions[0], act.Deal) or not self.logic.only_short(actions[0]):
            return None
        return self.lanes[actions[0].lane]

    def _stay(self, lane: Lane) -> None:
        """A short call is over before this thread could sleep: wait for it here, and settle it without a switch."""
        over = lane.wait(STAY_SECONDS)
        with self._lock:
            self.lanes.stay_with(None)
            if not over:
                self.lanes.watch_all()  # the settle thread sees to it from now on
                return
            self._hear(lane.number)
            taken = list(self._actions)
            self._actions.clear()
            self._settling_here = True
        try:
            self.settling.turn(taken)
        finally:
            self._settling_here = False

    # Settle --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        worked = 0.0
        while True:
            now = time.monotonic()
            busy = self.logic.busy or self._closing
            worked = now if busy else worked
            # Awake for a while after work: then whoever deals need not ring, which would cost more than looking.
            self._dozing = now - worked > AWAKE_SECONDS
            told = self.lanes.select(None if self._dozing and not self.logic.busy else TICK_SECONDS)
            with self._lock:
                self.lanes.watch_all()
                for number in told:
                    self._hear(number)
                if busy:
                    for number in self.lanes.ended():
                        self._hear(number)
                        self._bury(number)
                    self._do(self.logic.tick(self.lanes.marks(), time.time()), here=True)
                if self._closing:
                    self._do(self.logic.drain(), here=True)
                    if self.cold:
                        self._kill_all()
                self.lanes.retire(self.logic.idle_to_retire())
                self._room.notify_all()
                taken = list(self._actions)
                self._actions.clear()
            self.settling.turn(taken)
            settled = not self._actions and not self._settling_here
            if self._closing and (self.logic.idle or self.cold) and settled:
                self._close()
                return

    def _hear(self, number: int) -> None:
        lane = self.lanes.get(number)
        if lane is None:
            return
        self.lanes.flush(lane)
        try:
            for report in lane.receive():
                self._last_work = time.monotonic()
                self._do(self.logic.reported(number, report, time.time()), here=True)
        except LaneDied as death:
            self._lose(lane, str(death))

    def _bury(self, number: int) -> None:
        """A lane whose process has ended, while a child of it keeps the channel open."""
        lane = self.lanes.get(number)
        if lane is not None:
            self._lose(lane, lane.bury())

    def _lose(self, lane: Lane, reason: str) -> None:
        self.lanes.drop(lane)
        if not self._closing or not self.cold:
            log.warning("lane %d (pid %d) of worker %s: %s", lane.number, lane.pid, self.options.name, reason)
        mark = lane.mark()
        self._stillborn = 0 if mark[0] else self._stillborn + 1
        if self._stillborn > STILLBORN_LANES * self.logic.concurrency:
            log.error("worker %s ends: its lanes die before their first call: %s", self.options.name, reason)
            self.failed = True
            self.stop()
        self._do(self.logic.lane_down(lane.number, reason, mark, time.time()), here=True)

    def _do(self, actions: Sequence[act.Action], here: bool = False) -> None:
        """Carry out what concerns lanes at once, leave the rest to the next turn: `here`, or the settle thread's."""
        if not actions:
            return
        later = False
        with self._lock:
            for action in actions:
                if isinstance(action, act.Deal):
                    self.lanes.send(action.lane, action.work)
                elif isinstance(action, act.Kill):
                    self.lanes[action.lane].kill()
                elif isinstance(action, act.Spawn):
                    self._do(self.logic.lane_up(self.lanes.spawn(action.is_async), action.is_async))
                else:
                    self._actions.append(action)
                    later = not here
        if later or self._dozing:
            self.lanes.ring()

    # Keep ----------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Presence, leases, commands. None of it waits for a lane or for the settling of outcomes."""
        lease = self.consumer.lease
        beat = extended = 0.0
        looked, mute = time.monotonic(), getattr(self.bus, "mute", False)
        while not self.stopped.is_set():
            now = time.monotonic()
            try:
                if now - beat >= PRESENCE_SECONDS / 3:
                    beat = now
                    self.inbox.beat(encode(worker_info(self)))
                    self._linger(now)
                if now - extended >= lease / 3:
                    lapsed = bool(extended) and now - extended > lease  # this process was stopped, or a server away
                    extended = now
                    with self._lock:
                        held = [item.delivery for item in self.logic.held.values()]
                        for item in self.logic.held.values() if lapsed else ():
                            item.doubtful = True
                    if held:
                        self.consumer.extend_many(held, lease)
                if mute and now - looked >= MUTE_SECONDS:
                    looked = now
                    self._read_revoked()
                for note in self.inbox.receive_many(100, min(PRESENCE_SECONDS / 3, lease / 3)):
                    if note.kind != "command":
                        self.dependencies.heard(note)
                        continue
                    self._command(note)
                    beat = 0.0  # it may have changed what a worker says of itself
            except QnbError as error:
                log.warning("bus of worker %s: %s", self.options.name, error)
                self._linger(now, alone=True)
                self.stopped.wait(0.5)
        self.inbox.close()

    def _read_revoked(self) -> None:
        """Where no command can come: what was revoked stands in the backend."""
        known = self.logic.revoked
        spans = [(run, a, n) for run, a, n in self.backend.revoked() if (a, n) not in known.get(run, ())]
        if spans:
            self.revoke(spans, terminate=False)

    def _linger(self, now: float, alone: bool = False) -> None:
        """End where there was neither work nor a session for long; `alone`: the broker is away, and with it both."""
        if self.options.linger is None or self._closing:
            return
        if not self.logic.idle or self.clock.busy:
            self._last_work = now
        elif now - max(self._last_work, self._looked) >= self.options.linger / 4:
            self._looked = now  # not each second: looking for sessions costs, on some brokers money
            if not alone and self.bus.peers(SESSION_PREFIX):
                self._last_work = now
            elif now - self._last_work >= self.options.linger:
                log.info("worker %s ends: no session and no work for %g s", self.options.name, self.options.linger)
                self.stop()

    def _command(self, note: Note) -> None:
        try:
            command = decode(self.signer.unseal(NOTE, note.body), Command)
        except MessageError as error:
            log.warning("a command is refused: %s", error)
            return
        reply = self.commands.run(command)
        if command.reply_to:
            body = self.signer.answering(note.body).pack(NOTE, reply)
            self.bus.post_many([Note(command.reply_to, "reply", body)])

    # Orders --------------------------------------------------------------------------------------------------

    def revoke(self, spans: Sequence[tuple[str, int, int]], terminate: bool) -> list[tuple[str, int]]:
        """Never start these calls; the (run, index) of those that run and go on."""
        running: list[tuple[str, int]] = []
        with self._lock:
            marks = self.lanes.marks()
            for run, first, count in spans:
                actions, indices = self.logic.revoke(run, first, count, terminate, marks)
                self._do(actions)
                running += [(run, index) for index in indices]
        self.lanes.ring()
        return running

    def resize(self, change: int) -> int:
        """Grow or shrink the pool; the new concurrency."""
        with self._lock:
            self._do(self.logic.resize(self.logic.concurrency + change))
            self._room.notify_all()
        self.lanes.ring()
        return self.logic.concurrency

    def limit(self, change: Callable[[Limits], None]) -> None:
        """Set a limit; what it held back, or now lets go, is looked at anew."""
        with self._lock:
            change(self.logic.limits)
        self.lanes.ring()

    # Ends ----------------------------------------------------------------------------------------------------

    def _kill_all(self) -> None:
        self.lanes.kill()
        self._actions += self.logic.abandon()

    def _close(self) -> None:
        """Lanes first, so that nothing more can be reported; the consumer last but one, to release what is left."""
        self.lanes.close_lanes()
        self.stopped.set()
        self.inbox.wake()
        self.dependencies.wake()
        try:
            self.consumer.close()
        except QnbError as error:
            log.warning("closing: %s", error)
        self.files.close()
        self.lanes.close()


def default_name() -> str:
    """host-pid: unique on a network, and says where to look."""
    return f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
