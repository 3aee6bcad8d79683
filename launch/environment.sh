# shellcheck shell=bash disable=SC2034 # $python is for the scripts that source this
# Sourced by the scripts beside it: makes .venv in the repository and installs colajax there, in the versions of
# launch/constraints, and again when those or setup.py change.
# Usage: source launch/environment.sh [EXTRA]   (an extra of setup.py: test, tpu)
# $PYTHON names the interpreter to make it with, Python 3.11 or newer; $VENV another folder than .venv.
extra="${1:-}"
venv="${VENV:-.venv}"
python="$venv/bin/python"
wanted="${PYTHON:-python3}"
if [ -x "$python" ] && [ -z "${PYTHON:-}" ]; then
    wanted="$python"
fi
version="$("$wanted" -c 'import sys; print("{}.{}".format(*sys.version_info))' 2>/dev/null)" || {
    echo "error: $wanted does not run; set PYTHON to Python 3.11 or newer" >&2
    exit 2
}
if [ "$(printf '%s\n' 3.11 "$version" | sort --version-sort | head -n 1)" != 3.11 ]; then
    echo "error: $wanted is older than Python 3.11; set PYTHON to a newer one" >&2
    exit 2
fi
[ -x "$python" ] || "$wanted" -m venv "$venv"
if ! "$python" -c "import sys; sys.exit('{}.{}'.format(*sys.version_info) != '$version')"; then
    echo "error: $venv is of another Python than $wanted ($version); delete it, or set VENV to another folder" >&2
    exit 2
fi
constraints="launch/constraints/python$version.txt"
stamp="$venv/.installed${extra:+-$extra}"
if ! [ -f "$stamp" ] || [ setup.py -nt "$stamp" ] || [ "$constraints" -nt "$stamp" ]; then
    if [ -f "$constraints" ]; then
        constrained=(--constraint "$constraints")
    else
        constrained=()
        echo "no $constraints: installing the newest versions, which were not tested" >&2
    fi
    echo "installing colajax${extra:+[$extra]} into $venv"
    "$python" -m pip install --quiet --disable-pip-version-check "${constrained[@]}" -e ".${extra:+[$extra]}"
    touch "$stamp"
fi
