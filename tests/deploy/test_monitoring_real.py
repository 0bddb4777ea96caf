"""A real Prometheus that watches the whole cluster, and a suite on it whose training is killed once."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from orchestrator.tracking.recorder import read_journal
from orchestrator.worker.training_log import Again, Epoch, Start, read_log
from tests.deploy.programs import program
from tests.deploy.promql import MONITORING, dashboard_expressions, filled, metrics_in, rules
from tests.deploy.stack import ROOT, Stack
from tests.deploy.test_monitoring import DASHBOARD, OURS, change, known_metrics

pytestmark = pytest.mark.slow

EPOCHS = 6
BATCH = 4
EXPERIMENT = f"""
suite: watched
extends: {ROOT}/experiments/miniature/table1_heads.yaml
only: [RetinaNet]
seeds: [0]
defaults:
  split: val
  train:
    data: {{num_train_images: 128, num_val_images: 8}}
    schedule: {{epochs: {EPOCHS}, lr_drop_epochs: [5], validate_every: {EPOCHS}}}
    global_batch: {BATCH}
"""
ABSENT_HERE = {
    "ray_node_gpus_utilization",  # no GPU
    "ray_node_gram_used",
    "ray_node_gram_available",
    "ray_cluster_idle_nodes",  # no autoscaler
    "ALERTS",  # none yet
}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What runs, and what Prometheus says of it."""

    stack: Stack
    address: str

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        answer = get(f"{self.address}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def values(self, expression: str) -> list[float]:
        """Their values."""
        return [float(series["value"][1]) for series in self.ask(expression)]

    def fires(self, alert: str) -> bool:
        """Whether an alert fires now."""
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))


def get(url: str, **more: Any) -> requests.Response:
    with requests.Session() as http:
        http.trust_env = False
        return http.get(url, timeout=30.0, **more)


