#!/usr/bin/env bash
# make bench: the peers get an environment of their own, so that what they pin does not change what is tested.
cd "$(dirname "$0")/.."
. scripts/common.sh

install .venv-bench bench
command -v redis-server >/dev/null || apt_install redis-server || die "the benchmarks need redis-server: install it first"
# Brokers that cannot be had are left out, and named below the table.
missing=()
[ -d /usr/lib/rabbitmq ] || missing+=(rabbitmq-server)
command -v java >/dev/null || missing+=(default-jre-headless)
[ -e /usr/share/java/zookeeper.jar ] || missing+=(zookeeper)
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}" || say "not here, and could not be installed: ${missing[*]}"
exec .venv-bench/bin/python -m tests.bench "$@"
