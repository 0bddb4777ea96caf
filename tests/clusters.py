"""A Ray cluster of one node, as `ray start --head` makes it: on ports, with a token and in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
)
START_SECONDS = 60.0


@contextmanager
def cluster(token: str, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the address of its dashboard; no other Ray of the machine is touched.

    Its jobs find `environ` in their environment.
    """
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="rnc", dir="/tmp"))  # Ray's sockets allow no long path
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += ["--num-cpus=2", f"--object-store-memory={100 * 1024**2}", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW_", "RAY_", "PYTHON"))
    }
    surroundings |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        **(environ or {}),
    }
    with (folder / "start.log").open("wb") as log:
        head = subprocess.Popen(
            command, env=surroundings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        _wait(address, head, folder / "start.log")
        yield address
    finally:
        head.terminate()
        try:
            head.wait(20.0)
        except subprocess.TimeoutExpired:
            head.kill()
        for pid in _processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(address: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        try:
            if requests.get(f"{address}/api/version", timeout=2.0).status_code in (200, 401):
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.skip(f"no Ray cluster could be started here: {log.read_text(errors='replace')[-500:]}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _processes_of(folder: Path) -> list[int]:
    """The processes that name the cluster's folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
