"""What is measured: one class a system, all with the same verbs."""

from __future__ import annotations

import importlib

from tests.bench.systems.base import Place, System

# name -> where its class is, and what must be installed for it
_SYSTEMS = {
    "qnb-redis": ("qnb_system:OverRedis", "redis"),
    "qnb-embedded": ("qnb_system:Embedded", "qnb"),
    "celery": ("celery_system:Celery", "celery"),
    "celery-pickle": ("celery_system:CeleryPickle", "celery"),
    "celery-reliable": ("celery_system:CeleryReliable", "celery"),
    "dramatiq": ("dramatiq_system:Dramatiq", "dramatiq"),
    "huey-redis": ("huey_system:HueyRedis", "huey"),
    "huey-sqlite": ("huey_system:HueySqlite", "huey"),
    "executor": ("executor_system:Executor", "concurrent.futures"),
    "ping-pong": ("ping_pong:PingPong", "hiredis"),
}


def system_class(name: str) -> type[System]:
    """The class of a system."""
    module, _, kind = _SYSTEMS[name][0].partition(":")
    found = getattr(importlib.import_module(f"tests.bench.systems.{module}"), kind)
    assert issubclass(found, System)
    return found


def installed(name: str) -> bool:
    """Whether this system can be measured here."""
    return importlib.util.find_spec(_SYSTEMS[name][1]) is not None


__all__ = ["Place", "System", "installed", "system_class"]
