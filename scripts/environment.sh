# Sourced by the other scripts: makes an environment, installs Heartwood into it, sets $python.
# usage: source scripts/environment.sh [EXTRAS [FOLDER]]    # a,b   .venv

find_python() {
  local candidate
  for candidate in python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: python: no Python 3.11 or newer was found: install python3.11 or python3.12" >&2
  return 2
}

make_environment() {
  local extras=$1 folder=$PWD/$2 checksum mark base
  checksum=$(cksum < setup.py | cut -d' ' -f1)
  # A mark per extras and per setup.py: an interrupted or outdated installation is redone.
  mark=$folder/.installed-$extras-$checksum
  python=$folder/bin/python
  if [ -e "$mark" ]; then return; fi
  # Each step says itself that it failed: `set -e` is off where the caller tests for failure.
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$folder"
    base=$(find_python) || return
    "$base" -m venv "$folder" || return
  fi
  echo "installing Heartwood and its packages into $2" >&2
  "$python" -m pip install --quiet --disable-pip-version-check \
    --editable ".${extras:+[$extras]}" >&2 || return
  # Who has extras has the plain installation too.
  touch "$mark" "$folder/.installed--$checksum"
}

# XLA takes a step's memory from the system anew every time; in huge pages that costs a CPU 600 page
# faults instead of 97,000, and a step of the quickstart 15 % less time (docs/benchmarks.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}

# Where it is set, each of the many processes compiles all our modules anew.
unset PYTHONDONTWRITEBYTECODE

make_environment "${1:-}" "${2:-.venv}"
