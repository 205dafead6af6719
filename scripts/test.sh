#!/usr/bin/env bash
# make test: brings what the tests need, runs every check, and says at the end what failed and what was left out.
# PYTEST_ADDOPTS reaches every pytest run, as in PYTEST_ADDOPTS="-k redis -x" make test.
cd "$(dirname "$0")/.."
. scripts/common.sh

failed=() left_out=()

check() { # NAME COMMAND...
  local name=$1 begun=$SECONDS
  shift
  say "$name"
  if "$@"; then
    say "$name: passed, $((SECONDS - begun)) s"
  else
    say "$name: FAILED (exit $?), $((SECONDS - begun)) s"
    failed+=("$name")
  fi
}

bring_redis() {
  command -v redis-server >/dev/null || apt_install redis-server ||
    left_out+=("redis-server is not here and could not be installed: what needs a real Redis runs on Valkey, or not at all")
}

chromium_runs() { chromium --version || google-chrome --version || python -m playwright install --list | grep -q chromium; } >/dev/null 2>&1

bring_chromium() {
  chromium_runs || { apt_install chromium fonts-dejavu-core && chromium_runs; } ||
    timeout 300 python -m playwright install $(is_root && echo --with-deps) chromium >.cache/playwright.log 2>&1 ||
    left_out+=("Chromium is not here and could not be installed: the tests in tests/browser are left out")
}

install .venv dev
bring_node .venv test
bring_redis
bring_chromium

check "ruff" ruff check
check "mypy" mypy
check "widgets" python scripts/widgets.py test
check "pytest" python -m pytest tests
check "notebooks" python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=120 notebooks

for reason in "${left_out[@]}"; do say "left out: $reason"; done
if [ -n "${CI:-}" ] && [ ${#left_out[@]} -gt 0 ]; then failed+=("set-up"); fi
if [ ${#failed[@]} -gt 0 ]; then die "failed: ${failed[*]}"; fi
say "everything passed in $SECONDS s"
