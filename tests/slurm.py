"""A Slurm of one node or two, from Debian's packages `slurm-wlm` and `munge`, that lives in a folder and needs no systemd."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# Jobs of `high` take the node from those of `low`, which go back into the queue.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=0
MpiDefault=none
ReturnToService=2
KillWait=10
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes={names} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes={names} State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def slurm(folder: Path, grace_s: int = 0, nodes: int = 1) -> Iterator[dict[str, str]]:
    """Around a cluster: gives the variables with which Slurm's commands find it. What it started is gone at the end."""
    host = socket.gethostname().split(".")[0]
    names = [host] if nodes == 1 else [f"node{n}" for n in range(nodes)]
    for name in ("state", *(f"spool.{name}" for name in names)):
        (folder / name).mkdir()
    node = "NodeName={} NodeHostname={} NodeAddr=127.0.0.1 Port={} CPUs={} RealMemory=1000 State=UNKNOWN"
    each = "\n".join(node.format(name, host, free_port(), 2 // nodes) for name in names)
    given = {"nodes": each, "names": ",".join(names), "controller": free_port(), "grace": grace_s}
    conf = CONF.format(folder=folder, host=host, user=getpass.getuser(), **given)
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    env = {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    at = {name: f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")}
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *at.values()],
        ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
        *(["slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", name] for name in names),
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("a") as out:
                running.append(subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=out))
            time.sleep(0.3)
        wait_for(lambda: ask(env, "sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * nodes)
        yield env
    finally:
        ask(env, "scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(env: dict[str, str], *command: str) -> str:
    """What one of Slurm's commands says."""
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True).stdout


def wait_for(there, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"it did not come within {seconds} seconds"
        time.sleep(0.2)


def start_waiting(env: dict[str, str]) -> None:
    """Slurm lets a job that was put back wait for two minutes: not here."""
    for job in ask(env, "squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
        if job.endswith("BeginTime"):
            ask(env, "scontrol", "update", f"jobid={job.split()[0]}", "starttime=now")
