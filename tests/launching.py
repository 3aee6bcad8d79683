"""A place to run the launch scripts from, where gcloud, kubectl and the like only write down what they are given."""

import json
import os
import subprocess
import sys

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
    print(os.environ.get("STATE", "ACTIVE"))
if name == "python" and os.environ.get("PLAN_REFUSES"):
    sys.exit("error: does not fit: 120 GB of 95; mesh.fsdp=32 would")
"""
PROGRAMS = ("gcloud", "kubectl", "xpk", "docker", "git", "rm", "sbatch", "srun", "scontrol", "python")


def make_desk(folder):
    """Makes `folder` a place to launch from: a settings file, pod.txt, and a bin of recorders."""
    (folder / "pod.txt").write_text(POD)
    (folder / "bin").mkdir()
    for name in PROGRAMS:
        (folder / "bin" / name).write_text(RECORDER)
        (folder / "bin" / name).chmod(0o755)


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
