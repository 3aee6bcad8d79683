# shellcheck shell=bash disable=SC2034 # variables for the scripts that source this
# Sourced by local.sh, tpu_vm.sh, gke/gke.sh and slurm.sbatch: the settings of a run, and what is done with them.
#
#   SCRIPT [SUBCOMMAND] [--dry-run] [FILE] [KEY=VALUE ...] [--config.KEY=VALUE ...]
#
# KEY is one of those below; --config.KEY=VALUE overrides the configuration, as for `python -m colajax.train`. FILE holds
# such arguments, one a line, and lines that begin with #. What comes later counts. --dry-run prints what would be run.
# ~/ is the home folder; a local workdir, records or init_from is relative to the folder that the script is called in.
# Compiler flags are not here: colajax/parallel/compiler_options.py has them.

declare -A setting=(
    # ---- the run ----
    [config]=configs/cola_joint.py # FILE[:VARIANT], in the repository
    [workdir]=''                   # of the run; gs:// on TPUs, whose workers share no disk
    [records]=''                   # made by tools/prepare_data.py; gs:// on TPUs; or a mixture (configs/README.md)
    [init_from]=''                 # workdir of the stage 1 run, for stage 2
    [name]=colajax                 # of the job, and of what is created for it
    [python]=.venv/bin/python      # of this machine, with colajax: bash launch/environment.sh makes it

    # ---- local.sh ----
    [processes]=2
    [devices]='' # simulated CPU devices of each process; empty: whatever the machine has

    # ---- slurm.sbatch ----
    [nodes]=1
    [gpus_per_node]=''  # empty: without GPUs
    [tasks_per_node]='' # empty: one for each GPU
    [cpus_per_task]=''  # empty: what the cluster gives
    [time]=''           # limit of the job, [DAYS-]HH:MM:SS; it saves two minutes before and queues again
    [partition]=''

    # ---- TPUs ----
    [project]=''       # Google Cloud project
    [zone]=''          # with quota for the topology
    [topology]=''      # of a slice, as for tools/plan.py: v5p:4x4x8, v5e:16x16, v6e:16x16
    [slices]=1         # joined by the data-centre network
    [capacity]=spot    # spot, on-demand or reserved
    [reservation]=''   # name of the reservation of a GKE cluster with capacity=reserved
    [service_account]='' # of the workers (tpu_vm.sh); empty: the project's default
    [worker]=0         # whose log `tpu_vm.sh logs` shows
    [cluster]=''       # GKE
    [image]=''         # REGION-docker.pkg.dev/PROJECT/REPOSITORY/colajax:TAG
    [max_restarts]=100 # of a GKE job, by preemption and failures together
)
repository="$(dirname "${BASH_SOURCE[0]}")/.."
overrides=() # --config.KEY=VALUE
given=()     # all arguments, those of a FILE in its place
dry_run=
relative_to_caller= # set by the scripts whose trainings have this machine's disk

fail() {
    echo "error: ${1//[[:cntrl:]]/?}" >&2
    exit 2
}

# read_settings ARGUMENT...: fills setting, overrides, given and dry_run, and goes to the repository.
read_settings() {
    local argument
    for argument in "$@"; do read_argument "$argument"; done
    cd "$repository" || exit
}

read_argument() {
    local argument="$1" key="${1%%=*}" text line
    case "$argument" in
        --dry-run)
            dry_run=yes
            return
            ;;
        --config.*=*)
            case "$key" in --config.records | --config.init_from) argument="$key=$(local_path "${argument#*=}")" ;; esac
            overrides+=("$argument")
            ;;
        -*) fail "$argument: unknown argument; expected --dry-run, FILE, KEY=VALUE or --config.KEY=VALUE" ;;
        *=*)
            [[ "$key" =~ ^[a-z_]+$ && -v setting[$key] ]] || fail "$key: unknown setting; launch/settings.sh lists them"
            case "$key" in
                workdir | records | init_from) argument="$key=$(local_path "${argument#*=}")" ;;
                python) argument="$key=$(at_home "${argument#*=}")" ;;
            esac
            setting[$key]="${argument#*=}"
            ;;
        *)
            [ -f "$argument" ] || fail "$argument: no such file; expected FILE, KEY=VALUE or --config.KEY=VALUE"
            text="$(tr -d '\r\0' 2>/dev/null <"$argument")" || fail "$argument: cannot be read"
            while IFS= read -r line; do
                case "$line" in
                    '' | '#'*) ;;
                    *=*) read_argument "$line" ;;
                    *) fail "$argument: $line: expected KEY=VALUE or --config.KEY=VALUE" ;;
                esac
            done <<<"${text#$'\xef\xbb\xbf'}"
            return
            ;;
    esac
    given+=("$argument")
}

