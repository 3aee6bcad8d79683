#!/usr/bin/env bash
# A training on Cloud TPU VMs, got as a queued resource:
#
#   bash launch/tpu_vm.sh SUBCOMMAND [--dry-run] [FILE] [KEY=VALUE ...] [--config.KEY=VALUE ...]
#
#   up      asks tools/plan.py whether the training step fits, requests the slices and awaits them
#   await   until the slices are there: after an `up` that was interrupted
#   setup   sends the committed state of this repository to every worker and installs it there
#   train   starts the training on every worker; it goes on when this command has ended
#   status  the state of the request and of every worker
#   logs    follows the log of a worker (worker=0)
#   stop    every worker saves and ends; the slices stay, and cost
#   down    deletes the slices; the bucket stays
#   resume  down, up, setup, train: after a preemption
#
# launch/settings.sh lists the settings, launch/README.md tells the whole way.
set -euo pipefail
# shellcheck source=launch/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
subcommand="${1:-}"
case "$subcommand" in
    up | await | setup | train | status | logs | stop | down | resume) shift ;;
    *) fail "'$subcommand': expected up, await, setup, train, status, logs, stop, down or resume" ;;
esac
read_settings "$@"
need project zone name
need_number slices
name="${setting[name]}"
place=("--project=${setting[project]}" "--zone=${setting[zone]}")
if [ "${setting[slices]}" = 1 ]; then
    nodes=("$name")
    request=("--node-id=$name")
else
    nodes=()
    for ((slice = 0; slice < setting[slices]; slice++)); do nodes+=("$name-$slice"); done
    request=("--node-count=${setting[slices]}" "--node-prefix=$name")
fi
# What ends, shows or deletes a training needs to know no more of it.
case "$subcommand" in
    up | train | resume)
        need_topology
        training_command .venv/bin/python
        need_bucket
        [ "${setting[capacity]}" = on-demand ] || request+=("--${setting[capacity]}")
        [ -z "${setting[service_account]}" ] || request+=("--service-account=${setting[service_account]}")
        ;;
esac

# on_workers WORKER COMMAND: on all or one of every node.
on_workers() {
    local node
    for node in "${nodes[@]}"; do
        execute gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker="$1" --command="$2"
    done
}

state() {
    execute gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)'
}

up() {
    plan
    execute gcloud compute tpus queued-resources create "$name" "${place[@]}" "${request[@]}" \
        --accelerator-type="$accelerator_type" --runtime-version="$runtime_version"
    await
}

await() {
    local state='' silent=0
    until [ "$state" = ACTIVE ]; do
        if state="$(state)"; then silent=0; else
            # It may be hours: a connection that fails for some minutes is no reason to stop.
            silent=$((silent + 1)) state="no answer"
            [ "$silent" -lt 10 ] || fail "$name: no answer for five minutes; \`bash launch/tpu_vm.sh await\` asks again"
        fi
        if [ -n "$dry_run" ]; then
            echo "$state"
            return
        fi
        case "$state" in
            ACTIVE) ;;
            FAILED | SUSPENDING | SUSPENDED)
                echo "error: $name is $state: \`bash launch/tpu_vm.sh down\` removes the request" >&2
                exit 1
                ;;
            *)
                echo "$name: $state" >&2
                sleep 30
                ;;
        esac
    done
}

setup() {
    local node archive=colajax.tar.gz
    execute git archive --output="$archive" HEAD
    for node in "${nodes[@]}"; do
        execute gcloud compute tpus tpu-vm scp "$archive" "$node:" "${place[@]}" --worker=all
    done
    execute rm "$archive"
    on_workers all "mkdir -p colajax && tar -xzf $archive -C colajax && bash colajax/launch/tpu_worker.sh setup"
}

train() { on_workers all "bash colajax/launch/tpu_worker.sh train $(show "${training[@]}")"; }

status() {
    local state
    state="$(state)"
    echo "$state"
    # There are no workers yet, or no more.
    [ -n "$dry_run" ] || [ "$state" = ACTIVE ] || return 0
    on_workers all "bash colajax/launch/tpu_worker.sh status"
}

logs() {
    nodes=("${nodes[0]}")
    on_workers "${setting[worker]}" "tail --lines=100 --follow colajax/train.log"
}

stop() { on_workers all "bash colajax/launch/tpu_worker.sh stop"; }

down() { execute gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet; }

resume() {
    down
    up
    setup
    train
}

"$subcommand"
