"""The launch scripts: what --dry-run prints against what programs of the same names were given; the JobSet against its
schema; processes that are started, stopped and fail."""

import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from tiny_runs import ROOT

LAUNCH = ROOT / "launch"
POD = """# a pod
project=a-project
zone=us-east5-a
topology=v5p:4x4x8
workdir=gs://bucket/joint
records=gs://bucket/records

init_from=gs://bucket/vae
cluster=pods
image=us-docker.pkg.dev/a-project/colajax/colajax:1
--config.mesh.fsdp=16
--config.optimizer.lr_ratio=(('vae/.*', 0.01), ('.*', 1.0))
"""
LR_RATIO = "--config.optimizer.lr_ratio=(('vae/.*', 0.01), ('.*', 1.0))"
CONFIGURATION = [
    "--config", "configs/cola_joint.py", "--config.records=gs://bucket/records", "--config.init_from=gs://bucket/vae",
    "--config.mesh.fsdp=16", LR_RATIO,
]  # fmt: skip
TRAINING = ["-m", "colajax.train", "--workdir", "gs://bucket/joint", *CONFIGURATION]

# Stands for gcloud, kubectl and so on: writes down its arguments and what it reads.
RECORDER = f"""#!{sys.executable} -S
import json, os, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
text = sys.stdin.read() if "--filename=-" in arguments else ""
with open(os.environ["RECORDED"], "a") as file:
    file.write(json.dumps([[name, *arguments], text]) + "\\n")
if "describe" in arguments:
    print("ACTIVE")
if name == "python" and os.environ.get("PLAN_REFUSES"):
    sys.exit("error: does not fit: 120 GB of 95; mesh.fsdp=32 would")
"""
PROGRAMS = ("gcloud", "kubectl", "xpk", "docker", "git", "rm", "sbatch", "srun", "scontrol", "python")


@pytest.fixture
def desk(tmp_path):
    """A folder with a settings file and a bin of recorders."""
    (tmp_path / "pod.txt").write_text(POD)
    (tmp_path / "bin").mkdir()
    for name in PROGRAMS:
        (tmp_path / "bin" / name).write_text(RECORDER)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def launch(desk, script, *arguments, **environment):
    environment = os.environ | {
        "PATH": f"{desk}/bin:{os.environ['PATH']}", "RECORDED": str(desk / "recorded"), **environment,
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments], cwd=desk, env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def recorded(desk) -> list[tuple[list[str], str]]:
    """What the recorders were given since the last call: [(command, standard input)]."""
    file = desk / "recorded"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [tuple(json.loads(line)) for line in lines]


def printed(text: str) -> list[tuple[list[str], str]]:
    """The commands of a dry run, here documents with them."""
    found, lines = [], iter(text.splitlines())
    for line in lines:
        command, _, end = line.partition(" <<")
        document = ""
        if end:
            for row in lines:
                if row == end.strip("'"):
                    break
                document += row + "\n"
        found.append((shlex.split(command), document))
    return found


