"""Why nothing happens: from the queue over consumers, leases and workers to the backend, and one sentence then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qnb.backends.base import Backend
from qnb.brokers.base import Broker
from qnb.errors import QnbError, Unsupported
from qnb.message import WORKER_PREFIX
from qnb.monitor.control import Control, read_info, same_key


@dataclass(slots=True)
class Diagnosis:
    """What was looked at, in order, and what follows from it. `well`: tasks that are submitted now will run."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    verdict: str = ""
    well: bool = False

    def say(self, step: str, text: str) -> None:
        """One line of the walk."""
        self.steps.append((step, text))

    def __str__(self) -> str:
        lines = [f"{step:<10}{text}" for step, text in self.steps]
        return "\n".join([*lines, "", self.verdict])


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at: an open broker and backend, a queue, and the id of the key that is used here."""

    broker: Broker
    backend: Backend | None
    queue: str
    key_ids: list[str]
    control: Control


def diagnose(patient: Patient, timeout: float = 2.0) -> Diagnosis:
    """Walk: queue depth → consumers → leases → workers → backend → dead letters. Changes nothing."""
    found = Diagnosis()
    broker, queue = patient.broker, patient.queue
    found.say("broker", f"{broker.url} answers")
    depth = broker.depth(queue)
    there = queue in broker.queues()
    waiting = "cannot be counted on this broker" if depth is None else f"{depth} waiting messages"
    found.say("queue", f"{queue!r}: {waiting}" + ("" if there else ", and it has not been made yet"))
    peers = {
        peer.peer.removeprefix(WORKER_PREFIX): info
        for peer in broker.bus().peers(WORKER_PREFIX)
        if (info := read_info(peer.info)) is not None
    }
    serving = {name: info for name, info in peers.items() if queue in info.get("queues", ())}
    taking = {name: info for name, info in serving.items() if queue not in info.get("paused", ())}
    found.say(
        "consumers", f"{len(peers)} workers, of which {len(serving)} serve {queue!r} and {len(taking)} take from it"
    )
    ours = {name: info for name, info in taking.items() if same_key(info, patient.key_ids)}
    stats = patient.control.stats(to=list(ours), timeout=timeout) if ours else {}
    active = patient.control.active(to=list(ours), timeout=timeout) if ours else {}
    slowed = patient.control.scheduled(to=list(ours), timeout=timeout) if ours else {}
    _say_leases(found, stats, active)
    found.say("workers", f"{len(stats)} of {len(ours)} with this key answer" if taking else "none to ask")
    trouble = _backend_trouble(found, patient.backend)
    _say_dead(found, broker, queue)
    found.verdict = (
        _no_worker(patient, depth, peers, serving, taking)
        or _wrong_key(patient, taking, ours)
        or _silent(ours, stats)
        or trouble
        or _busy(depth, stats, active, slowed)
    )
    found.well = not found.verdict
    found.verdict = found.verdict or f"All is well: {len(stats)} workers take from {queue!r} and can keep results."
    return found


def _say_leases(found: Diagnosis, stats: Mapping[str, Any], active: Mapping[str, Any]) -> None:
    held = sum(int(one.get("held_frames", 0)) for one in stats.values() if isinstance(one, dict))
    running = [call for calls in active.values() if isinstance(calls, list) for call in calls]
    longest = max(running, key=lambda call: float(call.get("seconds") or 0.0), default=None)
    text = f"{held} messages are held, {len(running)} calls run"
    if longest is not None:
        text += f", the longest, {longest['name']}, for {float(longest['seconds']):.1f} s"
    found.say("leases", text)


def _say_dead(found: Diagnosis, broker: Broker, queue: str) -> None:
    try:
        dead = broker.dead_letters(queue, limit=100)
    except Unsupported as error:
        found.say("dead", str(error))
        return
    count = f"{len(dead)}{' or more' if len(dead) == 100 else ''} dead letters"
    found.say("dead", f"{count}; the newest: {dead[0].reason}" if dead else "no dead letters")


def _backend_trouble(found: Diagnosis, backend: Backend | None) -> str:
    if backend is None:
        found.say("backend", "not looked at")
        return ""
    try:
        backend.list_runs(1)
    except QnbError as error:
        found.say("backend", str(error))
        return f"Workers cannot keep results, and take nothing new while they cannot: {error}"
    found.say("backend", f"{backend.url} answers" if backend.blobs else f"{backend.url} keeps nothing: results travel")
    return ""


def _no_worker(
    patient: Patient, depth: int | None, peers: Mapping[str, Any], serving: Mapping[str, Any], taking: Mapping[str, Any]
) -> str:
    queue, start = patient.queue, f"qnb worker {patient.broker.url}"
    some = "Messages may wait" if depth is None else f"{depth} messages wait" if depth else "Nothing waits"
    if getattr(patient.broker.bus(), "mute", False):
        return "Workers cannot be seen here, for want of the right to make mailboxes: look at their logs."
    if not peers:
        return f"{some} in {queue!r} and no worker is there: start one with `{start}`."
    if not serving:
        names = sorted({name for info in peers.values() for name in info.get("queues", ())})
        return (
            f"{some} in {queue!r}, and the {len(peers)} workers serve only {', '.join(names)}: submit there, start "
            f"`{start} --queues {queue}`, or tell them `qnb control add_consumer {patient.broker.url} --queue {queue}`."
        )
    if not taking:
        resume = f"qnb control resume {patient.broker.url} --queue {queue}"
        return f"{some} in {queue!r}, which is paused: `{resume}` lets its workers go on."
    return ""


def _wrong_key(patient: Patient, taking: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    if len(ours) == len(taking):
        return ""
    others = sorted({str(info.get("key_id")) for name, info in taking.items() if name not in ours})
    return (
        f"{len(taking) - len(ours)} workers have another key ({', '.join(others)}; here it is {patient.key_ids[0]}) "
        "and refuse what is signed here: give all the same QNB_KEY, or the same key file."
    )


def _silent(ours: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    silent: Sequence[str] = sorted(set(ours) - set(stats))
    if not silent:
        return ""
    return (
        f"Worker {', '.join(silent)} was there a moment ago and does not answer: it is stopped, hung, or has just died."
    )


def _busy(depth: int | None, stats: Mapping[str, Any], active: Mapping[str, Any], slowed: Mapping[str, Any]) -> str:
    if not depth:
        return ""
    back = sorted({str(call["name"]) for calls in slowed.values() if isinstance(calls, list) for call in calls})
    if back:
        who = ", ".join(back)
        return f"{depth} messages wait, and {who} is held back by its rate limit: see `qnb control rate_limit`."
    lanes = sum(int(one.get("concurrency", 0)) for one in stats.values() if isinstance(one, dict))
    running = sum(len(calls) for calls in active.values() if isinstance(calls, list))
    if running >= lanes:
        return (
            f"{depth} messages wait since all {lanes} lanes are busy: start more workers, or `qnb control pool_grow`."
        )
    return ""
