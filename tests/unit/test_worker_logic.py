"""The worker's logic under random events: whatever happens, each call ends once and each frame is settled once."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qnb.brokers.base import Delivery
from qnb.codec.payloads import decode_calls, encode_pickled
from qnb.codec.references import decode_referring, encode_referring
from qnb.message import CANCELLED, DONE, FAILED, LOST, Frame, Function, Options, ValueOf
from qnb.worker import actions as act
from qnb.worker.graph import Known
from qnb.worker.logic import AHEAD_SECONDS, WorkerLogic
from qnb.worker.protocol import Report, Work

REASON = "its process was killed"


def payload(first: int, count: int, needs: Sequence[ValueOf] = ()) -> bytes:
    """Arguments that tell which call they belong to; every second call refers to others, where there are any."""
    calls = [str(index).encode() for index in range(first, first + count)]
    if not needs:
        return encode_pickled(calls)
    return encode_referring([(call, list(needs)) if int(call) % 2 else call for call in calls])


def read(args: bytes) -> list[tuple[bytes, list[ValueOf]]]:
    """The calls of a payload, and what they refer to."""
    if args[:1] == b"r":
        return decode_referring(args)  # type: ignore[return-value]
    return [(call, []) for call in decode_calls(args)[1]]


def tasks_of(need: ValueOf) -> set[str]:
    """The ids of the calls that one refers to."""
    return {f"{need.run}:{index}" for index in range(need.first, need.first + need.count)}


class World:
    """Broker, backend and lanes as the actions of the logic see them."""

    def __init__(self, concurrency: int) -> None:
        self.logic = WorkerLogic("w", concurrency)
        self.now = 1000.0
        self.pool: list[Frame] = []  # frames that wait at the broker
        self.open: dict[int, tuple[Delivery, Frame]] = {}  # deliveries that are not settled
        self.resolved: dict[int, set[int]] = {}  # of each: calls that ended or were published anew
        self.settled: Counter[int] = Counter()
        self.ended: dict[tuple[str, int], list[int]] = {}
        self.expected: set[tuple[str, int]] = set()
        self.works: dict[int, list[Work]] = {}
        self.is_async: dict[int, bool] = {}
        self.killed: set[int] = set()
        self.spawning: list[bool] = []
        self.async_left: dict[int, set[int]] = {}  # by serial: calls of a work that have not ended
        self.next_lane = self.next_run = self.next_token = 0
        self.revoked: set[tuple[str, int]] = set()
        self.spans: set[tuple[str, int, int]] = set()  # what a call may refer to
        self.upon: dict[tuple[str, int], set[tuple[str, int]]] = {}  # what each call refers to
        self.untold: dict[tuple[str, int], Known] = {}  # ends that the logic has not heard of
        self.dead: set[tuple[str, int]] = set()
        self.do(self.logic.start())

    # What the logic says ---------------------------------------------------------------------------------------

    def do(self, actions: list[act.Action]) -> None:
        for action in actions:
            getattr(self, "on_" + type(action).__name__.lower())(action)

    def on_deal(self, action: act.Deal) -> None:
        work, lane = action.work, action.lane
        assert not self.logic.draining
        assert lane in self.works, "a lane that is there"
        assert lane not in self.killed
        assert not self.logic.lanes[lane].retiring
        calls = read(work.args)
        assert [call for call, _ in calls] == [str(i).encode() for i in range(work.first, work.first + work.count)]
        needed = {task for _, needs in calls for need in needs for task in tasks_of(need)}
        assert work.values == {task: b"p" + task.encode() for task in needed}, "the values of all that they refer to"
        if not self.is_async[lane]:
            self.check_dealt(lane, work)
        self.works[lane].append(work)

    def check_dealt(self, lane: int, work: Work) -> None:
        """No more at once than the estimates allow."""
        each = self.logic.estimates.get(work.hash)
        before = [self.logic.estimates.get(other.hash) for other in self.works[lane]]
        if each is None:
            assert work.count == 1, "never timed: one by one"
            assert not before, "and never behind something else"
        elif before:
            given = [g for g in self.logic.lanes[lane].given.values() if g.serial < work.serial]
            assert None not in [g.seconds for g in given]
            assert sum(g.seconds or 0.0 for g in given) <= AHEAD_SECONDS + 1e-9
        assert work.count * (each or 0.0) <= 0.1 or work.count == 1

    def on_kill(self, action: act.Kill) -> None:
        assert action.lane in self.works
        self.killed.add(action.lane)

    def on_spawn(self, action: act.Spawn) -> None:
        self.spawning.append(action.is_async)

    def on_keep(self, action: act.Keep) -> None:
        self.end(action.run, action.first, action.states or bytes([DONE]) * action.count)

    def on_conclude(self, action: act.Conclude) -> None:
        self.end(action.outcomes.run, action.outcomes.first, action.outcomes.states)

    def end(self, run: str, first: int, states: bytes) -> None:
        for index, state in enumerate(states, first):
            assert (run, index) in self.expected
            self.ended.setdefault((run, index), []).append(state)
            self.untold[run, index] = known(run, index, state)
            self.resolve(run, index)

    def resolve(self, run: str, index: int) -> None:
        for token, (_, frame) in self.open.items():
            if frame.run == run and frame.first <= index < frame.first + frame.count:
                self.resolved[token].add(index)

    def on_tell(self, action: act.Tell) -> None:
        for index in action.progress.indices:
            assert (action.progress.run, index) in self.expected

    def on_publish(self, action: act.Publish) -> None:
        frame = action.frame
        assert action.queue == "q"
        calls = [call for call, _ in read(frame.args)]
        assert calls == [str(i).encode() for i in range(frame.first, frame.first + frame.count)]
        for index in range(frame.first, frame.first + frame.count):
            self.resolve(frame.run, index)
        self.pool.append(frame)

    def settle(self, delivery: Delivery, whole: bool) -> Frame:
        token: int = delivery.token
        assert token in self.open, "settled once, and only what was delivered"
        _, frame = self.open.pop(token)
        self.settled[token] += 1
        resolved = self.resolved.pop(token)
        if whole:
            assert resolved == set(range(frame.first, frame.first + frame.count)), "no ack with calls open"
        running = {
            (w.run, i) for works in self.works.values() for w in works for i in range(w.first, w.first + w.count)
        }
        ours = {(frame.run, i) for i in range(frame.first, frame.first + frame.count)}
        assert not running & ours or self.logic.draining, "and none of it in a lane"
        return frame

    def on_ack(self, action: act.Ack) -> None:
        self.settle(action.delivery, whole=True)

    def on_reject(self, action: act.Reject) -> None:
        assert action.reason
        if self.open[action.delivery.token][1].dead:
            frame = self.settle(action.delivery, whole=False)
        else:
            frame = self.settle(action.delivery, whole=True)
        for index in range(frame.first, frame.first + frame.count):
            self.dead.add((frame.run, index))

    def on_release(self, action: act.Release) -> None:
        frame = self.open[action.delivery.token][1]
        assert not self.resolved[action.delivery.token], "nothing of it has ended: whoever takes it runs all of it"
        self.settle(action.delivery, whole=False)
        self.pool.append(frame)

    # What happens ----------------------------------------------------------------------------------------------

    def deliver(self, frame: Frame, deliveries: int = 1, known: Iterable[int] = ()) -> None:
        token = self.next_token = self.next_token + 1
        delivery = Delivery("q", b"", deliveries, token)
        self.open[token] = (delivery, frame)
        self.resolved[token] = set()
        calls = range(frame.first, frame.first + frame.count)
        stored = [(i, 1) for i in calls if (frame.run, i) in self.ended or i in known] if deliveries > 1 else []
        self.resolved[token] |= {i for i, _ in stored}
        self.do(self.logic.received(delivery, frame, stored, self.now))

    def tell(self) -> None:
        """What has ended is told to the logic."""
        while self.untold:
            (run, index), end = self.untold.popitem()
            self.do(self.logic.learn(run, {index: end}, self.now))

    def look(self) -> None:
        """What the logic waits for is looked up, as after a frame has come, or a note was lost."""
        for run in self.logic.graph.runs:
            found = {i: self.ended[run, i] for i in self.logic.graph.missing(run) if (run, i) in self.ended}
            self.do(self.logic.learn(run, {i: known(run, i, states[0]) for i, states in found.items()}, self.now))

    def lane_up(self) -> None:
        is_async = self.spawning.pop(0)
        self.next_lane += 1
        self.works[self.next_lane] = []
        self.is_async[self.next_lane] = is_async
        self.do(self.logic.lane_up(self.next_lane, is_async))

    def retire(self) -> None:
        for number in self.logic.idle_to_retire():
            assert not self.works.pop(number)

    def mark(self, lane: int, offset: int = 0) -> tuple[int, int, float]:
        works = self.works[lane]
        if not works or self.is_async[lane]:
            return (0, 0, 0.0)
        work = works[0]
        return (work.serial, work.first + min(offset, work.count - 1), self.now - 0.2)

    def report(self, lane: int, ran: int, failing: set[int], seconds: float) -> None:
        """The lane's first work: some calls ended, the rest is given back."""
        work = self.works[lane][0]
        ran = max(1, min(ran, work.count))
        if self.is_async[lane]:
            self.report_async(lane, ran, failing, seconds)
            return
        self.works[lane].pop(0)
        indices = range(work.first, work.first + ran)
        again = [(i, "E") for i in indices if i in failing and work.attempt <= work.retries]
        failed = {i for i in indices if i in failing} - {i for i, _ in again}
        done, start = [], work.first
        for stop in [*(i for i, _ in again), work.first + ran]:
            if stop > start:
                states = bytes(FAILED if i in failed else DONE for i in range(start, stop))
                done.append((start, stop - start, states if set(states) != {DONE} else b"", b""))
            start = stop + 1
        left = work.count - ran
        rest = (work.first + ran, left) if left else None
        self.do(self.logic.reported(lane, Report(work.serial, ran, seconds, done, again, rest), self.now))
        self.retire()

    def die(self, lane: int, offset: int) -> None:
        mark = self.mark(lane, offset)
        del self.works[lane]
        self.killed.discard(lane)
        if lane in self.logic.lanes:
            self.do(self.logic.lane_down(lane, REASON, mark, self.now))

    def report_async(self, lane: int, ran: int, failing: set[int], seconds: float) -> None:
        """One call of the first work has ended, whichever."""
        work = self.works[lane][0]
        left = self.async_left.setdefault(work.serial, set(range(work.first, work.first + work.count)))
        index = sorted(left)[ran % len(left)]
        left.discard(index)
        if not left:
            self.works[lane].pop(0)
        again = [(index, "E")] if index in failing and work.attempt <= work.retries else []
        done = [] if again else [(index, 1, bytes([FAILED]) if index in failing else b"", b"")]
        self.do(self.logic.reported(lane, Report(work.serial, 1, seconds, done, again), self.now))