def mistake(result) -> str:
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# ---- a dry run prints what is run ------------------------------------------------------------------------------------
TPU_VM = ("up", "setup", "train", "status", "logs", "stop", "down", "resume")
GKE = ("cluster", "image", "up", "status", "logs", "down", "xpk", "delete")
COMMANDS = (
    *(("tpu_vm.sh", name) for name in TPU_VM),
    *(("tpu_vm.sh", name, "slices=2", "capacity=reserved", "service_account=a@b") for name in TPU_VM),
    *(("gke/gke.sh", name) for name in GKE),
    ("slurm.sbatch", "nodes=4", "tasks_per_node=8", "gpus_per_node=8", "time=1-00:00:00", "partition=big"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_dry_run_prints_exactly_what_is_run(desk, command):
    script, *arguments = command
    arguments += ["pod.txt", f"python={desk}/bin/python"]
    dry = launch(desk, script, *arguments, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert recorded(desk) == []
    real = launch(desk, script, *arguments)
    assert real.returncode == 0, real.stderr
    commands = [([os.path.basename(name), *rest], text) for (name, *rest), text in printed(dry.stdout)]
    if script == "slurm.sbatch":  # its second line is what the job runs
        real = launch(desk, script, *arguments, SLURM_JOB_ID="7")
        assert real.returncode == 2  # in the folder of the desk there is no repository
        assert "not the repository" in mistake(real)
        submitted = recorded(desk)
        assert commands[:1] == submitted
        job = subprocess.run(
            ["bash", *submitted[0][0][submitted[0][0].index("launch/slurm.sbatch") :]], cwd=ROOT, check=True,
            env=os.environ | {"PATH": f"{desk}/bin:{os.environ['PATH']}", "RECORDED": str(desk / "recorded"),
                              "SLURM_JOB_ID": "7"},
        )  # fmt: skip
        assert job.returncode == 0
        assert commands[1:] == recorded(desk)
    else:
        assert commands == recorded(desk)
    assert len(commands) > 0


def test_the_commands_for_a_pod(desk):
    launch(desk, "tpu_vm.sh", "up", "pod.txt", f"python={desk}/bin/python")
    launch(desk, "tpu_vm.sh", "train", "pod.txt")
    (plan, create, _, train), _ = zip(*recorded(desk), strict=True)
    assert plan == ["python", "tools/plan.py", "--topology", "v5p:4x4x8", "--slices", "1", *CONFIGURATION]
    assert create == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "colajax", "--project=a-project",
        "--zone=us-east5-a", "--node-id=colajax", "--spot", "--accelerator-type=v5p-256",
        "--runtime-version=v2-alpha-tpuv5",
    ]  # fmt: skip
    *ssh, remote = train
    assert ssh == [
        "gcloud", "compute", "tpus", "tpu-vm", "ssh", "colajax", "--project=a-project", "--zone=us-east5-a",
        "--worker=all",
    ]  # fmt: skip
    remote = shlex.split(remote.removeprefix("--command="))
    assert remote == ["bash", "colajax/launch/tpu_worker.sh", "train", ".venv/bin/python", *TRAINING]


@pytest.mark.parametrize(("script", "subcommand"), [("tpu_vm.sh", "up"), ("gke/gke.sh", "up"), ("gke/gke.sh", "xpk")])
def test_nothing_is_created_for_what_does_not_fit(desk, script, subcommand):
    result = launch(desk, script, subcommand, "pod.txt", f"python={desk}/bin/python", PLAN_REFUSES="yes")
    assert result.returncode != 0
    assert "mesh.fsdp=32 would" in result.stderr
    assert [command[:2] for command, _ in recorded(desk)] == [["python", "tools/plan.py"]]


# ---- settings --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("local.sh", [], "workdir is not set"),
        ("local.sh", ["workdir=w"], "records is not set"),
        ("local.sh", ["workdir=w", "records=r", "processes=0"], "processes is '0'"),
        ("local.sh", ["workdir=w", "records=r", "devices=two"], "devices is 'two'"),
        ("local.sh", ["wrokdir=w"], "wrokdir: unknown setting"),
        ("local.sh", ["PATH=w"], "PATH: unknown setting"),
        ("local.sh", ["nothing.txt"], "nothing.txt: no such file"),
        ("local.sh", ["--dryrun"], "--dryrun: unknown argument"),
        ("local.sh", ["bad.txt"], "bad.txt: oops: expected"),
        ("slurm.sbatch", ["workdir=w", "records=r"], "tasks_per_node is ''"),
        ("tpu_vm.sh", [], "expected up, setup"),
        ("tpu_vm.sh", ["upp", "pod.txt"], "'upp': expected up, setup"),
        ("tpu_vm.sh", ["up"], "project is not set"),
        ("tpu_vm.sh", ["up", "pod.txt", "zone="], "zone is not set"),
        ("tpu_vm.sh", ["up", "pod.txt", "topology=v5p:16x16"], "topology is 'v5p:16x16'"),
        ("tpu_vm.sh", ["up", "pod.txt", "slices=0"], "slices is '0'"),
        ("tpu_vm.sh", ["up", "pod.txt", "capacity=cheap"], "capacity is 'cheap'"),
        ("tpu_vm.sh", ["up", "pod.txt", "records=/data"], "records is '/data': expected gs://"),
        ("gke/gke.sh", ["run"], "'run': expected cluster"),
        ("gke/gke.sh", ["up", "pod.txt", "image="], "image is not set"),
        ("gke/gke.sh", ["manifest", "pod.txt", "workdir=w"], "workdir is 'w': expected gs://"),
        ("gke/gke.sh", ["xpk", "pod.txt", "cluster="], "cluster is not set"),
        ("gke/gke.sh", ["cluster", "pod.txt", "capacity=reserved"], "reservation is not set"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_run(desk, script, arguments, words):
    (desk / "bad.txt").write_text("workdir=w\noops\n")
    assert words in mistake(launch(desk, script, *arguments))
    assert recorded(desk) == []


def test_the_last_setting_counts_and_a_file_stands_for_its_lines(desk):
    result = launch(desk, "tpu_vm.sh", "down", "--dry-run", "zone=a", "pod.txt", "name=other")
    assert "delete other --project=a-project --zone=us-east5-a" in result.stdout


# ---- the JobSet ------------------------------------------------------------------------------------------------------
def closed(schema):
    """The JSON schema of the pydantic models, strict as the cluster is: fields that it does not know are mistakes."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "actual_instance" in schema.get("properties", {}):  # how the models write "a number or a string"
        return closed(schema["properties"]["actual_instance"])
    result = {key: closed(value) for key, value in schema.items()}
    if "properties" in result:
        result["additionalProperties"] = False
    if "anyOf" in result:
        result["anyOf"] = [option for option in result["anyOf"] if option != {"type": "null"}]
    return result


@pytest.fixture(scope="module")
def jobset_schema():
    return jsonschema.Draft202012Validator(closed(JobsetV1alpha2JobSet.model_json_schema(by_alias=True)))


def render(desk, *arguments) -> dict:
    result = launch(desk, "gke/gke.sh", "manifest", "pod.txt", *arguments)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


TOPOLOGIES = [
    ("v5p:4x4x8", 1, "tpu-v5p-slice", 32, 4), ("v5e:16x16", 2, "tpu-v5-lite-podslice", 64, 4),
    ("v6e:4x4", 1, "tpu-v6e-slice", 4, 4), ("v6e:1x1", 1, "tpu-v6e-slice", 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("topology", "slices", "accelerator", "hosts", "chips"), TOPOLOGIES)
def test_the_jobset_is_what_its_schema_says(desk, jobset_schema, topology, slices, accelerator, hosts, chips):
    jobset = render(desk, f"topology={topology}", f"slices={slices}", '--config.note=a "b" \\c')
    jobset_schema.validate(jobset)
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert replicated["replicas"] == slices
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.split(":")[1],
    }
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] == ["python", *TRAINING, '--config.note=a "b" \\c']
    assert "@" not in yaml.dump(jobset)


def paths(node, path=()):
    """Every key in the tree, by its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from paths(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from paths(value, (*path, index))


def test_a_wrong_name_or_type_anywhere_in_the_jobset_would_be_found(desk, jobset_schema):
    jobset = render(desk)
    free = ("annotations", "nodeSelector", "limits")  # whose keys are the user's
    tried = 0
    for path in paths(jobset):
        for change in ("name", "type"):
            other = copy.deepcopy(jobset)
            node = other
            for key in path[:-1]:
                node = node[key]
            value = node.pop(path[-1])
            if change == "type":
                node[path[-1]] = 1 if isinstance(value, dict) else {"a": 1}
            elif path[-2:-1] and path[-2] in free:
                continue
            else:
                node[f"{path[-1]}s"] = value
            tried += 1
            assert not jobset_schema.is_valid(other), (change, path)
    assert tried > 100


# ---- processes -------------------------------------------------------------------------------------------------------
WORKER = """#!/usr/bin/env bash
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS on '${JAX_PLATFORMS:-}' '${XLA_FLAGS:-}': $*"
trap 'echo stopped by SIGTERM; exit 143' TERM
trap 'echo stopped by SIGINT; exit 130' INT
case "$WHAT" in
    end) exit 0 ;;
    fail) [ "$JAX_PROCESS_ID" != 1 ] || exit 7 ;;
esac
echo waiting
while true; do sleep 0.05; done
"""


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker").write_text(WORKER)
    (tmp_path / "worker").chmod(0o755)
    return tmp_path / "worker"


def local(worker, *arguments, what):
    environment = os.environ | {"WHAT": what, "XLA_FLAGS": "--a"}
    return subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), f"python={worker}", "workdir=w", "records=r", "processes=3", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_local_processes_know_their_places(worker):
    process = local(worker, "devices=2", what="end")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = sorted(out.splitlines())
    address = lines[0].split(" at ")[1].split(" ")[0]
    assert address.startswith("127.0.0.1:")
    assert lines == [
        f"[{i}] {i} of 3 at {address} on 'cpu' '--a --xla_force_host_platform_device_count=2': "
        "-m colajax.train --workdir w --config configs/cola_joint.py --config.records=r"
        for i in range(3)
    ]


def test_a_local_dry_run_prints_what_the_processes_get(worker):
    process = local(worker, "devices=2", "--config.a=(1, 2)", "--dry-run", what="end")
    out, _ = process.communicate(timeout=60)
    shown = [
        subprocess.run(shlex.split(line), capture_output=True, text=True, check=True, env={"WHAT": "end"} | os.environ)
        for line in out.splitlines()
    ]
    process = local(worker, "devices=2", "--config.a=(1, 2)", what="end")
    out, _ = process.communicate(timeout=60)

    def without_port(lines):
        return sorted(line.split(" at ")[0] + line.split(" on ", 1)[1] for line in lines)

    assert without_port(f"[{i}] {run.stdout}"[:-1] for i, run in enumerate(shown)) == without_port(out.splitlines())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_local_process_once(worker, number, status):
    process = local(worker, what="wait")
    lines = [process.stdout.readline() for _ in range(6)]  # each has printed two
    assert sum("waiting" in line for line in lines) == 3
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status
    stopped = sorted(line for line in out.splitlines() if "stopped" in line)
    assert stopped == [f"[{i}] stopped by {number.name}" for i in range(3)]


def test_the_first_local_failure_ends_all(worker):
    process = local(worker, what="fail")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "process 1 ended with status 7" in errors
    assert "stopped" not in out
    assert errors.count("ended with status") == 3


# ---- on the workers of a TPU VM --------------------------------------------------------------------------------------
TRAINER = """#!/usr/bin/env bash
echo "on '$JAX_PLATFORMS': $*"
trap 'echo saved; exit 143' TERM
while true; do sleep 0.05; done
"""


def test_what_a_tpu_worker_is_told(desk):
    """The commands that tpu_vm.sh sends, carried out in a home folder, but for what `setup` downloads."""
    home = desk / "home"
    (home / "user" / "bin").mkdir(parents=True)
    uv = home / "user" / "bin" / "uv"
    uv.write_text('#!/bin/sh\n[ "$2" != find ] || echo /python3.12\n')
    (desk / "bin" / "python3").write_text(f'#!/bin/sh\n[ "$2" != site ] || echo {home}/user\n')
    tree = desk / "tree"
    shutil.copytree(LAUNCH, tree / "launch")
    (tree / "launch" / "environment.sh").write_text(
        'mkdir -p .venv/bin; cp ../trainer .venv/bin/python; echo "$PYTHON $*" >made'
    )
    subprocess.run(["tar", "-czf", str(home / "colajax.tar.gz"), "-C", str(tree), "launch"], check=True)
    for file, text in ((home / "trainer", TRAINER), (uv, uv.read_text()), (desk / "bin" / "python3", None)):
        if text:
            file.write_text(text)
        file.chmod(0o755)

    def tell(subcommand):
        launch(desk, "tpu_vm.sh", subcommand, "pod.txt")
        told = [command[-1] for command, _ in recorded(desk) if "ssh" in command]
        environment = os.environ | {"PATH": f"{desk}/bin:/usr/bin:/bin"}
        environment.pop("JAX_PLATFORMS", None)  # of the tests
        return subprocess.run(
            told[0].removeprefix("--command="), shell=True, executable="/bin/bash", cwd=home, env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    log = home / "colajax" / "train.log"
    result = tell("setup")
    assert result.returncode == 0, result.stderr
    assert (home / "colajax" / "made").read_text() == "/python3.12 tpu\n"
    assert tell("train").returncode == 0
    pid = int((home / "colajax" / "train.pid").read_text())
    try:
        while not log.exists() or not log.read_text():
            time.sleep(0.05)
        assert log.read_text() == f"on 'tpu,cpu': {' '.join(TRAINING)}\n"
        assert os.getsid(pid) == pid  # in a session of its own: the end of ssh does not reach it
        assert tell("status").stdout.startswith("training: on 'tpu,cpu'")
        again = tell("train")
        assert (again.returncode, again.stderr) == (2, f"error: process {pid} is training here already\n")
        assert tell("stop").stdout == "saved\n"
    finally:
        if tell("status").stdout.startswith("training"):
            os.kill(pid, signal.SIGKILL)
    assert tell("status").stdout == "not training: saved\n"
