#!/usr/bin/env bash
# make test: brings what the tests need, runs every check, and says at the end what failed and what was left out.
# PYTEST_ADDOPTS reaches every pytest run, as in PYTEST_ADDOPTS="-k redis -x" make test.
cd "$(dirname "$0")/.."
. scripts/common.sh
PATH="$PATH:/usr/sbin:/sbin"  # where Debian has its servers

failed=() left_out=()
declare -A running

check() { # NAME COMMAND...
  local name=$1 begun=$SECONDS code=0
  shift
  say "$name"
  "$@" || code=$?
  if [ $code = 5 ] && [ -n "${PYTEST_ADDOPTS:-}" ]; then
    say "$name: none of its tests were asked for"
  elif [ $code = 0 ]; then
    say "$name: passed, $((SECONDS - begun)) s"
  else
    say "$name: FAILED (exit $code), $((SECONDS - begun)) s"
    failed+=("$name")
  fi
}

beside() { # NAME COMMAND...: begins it; `check NAME ended NAME` waits for it
  local name=$1
  shift
  "$@" >".cache/$name.log" 2>&1 &
  running[$name]=$!
}

ended() { # NAME
  local code=0
  wait "${running[$1]}" || code=$?
  cat ".cache/$1.log"
  return $code
}

# Debian packages of servers that are not here, in one go. What then is still missing, its tests say.
missing_servers() {
  command -v redis-server >/dev/null || echo redis-server
  command -v openssl >/dev/null || echo openssl
  [ -d /usr/lib/rabbitmq ] || echo rabbitmq-server
  command -v java >/dev/null || echo default-jre-headless
  [ -e /usr/share/java/zookeeper.jar ] || echo zookeeper
  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || echo postgresql
  command -v mariadbd >/dev/null || command -v mysqld >/dev/null || echo mariadb-server
}

has_chromium() { chromium --version || google-chrome --version; } >/dev/null 2>&1

bring_packages() {
  local missing
  mapfile -t missing < <(missing_servers)
  if [ ${#missing[@]} -gt 0 ]; then apt_install "${missing[@]}" || true; fi
  has_chromium || apt_install chromium fonts-dejavu-core || true
}

bring_chromium() {
  if has_chromium; then return; fi
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

beside "packages" bring_packages
install .venv dev
bring_node .venv test
ended "packages"
for package in $(missing_servers); do left_out+=("what needs $package: it is not here, and could not be installed"); done
bring_chromium

check "ruff" ruff check
beside "mypy" nice -n 15 mypy  # with what the tests leave of the machine
beside "widgets" nice -n 15 python scripts/widgets.py test
# Most tests wait for something: five at a time keep two cores busy. Browsers want one each, benchmarks the machine.
check "pytest" python -m pytest tests -p no:nbval --numprocesses=5 --dist=loadscope --durations=25 -m "not browser and not alone"
check "mypy" ended "mypy"
check "widgets" ended "widgets"
check "browser" python -m pytest tests/browser -p no:nbval --numprocesses=2 --dist=loadfile -m "not alone"
check "pytest, one at a time" python -m pytest $(grep -rl --include='*.py' 'mark\.alone' tests) -p no:nbval -m "alone"
check "notebooks" python -m pytest --numprocesses=2 --dist=loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=120 notebooks

for reason in "${left_out[@]}"; do say "left out: $reason"; done
if [ -n "${CI:-}" ] && [ ${#left_out[@]} -gt 0 ]; then failed+=("set-up"); fi
if [ ${#failed[@]} -gt 0 ]; then die "failed: ${failed[*]}"; fi
say "everything passed in $SECONDS s"
