# shellcheck shell=bash disable=SC2034 # $python is for the scripts that source this
# Sourced by the scripts beside it: makes .venv in the repository and installs colajax there, once.
# Usage: source launch/environment.sh [EXTRA]   (an extra of setup.py: test, tpu)
# $PYTHON names the interpreter to make it with; Python 3.11 or newer.
extra="${1:-}"
stamp=".venv/.installed${extra:+-$extra}"
if ! [ -f "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: ${PYTHON:-python3} is older than Python 3.11; set PYTHON to a newer one" >&2
        exit 2
    }
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    echo "installing colajax${extra:+[$extra]} into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}"
    touch "$stamp"
fi
python=.venv/bin/python
