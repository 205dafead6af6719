"""`%load_ext qnb` and pandas in a real kernel: registered when pandas comes, with a live view while it runs."""

from __future__ import annotations

from pathlib import Path

from tests.notebooks.kernel import WIDGET, start_kernel


def test_a_view_shows_the_blocks(tmp_path: Path) -> None:
    with start_kernel(tmp_path) as kernel:
        kernel.run("import sys\n%load_ext qnb\nassert 'pandas' not in sys.modules and 'joblib' not in sys.modules")
        kernel.run("import pandas as pd, joblib, time, qnb")
        kernel.run("session = qnb.Session('sqlite:', workers=2, key='a key for these tests')")
        kernel.run("df = pd.DataFrame({'n': range(40)})\nslow = lambda row: time.sleep(0.02) or row.n * 2")
        heard = kernel.run("found = df.qnb.apply(slow, axis=1)", 60)
        shown = [m["content"]["data"] for m in heard if m["msg_type"] == "display_data"]
        assert len(shown) == 1
        assert {"text/html", "text/plain"} <= set(shown[0])
        assert WIDGET in shown[0]
        assert kernel.value("found.equals(df.n * 2)")
        quiet = kernel.run("found = df.qnb(progress=False).apply(slow, axis=1)", 60)
        assert not [m for m in quiet if m["msg_type"] == "display_data"]
        kernel.run("with joblib.parallel_config(backend='qnb'):\n"
                   "    squares = joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(5))")  # fmt: skip
        assert kernel.value("squares") == [0, 1, 4, 9, 16]
        kernel.run("session.close()")
