"""One folder a broker; the ports are in base.py. Called, it gives the table of all brokers: `qnb.brokers()`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """`qnb.brokers` is a public function by name, and importing this package puts the package in its place."""

    def __call__(self, *urls: str, probe: bool = False) -> Any:
        from qnb.monitor.brokers import brokers

        return brokers(*urls, probe=probe)


sys.modules[__name__].__class__ = _Package
