"""`qnb worker`: runs until SIGTERM or Ctrl-C; once more means at once."""

from __future__ import annotations

import argparse
import itertools
import logging
import signal
import sys

from qnb.cli import FAILED, USAGE, WELL, add_broker, read_key
from qnb.message import DEFAULT_QUEUE


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of `qnb worker`."""
    add_broker(parser)
    parser.add_argument("--backend", help="backend URL; else QNB_BACKEND, else the broker's own partner")
    parser.add_argument("--queues", default=DEFAULT_QUEUE, help="queues to serve, with commas")
    parser.add_argument("--concurrency", type=_lanes, help="calls at a time; default: the number of cores")
    parser.add_argument("--pool", choices=("process", "thread"), default="process", help="where calls run")
    parser.add_argument("--name", help="the worker's name; default: host-pid")
    parser.add_argument("--linger", type=float, help="end after so many seconds without work and without a session")
    parser.add_argument(
        "--only", default="", help="modules, with commas: run their functions alone, called by name; open no pickles"
    )
    parser.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))


def _lanes(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 or more")
    return int(text)


def _modules(text: str) -> tuple[str, ...]:
    """Names of modules; ConfigurationError when one is not here. Lanes import them, this process does not."""
    from importlib.util import find_spec

    from qnb.errors import ConfigurationError

    modules = tuple(text.replace(",", " ").split())
    if modules and "" not in sys.path:
        sys.path.insert(0, "")  # as lanes have it
    for module in modules:
        try:
            found = find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise ConfigurationError(f"--only {module}: there is no such module here: start the worker in its folder")
    return modules


def run(name: str, options: argparse.Namespace) -> int:
    """Start the worker and wait for its end."""
    from qnb import registry, settings
    from qnb.worker.loop import Worker, WorkerOptions, default_name

    if not options.queues.replace(",", " ").split():
        print("qnb worker: name a queue with --queues", file=sys.stderr)
        return USAGE
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    url = settings.absolute_url(settings.broker_url(options.broker))
    backend_url = settings.absolute_url(settings.backend_url(options.backend) or registry.partner_url(url))
    key = read_key(options)
    broker = registry.open_broker(url)
    backend = registry.open_backend(backend_url)
    chosen = WorkerOptions(
        options.name or default_name(),
        tuple(queue for queue in options.queues.split(",") if queue),
        options.concurrency or settings.cpu_count(),
        options.pool,
        options.linger,
        _modules(options.only),
    )
    worker = Worker(broker, backend, key, chosen)
    signals = itertools.count()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop(cold=next(signals) > 0))
    worker.start()
    print(
        f"qnb worker {chosen.name}: {chosen.concurrency} lanes on {broker.url}, queues {', '.join(chosen.queues)}",
        file=sys.stderr,
        flush=True,
    )
    worker.join()
    backend.close()
    broker.close()
    return FAILED if worker.failed else WELL
