"""A Slurm of one node on this machine, from the distribution's packages, without systemd, cgroups and accounting."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
#: where daemons lie that are in nobody's PATH but root's
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=5,bf_interval=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running one; ``environment`` makes its commands known to a process."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        """The output of a command such as ``squeue -h``."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def logs(self) -> str:
        return "\n".join(f"{f.name}:\n{f.read_text(errors='replace')[-3000:]}" for f in sorted(self.folder.glob("*.log")))


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def slurm_loopback(folder: Path) -> Iterator[Slurm]:
    """Starts the daemons with all their files in ``folder``; skips the test where they are not installed."""
    if missing := [name for name in DAEMONS if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"needs a Slurm on this machine, and there is no {missing[0]} (Debian: apt install slurm-wlm)")
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    folder.chmod(0o755)  # munged wants its socket to be found by others
    cpus = len(os.sched_getaffinity(0))
    values = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": folder, "cpus": cpus}
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(ports=_free_ports(2), **values))
    environment = os.environ | {"SLURM_CONF": str(file), "PATH": PATH}
    munge = [f"--{what}={folder / name}" for what, name in (("key-file", "munge.key"), ("socket", "munge.socket"))]
    munge += [f"--{what}-file={folder / f'munge.{what}'}" for what in ("pid", "seed", "log")]
    commands = (
        ("munged", "--foreground", "--force", *munge),
        ("slurmctld", "-D", "-f", str(file)),
        ("slurmd", "-D", "-f", str(file)),
    )
    started: list[subprocess.Popen] = []
    slurm = Slurm(folder, environment)
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("w") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(1)
        _wait_until_idle(slurm)
        yield slurm
    finally:
        _end_jobs(environment)
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_jobs(environment: dict[str, str]) -> None:
    """So that none outlives the daemons."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        subprocess.run(["scancel", "-u", getpass.getuser()], env=environment, check=False, capture_output=True, timeout=60)
        if not subprocess.run(["squeue", "-h"], env=environment, check=False, capture_output=True, timeout=60).stdout:
            return
        time.sleep(1)


def _wait_until_idle(slurm: Slurm) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=slurm.environment, capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise AssertionError(f"Slurm does not start:\n{slurm.logs()}")
