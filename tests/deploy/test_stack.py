"""A table on the real parts of a cluster: sent from elsewhere, trained over two nodes, kept in PostgreSQL and S3."""

import json
import re
from typing import Any

import boto3
import pytest
import requests

from tests.deploy.conftest import Submitted
from tests.deploy.stack import NODES, Stack, nodes, postgres

pytestmark = pytest.mark.slow


def rows(text: str) -> list[dict[str, Any]]:
    """The rows of the only table in what rnc printed as JSON."""
    (table,) = json.loads(text[text.index("[{") :])
    found: list[dict[str, Any]] = table["rows"]
    return found


def s3_files(services: Stack) -> dict[str, int]:
    """The bytes of each file in the bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=services.s3,
        aws_access_key_id=services.secrets.s3_id,
        aws_secret_access_key=services.secrets.s3,
        region_name="us-east-1",
    )
    return {one["Key"]: one["Size"] for one in client.list_objects_v2(Bucket="mlflow")["Contents"]}


def jobs(services: Stack) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {services.secrets.ray}"}
    found: list[dict[str, Any]] = requests.get(f"{services.dashboard}/api/jobs/", headers=headers, timeout=10).json()
    return found


def test_the_cluster_has_a_head_without_cpus_and_two_workers(services: Stack):
    found = nodes(services)
    assert {node["is_head_node"]: node["resources_total"].get("CPU", 0) for node in found} == {True: 0, False: 2}
    assert len(found) == len(NODES)
    if services.has_namespaces:
        assert {node["node_ip"] for node in found} == {services.places[name].address for name in NODES}


def test_a_submitted_table_ends_with_its_numbers_and_trained_on_both_nodes(submitted: Submitted):
    assert re.search(r"Job rnc-stack-\d+ is submitted", submitted.err)
    assert "2 of 2 evaluations" in submitted.out
    assert [row["row"] for row in rows(submitted.out)] == [f"RetinaNet-Conf, alpha {e}" for e in ("0.0", "0.4")]
    assert "was not registered" not in submitted.out
    assert "registered model retinanet-conf-stack version 1, alias best" in submitted.out
    worked = {
        name
        for name in NODES
        for log in (submitted.stack.folder / name).glob("session_2*/logs/worker-*.err")
        if "RayTrainWorker" in log.read_text(errors="replace")
    }
    assert worked == {"worker1", "worker2"}


def test_report_pull_and_evaluate_find_the_same_numbers_from_elsewhere(submitted: Submitted):
    services = submitted.stack
    told = services.rnc("report", "table.yaml", "--format", "json")
    assert rows(told.stdout) == rows(submitted.out), told.stderr
    pulled = services.rnc("pull", "RetinaNet-Conf, alpha 0.4", "--table", "table", "--output", "pulled")
    assert pulled.returncode == 0, pulled.stderr
    data = str(services.folder / "shared" / "data" / "shapes")
    scored = services.rnc("evaluate", "pulled", "--data", data, "--split", "val", "--format", "json")
    assert scored.returncode == 0, scored.stderr
    evaluated = json.loads(scored.stdout)
    assert "Equal to MLflow's numbers, to the last digit." in evaluated["notes"]
    assert evaluated["rows"][0]["AP"] == rows(told.stdout)[1]["AP"]


def test_metrics_are_in_postgresql_and_checkpoints_in_s3(submitted: Submitted):
    services = submitted.stack
    with postgres(services, "mlflow", services.secrets.postgres) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT key, max(value) FROM metrics JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id) "
            "WHERE experiments.name = 'retinanet-conf/stack' GROUP BY key"
        )
        metrics = dict(cursor.fetchall())
    assert {"train/loss", "val/AP", "AP"} <= metrics.keys()
    best = max(row["AP"] for row in rows(submitted.out))
    assert metrics["AP"] == pytest.approx(best, abs=0.05)
    weights = {key: size for key, size in s3_files(services).items() if key.endswith("model.safetensors")}
    assert weights and all(key.startswith("artifacts/") and size > 100_000 for key, size in weights.items())


def test_a_second_submit_does_nothing(submitted: Submitted):
    before = s3_files(submitted.stack)
    again = submitted.stack.rnc("submit", "table.yaml", "--format", "json")
    assert again.returncode == 0, again.stderr
    assert "Nothing is missing: 1 trainings and 2 evaluations stand." in again.stdout
    assert rows(again.stdout) == rows(submitted.out)
    assert s3_files(submitted.stack) == before
    ended = {job["submission_id"]: job["status"] for job in jobs(submitted.stack)}
    assert {"rnc-stack-1": "SUCCEEDED", "rnc-stack-2": "SUCCEEDED"}.items() <= ended.items()
