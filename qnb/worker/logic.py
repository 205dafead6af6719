"""What a worker decides: events in, actions out. No I/O, no clock, no threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from qnb.brokers.base import Delivery
from qnb.codec.failures import own_failure
from qnb.codec.outcomes import gaps, spans_of
from qnb.codec.payloads import slice_calls
from qnb.codec.references import REFERRING
from qnb.errors import QnbError, TaskExpired, TaskLost, TaskTimeout
from qnb.message import CANCELLED, FAILED, LOST, RETRYING, RUNNING, Failure, Frame, Outcomes, Progress
from qnb.worker.actions import Ack, Action, Conclude, Deal, Keep, Kill, Publish, Reject, Release, Spawn, Tell
from qnb.worker.graph import Blocked, Graph, Known, verdict_on
from qnb.worker.limits import Limits
from qnb.worker.protocol import FUNCTIONS_KEPT, Report, Said, Work, remember
from qnb.worker.state import Given, Held, LaneState, Piece

PIECE_SECONDS = 0.02  # a lane gets about this much work at once
AHEAD_SECONDS = 0.02  # the next work is sent along while a lane has no more than this left
FETCH_FRAMES = 8
FETCH_SECONDS = 0.05  # of estimated work a lane, fetched at once: what a crash would strand
MAX_REDELIVERIES = 10  # of a frame whose workers die; a call whose lane dies is charged by itself
TELL_AFTER = 0.1  # a call that runs longer is told to be running
BACKOFF_MAX = 600.0
SHORT_SECONDS = 0.0002
SLOWED_KEPT = 4  # pieces over their rate that stay here in any case
SLOWED_MOST = 2 * FETCH_FRAMES  # and at most, of those that start within SLOWED_AHEAD; others go back to the queue
SLOWED_AHEAD = 2.0
SLOWED_LEAST, SLOWED_SECONDS = 0.1, 5.0
BLOCKED_KEPT = 24  # frames whose calls all wait for others; further ones go back to the queue
BLOCKED_SECONDS = 0.25  # at first, then doubled
BLOCKED_MOST_SECONDS = 8.0
BLOCKED_MOVING_SECONDS = 1.0  # at most, while calls that waited here start
_KEPT = 10_000

Spans = Iterable[tuple[int, int]]


class WorkerLogic:
    """The state machine. Each method takes one event and gives the actions that follow."""

    def __init__(self, worker: str, concurrency: int) -> None:
        self.worker = worker
        self.concurrency = concurrency
        self.lanes: dict[int, LaneState] = {}
        self.held: dict[int, Held] = {}
        self.waiting: deque[Piece] = deque()
        self.estimates: dict[bytes, float] = {}
        self.names: dict[bytes, str] = {}
        self.runs: dict[str, str] = {}  # names of functions by run, of which each has one
        self.revoked: dict[str, list[tuple[int, int]]] = {}
        self.limits = Limits()
        self.slowed: list[Piece] = []  # what its function's rate limit holds back
        self.graph = Graph()
        self._put_back: dict[tuple[str, int], int] = {}  # how often a frame that waits went back
        self._unblocked_at = -math.inf
        self.draining = False
        self.now = 0.0  # of the last event that had a time
        self.counts = {"done": 0, "failed": 0, "cancelled": 0, "lost": 0, "retried": 0, "lanes_died": 0}
        self._deaths: dict[tuple[str, int], int] = {}
        self._latest = (b"", 1)  # function and calls of the newest frame: the next will be like it
        self._serial = 0
        self._spawning = 0
        self._spawning_async = False

    # Frames come ---------------------------------------------------------------------------------------------

    def received(self, delivery: Delivery, frame: Frame, stored: Spans, now: float) -> list[Action]:
        """A frame was delivered; calls in `stored` have an outcome already and are not run again."""
        self.now = now
        if frame.dead:
            return [Reject(delivery, frame.dead)]
        spans = gaps(frame.first, frame.count, stored)
        held = Held(frame, delivery, sum(count for _, count in spans), doubtful=delivery.deliveries > 1)
        if not held.left:
            return [Ack(delivery)]
        self.held[id(held)] = held
        self._latest = (frame.function.hash, frame.count)
        remember(self.names, frame.function.hash, frame.function.name, _KEPT)
        remember(self.runs, frame.run, frame.function.name, _KEPT)
        actions: list[Action] = []
        if delivery.deliveries > MAX_REDELIVERIES:
            reason = f"its workers died, {MAX_REDELIVERIES} times in a row"
            for first, count in spans:
                actions += self._conclude(held, first, count, LOST, TaskLost(f"lost: {reason}"))
            return actions
        if frame.args[:1] == REFERRING and not _expired(frame, now):
            actions += self._unblock(self.graph.add(held, spans), now)
            actions += self._too_many_wait()
            if id(held) not in self.held:
                return actions
        else:
            for first, count in spans:
                actions += self._admit(held, first, count, now)
        if frame.function.is_async and not self._async_lane() and not self._spawning_async:
            self._spawning_async = True
            actions.append(Spawn(is_async=True))
        return actions + self.deal()

    def refuse(self, frame: Frame, error: QnbError) -> list[Action]:
        """The outcome of calls that can never be run here or elsewhere."""
        remember(self.runs, frame.run, frame.function.name, _KEPT)
        return [self._verdict(frame, frame.first, frame.count, FAILED, own_failure(error))]

    def _admit(self, held: Held, first: int, count: int, now: float) -> list[Action]:
        run = held.frame.run
        if late := _expired(held.frame, now):
            error = TaskExpired(f"expired: not started within its `expires`, {late:.1f} s ago")
            return self._conclude(held, first, count, CANCELLED, error)
        if revoked := self.revoked.get(run):
            spans = gaps(first, count, revoked)
            actions: list[Action] = []
            for start, length in gaps(first, count, spans):
                actions += self._conclude(held, start, length, CANCELLED, None)
            self.waiting += (Piece(held, start, length) for start, length in spans)
            return actions
        self.waiting.append(Piece(held, first, count))
        return []

    # Calls that wait for others ------------------------------------------------------------------------------

    def learn(self, run: str, known: Mapping[int, Known], now: float) -> list[Action]:
        """Calls that others here wait for have ended."""
        self.now = now
        if over := self.graph.learn(run, known):
            self._unblocked_at = now
        return self._unblock(over, now) + self.deal()

    def expire(self, now: float) -> list[Action]:
        """Calls whose time is over do not wait for others any longer."""
        actions: list[Action] = []
        for held in self.graph.frames:
            if _expired(held.frame, now):
                for first, count in spans_of(self.graph.take_out(held, held.frame.first, held.frame.count)):
                    actions += self._admit(held, first, count, now)
        return actions

    def _unblock(self, over: Sequence[Blocked], now: float) -> list[Action]:
        """These need not wait any longer: start them, or end them with what they waited for."""
        actions: list[Action] = []
        ready: dict[int, tuple[Held, list[int]]] = {}
        ended: dict[tuple[int, int], tuple[Held, tuple[int, Failure], list[int]]] = {}
        for blocked in over:
            held = blocked.held
            if (gathering := blocked.failed) is not None:
                key = (id(held), id(gathering))
                if key not in ended:
                    ended[key] = (held, verdict_on(gathering), [])
                ended[key][2].append(blocked.index)
                continue
            if blocked.gatherings:
                held.inputs[blocked.index] = blocked.gatherings
            ready.setdefault(id(held), (held, []))[1].append(blocked.index)
        for held, indices in ready.values():
            for first, count in spans_of(indices):
                actions += self._admit(held, first, count, now)
        for held, (state, failure), indices in ended.values():
            for first, count in spans_of(indices):
                actions += self._conclude(held, first, count, state, failure)
        return actions

    def _too_many_wait(self) -> list[Action]:
        """Frames of which nothing is left but calls that wait take the place of those that they wait for: above some,
        those go back that were sent last. In whatever order they come: what a call waits for was sent before it."""
        actions: list[Action] = []
        if len(self.graph.blocked) <= BLOCKED_KEPT:
            return actions
        for held in sorted(self.graph.frames, key=lambda held: held.frame.sent_at, reverse=True):
            if held.left == len(self.graph.blocked[id(held)]):
                actions += self._give_back(held)
                if len(self.graph.blocked) <= BLOCKED_KEPT:
                    break
        return actions

    def _give_back(self, held: Held) -> list[Action]:
        frame = held.frame
        indices = self.graph.take_out(held, frame.first, frame.count)
        times = self._put_back.get((frame.run, indices[0]), 0)
        remember(self._put_back, (frame.run, indices[0]), times + 1, _KEPT)
        moving = self.now - self._unblocked_at < BLOCKED_MOST_SECONDS
        delay = min(BLOCKED_MOVING_SECONDS if moving else BLOCKED_MOST_SECONDS, BLOCKED_SECONDS * 2.0 ** min(times, 10))
        if len(indices) == frame.count:
            del self.held[id(held)]
            return [Release(held.delivery, delay)]
        actions: list[Action] = []
        for first, count in spans_of(indices):  # part of it has run: the rest travels on as a frame of its own
            start = first - frame.first
            rest = replace(frame, first=first, count=count, args=slice_calls(frame.args, start, start + count))
            actions += [Publish(rest, held.delivery.queue, delay), *self._account(held, count)]
        return actions

    def room(self) -> int:
        """How many frames to fetch now: enough to keep every lane busy, no more than would be stranded by a crash."""
        if self.draining:
            return 0
        lanes = [lane for lane in self.lanes.values() if not lane.is_async and not lane.retiring]
        if len(self.held) - len(self.graph.blocked) >= 4 * FETCH_FRAMES + len(lanes):
            return 0
        waiting = [piece for piece in self.waiting if not piece.held.frame.function.is_async]
        seconds = sum(map(self._seconds, waiting))
        if seconds > AHEAD_SECONDS * len(lanes):
            return 0
        idle = sum(not lane.given for lane in lanes)
        if not idle and any(lane.ahead > AHEAD_SECONDS for lane in lanes):
            return 0
        needed = max(0, idle - len(waiting))
        each = self._latest[1] * self.estimates.get(self._latest[0], math.inf)
        ahead = sum(lane.ahead for lane in lanes)
        if math.inf in (each, ahead):
            return needed
        return max(needed, min(FETCH_FRAMES, int((FETCH_SECONDS * len(lanes) - seconds - ahead) / each)))

    def _seconds(self, piece: Piece) -> float:
        each = self.estimates.get(piece.held.frame.function.hash)
        return math.inf if each is None else each * piece.count

    # Lanes come and go ---------------------------------------------------------------------------------------

    def start(self) -> list[Action]:
        """Ask for the first lanes."""
        return self._resize()

    def resize(self, concurrency: int) -> list[Action]:
        """More or fewer lanes; those too many end when they are idle."""
        self.concurrency = max(1, concurrency)
        return self._resize() + self.deal()

    def _resize(self) -> list[Action]:
        lanes = [lane for lane in self.lanes.values() if not lane.is_async and not lane.retiring]
        missing = self.concurrency - len(lanes) - self._spawning
        if missing > 0:
            self._spawning += missing
            return [Spawn() for _ in range(missing)]
        surplus = sorted(lanes, key=lambda lane: len(lane.given))[: max(0, len(lanes) - self.concurrency)]
        for lane in surplus:
            lane.retiring = True
        return []

    def lane_up(self, number: int, is_async: bool) -> list[Action]:
        """A lane has been started."""
        self.lanes[number] = LaneState(number, is_async)
        if is_async:
            self._spawning_async = False
        else:
            self._spawning = max(0, self._spawning - 1)
        return self.deal()

    def idle_to_retire(self) -> list[int]:
        """Lanes that are to go and have nothing left; the loop closes them."""
        gone = [lane.number for lane in self.lanes.values() if lane.retiring and not lane.given]
        for number in gone:
            del self.lanes[number]
        return gone

    def lane_down(self, number: int, reason: str, mark: tuple[int, int, float], now: float) -> list[Action]:
        """A lane has died: the call it was running is charged, all others go to other lanes."""
        lane = self.lanes.pop(number)
        actions: list[Action] = []
        if lane.verdict is None:
            self.counts["lanes_died"] += 1
        for given in reversed(lane.given.values()):
            piece = given.piece
            if lane.is_async:
                for index in sorted(given.open, reverse=True):
                    actions += self._blame(lane, Piece(piece.held, index, 1), index, reason, now)
            elif given.serial == mark[0] and piece.first <= mark[1] < piece.first + piece.count:
                actions += self._blame(lane, piece, mark[1], reason, now)
            else:
                actions += self._requeue(piece.held, piece.first, piece.count)
        if self.draining:
            return actions
        if lane.is_async:
            if self._any_async() and not self._spawning_async:
                self._spawning_async = True
                actions.append(Spawn(is_async=True))
            return actions + self.deal()
        return actions + ([] if lane.retiring else self._resize()) + self.deal()

    def _requeue(self, held: Held, first: int, count: int) -> list[Action]:
        """Calls that a lane had and did not end wait again, before all others; revoked ones no longer."""
        spans = gaps(first, count, self.revoked.get(held.frame.run, ()))
        self.waiting.extendleft(Piece(held, *span) for span in reversed(spans))
        actions: list[Action] = []
        for start, length in gaps(first, count, spans):
            actions += self._conclude(held, start, length, CANCELLED, None)
        return actions

    def _blame(self, lane: LaneState, piece: Piece, index: int, reason: str, now: float) -> list[Action]:
        """Call `index` of the piece was running in a lane that died; the rest of the piece goes back to wait."""
        held, stop = piece.held, piece.first + piece.count
        actions: list[Action] = []
        for first, last in ((index + 1, stop), (piece.first, index)):
            if last > first:
                actions += self._requeue(held, first, last - first)
        frame, options = held.frame, held.frame.options
        if lane.verdict == ("terminate", index):
            return actions + self._conclude(held, index, 1, CANCELLED, None)
        if lane.verdict == ("timeout", index):
            error = TaskTimeout(f"ran longer than its timeout of {lane.timeout:g} s; its lane was killed")
            if frame.attempt <= options.retries:
                return actions + self._again(held, index, str(error), now)
            return actions + self._conclude(held, index, 1, FAILED, error)
        if lane.verdict is not None:  # killed for another call, which came to its end just then
            return actions + self._requeue(held, index, 1)
        deaths = self._deaths[frame.run, index] = self._deaths.get((frame.run, index), 0) + 1
        if deaths < options.max_deliveries:
            actions += self._requeue(held, index, 1)
            progress = Progress(frame.run, [index], RETRYING, self.worker, now, frame.attempt)
            return [*actions, Tell(progress, frame.reply_to)]
        del self._deaths[frame.run, index]
        times = "once" if deaths == 1 else f"{deaths} times"
        lost = TaskLost(f"lost: {reason}, {times}; see the dead letters")
        return actions + self._conclude(held, index, 1, LOST, lost)

    # Calls end -----------------------------------------------------------------------------------------------

    def reported(self, number: int, report: Report, now: float) -> list[Action]:
        """A lane has told what became of a work, or of part of it."""
        lane = self.lanes.get(number)
        given = lane.given.get(report.serial) if lane else None
        if lane is None or given is None:
            return []
        held, piece = given.piece.held, given.piece
        if report.said is not None:
            given.told = report.said.index
            return [self._pass_on(held.frame, report.said)]
        actions: list[Action] = []
        self._learn(held.frame.function.hash, report)
        aside = report.aside  # with the first, so that it is there before all of them
        for first, count, states, data in report.done:
            failed = states.count(FAILED)
            self.counts["failed"] += failed
            self.counts["done"] += count - failed
            reply_to = held.frame.reply_to
            actions.append(Keep(held.frame.run, first, count, states, data, reply_to, held.doubtful, aside))
            aside = []
            actions += self._account(held, count)
            if lane.is_async:
                given.open.difference_update(range(first, first + count))
            if self._deaths:
                for index in range(first, first + count):
                    self._deaths.pop((held.frame.run, index), None)
        given.open.difference_update(index for index, _ in report.again)
        for index, message in report.again:
            actions += self._again(held, index, message, now)
        piece.count -= report.ran
        if not lane.is_async:
            piece.first += report.ran
        if report.rest:
            actions += self._admit(held, *report.rest, now)
            piece.count = 0
        if piece.count <= 0:
            del lane.given[report.serial]
        return actions + self._too_many_wait() + self.deal()

    def _pass_on(self, frame: Frame, said: Said) -> Tell:
        """What a call says that runs."""
        progress = Progress(
            frame.run, [said.index], RUNNING, self.worker, said.started, frame.attempt,
            said.output, said.offset, said.steps, said.displays,
        )  # fmt: skip
        return Tell(progress, frame.reply_to)

    def _learn(self, function: bytes, report: Report) -> None:
        if report.ran:
            each = max(report.seconds / report.ran, 1e-7)
            before = self.estimates.get(function)
            each = each if before is None else 0.7 * before + 0.3 * each
            remember(self.estimates, function, each, _KEPT)

    def _again(self, held: Held, index: int, message: str, now: float) -> list[Action]:
        """Publish one call anew, to be delivered after its back-off."""
        frame, options = held.frame, held.frame.options
        self.counts["retried"] += 1
        start = index - frame.first
        once = replace(
            frame, first=index, count=1, args=slice_calls(frame.args, start, start + 1), attempt=frame.attempt + 1
        )
        delay = min(BACKOFF_MAX, options.backoff * 2.0 ** min(frame.attempt - 1, 30))
        delay *= 0.5 + 0.5 * _jitter(frame.run, index, frame.attempt)
        progress = Progress(frame.run, [index], RETRYING, self.worker, now, frame.attempt + 1)
        tell = Tell(progress, frame.reply_to)
        return [Publish(once, held.delivery.queue, delay), tell, *self._account(held, 1)]

    def _conclude(
        self, held: Held, first: int, count: int, state: int, error: QnbError | Failure | None
    ) -> list[Action]:
        """An outcome that the worker itself gives; a lost call goes to the dead letters too."""
        frame = held.frame
        failure = own_failure(error) if isinstance(error, QnbError) else error
        actions: list[Action] = [self._verdict(frame, first, count, state, failure)]
        if state == LOST:
            if held.left == count == frame.count:
                held.lost = str(error)
            else:
                start = first - frame.first
                args = slice_calls(frame.args, start, start + count)
                dead = replace(frame, first=first, count=count, args=args, dead=str(error))
                actions.append(Publish(dead, held.delivery.queue))
        return actions + self._account(held, count)

    def _verdict(self, frame: Frame, first: int, count: int, state: int, failure: Failure | None) -> Conclude:
        """One and the same outcome for these calls, counted."""
        self.counts[{FAILED: "failed", CANCELLED: "cancelled", LOST: "lost"}[state]] += count
        failures = dict.fromkeys(range(count), failure) if failure is not None else {}
        outcomes = Outcomes(
            frame.run, first, count, bytes([state]) * count, b"", b"",
            self.worker, frame.sent_at, frame.attempt, failures,
        )  # fmt: skip
        return Conclude(outcomes, frame.reply_to)

    def _account(self, held: Held, count: int) -> list[Action]:
        held.left -= count
        if held.left > 0:
            return []
        self.held.pop(id(held), None)
        return [Reject(held.delivery, held.lost) if held.lost else Ack(held.delivery)]

    # Calls are dealt -----------------------------------------------------------------------------------------

    def deal(self) -> list[Action]:
        """Give waiting pieces to lanes: idle lanes first, then ahead to those that will soon be idle."""
        actions: list[Action] = []
        if self.draining:
            return actions
        later: list[Piece] = []
        while self.waiting:
            piece = self.waiting.popleft()
            lane = self._lane_for(piece)
            if lane is None:
                later.append(piece)
                if not piece.held.frame.function.is_async and not self._any_async():
                    break
                continue
            size = self._size(piece, lane)
            if self.limits.rated:
                size = self.limits.may_start(piece.held.frame.function.name, size, self.now)
                if not size:
                    self.slowed.append(piece)
                    continue
            if size < piece.count:
                self.waiting.appendleft(Piece(piece.held, piece.first + size, piece.count - size))
                piece.count = size
            actions.append(self._give(lane, piece))
        self.waiting.extendleft(reversed(later))
        return actions + (self._shed() if len(self.slowed) > SLOWED_KEPT else [])

    def _shed(self) -> list[Action]:
        """Of what a rate limit holds back, keep what starts soon; frames not begun go back, for others or for later."""
        actions: list[Action] = []
        kept: list[Piece] = []
        ahead: dict[str, int] = {}  # calls that start before, by function
        for piece in self.slowed:
            held, name = piece.held, piece.held.frame.function.name
            wait = self.limits.wait(name, ahead.get(name, 0))
            ahead[name] = ahead.get(name, 0) + piece.count
            soon = len(kept) < SLOWED_KEPT or (wait < SLOWED_AHEAD and len(kept) < SLOWED_MOST)
            if soon or held.begun or piece.count != held.frame.count:
                kept.append(piece)
                continue
            del self.held[id(held)]
            # Back before its turn: with less here than starts until then, tokens would be left over.
            actions.append(Release(held.delivery, min(max(SLOWED_LEAST, wait / 2), SLOWED_SECONDS)))
        self.slowed = kept
        return actions

    def _lane_for(self, piece: Piece) -> LaneState | None:
        if piece.held.frame.function.is_async:
            return self._async_lane_for(piece)
        best: LaneState | None = None
        for lane in self.lanes.values():
            if lane.is_async or lane.retiring or lane.verdict is not None:
                continue
            if not lane.given:
                return lane
            if lane.ahead <= AHEAD_SECONDS and (best is None or lane.ahead < best.ahead):
                best = lane
        # Only what is known to be short may wait behind something else.
        return best if best is not None and self._seconds(piece) < math.inf else None

    def _size(self, piece: Piece, lane: LaneState) -> int:
        if lane.is_async:
            return piece.count
        each = self.estimates.get(piece.held.frame.function.hash)
        if each is None:
            return 1
        size = max(1, int(PIECE_SECONDS / each))
        if each * piece.count > 0.002:  # worth spreading
            waiting = piece.count + sum(other.count for other in self.waiting)
            lanes = sum(not other.is_async for other in self.lanes.values())
            size = min(size, math.ceil(waiting / lanes))
        return size

    def _give(self, lane: LaneState, piece: Piece) -> Deal:
        self._serial += 1
        frame, function, options = piece.held.frame, piece.held.frame.function, piece.held.frame.options
        piece.held.begun = True
        args, start = frame.args, piece.first - frame.first
        if piece.count != frame.count:
            args = slice_calls(args, start, start + piece.count)
        code = None if function.hash in lane.known else function.code
        if code is not None:
            remember(lane.known, function.hash, None, FUNCTIONS_KEPT)
        seconds = self._seconds(piece)
        given = lane.given[self._serial] = Given(piece, self._serial, None if seconds == math.inf else seconds)
        if lane.is_async:
            given.open.update(range(piece.first, piece.first + piece.count))
        hard, soft = self.limits.times(frame)
        work = Work(
            self._serial, frame.run, piece.first, piece.count, function.hash, function.name, code, args,
            frame.sent_at, frame.attempt, options.retries, soft, hard, options.keep,
            piece.held.values(piece.first, piece.count),
        )  # fmt: skip
        return Deal(lane.number, work)

    def _async_lane(self) -> LaneState | None:
        return next((lane for lane in self.lanes.values() if lane.is_async and lane.verdict is None), None)

    def _async_lane_for(self, piece: Piece) -> LaneState | None:
        """Nobody can tell which call took the lane down: those that ran in it then run alone from then on."""
        lane = self._async_lane()
        if lane is None or not self._deaths or not lane.given:
            return lane
        pieces = (piece, *(given.piece for given in lane.given.values()))
        suspect = any((p.held.frame.run, p.first) in self._deaths for p in pieces)
        return None if suspect else lane

    def _any_async(self) -> bool:
        return any(piece.held.frame.function.is_async for piece in self.waiting)

    def only_short(self, deal: Deal) -> bool:
        """Whether this is all that is running, and known to be over in a moment."""
        busy = sum(len(lane.given) for lane in self.lanes.values())
        given = self.lanes[deal.lane].given.get(deal.work.serial)
        return busy == 1 and given is not None and given.seconds is not None and given.seconds < SHORT_SECONDS

    # Time passes ---------------------------------------------------------------------------------------------

    def tick(self, marks: dict[int, tuple[int, int, float]], now: float) -> list[Action]:
        """Look at what runs: kill what is over its timeout, tell what has run for a while; start what may start now."""
        self.now = now
        actions: list[Action] = []
        if self.slowed:
            self._unslow()
            actions += self.deal()
        for number, (serial, index, started) in marks.items():
            lane = self.lanes.get(number)
            given = lane.given.get(serial) if lane else None
            if lane is None or given is None or lane.is_async:
                continue
            frame, ran = given.piece.held.frame, now - started
            timeout, _ = self.limits.times(frame)
            if timeout is not None and ran > timeout and lane.verdict is None:
                lane.verdict, lane.timeout = ("timeout", index), timeout
                actions.append(Kill(number))
            elif ran > TELL_AFTER and given.told != index:
                given.told = index
                running = Progress(frame.run, [index], RUNNING, self.worker, started, frame.attempt)
                actions.append(Tell(running, frame.reply_to))
        return actions

    # Orders --------------------------------------------------------------------------------------------------

    def revoke(
        self, run: str, first: int, count: int, terminate: bool, marks: dict[int, tuple[int, int, float]]
    ) -> tuple[list[Action], list[int]]:
        """Never start these calls; with `terminate`, kill those that run. Also gives those that run and go on."""
        remember(self.revoked, run, [*self.revoked.get(run, ()), (first, count)], _KEPT)
        actions: list[Action] = []
        self._unslow()
        for piece in [p for p in self.waiting if p.held.frame.run == run]:
            spans = gaps(piece.first, piece.count, [(first, count)])
            if sum(length for _, length in spans) == piece.count:
                continue
            self.waiting.remove(piece)
            self.waiting.extendleft(Piece(piece.held, *span) for span in reversed(spans))
            for start, length in gaps(piece.first, piece.count, spans):
                actions += self._conclude(piece.held, start, length, CANCELLED, None)
        for held in self.graph.frames:
            if held.frame.run == run:
                for start, length in spans_of(self.graph.take_out(held, first, count)):
                    actions += self._conclude(held, start, length, CANCELLED, None)
        running: list[int] = []
        for lane in self.lanes.values():
            for given in lane.given.values():
                piece = given.piece
                if piece.held.frame.run != run:
                    continue
                if lane.is_async:  # where calls end in any order
                    running += [index for index in sorted(given.open) if first <= index < first + count]
                    continue
                # Calls that a lane has been given count as started: it cannot be asked to leave one out.
                low, high = max(piece.first, first), min(piece.first + piece.count, first + count)
                serial, index, _ = marks.get(lane.number, (0, 0, 0.0))
                if terminate and low <= index < high and serial == given.serial and lane.verdict is None:
                    lane.verdict = ("terminate", index)
                    actions.append(Kill(lane.number))
                else:
                    running += range(low, high)
        return actions + self.deal(), running

    def _unslow(self) -> None:
        """What a rate limit held back waits like all else; the next dealing looks at it again."""
        self.waiting.extendleft(reversed(self.slowed))
        self.slowed = []

    def drain(self) -> list[Action]:
        """Start nothing more; give back what has not been started. Calls that run go on to their end."""
        self.draining = True
        self._unslow()
        self.waiting += self.graph.take_all_out()
        actions: list[Action] = []
        begun: dict[int, list[Piece]] = {}
        for piece in self.waiting:
            begun.setdefault(id(piece.held), []).append(piece)
        self.waiting.clear()
        for key, pieces in begun.items():
            held = pieces[0].held
            if held.frame.count == sum(piece.count for piece in pieces):
                del self.held[key]
                actions.append(Release(held.delivery))
                continue
            for piece in pieces:
                # Part of the frame has run or runs here: the rest travels on as a frame of its own.
                start = piece.first - held.frame.first
                args = slice_calls(held.frame.args, start, start + piece.count)
                rest = replace(held.frame, first=piece.first, count=piece.count, args=args)
                actions += [Publish(rest, held.delivery.queue), *self._account(held, piece.count)]
        return actions

    def abandon(self) -> list[Action]:
        """The lanes are being killed: give back what they run, too, and hear no more of them."""
        for lane in self.lanes.values():
            for given in lane.given.values():
                piece = given.piece
                if lane.is_async:
                    self.waiting += (Piece(piece.held, index, 1) for index in sorted(given.open))
                else:
                    self.waiting.append(piece)
            lane.given.clear()
        return self.drain()

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return not self.held

    @property
    def busy(self) -> bool:
        """Whether a lane has work, or something waits for its time to start."""
        return bool(self.slowed) or any(lane.given for lane in self.lanes.values())


def _expired(frame: Frame, now: float) -> float:
    """For how many seconds its calls may not start any more; 0 while they may."""
    expires = frame.options.expires
    return 0.0 if expires is None or now < expires else max(1e-9, now - expires)


def _jitter(run: str, index: int, attempt: int) -> float:
    """0 … 1, the same for the same attempt: spreads retries without a random source."""
    return hash((run, index, attempt)) % 1000 / 1000
