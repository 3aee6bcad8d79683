#!/usr/bin/env bash
# Writes the versions that an installation gets today, with every extra but beam (see beam.txt), to the constraints of one
# Python:
#
#   bash launch/constraints/update.sh python3.13
#
# Nothing is installed; run the tests before you commit what it wrote.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv="$(mktemp -d)"
trap 'rm -rf "$venv"' EXIT
"${1:?an interpreter}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25'
extras="$(sed -n 's/^        "\([a-z]*\)": .*/\1/p' setup.py | grep --invert-match beam | paste --serial --delimiters=,)"
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --dry-run --report "$venv/report.json" ".[$extras]"
"$venv/bin/python" - "$venv/report.json" <<'PYTHON'
import json
import sys

found = [row["metadata"] for row in json.load(open(sys.argv[1]))["install"]]
# What belongs to a build of torch or JAX for GPUs is theirs to choose.
left_out = ("colajax", "nvidia-", "cuda-", "triton", "jax-cuda")
versions = {row["name"].lower(): row["version"].partition("+")[0] for row in found}
lines = [f"{name}=={version}\n" for name, version in sorted(versions.items()) if not name.startswith(left_out)]
with open("launch/constraints/python{}.{}.txt".format(*sys.version_info), "w") as out:
    out.writelines(["# The versions that the tests ran on; written by launch/constraints/update.sh.\n", *lines])
PYTHON
