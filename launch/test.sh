#!/usr/bin/env bash
# Sets up and runs the tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
beam=launch/constraints/beam.txt
if ! [ -d "$venv/beam" ] || [ "$beam" -nt "$venv/beam" ]; then
    rm -rf "$venv/beam"
    "$python" -m pip install --quiet --disable-pip-version-check --target "$venv/beam.tmp" --requirement "$beam"
    mv "$venv/beam.tmp" "$venv/beam"
fi
"$venv/bin/ruff" check .
exec "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
