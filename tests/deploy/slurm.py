"""A Slurm cluster on one machine: each node has an address, processes, a name and a scratch folder of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.programs import program

NODE = """
set -eu
hostname "$1"
mount --bind "$2" /etc/hosts
mount --bind "$3" "$4"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
shift 4
"$@" &
wait $!
"""
"""What makes a machine of a node, and then is its first process: bash, which looks after orphans as init does."""
CONFIG = """
ClusterName=test
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
RebootProgram=/bin/false
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP OverTimeLimit=0
"""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A running cluster."""

    folder: Path
    controller: str
    """The address of this machine, which all nodes reach."""
    scratch: Path
    """At this path every node has storage of its own."""

    def run(self, *words: str, **more: str) -> str:
        """Run a command of Slurm, and return what it prints; it gets these variables and no other."""
        environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(self.folder / "slurm.conf")} | more
        done = subprocess.run(
            words, env=environment, cwd=more.get("PWD"), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, as Slurm calls it."""
        told = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)["JobState"]

    def wait(self, job: str, states: Sequence[str], seconds: float) -> str:
        """Wait until a job is in one of these states."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state} after {seconds:.0f} s\n{self.logs()}"
            time.sleep(0.5)
        return state

    def logs(self) -> str:
        """The ends of all logs."""
        tails = (f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("*.log"))
        return "\n".join(tails)


@contextmanager
def slurm_cluster(folder: Path, names: Sequence[str]) -> Iterator[Slurm]:
    """Start a cluster whose nodes have these names; skip where there can be none."""
    for name in ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "ip", "nsenter", "unshare"):
        program(name)
    if os.geteuid() != 0:
        pytest.skip("giving each node of Slurm an address of its own takes root")
    pid = os.getpid()
    subnet = f"10.{150 + pid % 50}.{pid // 50 % 250}"
    # Sockets have to have short paths.
    scratch = Path(f"/tmp/rncs{pid}")
    addresses = {name: f"{subnet}.{number}" for number, name in enumerate(names, start=2)}
    slurm = Slurm(folder=folder, controller=f"{subnet}.1", scratch=scratch)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        scratch.mkdir(mode=0o755)
        try:
            _connect(addresses, f"{subnet}.1", pid, stack)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        _start(slurm, addresses, pid, stack)
        yield slurm


def _connect(addresses: dict[str, str], controller: str, pid: int, stack: ExitStack) -> None:
    bridge = f"rnsb{pid}"
    _ip("link", "add", bridge, "type", "bridge")
    stack.callback(_ip, "link", "del", bridge, check=False)
    _ip("addr", "add", f"{controller}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    for number, (name, address) in enumerate(addresses.items()):
        place, plug = f"rns{pid}-{name}", f"rns{pid}v{number}"
        _ip("netns", "add", place)
        stack.callback(_ip, "netns", "del", place, check=False)
        _ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", place)
        _ip("link", "set", plug, "master", bridge, "up")
        _ip("-n", place, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", place, "link", "set", device, "up")
        _ip("-n", place, "route", "add", "default", "via", controller)


def _start(slurm: Slurm, addresses: dict[str, str], pid: int, stack: ExitStack) -> None:
    folder, host = slurm.folder, socket.gethostname()
    for place in ("state", *(f"spool-{name}" for name in addresses)):
        (folder / place).mkdir(mode=0o755)
    nodes = "\n".join(f"NodeName={name} NodeAddr={at} Port=6818 CPUs=2 State=UNKNOWN" for name, at in addresses.items())
    config = CONFIG.format(host=host, controller=slurm.controller, port=_free_port(), folder=folder, nodes=nodes)
    (folder / "slurm.conf").write_text(config)
    known = [f"{slurm.controller} {host}", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known]) + "\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    files = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log", "pid-file": "munged.pid"}
    options = [f"--{option}={folder / name}" for option, name in (files | {"seed-file": "munge.seed"}).items()]
    _begin(["munged", "--foreground", "--force", *options], folder, stack)
    _until(lambda: (folder / "munge.socket").exists(), slurm)
    _begin(["slurmctld", "-D", "-f", str(folder / "slurm.conf")], folder, stack)
    for name in addresses:
        own = folder / f"scratch-{name}"
        own.mkdir(mode=0o1777)
        enter = ["nsenter", f"--net=/run/netns/rns{pid}-{name}", program("unshare"), "--mount", "--uts", "--pid"]
        start = ["bash", "-c", NODE, "bash", name, str(folder / "hosts"), str(own), str(slurm.scratch)]
        daemon = [program("slurmd"), "-D", "-N", name, "-f", str(folder / "slurm.conf")]
        _begin([*enter, "--fork", "--kill-child", "--mount-proc", *start, *daemon], folder, stack)
    _until(lambda: slurm.run("sinfo", "--noheader", "--format=%T").split() == ["idle"], slurm)


def _begin(words: Sequence[str], folder: Path, stack: ExitStack) -> None:
    """Start a process, which is ended with all that it holds at the end; a node's is the first of its namespace."""
    log = stack.enter_context((folder / f"{Path(words[0]).name}-{len(list(folder.iterdir()))}.log").open("w"))
    environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(folder / "slurm.conf")}
    process = subprocess.Popen([program(words[0]), *words[1:]], env=environment, stdout=log, stderr=log)
    stack.callback(_end, process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # with unshare dies the first process of a node, and with that all others
    process.wait()


def _until(ready: object, slurm: Slurm, seconds: float = 60) -> None:
    assert callable(ready)
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except AssertionError:
            pass
        assert time.monotonic() < deadline, slurm.logs()
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, timeout=10)
