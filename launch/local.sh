#!/usr/bin/env bash
# Trains with several processes on this machine, as a pod does with its hosts:
#
#   bash launch/local.sh [--dry-run] [FILE] processes=4 devices=2 workdir=DIR records=DIR [KEY=VALUE ...]
#
# launch/settings.sh lists the settings. Each line of output begins with the number of its process. SIGTERM and Ctrl-C go
# to every process, which save and end; the same command goes on. If one fails, the others are ended. The exit status is
# the first one that is not 0.
set -euo pipefail
# shellcheck source=launch/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
relative_to_caller=yes
read_settings "$@"
need_number processes
training_command "${setting[python]}"

environment=()
if [ -n "${setting[devices]}" ]; then
    need_number devices
    flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${setting[devices]}"
    # XLA has as many threads as CPUs, or NPROC, and each device of a collective waits for the others in one: with fewer
    # threads than the devices need, all wait for ever.
    environment+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${flags# }" "NPROC=${NPROC:-$((4 * setting[devices]))}")
fi
port=$((20000 + RANDOM % 12000)) # below those that the system gives away
while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
environment+=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=${setting[processes]}")

declare -A running=() # process id: number
signals=()            # that came
trap 'signals+=(TERM)' TERM
trap 'signals+=(INT)' INT
signal_all() {
    local process
    for process in "${!running[@]}"; do kill -s "$1" -- "-$process" 2>/dev/null || true; done
}

set -m # each process in a group of its own, so that Ctrl-C reaches it once: from here
for ((number = 0; number < setting[processes]; number++)); do
    [ ${#signals[@]} -eq 0 ] || break
    command=(env "${environment[@]}" "JAX_PROCESS_ID=$number" "${training[@]}")
    if [ -n "$dry_run" ]; then
        show "${command[@]}"
        continue
    fi
    exec {pipe}> >(trap '' INT TERM; exec sed -u "s/^/[$number] /")
    "${command[@]}" >&"$pipe" 2>&1 {pipe}>&- &
    running[$!]=$number
    exec {pipe}>&-
done
set +m

status=0 passed_on=0
while [ ${#running[@]} -gt 0 ]; do
    sleep 0.2 || true # Ctrl-C ends the sleep too
    while [ "$passed_on" -lt ${#signals[@]} ]; do
        signal_all "${signals[passed_on]}"
        passed_on=$((passed_on + 1))
    done
    for process in "${!running[@]}"; do
        kill -0 "$process" 2>/dev/null && continue
        code=0
        wait "$process" || code=$?
        echo "process ${running[$process]} ended with status $code" >&2
        unset "running[$process]"
        if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
            status=$code
            [ "$passed_on" -gt 0 ] || signal_all KILL # waiting for it in a collective, they cannot end by themselves
        fi
    done
done
exit "$status"