def wait(seconds: float, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


@contextmanager
def prometheus(folder: Path, services: Stack) -> Iterator[str]:
    """Prometheus on our files, with the places of this cluster in them, three times as fast."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{one.getsockname()[1]}"
    config = folder / "prometheus.yml"
    config.write_text((MONITORING / "prometheus.yml").read_text())
    (folder / "password").write_text(services.secrets.reader)
    change(config, "mlflow:5000", services.mlflow.removeprefix("http://"))
    change(config, "localhost:9090", here)
    change(config, "/run/secrets/mlflow-reader-password", str(folder / "password"))
    change(config, "- /tmp/ray/prom_", f"- {services.folder}/head/prom_")
    config.write_text(re.sub(r"(scrape_|evaluation_|refresh_)interval: 15s", r"\1interval: 5s", config.read_text()))
    content = yaml.safe_load((MONITORING / "rules.yml").read_text())
    (rule,) = (rule for group in content["groups"] for rule in group["rules"] if rule["alert"] == "MLflowDown")
    rule["for"] = "5s"
    (folder / "rules.yml").write_text(yaml.safe_dump(content))
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={here}"], stdout=log, stderr=subprocess.STDOUT)

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        with suppress(requests.RequestException):
            return get(f"http://{here}/-/ready").status_code == 200
        return False

    try:
        wait(60, is_ready, "Prometheus")
        yield f"http://{here}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def watched(services: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), services) as address:
        submit_and_kill_once(services)
        yield Watched(stack=services, address=address)


def submit_and_kill_once(services: Stack) -> None:
    """Run the suite as a job, and kill its training between two checkpoints."""
    (services.folder / "watched.yaml").write_text(EXPERIMENT)
    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(services.rnc, "submit", "watched.yaml")
        pids: list[int] = []

        def is_between_checkpoints() -> bool:
            assert not submitting.done(), "the suite has ended, and nothing was killed"
            for journal in storage(services).glob("*/metrics.jsonl"):
                events = [entry.event for entry in read_log(journal.parent)]
                if any(isinstance(event, Epoch) and event.epoch == 2 for event in events):
                    step, epoch_length = progress(journal)
                    if step % epoch_length >= 20:
                        pids.append([event.process for event in events if isinstance(event, Start)][-1])
            return bool(pids)

        wait(300, is_between_checkpoints, "updates after a checkpoint")
        os.kill(pids[0], signal.SIGKILL)
        done = submitting.result()
    assert done.returncode == 0, done.stdout + done.stderr


def storage(services: Stack) -> Path:
    return services.folder / "shared" / "ray" / "watched"


def progress(journal: Path) -> tuple[int, int]:
    """The last update that a journal holds, and the updates of an epoch."""
    epochs = [m for line in read_journal(journal)[0] for m in line if m.name == "train/epoch"]
    return max(metric.step for metric in epochs), round(epochs[0].step / epochs[0].value)


def test_prometheus_reaches_every_node_mlflow_and_itself(watched: Watched):
    nodes = json.loads((watched.stack.folder / "head" / "prom_metrics_service_discovery.json").read_text())
    ray = [node for node in nodes[0]["targets"] if not node.endswith((":44217", ":44227"))]
    expected = {*ray, watched.stack.mlflow.removeprefix("http://"), watched.address.removeprefix("http://")}
    wait(60, lambda: {s["metric"]["instance"] for s in watched.ask("up == 1")} == expected, "all are up")
    assert len(ray) == 3


def test_the_readers_password_opens_mlflows_metrics_and_nothing_else_does(watched: Watched):
    for auth, code in ((None, 401), (("reader", "a wrong password"), 401)):
        assert get(f"{watched.stack.mlflow}/metrics", auth=auth).status_code == code
    assert get(f"{watched.stack.mlflow}/metrics", auth=("reader", watched.stack.secrets.reader)).status_code == 200


def test_every_metric_that_rules_and_dashboard_name_was_told(watched: Watched):
    known = known_metrics()
    texts = [filled(rule["expr"]) for rule in rules()] + list(dashboard_expressions(DASHBOARD))
    named = {name for text in texts for name in metrics_in(text, known)} - ABSENT_HERE
    lacking = {name for name in named if not watched.ask(f"last_over_time({name}[1h])")}
    assert lacking == set()
    for name in OURS:  # the labels by which the rules join
        for series in watched.ask(f'last_over_time({name}{{suite="watched"}}[1h])'):
            assert series["metric"]["SessionName"].startswith("session_")
    assert all("ip" in series["metric"] for series in watched.ask("last_over_time(ray_node_disk_free[1h])"))


def test_every_expression_can_be_evaluated(watched: Watched):
    for text in [filled(rule["expr"]) for rule in rules()] + list(dashboard_expressions(DASHBOARD)):
        watched.ask(text)


def test_what_is_told_of_the_suite_is_what_happened(watched: Watched):
    (journal,) = storage(watched.stack).glob("*/metrics.jsonl")

    def told(what: str, name: str) -> list[float]:
        return watched.values(f'{what}_over_time(ray_{name}{{suite="watched"}}[1h])')

    assert told("max", "rnc_rows") == [1]
    assert (told("min", "rnc_rows_done"), told("last", "rnc_rows_done")) == ([0], [1])
    assert (told("min", "rnc_training_active"), told("max", "rnc_training_active")) == ([0], [1])
    assert told("max", "rnc_images_per_second")[0] > 0
    assert (told("min", "rnc_restarts_total"), told("max", "rnc_restarts_total")) == ([0], [1])
    (lost,) = (entry.event.num_images for entry in read_log(journal.parent) if isinstance(entry.event, Again))
    assert told("max", "rnc_lost_images_total") == [float(lost)]
    epoch_length = progress(journal)[1]
    assert 0 < lost < BATCH * epoch_length
    made = told("last", "rnc_training_updates_total")  # of both workers; the first was killed, up to 10 s untold
    assert (EPOCHS - 2) * epoch_length in made
    assert sum(made) <= EPOCHS * epoch_length + lost / BATCH


def test_nothing_of_a_suite_that_ended_is_told_any_more_and_nothing_alarms(watched: Watched):
    wait(90, lambda: not watched.ask('{__name__=~"ray_rnc_(rows|training_active)", suite="watched"}'), "silence")
    assert watched.ask('ALERTS{alertname=~"Suite.*|Training.*|Node.*", alertstate="firing"}') == []


def test_an_mlflow_that_hangs_alarms_until_it_answers_again(watched: Watched):
    pids = watched.stack.processes.pids("mlflow")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait(90, lambda: watched.fires("MLflowDown"), "the alert")
        (alert,) = (
            alert
            for alert in get(f"{watched.address}/api/v1/alerts").json()["data"]["alerts"]
            if alert["labels"]["alertname"] == "MLflowDown"
        )
        assert alert["annotations"]["summary"] == "MLflow does not answer Prometheus"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait(90, lambda: not watched.fires("MLflowDown"), "the end of the alert")
