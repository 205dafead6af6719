"""qnb on its embedded file, for the same external harness as qnb_redis.py."""

import glob
import os

from adapters.qnb_redis import Adapter as _A
from common import WORKDIR


class Adapter(_A):
    name, label = "qnb_embedded", "qnb / embedded SQLite file (--concurrency 2)"
    broker = None
    import_stmt = "from qnb import Session; import qnb.brokers.sqlite.broker, qnb.backends.sql"
    file = f"{WORKDIR}/qnb.db"
    url = f"sqlite:///{file}"

    def prepare(self):
        for name in glob.glob(self.file + "*"):
            os.unlink(name)
