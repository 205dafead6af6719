"""qnb over Redis, for an external harness that compares many task queues.

That harness brings the modules `common` (with a class Base) and `bench_tasks` (the work), and runs this file inside an
environment that has qnb[redis]. Nothing of qnb's own benchmark imports it.
"""

import bench_tasks
from common import PY, REDIS_URL, Base


class Adapter(Base):
    name, label = "qnb_redis", "qnb / Redis streams + Redis results (--concurrency 2)"
    venv, broker = "qnb", "redis"
    import_stmt = "from qnb import Session; import qnb.brokers.redis.broker, qnb.backends.redis"
    has_map = True
    modes = ("default",)
    n = {"W1": 10000, "W2": 500, "W3": 200, "W4": 100000, "W6": 100000, "W7": 200}  # noqa: RUF012
    url = REDIS_URL

    def worker_env(self):
        return dict(super().worker_env(), QNB_KEY="the key of the benchmark, used for nothing else")

    def worker_cmds(self, separate=False):
        def command(number, concurrency):
            call = [PY, "-m", "qnb.cli", "worker", self.url, "--name", f"bench{number}"]
            return [*call, "--concurrency", str(concurrency)]

        if separate:
            return [command(number, 1) for number in range(self.workers)]
        return [command(0, self.workers)]

    def connect(self):
        super().connect()
        import qnb

        self.session = qnb.Session(self.url, workers=0)

    def submit(self, fn, *args):
        return self.session.submit(bench_tasks.FUNCS[fn], *args)

    def submit_many(self, n, fn="noop"):
        submit, function = self.session.submit, bench_tasks.FUNCS[fn]
        return [submit(function, i) for i in range(n)]

    def result(self, handle, timeout=60):
        return handle.result(timeout)

    def gather(self, handles, timeout=600):
        return [handle.result(timeout) for handle in handles]

    def map(self, n):
        return self.session.map(bench_tasks.noop, range(n)).results()

    def stop(self):
        if hasattr(self, "session"):
            self.session.close()
        super().stop()
