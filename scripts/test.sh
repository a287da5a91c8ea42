#!/usr/bin/env bash
# Runs the linter and the tests, side by side on at most four cores.
#
#   bash scripts/test.sh [--full] [PYTEST ARGUMENTS]     # -n0: in one process
#
# `--full` then runs those marked `full`. They have .venv-peers, with the optional parts and what
# Heartwood is compared with (3 GB with a CPU build of torch; where pip finds none, as on x86 Linux
# with its plain index, several more for CUDA: set PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL). Where it
# cannot be made, they have .venv and skip what needs more.
set -euo pipefail
cd "$(dirname "$0")/.."

full=
if [ "${1:-}" = --full ]; then
  full=yes
  shift
fi
# A file's tests stay in one worker, as they share fixtures; tests/conftest.py orders the files.
workers=(-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

source scripts/environment.sh dev,hf,serve
"$python" -m ruff check .
status=0
"$python" -m pytest -m "not full" "${workers[@]}" "$@" || status=$?
if [ -z "$full" ]; then exit "$status"; fi
# 5: the arguments select none of these tests, which is no failure here.
if [ "$status" != 0 ] && [ "$status" != 5 ]; then exit "$status"; fi

plain=$python
if ! source scripts/environment.sh dev,hf,serve,peers,ray,tb,notebooks,report .venv-peers; then
  echo "warning: .venv-peers cannot be made: tests that need peers' libraries are skipped" >&2
  python=$plain
fi
exec "$python" -m pytest -m full -rs "${workers[@]}" "$@"
