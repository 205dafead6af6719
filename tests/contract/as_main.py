"""What a notebook does, as a script: everything here lives in `__main__`. Run by test_main.py with the broker's URL.

Prints a line of JSON a check: its name, and None or what went wrong.
"""

# ruff: noqa: B904, F821, PT017 - a notebook's ways, and no pytest in here

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import json
import linecache
import sys
import traceback
import types

import qnb

SECONDS = 30
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def cell(source: str, number: int) -> None:
    """Run source as IPython runs a cell: compiled from text that only linecache knows."""
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), globals())


factor = 3


def times_factor(x):
    return x * factor


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


class Point:
    count = 0

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return type(other) is type(self) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self):
        return hash((self.x, self.y))

    def add(self, n):
        return Point(self.x + n, self.y + n)

    @classmethod
    def origin(cls):
        return cls(0, 0)

    @property
    def size(self):
        return self.x + self.y


class Point3(Point):
    def add(self, n):
        return super().add(2 * n)


@dataclasses.dataclass(frozen=True)
class Job:
    name: str
    sizes: list[int] = dataclasses.field(default_factory=list)


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Broken(Exception):
    def __init__(self, code, detail):
        super().__init__(f"broken with {code}")
        self.code, self.detail = code, detail


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    return wrapper


@check
def globals_and_edits(session):
    global factor, times_factor
    assert session.submit(times_factor, 2).result(SECONDS) == 6
    factor = 5
    assert session.submit(times_factor, 2).result(SECONDS) == 10, "an edited global"
    cell("def times_factor(x):\n    return x * factor + 1\n", 1)
    assert session.submit(times_factor, 2).result(SECONDS) == 11, "an edited function"
    assert session.map(times_factor, [1, 2]).results(SECONDS) == [6, 11]


@check
def edited_helper(session):
    cell("def helper(x):\n    return x + 1\n\ndef uses_helper(x):\n    return helper(x)\n", 2)
    assert session.submit(uses_helper, 1).result(SECONDS) == 2
    cell("def helper(x):\n    return x + 100\n", 3)
    assert session.submit(uses_helper, 1).result(SECONDS) == 101
    task = session.task(uses_helper)
    cell("def helper(x):\n    return x + 1000\n", 4)
    assert task.submit(1).result(SECONDS) == 1001


@check
def mutable_global(session):
    global table
    table = {"a": 1}

    def look():
        return dict(table)

    assert session.submit(look).result(SECONDS) == {"a": 1}
    table["b"] = 2
    assert session.submit(look).result(SECONDS) == {"a": 1, "b": 2}
    add = [].append
    items = add.__self__

    def count():
        return len(add.__self__)

    assert session.submit(count).result(SECONDS) == 0
    items.append(1)
    assert session.submit(count).result(SECONDS) == 1


@check
def closures(session):
    counter, n = [0], 1

    def read():
        return counter[0] + n

    assert session.submit(read).result(SECONDS) == 1
    counter[0] = 5
    n = 2
    assert session.submit(read).result(SECONDS) == 7
    gone = 1

    def uses_gone():
        return gone

    assert session.submit(uses_gone).result(SECONDS) == 1
    del gone
    assert isinstance(session.submit(uses_gone).exception(SECONDS), NameError)


@check
def defaults_and_attributes(session):
    def f(x, y=1, *, z=2):
        return x + y + z + getattr(f, "extra", 0)

    assert session.submit(f, 1).result(SECONDS) == 4
    f.__defaults__ = (10,)
    assert session.submit(f, 1).result(SECONDS) == 13
    f.__kwdefaults__ = {"z": 20}
    assert session.submit(f, 1).result(SECONDS) == 31
    f.__code__ = (lambda x, y=1, *, z=2: -x).__code__ if not f.__closure__ else f.__code__
    f.extra = 100
    assert session.submit(f, 1).result(SECONDS) in (131, -1)


@check
def lambdas_and_recursion(session):
    fib = lambda n: n if n < 2 else fib(n - 1) + fib(n - 2)  # noqa: E731
    assert session.submit(fib, 10).result(SECONDS) == 55
    assert session.submit(factorial, 10).result(SECONDS) == 3628800
    assert session.submit(even, 7).result(SECONDS) is False
    assert session.map(lambda x, k=factor: x * k, [1, 2]).results(SECONDS) == [factor, 2 * factor]


