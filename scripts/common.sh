# Sourced by the recipes of the Makefile, from the project's folder: makes environments and installs into them, each once.
# Needs bash, git and a Python 3.11+; everything else is brought or named.
# shellcheck shell=bash
set -euo pipefail
mkdir -p .cache

say() { printf '· %s\n' "$*"; }
die() { printf 'qnb: %s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

# A home folder that cannot be written to is replaced by one in .cache, for pip, npm, Jupyter, Chromium and qnb alike; its settings still count.
if ! [ -d "${HOME:-}" ] || ! [ -w "$HOME" ]; then
  settings=${HOME:-}
  export HOME=$PWD/.cache/home
  unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_RUNTIME_DIR
  mkdir -p "$HOME"
  if [ -r "$settings/.config/pip/pip.conf" ]; then export PIP_CONFIG_FILE="${PIP_CONFIG_FILE:-$settings/.config/pip/pip.conf}"; fi
  if [ -r "$settings/.npmrc" ]; then export npm_config_userconfig="${npm_config_userconfig:-$settings/.npmrc}"; fi
fi
machine_path=$PATH
export PATH="$PWD/.venv/bin:$PATH"
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONDONTWRITEBYTECODE  # what is run hundreds of times is compiled once

# What a Python must say to be able to give a virtual environment its pip; Debian's cannot without python3-venv.
with_pip="import ensurepip; ensurepip.version()"

# The newest Python that will do and, among those, one that can make environments by itself.
find_python() {
  local PATH="$machine_path" able names="${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}" name
  for able in "$with_pip" pass; do
    for name in $names; do
      if "$name" -c "import sys; $able; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
        command -v "$name"
        return
      fi
    done
  done
  die "needs Python 3.11 or newer, and there is none among: $names (Debian, Ubuntu: apt-get install python3.11 python3.11-venv)"
}

make_environment() { # FOLDER
  if "$1/bin/python" -c "import sys, pip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then return; fi
  local python version
  python=$(find_python)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  say "making $1 with Python $version"
  "$python" -c "$with_pip" 2>/dev/null || apt_install "python$version-venv" || true
  if "$python" -c "$with_pip" 2>/dev/null; then
    "$python" -m venv --clear "$1"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet --clear "$1"
  elif command -v virtualenv >/dev/null; then
    virtualenv --quiet --clear --python "$python" "$1"
  else
    die "$python cannot make a virtual environment: install python$version-venv (as root: apt-get install python$version-venv) or virtualenv"
  fi
}

# Installs qnb in place with these extras, unless that was done from the pyproject.toml as it is now.
install() { # FOLDER EXTRAS
  (
    flock 9
    make_environment "$1"
    local stamp="$1/.installed-$2" now
    now=$(pwd; sha256sum pyproject.toml)
    build_widgets "$1"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$now" ]; then exit; fi
    say "installing qnb[$2] into $1 (takes a minute or two the first time)"
    pip_install "$1" --editable ".[$2]"
    printf '%s\n' "$now" >"$stamp"
  ) 9>.cache/lock
}

# With uv, which takes a tenth of pip's time; with pip where uv cannot be had, or does not get on with this network.
pip_install() { # FOLDER ARGUMENTS...
  local python="$1/bin/python" uv="$1/bin/uv" index
  shift
  [ -x "$uv" ] || "$python" -m pip install --quiet --no-compile "uv>=0.9" || uv=
  if [ -n "$uv" ]; then
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    if env UV_SYSTEM_CERTS=1 ${PIP_CERT:+"SSL_CERT_FILE=$PIP_CERT"} ${index:+"UV_DEFAULT_INDEX=$index"} \
      "$uv" pip install --quiet --python "$python" "$@" 2>.cache/uv.log; then return; fi
    say "uv could not (.cache/uv.log says why): now with pip"
  fi
  "$python" -m pip install --quiet --no-compile "$@"  # what is never run is not compiled
}

build_widgets() { # FOLDER
  bring_node "$1" build
  "$1/bin/python" scripts/widgets.py build
}

# Installs Node as a package of Python, where this machine has none that will do.
bring_node() { # FOLDER build|test
  local package
  package=$("$1/bin/python" scripts/widgets.py "needs-$2")
  if [ -n "$package" ]; then
    say "installing Node into $1"
    pip_install "$1" "$package"
  fi
}

# Installs Debian packages, as root and without starting their services; fails where that cannot be done.
apt_install() { # PACKAGE...
  is_root && command -v apt-get >/dev/null || return 1
  say "installing $* with apt-get"
  (
    flock 8
    export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    policy=/usr/sbin/policy-rc.d
    if ! [ -e "$policy" ]; then
      trap 'rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod +x "$policy"
    fi
    { apt-get update -qq && apt-get install -qq --yes --no-install-recommends "$@"; } </dev/null >.cache/apt.log 2>&1
  ) 8>.cache/apt.lock || { tail -n 3 .cache/apt.log >&2; return 1; }
}
