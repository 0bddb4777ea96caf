"""A real Prometheus that watches a Ray cluster, an MLflow server and a suite whose training is killed once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from orchestrator.recorder import read_journal
from tests.clusters import cluster
from tests.deploy.programs import program
from tests.deploy.promql import MONITORING, dashboard_expressions, filled, metrics_in, rules
from tests.deploy.test_monitoring import DASHBOARD, OURS, change, known_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKEN = "the token of this test and of nothing else"
ADMIN, READER = "for the administrator only", "for everybody who reads"
NEEDS_A_GPU = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
NEEDS_AN_AUTOSCALER = {"ray_cluster_idle_nodes"}
EXPERIMENT = f"""
suite: watched
extends: {ROOT}/experiments/miniature/table1_heads.yaml
only: [RetinaNet]
seeds: [0]
defaults:
  train:
    data: {{num_train_images: 128, num_val_images: 8}}
    global_batch: 4
    schedule: {{epochs: 8, lr_drop_epochs: [6], validate_every: 8}}
"""


@dataclass
class Watched:
    """Everything that was started, and what Prometheus says of it."""

    folder: Path
    address: str
    mlflow: str
    mlflow_process: "subprocess.Popen[bytes]"
    prometheus: str
    output: str = field(default="")

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        answer = requests.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, timeout=10).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def values(self, expression: str) -> list[float]:
        """Their values."""
        return [float(series["value"][1]) for series in self.ask(expression)]


@contextmanager
def running(command: list[str], log: Path, **environ: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=surroundings() | environ, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW_", "RAY_"))}


def wait(seconds: float, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def answers(url: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(url, timeout=2.0).status_code == 200
    return False


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server with passwords, and /metrics for its users."""
    port = free_port()
    (folder / "auth.ini").write_text(
        "[mlflow]\n"
        f"default_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {ADMIN}\n"
        "authorization_function = metrics_for_readers:authenticate\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    command += ["--app-name=basic-auth", f"--expose-prometheus={folder}/metrics"]
    environ = {
        "PYTHONPATH": str(ROOT / "deploy" / "docker" / "mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test only",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    address = f"http://127.0.0.1:{port}"
    with running(command, folder / "mlflow.log", **environ) as process:
        wait(120, lambda: answers(f"{address}/health") or process.poll() is not None, "MLflow")
        created = requests.post(
            f"{address}/api/2.0/mlflow/users/create",
            json={"username": "reader", "password": READER},
            auth=("admin", ADMIN),
            timeout=30,
        )
        assert created.status_code == 200, created.text
        yield address, process


@contextmanager
def prometheus(folder: Path, mlflow: str, nodes: Path) -> Iterator[str]:
    """Prometheus on our files, with the places of this test in them, and six times as fast."""
    port = free_port()
    for name in ("prometheus.yml", "rules.yml"):
        (folder / name).write_text((MONITORING / name).read_text())
    (folder / "password").write_text(READER)
    config = folder / "prometheus.yml"
    change(config, "mlflow:5000", mlflow.removeprefix("http://"))
    change(config, "localhost:9090", f"127.0.0.1:{port}")
    change(config, "/run/secrets/mlflow-reader-password", str(folder / "password"))
    change(config, "- /tmp/ray/prom_metrics_service_discovery.json", f"- {nodes}")
    config.write_text(
        re.sub(r"(scrape_interval|evaluation_interval|refresh_interval): 15s", r"\1: 3s", config.read_text())
    )
    content = yaml.safe_load((folder / "rules.yml").read_text())
    (rule,) = (rule for group in content["groups"] for rule in group["rules"] if rule["alert"] == "MLflowDown")
    rule["for"] = "3s"
    (folder / "rules.yml").write_text(yaml.safe_dump(content))
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with running(command, folder / "prometheus.log"):
        wait(30, lambda: answers(f"http://127.0.0.1:{port}/-/ready"), "Prometheus")
        yield f"http://127.0.0.1:{port}"


def list_of_nodes(address: str) -> Path:
    """The file in which Ray lists the nodes of the cluster with this dashboard, as prometheus.yml names it."""
    found: list[Path] = []

    def find() -> bool:
        told = requests.get(f"{address}/api/prometheus/sd", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
        for file in Path("/tmp").glob("rnc*/prom_metrics_service_discovery.json"):
            with suppress(OSError, ValueError):
                if told.json() and json.loads(file.read_text()) == told.json():
                    found.append(file)
        return bool(found)

    wait(60, find, "Ray's list of nodes")
    return found[0]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "heads.yaml").write_text(EXPERIMENT)
    with ExitStack() as stack:
        mlflow, process = stack.enter_context(mlflow_server(folder))
        environ = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": ADMIN}
        address = stack.enter_context(cluster(TOKEN, environ))
        watching = stack.enter_context(prometheus(folder, mlflow, list_of_nodes(address)))
        all_of_it = Watched(folder=folder, address=address, mlflow=mlflow, mlflow_process=process, prometheus=watching)
        submit_and_kill_once(all_of_it)
        yield all_of_it


def submit_and_kill_once(watched: Watched) -> None:
    """Run the suite as a job, and kill its training between two checkpoints."""
    command = [sys.executable, "-m", "orchestrator.cli", "submit", "heads.yaml"]
    for name, value in (
        ("RNC_HOME", watched.folder / "shared"),
        ("RNC_CACHE", watched.folder / "cache"),
        ("MLFLOW_TRACKING_URI", watched.mlflow),
    ):
        command += ["--env", f"{name}={value}"]
    environ = {
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": watched.address,
        "RAY_AUTH_TOKEN": TOKEN,
        "RNC_HOME": str(watched.folder / "here"),
        "MLFLOW_TRACKING_URI": watched.mlflow,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": ADMIN,
    }
    log = watched.folder / "submit.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=watched.folder, env=surroundings() | environ, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        pid = between_checkpoints(watched.folder / "shared" / "ray" / "watched", process)
        os.kill(pid, signal.SIGKILL)
        process.wait(300)
    finally:
        process.kill()
        process.wait()
    watched.output = log.read_text()
    assert process.returncode == 0, watched.output


def between_checkpoints(storage: Path, submit: "subprocess.Popen[bytes]") -> int:
    """Wait until the training has made updates since a checkpoint, and return its process."""
    pids: list[int] = []

    def is_between() -> bool:
        assert submit.poll() is None, "the suite has ended"
        for journal in storage.glob("*/metrics.jsonl"):
            log = (journal.parent / "training.log").read_text()
            if "epoch 2/8" in log:
                step, epoch_length = progress(journal)
                if step % epoch_length >= 20:
                    pids.append(int(re.findall(r"the first as process (\d+)", log)[-1]))
        return bool(pids)

    wait(240, is_between, "updates after a checkpoint")
    return pids[0]


def progress(journal: Path) -> tuple[int, int]:
    """The last update that a journal holds, and the updates of an epoch."""
    epochs = [m for line in read_journal(journal)[0] for m in line if m.name == "train/epoch"]
    return max(metric.step for metric in epochs), round(epochs[0].step / epochs[0].value)


def test_prometheus_reaches_the_nodes_mlflow_and_itself(watched: Watched):
    up = {series["metric"]["job"]: series["value"][1] for series in watched.ask("up")}
    assert up == {"ray": "1", "mlflow": "1", "prometheus": "1"}
    for auth, code in ((None, 401), (("reader", "a wrong password"), 401), (("reader", READER), 200)):
        answer = requests.get(f"{watched.mlflow}/metrics", auth=auth, timeout=10)
        assert answer.status_code == code


def test_every_metric_that_rules_and_dashboard_name_was_told(watched: Watched):
    known = known_metrics()
    texts = [filled(rule["expr"]) for rule in rules()] + list(dashboard_expressions(DASHBOARD))
    named = (
        {name for text in texts for name in metrics_in(text, known)} - NEEDS_A_GPU - NEEDS_AN_AUTOSCALER - {"ALERTS"}
    )
    lacking = {name for name in named if not watched.ask(f"last_over_time({name}[1h])")}
    assert lacking == set()
    for name in OURS:  # the labels by which the rules join
        for series in watched.ask(f"last_over_time({name}[1h])"):
            assert series["metric"]["suite"] == "watched"
            assert series["metric"]["SessionName"].startswith("session_")
    assert all("ip" in series["metric"] for series in watched.ask("last_over_time(ray_node_disk_free[1h])"))


def test_every_expression_can_be_evaluated(watched: Watched):
    for text in [filled(rule["expr"]) for rule in rules()] + list(dashboard_expressions(DASHBOARD)):
        watched.ask(text)


def test_what_is_told_of_the_suite_is_what_happened(watched: Watched):
    (key,) = {series["metric"]["train_key"] for series in watched.ask("ray_rnc_training_updates_total")}
    (journal,) = watched.folder.glob(f"shared/ray/watched/{key}/metrics.jsonl")
    assert watched.values("max_over_time(ray_rnc_rows[1h])") == [1]
    assert watched.values("min_over_time(ray_rnc_rows_done[1h])") == [0]
    assert watched.values("last_over_time(ray_rnc_rows_done[1h])") == [1]
    assert watched.values("max_over_time(ray_rnc_training_active[1h])") == [1]
    assert watched.values("max_over_time(ray_rnc_images_per_second[1h])")[0] > 0
    assert watched.values("min_over_time(ray_rnc_restarts_total[1h])") == [0]
    assert watched.values("max_over_time(ray_rnc_restarts_total[1h])") == [1]
    (lost,) = re.findall(r"(\d+) images are trained again", (journal.parent / "training.log").read_text())
    assert watched.values("max_over_time(ray_rnc_lost_images_total[1h])") == [float(lost)]
    assert 0 < int(lost) < 8 * 128
    (made,) = watched.values("sum(ray_rnc_training_updates_total)")
    assert made == 8 * progress(journal)[1] + int(lost) / 4


def test_nothing_of_a_suite_that_ended_is_told_any_more(watched: Watched):
    wait(60, lambda: not watched.ask("ray_rnc_rows or ray_rnc_training_active"), "silence")
    assert watched.ask('ALERTS{alertname=~"Suite.*|Training.*|Node.*|MLflow.*"}') == []


def test_an_mlflow_that_dies_is_told(watched: Watched):
    os.killpg(watched.mlflow_process.pid, signal.SIGKILL)
    wait(60, lambda: bool(watched.ask('ALERTS{alertname="MLflowDown", alertstate="firing"}')), "the alert")
    (alert,) = requests.get(f"{watched.prometheus}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
    assert alert["annotations"]["summary"] == "MLflow does not answer Prometheus"
