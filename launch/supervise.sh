#!/usr/bin/env bash
# Runs a training, and again where it ends otherwise than it should, with nobody there:
#
#   bash launch/supervise.sh COMMAND...        COMMAND has `PYTHON -m colajax.train` and `--workdir DIR` in it
#
# Status 0 (complete), 2 (a mistake, which no restart mends), 130 and 143 (it was stopped, and has saved) are passed on.
# After any other the command runs again: in 10 s, and in twice that after each end without a later checkpoint, up to 5
# minutes; after the fifth such end its status is passed on too, but for 75: time may mend that. SIGTERM and Ctrl-C go to
# the command. A process that has not moved for its config.hang_seconds (ten minutes while it starts) ends by itself;
# where it cannot, as one that is frozen, it is killed half a minute later.
set -euo pipefail
python=python3 workdir=''
for ((i = 1; i < $#; i++)); do
    next=$((i + 1))
    [ "${!i}" != --workdir ] || workdir="${!next}"
    if [ "${!i}" = -m ] && [[ "${!next}" = colajax.* ]] && [ "$i" -gt 1 ]; then
        before=$((i - 1))
        python="${!before}"
    fi
done
[ -n "$workdir" ] || {
    echo "error: supervise.sh: expected a command with --workdir DIR in it" >&2
    exit 2
}

# latest: the step of the last checkpoint, -1 where there is none.
latest() {
    "$python" -c '
import sys
from colajax.train.checkpoint import latest_step
print(step if (step := latest_step(sys.argv[1])) is not None else -1)' "$workdir" 2>/dev/null || echo -1
}

# The training touches it whenever it has moved, and writes into it after how many seconds it hangs (0: never).
COLAJAX_ALIVE="$(mktemp)"
export COLAJAX_ALIVE
trap 'rm -f "$COLAJAX_ALIVE"' EXIT

# hangs: whether it has not moved for half a minute more than that.
hangs() {
    local seconds moved
    read -r seconds <"$COLAJAX_ALIVE" && moved="$(stat -c %Y "$COLAJAX_ALIVE")" || return 1
    [ "$seconds" -gt 0 ] && [ $((EPOCHSECONDS - moved)) -gt $((seconds + 30)) ]
}

signals=() # that came
trap 'signals+=(TERM)' TERM
trap 'signals+=(INT)' INT

# run COMMAND...: sets status.
run() {
    local child passed_on=0 polls=0
    : >"$COLAJAX_ALIVE"
    set -m # in a group of its own, so that Ctrl-C reaches it once: from here
    "$@" </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        while [ "$passed_on" -lt ${#signals[@]} ]; do
            kill -s "${signals[passed_on]}" "$child" 2>/dev/null || true
            passed_on=$((passed_on + 1))
        done
        if [ $((++polls % 50)) = 0 ] && hangs; then
            echo "supervise.sh: it does not move: killed" >&2
            kill -s KILL -- "-$child" 2>/dev/null || true
        fi
        sleep 0.2 || true # Ctrl-C ends the sleep too
    done
    status=0
    wait "$child" || status=$?
}

step="$(latest)" seconds=10 in_vain=0
while true; do
    run "$@"
    case "$status" in 0 | 2 | 130 | 143) exit "$status" ;; esac
    now="$(latest)"
    if [ "$now" -gt "$step" ]; then
        seconds=10 in_vain=0 longer='' step="$now"
    else
        longer=yes
        [ "$status" = 75 ] || in_vain=$((in_vain + 1))
    fi
    at="$([ "$now" = -1 ] && echo "without a checkpoint" || echo "with a checkpoint of step $now")"
    if [ "$in_vain" -ge 5 ]; then
        echo "error: supervise.sh: ended with status $status, $at: five times without a later one" >&2
        exit "$status"
    fi
    [ ${#signals[@]} -eq 0 ] || exit "$status"
    echo "supervise.sh: ended with status $status, $at; again in $seconds s" >&2
    sleep "$seconds" & # in the background, or a signal would wait for it
    wait $! || true
    case "${signals[*]:-}" in INT*) exit 130 ;; TERM*) exit 143 ;; esac
    [ -z "$longer" ] || seconds=$((seconds < 150 ? 2 * seconds : 300))
done
