#!/usr/bin/env bash
# Sets up and runs the tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
"$venv/bin/ruff" check .
exec "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
