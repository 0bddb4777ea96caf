"""`rnc doctor` against a real Ray head, a worker and an MLflow server with passwords: green, then each thing broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clusters import _free_ports, _processes_of

ROOT = Path(__file__).parents[2]
TOKEN = "the token of this test and of nothing else"
PASSWORD = "a long password of this test"
START_SECONDS = 120.0
HERE = "/proc/self/cwd"
"""A path that every process sees in its own way, and so a disk that each node has for itself."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(HERE).exists(), reason="no /proc, by which each node gets a disk of its own"),
]


def _clean(**more: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RNC_", "MLFLOW_", "RAY_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1,127.0.0.2,127.0.0.3,localhost"} | more


@contextmanager
def _running(command: list[str], folder: Path, log: str, environment: Mapping[str, str]) -> Iterator[Any]:
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20.0)
        with suppress(ProcessLookupError):  # MLflow's command may leave the server behind that it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20.0)


def _await(is_there: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if is_there():
                return
        except requests.RequestException:
            pass
        time.sleep(0.3)
    pytest.skip(f"{log.name}: it does not start here: {log.read_text(errors='replace')[-500:]}")


def _answers(address: str) -> bool:
    return requests.get(address, timeout=2.0).status_code in (200, 401)


@contextmanager
def _mlflow(folder: Path) -> Iterator[tuple[str, Any]]:
    pytest.importorskip("flask_wtf", reason="flask-wtf is missing, which MLflow needs for passwords")
    (port,) = _free_ports(1)
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = rnc\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = _clean(
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="a secret of this test",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", "sqlite:///mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with _running(command, folder, "mlflow.log", environment) as process:
        address = f"http://127.0.0.1:{port}"
        _await(lambda: _answers(f"{address}/health"), process, folder / "mlflow.log")
        yield address, process


@contextmanager
def _cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (dashboard, GCS) of a head and a worker, each in a folder of its own."""
    ray = str(Path(sys.executable).with_name("ray"))
    gcs, dashboard, client = _free_ports(3)
    address, url = f"127.0.0.2:{gcs}", f"http://127.0.0.1:{dashboard}"
    common = ["--block", "--disable-usage-stats", "--num-cpus=1", f"--object-store-memory={100 * 1024**2}"]
    head = ["--head", "--node-ip-address=127.0.0.2", f"--port={gcs}", f"--ray-client-server-port={client}"]
    head += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    worker = [f"--address={address}", "--node-ip-address=127.0.0.3"]
    is_up = {"head": lambda: _answers(f"{url}/api/version"), "worker": lambda: _num_nodes(url) == 2}
    names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"]
    names += ["metrics-export-port", "node-manager-port", "object-manager-port"]
    try:
        with ExitStack() as nodes:
            for name, words in (("head", head), ("worker", worker)):
                ports = [f"--{port}={number}" for port, number in zip(names, _free_ports(len(names)), strict=True)]
                command = [ray, "start", *words, *common, *ports, f"--temp-dir={folder / name / 'ray'}"]
                process = nodes.enter_context(_running(command, folder / name, "start.log", environment))
                _await(is_up[name], process, folder / name / "start.log")
            yield url, address
    finally:
        for pid in _processes_of(folder):
            os.kill(pid, signal.SIGKILL)


def _num_nodes(dashboard: str) -> int:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.get(f"{dashboard}/nodes?view=summary", headers=headers, timeout=5.0).json()
    return sum(node["raylet"].get("state") == "ALIVE" for node in answer["data"]["summary"])


def _lay_out_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        (root / split / "1.jpg").write_bytes(b"")
        (root / "annotations" / f"instances_{split}.json").write_text('{"images": []}')


@dataclass(frozen=True)
class World:
    """A cluster, and what a call of rnc says of it."""

    folder: Path
    dashboard: str
    gcs: str
    mlflow: str
    mlflow_process: Any

    def doctor(self, *arguments: str, **settings: str) -> tuple[int, dict[str, list[dict[str, Any]]], str]:
        """Return its exit code, its findings by check, and what it said beside them."""
        said = {
            "RAY_ADDRESS": self.gcs,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RNC_HOME": str(self.folder / "shared"),
            "RNC_COCO_ROOT": f"{HERE}/coco",
            "RNC_CACHE": str(self.folder / "cache"),
            "RAY_TMPDIR": str(self.folder / "driver"),
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "rnc",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", "doctor", "--format", "json", *arguments],
            cwd=self.folder / "driver",
            env=_clean(**said | settings),
            capture_output=True,
            text=True,
            timeout=300,
        )
        found: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(done.stdout)[0]["rows"] if done.stdout else []:
            found.setdefault(row["check"], []).append(row)
        return done.returncode, found, done.stderr


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="rnc", dir="/tmp"))  # Ray's sockets allow no long path
    try:
        for name in ("head", "worker", "driver"):
            _lay_out_coco(folder / name / "coco")
        with _mlflow(folder) as (mlflow, process):
            environment = _clean(
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN=TOKEN,
                RNC_CACHE=str(folder / "cache"),
                RNC_HOME=str(folder / "shared"),
                RNC_COCO_ROOT=f"{HERE}/coco",
                MLFLOW_TRACKING_URI=mlflow,
                MLFLOW_TRACKING_USERNAME="rnc",
                MLFLOW_TRACKING_PASSWORD=PASSWORD,
            )
            with _cluster(folder, environment) as (dashboard, gcs):
                yield World(folder, dashboard, gcs, mlflow, process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _red(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Where each check is red."""
    red = {check: [row["where"] for row in rows if row["state"] == "red"] for check, rows in found.items()}
    return {check: where for check, where in red.items() if where}


EVERY_MACHINE = ["driver", "head 127.0.0.2", "node 127.0.0.3"]


def test_a_sound_cluster_is_green_on_every_machine(world: World):
    code, found, said = world.doctor()
    assert (code, _red(found)) == (0, {}), (found, said)
    for check in ("versions", "gpus", "/dev/shm", "disk of RNC_HOME", "storage", "data", "mlflow", "ports"):
        assert list(dict.fromkeys(row["where"] for row in found[check])) == EVERY_MACHINE, (check, said)
    assert [row["where"] for row in found["storage is shared"]] == EVERY_MACHINE[1:]
    assert [row["where"] for row in found["clock"]] == EVERY_MACHINE[1:]
    for check in ("versions agree", "data agree", "all-reduce with gloo", "ray tokens", "ray dashboard", "mlflow key"):
        assert {row["state"] for row in found[check]} == {"green"}, check
    assert found["mlflow writes"][0]["state"] == "green"
    assert list((world.folder / "shared").iterdir()) == []
    assert "2 of 2 answered" in said


def test_what_is_broken_is_red_where_it_is_broken(world: World):
    (world.folder / "worker/coco/annotations/instances_val2017.json").write_text('{"images": [1]}')
    (world.folder / "head/coco/annotations/instances_train2017.json").unlink()
    try:
        code, found, said = world.doctor(RNC_HOME=f"{HERE}/runs", MLFLOW_TRACKING_PASSWORD="not this one")
    finally:
        for name in ("head", "worker"):
            shutil.rmtree(world.folder / name / "coco")
            _lay_out_coco(world.folder / name / "coco")
    assert code == 1, said
    assert _red(found) == {
        "data": ["head 127.0.0.2"],
        "data agree": ["all"],
        "mlflow": ["driver"],
        "storage is shared": ["head 127.0.0.2", "node 127.0.0.3"],
    }, (found, said)
    (differing,) = (row for row in found["data agree"] if row["state"] == "red")
    assert "val2017 differs" in differing["seen"] and "on node 127.0.0.3" in differing["seen"]
    assert "MLFLOW_TRACKING_PASSWORD" in found["mlflow"][0]["way out"]


def test_sent_as_a_job_it_looks_from_the_cluster_and_passes_its_exit_code_on(world: World):
    sent = ["--address", world.dashboard, "--env", f"RNC_HOME={world.folder / 'shared'}"]
    code, found, said = world.doctor(*sent, "--env", f"RNC_COCO_ROOT={world.folder}")
    assert (code, _red(found)) == (1, {"data": [name for name in EVERY_MACHINE for _ in range(2)]}), (found, said)
    for check in ("versions agree", "storage is shared", "all-reduce with gloo", "mlflow writes"):
        assert {row["state"] for row in found[check]} == {"green"}, check
    assert "Job rnc-doctor-" in said


def test_a_token_that_is_not_the_cluster_s_is_red(world: World):
    code, found, said = world.doctor(RAY_AUTH_TOKEN="another")
    assert (code, _red(found)) == (1, {"ray": ["driver"]}), (found, said)


def test_a_server_that_has_ended_is_red_everywhere(world: World):
    world.mlflow_process.terminate()
    world.mlflow_process.wait(20.0)
    code, found, said = world.doctor()
    assert (code, _red(found)) == (1, {"mlflow": EVERY_MACHINE}), (found, said)
    assert "does not answer" in found["mlflow"][0]["seen"]


def test_a_node_that_hangs_is_red_and_does_not_hold_the_others_up(world: World):
    for pid in _processes_of(world.folder / "worker"):
        os.kill(pid, signal.SIGSTOP)
    code, found, said = world.doctor()
    assert (code, _red(found)["node"]) == (1, ["node 127.0.0.3"]), (found, said)
    assert [row["where"] for row in found["versions"]] == EVERY_MACHINE[:2]
