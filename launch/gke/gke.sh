#!/usr/bin/env bash
# A training on TPUs of a GKE cluster, as a JobSet:
#
#   bash launch/gke/gke.sh SUBCOMMAND [--dry-run] [FILE] [KEY=VALUE ...] [--config.KEY=VALUE ...]
#
#   cluster   creates a cluster with the slices, JobSet and Kueue, by xpk
#   image     builds the image of this repository, as of its last commit, and pushes it
#   manifest  prints the JobSet
#   up        asks tools/plan.py whether the training step fits, and applies the JobSet
#   status    the JobSet and its pods
#   logs      follows the first worker
#   down      every worker saves and ends; the JobSet goes, the nodes stay
#   xpk       in place of up: the same training as an xpk workload, queued by the cluster's Kueue
#   delete    deletes the cluster; the bucket stays
#
# launch/settings.sh lists the settings, launch/README.md tells the whole way.
set -euo pipefail
# shellcheck source=launch/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"
subcommand="${1:-}"
case "$subcommand" in
    cluster | image | manifest | up | status | logs | down | xpk | delete) shift ;;
    *) fail "'$subcommand': expected cluster, image, manifest, up, status, logs, down, xpk or delete" ;;
esac
read_settings "$@"
name="${setting[name]}"
grace=120 # seconds from SIGTERM to SIGKILL, for the checkpoint

# job: what manifest, up and xpk need.
job() {
    need name image
    need_topology
    need_number max_restarts
    training_command python
    training=(bash launch/supervise.sh "${training[@]}")
    need_bucket
}

# in_xpk: the arguments of every xpk command.
in_xpk() {
    need project zone cluster
    place=(--project="${setting[project]}" --zone="${setting[zone]}" --cluster="${setting[cluster]}")
}

# json WORD...: as JSON strings, which YAML reads.
json() {
    local word list=
    for word in "$@"; do
        word="${word//\\/\\\\}"
        list+=", \"${word//\"/\\\"}\""
    done
    echo "${list#, }"
}

# manifest: launch/gke/jobset.yaml with each @NAME@ in it.
manifest() {
    job
    local text
    text="$(<launch/gke/jobset.yaml)"
    text="${text//@name@/"$name"}"
    text="${text//@slices@/"${setting[slices]}"}"
    text="${text//@max_restarts@/"${setting[max_restarts]}"}"
    text="${text//@hosts@/"$hosts"}"
    text="${text//@chips_per_host@/"$((chips / hosts))"}"
    text="${text//@accelerator@/"$gke_accelerator"}"
    text="${text//@shape@/"$shape"}"
    text="${text//@grace@/"$grace"}"
    text="${text//@image@/"$(json "${setting[image]}")"}"
    echo "${text//@command@/"$(json "${training[@]}")"}"
}

up() {
    job
    plan
    local text
    text="$(manifest)"
    if [ -n "$dry_run" ]; then
        printf "kubectl apply --filename=- <<'MANIFEST'\n%s\nMANIFEST\n" "$text"
    else
        execute kubectl apply --filename=- <<<"$text"
    fi
}

xpk() {
    job
    in_xpk
    plan
    # xpk passes SIGTERM to the process that it starts, hence exec; it restarts after signals and the statuses named.
    execute xpk workload create "${place[@]}" --workload="$name" --tpu-type="$accelerator-$shape" \
        --num-slices="${setting[slices]}" --docker-image="${setting[image]}" --max-restarts="${setting[max_restarts]}" \
        --restart-on-exit-codes=1 --termination-grace-period-seconds="$grace" --env=JAX_PLATFORMS=tpu,cpu \
        --command="exec $(show "${training[@]}")"
}

cluster() {
    in_xpk
    need_topology
    local capacity="--${setting[capacity]}"
    if [ "$capacity" = --reserved ]; then
        need reservation
        capacity="--reservation=${setting[reservation]}"
    fi
    execute xpk cluster create "${place[@]}" --tpu-type="$accelerator-$shape" --num-slices="${setting[slices]}" \
        "$capacity"
}

delete() {
    in_xpk
    execute xpk cluster delete "${place[@]}"
}

image() {
    need image
    execute git archive --output=colajax.tar.gz HEAD
    execute docker build --file=launch/gke/Dockerfile --tag="${setting[image]}" .
    execute rm colajax.tar.gz
    execute docker push "${setting[image]}"
}

status() {
    need name
    execute kubectl get jobset "$name"
    execute kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

logs() {
    need name
    local first="jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    execute kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name,$first" --tail=100 --follow
}

down() {
    need name
    execute kubectl delete jobset "$name"
}

"$subcommand"
