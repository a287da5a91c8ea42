# Sourced by the other scripts: makes .venv, installs Heartwood into it, sets $python.
# usage: source scripts/environment.sh [EXTRA]

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

extra=${1:-}
python=$PWD/.venv/bin/python
# A mark per extra and per setup.py: an interrupted or outdated installation is redone.
mark=$PWD/.venv/.installed-$extra-$(cksum < setup.py | cut -d' ' -f1)
if [ ! -e "$mark" ]; then
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    base=$(find_python)
    "$base" -m venv .venv
  fi
  echo "installing Heartwood and its packages into .venv" >&2
  "$python" -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}" >&2
  touch "$mark"
fi
