#!/usr/bin/env bash
# What tpu_vm.sh runs on every worker of a TPU VM, in the copy of the repository there:
#
#   bash colajax/launch/tpu_worker.sh setup | train COMMAND... | status | stop
#
# The log is colajax/train.log, the process id of the training in colajax/train.pid.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
running() { [ -f train.pid ] && kill -0 "$(cat train.pid)" 2>/dev/null; }

case "$1" in
    setup)
        # The images of TPU VMs have Python 3.10.
        python3 -m pip install --quiet --user uv
        uv="$(python3 -m site --user-base)/bin/uv"
        "$uv" python install --quiet 3.12
        PYTHON="$("$uv" python find 3.12)" bash launch/environment.sh tpu
        ;;
    train)
        shift
        if running; then
            echo "error: process $(cat train.pid) is training here already" >&2
            exit 2
        fi
        # A worker without its TPU is to fail, and not to train on its CPU.
        JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" setsid nohup bash launch/supervise.sh "$@" >>train.log 2>&1 </dev/null &
        echo $! >train.pid
        ;;
    status)
        running && echo -n "training: " || echo -n "not training: "
        tail --lines=1 train.log
        ;;
    stop)
        ! running || kill -TERM "$(cat train.pid)"
        while running; do sleep 1; done
        tail --lines=1 train.log
        ;;
esac
