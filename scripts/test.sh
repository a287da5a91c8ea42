#!/usr/bin/env bash
# Runs the linter and the tests; `--full` adds what needs a peer's library or a large file.
#
#   bash scripts/test.sh [--full] [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."

selection="not full"
if [ "${1:-}" = --full ]; then
  selection=""
  shift
fi
source scripts/environment.sh dev
"$python" -m ruff check .
exec "$python" -m pytest -m "$selection" "$@"
