"""The whole cluster on one machine: PostgreSQL, SeaweedFS, MLflow on both, and Ray on three nodes with a token.

`python -m tests.deploy.stack` starts it, prints what a user exports to work with it, and ends it with Ctrl-C.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import requests

from tests.clusters import PORTS
from tests.deploy.network import Place, machines
from tests.deploy.planted import Secrets, new_secrets
from tests.deploy.processes import Processes, processes
from tests.deploy.programs import program

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "deploy" / "docker" / "mlflow" / "serve.py"
NODES = ("head", "worker1", "worker2")
DRIVER = "driver"
NODE_CPUS = 2


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack that runs."""

    folder: Path
    """Of everything that it writes; `logs`, `shared` (RNC_HOME), `here` (RNC_HOME of the driver)."""
    secrets: Secrets
    places: Mapping[str, Place]
    postgres_port: int
    s3: str
    mlflow: str
    dashboard: str
    gcs: str
    processes: Processes

    @property
    def has_namespaces(self) -> bool:
        """Whether the nodes have network addresses of their own."""
        return self.places["head"].namespace is not None

    def driver_environment(self) -> dict[str, str]:
        """What a user exports, to work with the stack from elsewhere."""
        return {
            "RAY_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "ray-auth-token"),
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "rnc",
            "MLFLOW_TRACKING_PASSWORD": self.secrets.job,
            "RNC_HOME": str(self.folder / "here"),
            "RNC_CACHE": str(self.folder / "cache"),
            "TMPDIR": str(self.folder / "tmp"),
        }

    def rnc(self, *arguments: str, seconds: float = 540.0, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run rnc as a user of the stack, on a machine that is no node of it."""
        return self.run(sys.executable, "-m", "orchestrator.cli.main", *arguments, seconds=seconds, **more)

    def run(self, *command: str, seconds: float = 60.0, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on the machine of the user, with more variables, or without those given as ""."""
        environment = {**_plain(), **self.driver_environment(), "PYTHONPATH": str(ROOT), **more}
        done = subprocess.run(
            self.places[DRIVER].command(command),
            cwd=self.folder,
            env={name: value for name, value in environment.items() if value},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        with (self.processes.folder / "driver.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return done


@contextmanager
def stack(with_ray: bool = True) -> Iterator[Stack]:
    """Start everything on free ports, and end all of it."""
    for name in ("initdb", "postgres", "weed"):
        program(name)
    folder = Path(tempfile.mkdtemp(prefix="rnc", dir="/tmp"))  # Ray's sockets allow no long path
    folder.chmod(0o711)  # PostgreSQL runs as another user
    try:
        with machines((*NODES, DRIVER)) as places, processes(_made(folder / "logs")) as started:
            yield _start(folder, places, started, with_ray)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, places: Mapping[str, Place], started: Processes, with_ray: bool) -> Stack:
    kept = new_secrets()
    host, head = places["host"], places["head"]
    postgres, s3, mlflow, gcs, dashboard, *others = host.free_ports(9)
    running = Stack(
        folder=folder,
        secrets=kept,
        places=places,
        postgres_port=postgres,
        s3=f"http://127.0.0.1:{s3}",
        mlflow=f"http://{host.address}:{mlflow}",
        dashboard=f"http://{head.address}:{dashboard}",
        gcs=f"{head.address}:{gcs}",
        processes=started,
    )
    _secret_file(folder / "ray-auth-token", kept.ray)
    _made(folder / "here")
    _made(folder / "tmp")
    if with_ray:
        _start_node(running, "head", gcs, dashboard)
    _start_seaweed(running, s3, others)
    _start_postgres(running)
    _start_mlflow(running, mlflow)
    if with_ray:
        started.wait("head", lambda: _status(f"{running.dashboard}/api/version") in (200, 401))
        for name in NODES[1:]:
            _start_node(running, name, gcs, dashboard)
    started.wait("mlflow", lambda: _status(f"{running.mlflow}/health") == 200)
    started.wait("seaweed", lambda: _status(running.s3) is not None)
    if with_ray:
        started.wait("head", lambda: _all_joined(running, gcs, dashboard))
    return running


def _start_postgres(running: Stack) -> None:
    folder, kept = _made(running.folder / "postgres"), running.secrets
    _secret_file(folder / "password", kept.postgres_admin)
    words: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses
        user = pwd.getpwnam("postgres")
        words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    data = folder / "data"
    command = [*words, program("initdb"), "--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8"]
    command += [f"--pwfile={folder / 'password'}", "--no-sync", str(data)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=_plain())
    settings = {"listen_addresses": "127.0.0.1", "port": running.postgres_port, "unix_socket_directories": folder}
    settings |= {"fsync": "off"}
    command = [*words, program("postgres"), "-D", str(data)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    running.processes.start("postgres", command, _plain(), signal.SIGINT)
    running.processes.wait("postgres", lambda: _make_user(running))


def _make_user(running: Stack) -> bool:
    """As an administrator does once: a user that may make databases and nothing else, and the database of MLflow."""
    try:
        connection = postgres(running, "postgres", running.secrets.postgres_admin, "postgres")
    except psycopg2.OperationalError:
        return False
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE mlflow LOGIN CREATEDB PASSWORD %s", (running.secrets.postgres,))
        cursor.execute("CREATE DATABASE mlflow OWNER mlflow")
    connection.close()
    return True


def postgres(running: Stack, user: str, password: str, database: str = "mlflow") -> "psycopg2.extensions.connection":
    """Connect to the stack's PostgreSQL."""
    return psycopg2.connect(
        host="127.0.0.1", port=running.postgres_port, user=user, password=password, dbname=database, connect_timeout=5
    )


def _start_seaweed(running: Stack, s3: int, ports: list[int]) -> None:
    master, volume, filer, admin = ports
    options = {"dir": _made(running.folder / "s3"), "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.port": s3}
    options |= {"master.port": master, "volume.port": volume, "filer.port": filer, "admin.port": admin}
    options |= {"webdav": "false", "admin.ui": "false", "s3.port.iceberg": 0, "s3.port.lance": 0, "bucket": "mlflow"}
    keys = {"AWS_ACCESS_KEY_ID": running.secrets.s3_id, "AWS_SECRET_ACCESS_KEY": running.secrets.s3}
    for name in ("SIGNING", "FILER_SIGNING", "FILER_SIGNING_READ"):  # else its inner doors are open to all
        keys[f"WEED_JWT_{name}_KEY"] = running.secrets.s3_inner
    command = [program("weed"), "mini", *(f"-{name}={value}" for name, value in options.items())]
    running.processes.start("seaweed", command, _plain() | keys, signal.SIGTERM)


def _start_mlflow(running: Stack, port: int) -> None:
    kept = running.secrets
    environment = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(running.postgres_port),
        "POSTGRES_PASSWORD": kept.postgres,
        "MLFLOW_S3_ENDPOINT_URL": running.s3,
        "AWS_ACCESS_KEY_ID": kept.s3_id,
        "AWS_SECRET_ACCESS_KEY": kept.s3,
        "MLFLOW_AUTH_ADMIN_PASSWORD": kept.admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": kept.flask,
        "RNC_MLFLOW_PASSWORD": kept.job,
        "RNC_MLFLOW_READER_PASSWORD": kept.reader,
        "TMPDIR": str(running.folder / "tmp"),
        "MLFLOW_HOST": running.places["host"].address,
        "MLFLOW_PORT": str(port),
        "MLFLOW_ALLOWED_HOSTS": f"{running.places['host'].address}:{port}",
    }
    running.processes.start("mlflow", [sys.executable, str(SERVE)], _plain() | environment, signal.SIGTERM)


def _start_node(running: Stack, name: str, gcs: int, dashboard: int) -> None:
    place, is_head = running.places[name], name == "head"
    names = [port for port in PORTS if is_head or port not in ("port", "dashboard-port", "ray-client-server-port")]
    ports = dict(zip(names, place.free_ports(len(names)), strict=True))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={place.address}", f"--temp-dir={running.folder / name}"]
    command += [f"--num-cpus={0 if is_head else NODE_CPUS}", f"--object-store-memory={100 * 1024**2}"]
    if is_head:
        ports |= {"port": gcs, "dashboard-port": dashboard}
        command += ["--head", f"--dashboard-host={place.address}", "--include-dashboard=true"]
    else:
        command += [f"--address={running.gcs}"]
    command += [f"--{port}={number}" for port, number in ports.items()]
    temporary = str(running.folder / "tmp")  # where `ray start` also notes the last cluster of a machine
    environment = _plain() | {
        "TMPDIR": temporary,
        "RAY_TMPDIR": temporary,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(running.folder / "ray-auth-token"),
        "RNC_HOME": str(running.folder / "shared"),
        "RNC_CACHE": str(running.folder / f"cache-{name}"),
        "MLFLOW_TRACKING_URI": running.mlflow,
        "MLFLOW_TRACKING_USERNAME": "rnc",
        "MLFLOW_TRACKING_PASSWORD": running.secrets.job,
    }
    running.processes.start(name, place.command(command), environment, signal.SIGTERM)


def nodes(running: Stack) -> list[dict[str, Any]]:
    """Return what Ray says of its living nodes."""
    answer = requests.get(
        f"{running.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {running.secrets.ray}"}, timeout=10.0
    ).json()
    return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


def _all_joined(running: Stack, gcs: int, dashboard: int) -> bool:
    """Start workers again that gave up: Ray gives a node 30 seconds to start, which a busy machine may not have."""
    for name in NODES[1:]:
        if running.processes.running[name].poll() is not None:
            _start_node(running, name, gcs, dashboard)
    return len(nodes(running)) == len(NODES)


def _plain() -> dict[str, str]:
    """The environment of this process, without what would speak of another stack or of other sources."""
    foreign = ("RNC_", "MLFLOW_", "RAY_", "PYTHON", "AWS_", "PG", "POSTGRES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}


def _status(url: str) -> int | None:
    try:
        with requests.Session() as http:
            http.trust_env = False
            return http.get(url, timeout=2.0).status_code
    except requests.RequestException:
        return None


def _secret_file(path: Path, value: str) -> None:
    path.touch(0o600)
    path.write_text(value)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # a shell lets what it starts in the background ignore Ctrl-C
    with suppress(KeyboardInterrupt), stack() as by_hand:
        print(*(f"export {name}={value}" for name, value in by_hand.driver_environment().items()), sep="\n", flush=True)
        signal.pause()
