"""A Slurm of one node on this machine, for tests: the daemons of Debian's slurm-wlm and munge, with a folder."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from colajax.parallel.processes import free_port

CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
KillWait=60
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")


def installed() -> bool:
    return all(shutil.which(command, path=_path()) for command in COMMANDS)


@contextlib.contextmanager
def slurm_cluster(folder: Path, cpus: int) -> Iterator[dict[str, str]]:
    """Yields the environment in which sbatch and the others reach a cluster of one node with `cpus` CPUs.

    `cpus` need not be those of the machine. Raises RuntimeError with the daemons' logs if the node does not come up.
    """
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, user=getpass.getuser(), host=socket.gethostname().split(".")[0], cpus=cpus,
            controller_port=free_port(), daemon_port=free_port(),
        )
    )  # fmt: skip
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    munge = [f"--{name}={folder}/munge.{end}" for name, end in (
        ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed"), ("log-file", "log"),
    )]  # fmt: skip
    with contextlib.ExitStack() as stack:
        # --force: the folder of a test may be writable by others above it.
        for name, command in (
            ("munged", ["munged", "--foreground", "--force", *munge]),
            ("slurmctld", ["slurmctld", "-D"]),
            ("slurmd", ["slurmd", "-D"]),
        ):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_end, daemon)
            if name == "munged":
                _wait_until(lambda: (folder / "munge.socket").exists(), folder)
        _wait_until(lambda: _node_state(environment) == "idle", folder)
        yield environment


def _node_state(environment) -> str:
    found = subprocess.run(
        ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def _wait_until(condition, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log.name}:\n{log.read_text()}" for log in sorted(folder.glob("*.log")))
            raise RuntimeError(f"Slurm did not start\n{logs}")
        time.sleep(0.2)


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _path() -> str:
    """Debian keeps the daemons in /usr/sbin, which is not on the path of every user."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