def known(run: str, index: int, state: int) -> Known:
    """The end of a call, as another hears of it: its value is its own id."""
    return Known(state, f"p{run}:{index}".encode() if state == DONE else b"")


FUNCTIONS = [Function(bytes([n]) * 16, f"f{n}", b"code", n == 3) for n in range(4)]
COUNTS = st.integers(1, 12)


class Life(RuleBasedStateMachine):
    """A worker's life, event by event."""

    @initialize(concurrency=st.integers(1, 4))
    def begin(self, concurrency: int) -> None:
        self.world = World(concurrency)

    @rule(
        count=COUNTS, function=st.sampled_from(FUNCTIONS), retries=st.integers(0, 2), deaths=st.integers(1, 3),
        expires=st.sampled_from([None, None, -1.0, 5.0]), timeout=st.sampled_from([None, 0.1]),
        needs=st.integers(0, 3), data=st.data(),
    )  # fmt: skip
    def new_frame(
        self, count: int, function: Function, retries: int, deaths: int, expires: float | None, timeout: float | None,
        needs: int, data: Any,
    ) -> None:  # fmt: skip
        world = self.world
        world.next_run += 1
        until = None if expires is None else world.now + expires
        options = Options(retries, 0.0, timeout, None, 0, until, deaths)
        first = world.next_run % 5
        referred = [data.draw(st.sampled_from(sorted(world.spans))) for _ in range(needs if world.spans else 0)]
        args = payload(first, count, [ValueOf(*span) for span in referred])
        frame = Frame(f"r{world.next_run}", first, count, function, args, options, "s.1", world.now)
        world.spans |= {(frame.run, first, count), (frame.run, first + count - 1, 1)}
        if referred:
            upon = {(run, a + i) for run, a, n in referred for i in range(n)}
            world.upon |= {(frame.run, i): upon for i in range(first, first + count) if i % 2}
        world.expected |= {(frame.run, index) for index in range(first, first + count)}
        world.pool.append(frame)

    @precondition(lambda self: self.world.pool and not self.world.logic.draining)
    @rule(data=st.data())
    def deliver(self, data: Any) -> None:
        self.world.deliver(self.world.pool.pop(data.draw(st.integers(0, len(self.world.pool) - 1))))

    @precondition(lambda self: self.world.untold)
    @rule()
    def tell(self) -> None:
        self.world.tell()

    @rule()
    def look(self) -> None:
        self.world.look()

    @precondition(lambda self: self.world.spawning)
    @rule()
    def lane_up(self) -> None:
        self.world.lane_up()

    @precondition(lambda self: any(self.world.works.values()))
    @rule(data=st.data(), ran=COUNTS, seconds=st.sampled_from([0.0, 0.0001, 0.01, 1.0]))
    def report(self, data: Any, ran: int, seconds: float) -> None:
        lane = data.draw(st.sampled_from([n for n, works in self.world.works.items() if works]))
        failing = data.draw(st.sets(st.integers(0, 16), max_size=4))
        self.world.report(lane, ran, failing, seconds)

    @precondition(lambda self: self.world.works)
    @rule(data=st.data(), offset=st.integers(0, 12))
    def die(self, data: Any, offset: int) -> None:
        self.world.die(data.draw(st.sampled_from(list(self.world.works))), offset)

    @rule(seconds=st.sampled_from([0.05, 0.2, 10.0]))
    def tick(self, seconds: float) -> None:
        world = self.world
        world.now += seconds
        world.do(world.logic.tick({lane: world.mark(lane) for lane in world.works}, world.now))

    @precondition(lambda self: self.world.expected)
    @rule(data=st.data(), count=COUNTS, terminate=st.booleans())
    def revoke(self, data: Any, count: int, terminate: bool) -> None:
        world = self.world
        run, first = data.draw(st.sampled_from(sorted(world.expected)))
        marks = {lane: world.mark(lane) for lane in world.works}
        actions, running = world.logic.revoke(run, first, count, terminate, marks)
        world.revoked |= {(run, index) for index in range(first, first + count)}
        in_lanes = {(w.run, i) for ws in world.works.values() for w in ws for i in range(w.first, w.first + w.count)}
        world.do(actions)
        assert {(run, index) for index in running} <= in_lanes

    @rule(concurrency=st.integers(1, 5))
    def resize(self, concurrency: int) -> None:
        self.world.do(self.world.logic.resize(concurrency))
        self.world.retire()

    @rule(cold=st.booleans())
    def drain(self, cold: bool) -> None:
        """The worker is told to end; what it gives back goes to a new one."""
        world = self.world
        if cold:
            world.do(world.logic.abandon())
            world.works = {lane: [] for lane in world.works}
        else:
            world.do(world.logic.drain())
            while any(world.works.values()):
                lane = next(n for n, works in world.works.items() if works)
                world.report(lane, 100, set(), 0.001)
                world.do(world.logic.drain())  # as the loop does every turn
        assert world.logic.idle
        assert not world.open
        world.logic = WorkerLogic("w", world.logic.concurrency)
        for run, index in world.revoked:
            world.logic.revoked.setdefault(run, []).append((index, 1))
        world.works, world.is_async, world.killed, world.spawning, world.async_left = {}, {}, set(), [], {}
        world.do(world.logic.start())

    @rule(deliveries=st.just(2))
    def worker_is_killed(self, deliveries: int) -> None:
        """Nothing is given back: the leases end, and another worker looks up what has been stored."""
        world = self.world
        frames = [(frame, world.resolved[token]) for token, (_, frame) in world.open.items()]
        world.open, world.resolved = {}, {}
        world.logic = WorkerLogic("w", world.logic.concurrency)
        for run, index in world.revoked:
            world.logic.revoked.setdefault(run, []).append((index, 1))
        world.works, world.is_async, world.killed, world.spawning, world.async_left = {}, {}, set(), [], {}
        world.do(world.logic.start())
        for frame, resolved in frames:
            # A call that was published anew just before would be run by both, which at-least-once allows; here that
            # is left out, so that everything else can be counted exactly.
            world.deliver(frame, deliveries, resolved)

    @invariant()
    def nothing_ends_twice(self) -> None:
        twice = {call: states for call, states in self.world.ended.items() if len(states) > 1}
        assert not twice, twice

    @invariant()
    def a_call_ends_as_what_it_waits_for(self) -> None:
        """It is not run where something it refers to has no value; and then it is not done."""
        for call, upon in self.world.upon.items():
            for state in self.world.ended.get(call, ()):
                ends = [self.world.ended.get(other, [None])[0] for other in upon]
                if state in (DONE, LOST):
                    assert ends == [DONE] * len(ends), (call, ends)

    @invariant()
    def it_holds_what_is_delivered(self) -> None:
        held = [item.delivery.token for item in self.world.logic.held.values()]
        assert sorted(held) == sorted(self.world.open)

    @invariant()
    def every_open_call_is_somewhere(self) -> None:
        """In the pool, waiting, or in a lane, and in one of these only."""
        world, logic = self.world, self.world.logic
        places: Counter[tuple[str, int]] = Counter()
        for frame in world.pool:
            if not frame.dead:
                places.update((frame.run, i) for i in range(frame.first, frame.first + frame.count))
        for calls in logic.graph.blocked.values():
            places.update((blocked.held.frame.run, i) for i, blocked in calls.items())
        for piece in logic.waiting:
            places.update((piece.held.frame.run, i) for i in range(piece.first, piece.first + piece.count))
        for lane, works in world.works.items():
            for work in works:
                left = world.async_left.get(work.serial) if world.is_async[lane] else None
                places.update((work.run, i) for i in left or range(work.first, work.first + work.count))
        assert set(places) == world.expected - set(world.ended)
        assert set(places.values()) <= {1}

    def teardown(self) -> None:
        """Let it come to its end: then all has ended, once, and the counts say so."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for _ in range(100_000):
            if world.spawning:
                world.lane_up()
            elif world.killed:
                world.die(next(iter(world.killed)), 0)
            elif any(world.works.values()):
                world.report(next(n for n, works in world.works.items() if works), 100, set(), 0.001)
            elif world.pool:
                world.deliver(world.pool.pop(0))
                world.look()
            elif world.untold:
                world.tell()
            else:
                world.look()
                if not any(world.works.values()):
                    break
        assert world.logic.idle
        assert not world.logic.busy
        assert not world.open
        assert not world.logic.waiting
        assert not world.logic.graph.blocked
        assert not world.logic.graph.runs, "and nothing is waited for"
        assert set(world.ended) == world.expected
        assert all(len(states) == 1 for states in world.ended.values())
        assert all(times == 1 for times in world.settled.values())
        lost = {call for call, (state,) in world.ended.items() if state == LOST}
        assert world.dead == lost, "what is lost is in the dead letters, and nothing else"


TestLife = pytest.mark.timeout(900)(Life.TestCase)
TestLife.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# Single events --------------------------------------------------------------------------------------------------


def frame_of(count: int = 4, **options: Any) -> Frame:
    return Frame("r", 0, count, FUNCTIONS[0], payload(0, count), Options(**options), "s.1", 0.0)


def started(frame: Frame, concurrency: int = 1) -> World:
    world = World(concurrency)
    world.expected |= {(frame.run, i) for i in range(frame.first, frame.first + frame.count)}
    while world.spawning:
        world.lane_up()
    world.deliver(frame)
    return world


def test_counts() -> None:
    world = started(frame_of(4, max_deliveries=1))
    world.report(1, 1, set(), 0.0001)  # 0 is done; now the function is timed
    world.report(1, 2, {1}, 0.0001)  # 1 failed, 2 done
    world.die(1, 0)  # 3 is lost
    counts = world.logic.counts
    assert (counts["done"], counts["failed"], counts["lost"], counts["lanes_died"]) == (2, 1, 1, 1)
    assert {call[1]: states for call, states in world.ended.items()} == {0: [DONE], 1: [FAILED], 2: [DONE], 3: [LOST]}


def test_a_death_is_charged_to_the_call_that_ran() -> None:
    world = started(frame_of(6, max_deliveries=1))
    world.report(1, 1, set(), 0.0001)
    assert world.works[1][0].count == 5
    world.die(1, 2)
    assert world.ended[("r", 3)] == [LOST]
    assert len(world.ended) == 2


def test_a_kill_that_comes_too_late_is_charged_to_nobody() -> None:
    """The call over its timeout ends just before its lane is killed; the next one has begun."""
    world = started(frame_of(6, timeout=0.1, max_deliveries=1))
    world.report(1, 1, set(), 0.0001)
    world.do(world.logic.tick({1: world.mark(1, 0)}, world.now))
    assert world.killed == {1}
    world.die(1, 1)
    assert ("r", 2) not in world.ended
    while world.spawning:
        world.lane_up()
    lane = next(iter(world.works))
    while world.works[lane]:
        world.report(lane, 100, set(), 0.0001)
    assert all(states == [DONE] for states in world.ended.values())
    assert len(world.ended) == 6


def test_revoked_calls_of_a_dead_lane_do_not_come_back() -> None:
    world = started(frame_of(6))
    world.report(1, 1, set(), 0.0001)
    actions, running = world.logic.revoke("r", 3, 2, False, {1: world.mark(1, 0)})
    world.do(actions)
    assert running == [3, 4]
    world.die(1, 0)
    assert world.ended[("r", 3)] == world.ended[("r", 4)] == [CANCELLED]


def test_stored_calls_are_not_run_again() -> None:
    world = World(1)
    frame = frame_of(4)
    world.expected |= {("r", i) for i in range(4)}
    world.ended = {("r", 0): [DONE], ("r", 2): [DONE]}
    while world.spawning:
        world.lane_up()
    world.deliver(frame, deliveries=2)
    seen = []
    while world.works[1]:
        seen.append(world.works[1][0].first)
        world.report(1, 1, set(), 1.0)
    assert seen == [1, 3]


def test_room_is_for_what_the_lanes_can_take() -> None:
    world = started(frame_of(1))
    assert world.logic.room() == 0, "one lane, and it runs something of unknown length"
    world.report(1, 1, set(), 0.0001)
    assert world.logic.room() > 0
    world.do(world.logic.drain())
    assert world.logic.room() == 0


@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_backoff(attempt: int) -> None:
    frame = Frame("r", 0, 1, FUNCTIONS[0], payload(0, 1), Options(retries=9, backoff=0.5), "", 0.0, attempt)
    world = started(frame)
    work = world.works[1][0]
    actions = world.logic.reported(1, Report(work.serial, 1, 0.1, [], [(0, "E")]), 0.0)
    (publish,) = [a for a in actions if isinstance(a, act.Publish)]
    full = 0.5 * 2 ** (attempt - 1)
    assert full / 2 <= publish.delay <= full
    assert publish.frame.attempt == attempt + 1
    assert not math.isnan(publish.delay)


@pytest.mark.parametrize("cold", [False, True])
def test_a_frame_run_in_part_travels_on_without_that_part(cold: bool) -> None:
    """Given back whole it would count as never delivered, and what has ended would be run again."""
    world = started(frame_of(4))
    world.report(1, 1, set(), 1.0)
    if cold:
        world.do(world.logic.abandon())
    else:
        world.do(world.logic.drain())
        world.report(1, 1, set(), 1.0)
    assert world.logic.idle
    waiting = [i for frame in world.pool for i in range(frame.first, frame.first + frame.count)]
    assert sorted(waiting) == sorted({0, 1, 2, 3} - {index for _, index in world.ended})
    assert world.ended


@pytest.mark.parametrize("late", [False, True])
def test_calls_that_wait_end_with_their_time(late: bool) -> None:
    """Whether it runs out while they wait here, or while their frame was on its way."""
    logic = WorkerLogic("w", 1)
    needs = [ValueOf("other", 0)]
    frame = Frame("r", 0, 2, FUNCTIONS[0], encode_referring([(b"0", needs), (b"1", needs)]), Options(expires=1001.0))
    delivery = Delivery("q", b"", 1, 1)
    actions = logic.received(delivery, frame, [], 1002.0 if late else 1000.0)
    if not late:
        assert not actions
        assert logic.expire(1000.5) == []
        actions = logic.expire(1002.0)
    ended = [state for each in actions if isinstance(each, act.Conclude) for state in each.outcomes.states]
    assert ended == [CANCELLED] * 2
    assert actions[-1] == act.Ack(delivery)
    assert not logic.held
    assert not logic.graph.blocked


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_a_chain_that_comes_in_any_order_goes_on(order: str) -> None:
    """Each call a frame of its own, far more than are kept: what is kept must be what can start next."""
    length, now, ended = 100, 1000.0, 0
    logic = WorkerLogic("w", 1)
    logic.start()
    logic.lane_up(1, False)
    frames = [
        Frame("r", i, 1, FUNCTIONS[0], payload(0, 1) if not i else chained(i), sent_at=900.0 + i) for i in range(length)
    ]
    places = list(range(length))
    random.Random(7).shuffle(places)
    at_the_broker = [(now, place if order == "shuffled" else -i, i) for i, place in enumerate(places)]
    heapq.heapify(at_the_broker)

    def carry_out(actions: Iterable[act.Action]) -> None:
        nonlocal ended
        for action in actions:
            if isinstance(action, act.Release):
                index = int(action.delivery.body)
                heapq.heappush(at_the_broker, (now + action.delay, places[index], index))
            elif isinstance(action, act.Deal):
                done = [(action.work.first, 1, b"", b"")]
                assert action.work.first == ended
                ended += 1
                carry_out(logic.reported(1, Report(action.work.serial, 1, 0.001, done), now))

    while at_the_broker:
        now, _, index = heapq.heappop(at_the_broker)
        carry_out(logic.received(Delivery("q", b"%d" % index, 1, index), frames[index], [], now))
        while known := [i for i in logic.graph.missing("r") if i < ended]:
            carry_out(logic.learn("r", {i: Known(DONE, b"p") for i in known}, now))
    assert ended == length
    assert now - 1000.0 < 10.0, "seconds of the broker's clock"


def chained(index: int) -> bytes:
    """The arguments of a call that waits for the one before."""
    return encode_referring([(str(index).encode(), [ValueOf("r", index - 1)])])
