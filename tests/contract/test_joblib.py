"""`joblib.parallel_config(backend="qnb")`: joblib's own words, and scikit-learn's grid search, on workers."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed

import qnb
import qnb.joblib
from tests.contract.conftest import FEW, WORKERS

BROKERS = FEW


def test_results_in_order_and_on_workers(session: qnb.Session, kind: str) -> None:
    def where(n: int) -> tuple[int, int]:
        return n, os.getpid()

    with joblib.parallel_config(backend="qnb", session=session):
        found = Parallel()(delayed(where)(n) for n in range(300))
    assert [n for n, _ in found] == list(range(300))
    assert kind == "memory" or os.getpid() not in {pid for _, pid in found}


def test_jobs_are_what_workers_can_do(session: qnb.Session) -> None:
    backend = qnb.joblib.QnbBackend(session)
    assert [backend.effective_n_jobs(n) for n in (-1, None, 1, 100, -2, -100)] == [WORKERS, WORKERS, 1, WORKERS, 1, 1]
    with pytest.raises(qnb.ConfigurationError, match="n_jobs=0"):
        backend.effective_n_jobs(0)


def test_the_current_session_is_taken(session: qnb.Session) -> None:
    with joblib.parallel_config(backend="qnb"):
        assert Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(10)) == list(range(10))


def test_a_generator_of_results(session: qnb.Session) -> None:
    with joblib.parallel_config(backend="qnb", session=session):
        results = Parallel(return_as="generator")(delayed(pow)(n, 2) for n in range(20))
        assert list(results) == [n * n for n in range(20)]


class Own(Exception):
    pass


def test_an_exception_ends_it_and_cancels_the_rest(session: qnb.Session) -> None:
    def work(n: int) -> int:
        if n == 3:
            raise Own("three")
        time.sleep(0.2)
        return n

    with joblib.parallel_config(backend="qnb", session=session), pytest.raises(Own, match="three"):
        Parallel(batch_size=1, pre_dispatch="all")(delayed(work)(n) for n in range(1000))
    # 1,000 calls of 0.2 s on two lanes are 100 s: the lanes are free again.
    assert session.submit(abs, -1).result(20) == 1


def test_a_timeout(session: qnb.Session) -> None:
    with joblib.parallel_config(backend="qnb", session=session), pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.5, batch_size=1)(delayed(time.sleep)(2) for _ in range(2))


def test_what_is_nested_runs_one_after_the_other(session: qnb.Session) -> None:
    def inner() -> str:
        return type(joblib.parallel.get_active_backend()[0]).__name__

    def outer() -> list[str]:
        return list(Parallel(n_jobs=2)(delayed(inner)() for _ in range(2)))

    with joblib.parallel_config(backend="qnb", session=session):
        assert Parallel()(delayed(outer)() for _ in range(2)) == [["SequentialBackend"] * 2] * 2


def test_grid_search(session: qnb.Session) -> None:
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    data: Any = load_iris()

    def search(n_jobs: int | None) -> Any:
        return GridSearchCV(SVC(), {"C": [0.1, 1, 10], "kernel": ["linear", "rbf"]}, n_jobs=n_jobs).fit(
            data.data, data.target
        )

    with joblib.parallel_config(backend="qnb", session=session):
        remote = search(-1)
    here = search(None)
    assert remote.best_params_ == here.best_params_
    assert list(remote.cv_results_["mean_test_score"]) == list(here.cv_results_["mean_test_score"])
    assert remote.predict(data.data[:5]).tolist() == here.predict(data.data[:5]).tolist()