# at_home PATH: with ~ as the home folder.
at_home() {
    case "$1" in
        '~' | '~/'*) echo "$HOME${1#'~'}" ;;
        *) echo "$1" ;;
    esac
}

# local_path PATH: as it is read in the repository.
local_path() {
    local path
    path="$(at_home "$1")"
    case "$path" in
        '' | /* | *://* | '('*) ;; # a mixture of records, with the paths that it has
        *) [ -z "$relative_to_caller" ] || [ "$PWD" -ef "$repository" ] || path="$PWD/$path" ;;
    esac
    echo "$path"
}

# need KEY...: each must be set.
need() {
    local key
    for key in "$@"; do
        [ -n "${setting[$key]}" ] || fail "$key is not set: pass $key=VALUE; launch/settings.sh says what it is"
    done
}

# need_number KEY...: each must be a whole number from 1.
need_number() {
    local key
    for key in "$@"; do
        [[ "${setting[$key]}" =~ ^[1-9][0-9]{0,5}$ ]] || fail "$key is '${setting[$key]}': expected a whole number from 1"
    done
}

# need_bucket: workers that share no disk read and write a bucket.
need_bucket() {
    local key
    for key in workdir records init_from; do
        case "${setting[$key]}" in
            gs://?* | '' | '('*gs://*) ;;
            *) fail "$key is '${setting[$key]}': expected gs://BUCKET/..., for the workers share no disk" ;;
        esac
    done
}

# need_topology: sets shape, chips and hosts of a slice, and the names that Google Cloud has for the topology:
# accelerator, accelerator_type and runtime_version for VMs, gke_accelerator for GKE.
need_topology() {
    need topology
    need_number slices
    [[ "${setting[capacity]}" =~ ^(spot|on-demand|reserved)$ ]] ||
        fail "capacity is '${setting[capacity]}': expected spot, on-demand or reserved"
    local generation="${setting[topology]%%:*}" side cores=1
    shape="${setting[topology]#*:}" chips=1
    [[ "${setting[topology]}" =~ ^(v5p:[0-9]+x[0-9]+x[0-9]+|(v5e|v6e):[0-9]+x[0-9]+)$ ]] ||
        fail "topology is '${setting[topology]}': expected v5p:AxBxC, v5e:AxB or v6e:AxB"
    for side in ${shape//x/ }; do chips=$((chips * side)); done
    ((chips % 4 == 0)) || fail "topology is '${setting[topology]}': expected hosts of 4 chips"
    hosts=$((chips / 4))
    case "$generation" in
        v5p) cores=2 accelerator=v5p gke_accelerator=tpu-v5p-slice runtime_version=v2-alpha-tpuv5 ;;
        v5e) accelerator=v5litepod gke_accelerator=tpu-v5-lite-podslice runtime_version=v2-alpha-tpuv5-lite ;;
        v6e) accelerator=v6e gke_accelerator=tpu-v6e-slice runtime_version=v2-alpha-tpuv6e ;;
    esac
    accelerator_type="$accelerator-$((chips * cores))" # v5p counts two TensorCores a chip
}

# training_command PYTHON: sets training, the command of every process, and configuration, the part that plan shares.
training_command() {
    need config workdir records
    configuration=(--config "${setting[config]}" "--config.records=${setting[records]}")
    [ -z "${setting[init_from]}" ] || configuration+=("--config.init_from=${setting[init_from]}")
    configuration+=("${overrides[@]}")
    training=("$1" -m colajax.train --workdir "${setting[workdir]}" "${configuration[@]}")
}

# show COMMAND...: prints it as it could be typed.
show() {
    local word line=
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
        line+=" $word"
    done
    echo "${line# }"
}

# execute COMMAND...: prints it, and runs it unless this is a dry run; the program, where a function has its name too.
execute() {
    if [ -n "$dry_run" ]; then show "$@"; else
        echo "+ $(show "$@")" >&2
        command "$@"
    fi
}

# plan: ends the script where the compiler says that the training step does not fit the topology.
plan() {
    execute "${setting[python]}" tools/plan.py --topology "${setting[topology]}" --slices "${setting[slices]}" \
        "${configuration[@]}"
}
