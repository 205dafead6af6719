#!/usr/bin/env bash
# make bench: the peers get an environment of their own, so that what they pin does not change what is tested.
cd "$(dirname "$0")/.."
. scripts/common.sh

install .venv-bench bench
command -v redis-server >/dev/null || apt_install redis-server || die "the benchmarks need redis-server: install it first"
exec .venv-bench/bin/python -m tests.bench "$@"