@check
def classes(session):
    point = session.submit(Point(1, 2).add, 3).result(SECONDS)
    assert type(point) is Point
    assert point == Point(4, 5), "what comes back is of the notebook's own class"
    assert session.submit(Point, 1, 2).result(SECONDS) == Point(1, 2)
    assert session.submit(Point.origin).result(SECONDS) == Point(0, 0)
    assert type(session.submit(Point3(1, 1).add, 1).result(SECONDS)) is Point
    assert session.submit(lambda ps: {p: p.size for p in ps}, [Point(1, 2)]).result(SECONDS) == {Point(1, 2): 3}
    assert session.submit(isinstance, Point3(1, 1), Point).result(SECONDS) is True
    assert session.submit(lambda: Point).result(SECONDS) is Point


@check
def edited_classes(session):
    point = Point(1, 2)
    assert session.submit(lambda p: p.size, point).result(SECONDS) == 3
    Point.size = property(lambda self: 10 * self.x)
    assert session.submit(lambda p: p.size, point).result(SECONDS) == 10, "changed in place"
    cell("class Maker:\n    def make(self):\n        return 'old'\n", 5)
    old = Maker()

    def make():
        return Maker().make()

    assert session.submit(make).result(SECONDS) == "old"
    cell("class Maker:\n    def make(self):\n        return 'new'\n", 6)
    assert session.submit(make).result(SECONDS) == "new", "the cell was run again"
    assert session.submit(old.make).result(SECONDS) == "old", "an instance keeps its class"


@check
def dataclasses_and_enums(session):
    job = session.submit(lambda j: dataclasses.replace(j, name=j.name.upper()), Job("a", [1])).result(SECONDS)
    assert job == Job("A", [1])
    assert type(job) is Job
    assert session.submit(lambda c: (c is Colour.RED, c), Colour.RED).result(SECONDS) == (True, Colour.RED)
    assert session.map(Colour, [1, "b"]).results(SECONDS) == [Colour.RED, Colour.BLUE]


@check
def decorated_partial_callable(session):
    @doubled
    def f(x):
        return x + 1

    class Caller:
        def __call__(self, x):
            return x * 10

    assert session.submit(f, 1).result(SECONDS) == 4
    assert session.submit(functools.partial(factorial, 4)).result(SECONDS) == 24
    assert session.submit(functools.partial(functools.partial(pow, 2), 3)).result(SECONDS) == 8
    assert session.submit(Caller(), 2).result(SECONDS) == 20
    assert session.submit(functools.lru_cache(factorial), 4).result(SECONDS) == 24

    @functools.lru_cache(maxsize=50)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert session.submit(fibonacci, 60).result(SECONDS) == 1548008755920
    assert session.submit(lambda: fibonacci(30)).result(SECONDS) == 832040

    @session.task(retries=1)
    @doubled
    def g(x):
        return f(x)

    assert g.submit(1).result(SECONDS) == 8


@check
def tasks_that_call_tasks(session):
    @session.task
    def inner(x):
        return x + 1

    @session.task
    def outer(x):
        return inner(x) * 2

    assert outer(1) == 4
    assert outer.submit(1).result(SECONDS) == 4

    @session.task
    def submits():
        return inner.submit(1)

    error = submits.submit().exception(SECONDS)
    assert isinstance(error, qnb.ConfigurationError)
    assert "worker" in str(error)


@check
def coroutines(session):
    async def double(x):
        await asyncio.sleep(0)
        return times_factor(x)

    async def nested(x):
        return await double(x) + await double(x)

    class Async:
        async def run(self, x):
            return await double(x)

        async def __call__(self, x):
            return await double(x)

    expected = times_factor(2)
    assert session.submit(double, 2).result(SECONDS) == expected
    assert session.submit(nested, 2).result(SECONDS) == 2 * expected
    assert session.submit(Async().run, 2).result(SECONDS) == expected
    assert session.submit(Async(), 2).result(SECONDS) == expected
    assert session.submit(functools.partial(double, 2)).result(SECONDS) == expected


@check
def shipped_module(session):
    module = types.ModuleType("only_here")
    exec(
        "scale = 2\ndef f(x):\n    return x * scale\nclass K:\n    def __init__(self):\n        self.v = scale\n",
        module.__dict__,
    )
    sys.modules["only_here"] = module
    session.ship(module)
    assert session.submit(module.f, 4).result(SECONDS) == 8
    assert session.submit(lambda x: module.f(x), 4).result(SECONDS) == 8
    module.scale = 3
    assert session.submit(module.f, 4).result(SECONDS) == 12
    assert type(session.submit(module.K).result(SECONDS)) is module.K


