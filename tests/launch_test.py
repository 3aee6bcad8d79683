"""The launch scripts: what --dry-run prints against what programs of the same names are given; mistakes in settings."""

import os
import shlex
import subprocess

import pytest
from launching import CONFIGURATION, TRAINING, launch, recorded
from tiny_runs import ROOT


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
TPU_VM = ("up", "await", "setup", "train", "status", "logs", "stop", "down", "resume")
GKE = ("cluster", "image", "up", "status", "logs", "down", "xpk", "delete")
COMMANDS = (
    *(("tpu_vm.sh", name) for name in TPU_VM),
    *(("tpu_vm.sh", name, "slices=2", "capacity=reserved", "service_account=a@b") for name in TPU_VM),
    *(("gke/gke.sh", name) for name in GKE),
    ("slurm.sbatch", "nodes=4", "gpus_per_node=8", "cpus_per_task=4", "time=1-00:00:00", "partition=big"),
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
        (desk / "bin" / "rm").unlink()  # the supervisor removes a file of its own
        subprocess.run(
            ["bash", *submitted[0][0][submitted[0][0].index("launch/slurm.sbatch") :]], cwd=ROOT, check=True,
            env=os.environ | {"PATH": f"{desk}/bin:{os.environ['PATH']}", "RECORDED": str(desk / "recorded"),
                              "SLURM_JOB_ID": "7"},
        )  # fmt: skip
        [([*supervised, _, _], _), started] = recorded(desk)
        assert supervised == ["python", "-c"]  # how far the run has come
        assert commands[1:] == [(["bash", "launch/supervise.sh", *started[0]], "")]
    else:
        assert commands == recorded(desk)
    assert len(commands) > 0


@pytest.mark.parametrize("subcommand", ["down", "stop", "logs", "status"])
def test_what_costs_money_is_ended_and_shown_without_knowing_what_was_trained(desk, subcommand):
    assert launch(desk, "tpu_vm.sh", subcommand, "project=p", "zone=z").returncode == 0
    assert {command[0] for command, _ in recorded(desk)} == {"gcloud"}


@pytest.mark.parametrize(("state", "asked"), [("ACTIVE", ["describe", "ssh"]), ("SUSPENDED", ["describe"])])
def test_status_asks_the_workers_that_are_there(desk, state, asked):
    result = launch(desk, "tpu_vm.sh", "status", "pod.txt", STATE=state)
    assert (result.returncode, result.stdout) == (0, f"{state}\n")
    assert [command[4] for command, _ in recorded(desk)] == asked


def test_slices_that_are_gone_are_not_awaited(desk):
    result = launch(desk, "tpu_vm.sh", "await", "pod.txt", STATE="FAILED")
    assert result.returncode == 1
    assert "colajax is FAILED" in result.stderr


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
        ("local.sh", ["x$(touch done)=w"], "x$(touch done): unknown setting"),
        ("local.sh", ["work\ndir=w"], "work?dir: unknown setting"),
        ("local.sh", ["workdir=w", "records=r", "processes=" + 30 * "9"], "expected a whole number"),
        ("slurm.sbatch", ["workdir=w", "records=r"], "tasks_per_node is ''"),
        ("tpu_vm.sh", [], "expected up, await"),
        ("tpu_vm.sh", ["upp", "pod.txt"], "'upp': expected up, await"),
        ("tpu_vm.sh", ["up"], "project is not set"),
        ("tpu_vm.sh", ["up", "pod.txt", "zone="], "zone is not set"),
        ("tpu_vm.sh", ["up", "pod.txt", "topology=v5p:16x16"], "topology is 'v5p:16x16'"),
        ("tpu_vm.sh", ["up", "pod.txt", "topology=v5e:1x1"], "expected hosts of 4 chips"),
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


def commands_of(desk, script, *arguments) -> list[list[str]]:
    result = launch(desk, script, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch"])
def test_paths_are_those_of_the_folder_that_the_script_is_called_in(desk, script):
    given = ["workdir=mine", "records=sub/rec", "--config.init_from=../vae", "processes=1", "tasks_per_node=1"]
    training = commands_of(desk, script, *given)[-1]
    assert training[training.index("--workdir") + 1] == f"{desk}/mine"
    assert f"--config.records={desk}/sub/rec" in training
    assert f"--config.init_from={desk}/../vae" in training
    if script == "slurm.sbatch":  # the job, in the repository, is told the same
        assert {f"workdir={desk}/mine", f"records={desk}/sub/rec"} <= set(commands_of(desk, script, *given)[0])


def test_paths_at_home_in_a_bucket_and_absolute(desk):
    training = commands_of(desk, "local.sh", "workdir=~/x", "records=/r", "init_from=gs://b/v", "processes=1")[0]
    assert training[training.index("--workdir") + 1] == os.path.expanduser("~/x")
    assert {"--config.records=/r", "--config.init_from=gs://b/v"} <= set(training)


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch"])
def test_a_mixture_of_records_comes_as_it_is(desk, script):
    mixture = '((0, {"gs://b/web": 0.7, "/books": 0.3}),)'
    training = commands_of(desk, script, "workdir=mine", f"records={mixture}", "processes=1", "tasks_per_node=1")[-1]
    assert f"--config.records={mixture}" in training


def test_a_settings_file_of_another_system_reads_the_same(desk):
    lines = ["# a run", "workdir=~/x y", "", "records=/r", "processes=1", "--config.seed=3"]
    (desk / "plain.txt").write_text("\n".join(lines))
    (desk / "windows.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    plain, other = ([c[3:] for c in commands_of(desk, "local.sh", name)] for name in ("plain.txt", "windows.txt"))
    assert plain == other
    assert os.path.expanduser("~/x y") in plain[0]


def test_the_last_setting_counts_and_a_file_stands_for_its_lines(desk):
    result = launch(desk, "tpu_vm.sh", "down", "--dry-run", "zone=a", "pod.txt", "name=other")
    assert "delete other --project=a-project --zone=us-east5-a" in result.stdout