@check
def own_exception(session):
    def fail():
        error = Broken(7, {"why": "because"})
        error.add_note("a note")
        raise error

    future = session.submit(fail)
    try:
        future.result(SECONDS)
    except Broken as error:
        assert type(error) is Broken
        assert (error.code, error.detail, error.args) == (7, {"why": "because"}, ("broken with 7",))
        assert error.__notes__ == ["a note"]
        text = "".join(traceback.format_exception(error))
        assert "raise error" in text, text
        assert "in fail" in text
    else:
        raise AssertionError("nothing raised")
    assert "raise error" in future.traceback


@check
def causes_and_groups(session):
    def chained():
        try:
            {}["key"]
        except KeyError as error:
            raise Broken(1, None) from error

    def in_context():
        try:
            {}["key"]
        except KeyError:
            raise ValueError("while handling")

    def group():
        raise ExceptionGroup("several", [Broken(1, "a"), ExceptionGroup("inner", [TypeError("t")])])

    error = session.submit(chained).exception(SECONDS)
    assert isinstance(error.__cause__, KeyError)
    assert '{}["key"]' in "".join(traceback.format_exception(error)), "the cause has its lines, too"
    error = session.submit(in_context).exception(SECONDS)
    assert error.__cause__ is None
    assert isinstance(error.__context__, KeyError)
    try:
        session.submit(group).result(SECONDS)
    except* Broken as caught:
        assert caught.exceptions[0].detail == "a"
    except* TypeError as caught:
        assert caught.exceptions


@check
def builtin_exceptions(session):
    error = session.submit(open, "/no/such/file").exception(SECONDS)
    assert error.filename == "/no/such/file"
    assert str(error) == "[Errno 2] No such file or directory: '/no/such/file'"
    error = session.submit(b"\xff".decode).exception(SECONDS)
    assert (error.object, error.start) == (b"\xff", 0)
    assert "can't decode byte 0xff" in str(error)
    assert session.submit(sys.exit, 3).exception(SECONDS).code == 3
    assert session.submit(__import__, "no_such_module").exception(SECONDS).name == "no_such_module"
    assert isinstance(session.submit(lambda: 1 / 0).exception(SECONDS), ZeroDivisionError)


@check
def strange_exceptions(session):
    class NoArguments(Exception):
        def __init__(self, *, code):
            super().__init__()
            self.code = code

    class Holds(Exception):
        pass

    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def raise_no_arguments():
        raise NoArguments(code=5)

    def raise_holds():
        import threading

        error = Holds("with a lock")
        error.lock, error.number = threading.Lock(), 4
        raise error

    def raise_lock_in_args():
        import threading

        raise Holds(threading.Lock())

    def raise_silent():
        raise Silent

    error = session.submit(raise_no_arguments).exception(SECONDS)
    assert type(error) is NoArguments
    assert error.code == 5
    error = session.submit(raise_holds).exception(SECONDS)
    assert type(error) is Holds, "an attribute that cannot travel stays behind, the class does not"
    assert error.number == 4
    error = session.submit(raise_lock_in_args).exception(SECONDS)
    assert isinstance(error, qnb.RemoteError)
    assert "Holds" in error.type_name
    assert "raise Holds" in error.remote_traceback
    assert type(session.submit(raise_silent).exception(SECONDS)) is Silent


@check
def tracebacks_of_cells(session):
    cell("def inner_cell(x):\n    value = 1 / x  # the line at fault\n    return value\n", 7)
    cell("def outer_cell(x):\n    # a comment\n    return inner_cell(x)  # the caller's line\n", 8)
    future = session.submit(outer_cell, 0)
    error = future.exception(SECONDS)
    text = "".join(traceback.format_exception(error))
    for wanted in ("the line at fault", "the caller's line", "/tmp/ipykernel_1/7.py", "ZeroDivisionError"):
        assert wanted in text, text
        assert wanted in future.traceback, future.traceback
    assert "runner.py" not in future.traceback, "the worker's own frames are left out"


def main() -> int:
    with qnb.Session(sys.argv[1], workers=int(sys.argv[2])) as session:
        for function in CHECKS:
            try:
                function(session)
                wrong = None
            except BaseException:
                wrong = traceback.format_exc()
            print(json.dumps([function.__name__, wrong]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
