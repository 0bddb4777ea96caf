"""No secret gets out: into no log, file, database, artifact or command line, and not into what Ray tells of jobs."""

import base64
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import requests

from tests.deploy.conftest import Submitted
from tests.deploy.leaks import command_lines, leaks_below, leaks_in
from tests.deploy.planted import new_secrets
from tests.deploy.stack import Stack, postgres

pytestmark = pytest.mark.slow


def kept_in(services: Stack) -> list[Path]:
    """The files that are there to hold a secret, and that nobody else can read."""
    kept = [services.folder / "ray-auth-token", services.folder / "postgres" / "password"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in kept)
    return kept


def test_no_file_of_the_stack_holds_a_secret(submitted: Submitted):
    services = submitted.stack
    files = {file.name for file in services.folder.rglob("*") if file.is_file()}
    assert {
        "driver.log",
        "mlflow.log",
        "postgres.log",
        "seaweed.log",
        "head.log",
        "raylet.out",
        "gcs_server.out",
    } <= files
    assert {"job-driver-rnc-stack-1.log", "training.jsonl", "dashboard_JobHead.log", "auth.ini"} <= files
    assert leaks_below(services.folder, services.secrets.values(), kept_in(services)) == []


def test_no_command_line_holds_a_secret(submitted: Submitted):
    seen = b"\n".join(submitted.command_lines)
    assert b"serve.py" in seen and b"orchestrator.cli.main" in seen and b"ray::RayTrainWorker" in seen
    assert leaks_in(seen, submitted.stack.secrets.values()) == []


def test_ray_tells_no_secret_of_its_jobs(submitted: Submitted):
    services = submitted.stack
    headers = {"Authorization": f"Bearer {services.secrets.ray}"}
    for path in ("/api/jobs/", "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1", "/api/v0/runtime_envs?detail=1"):
        answer = requests.get(services.dashboard + path, headers=headers, timeout=20)
        assert answer.status_code == 200, path
        assert path != "/api/jobs/" or "MLFLOW_TRACKING_URI" in answer.text
        assert leaks_in(answer.content, services.secrets.values()) == [], path


def told_by_mlflow(services: Stack) -> bytes:
    """Every row of MLflow's tables, and every artifact as it comes out of the store."""
    texts = []
    with postgres(services, "mlflow", services.secrets.postgres) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" AS t')
            texts += [row for (row,) in cursor.fetchall()]
    connection.close()
    ours = services.secrets
    client = boto3.client(
        "s3",
        endpoint_url=services.s3,
        aws_access_key_id=ours.s3_id,
        aws_secret_access_key=ours.s3,
        region_name="us-east-1",
    )
    contents = [
        client.get_object(Bucket="mlflow", Key=one["Key"])["Body"].read()
        for one in client.list_objects_v2(Bucket="mlflow")["Contents"]
    ]
    return b"\n".join(["\n".join(texts).encode(), *contents])


def test_no_tag_parameter_or_artifact_of_mlflow_holds_a_secret(submitted: Submitted):
    told = told_by_mlflow(submitted.stack)
    assert b"train_key" in told and b"PAR1" in told
    assert leaks_in(told, submitted.stack.secrets.values()) == []


def test_a_secret_in_a_tag_or_an_artifact_would_be_found(submitted: Submitted):
    services, planted = submitted.stack, new_secrets()
    job = ("rnc", services.secrets.job)
    api = f"{services.mlflow}/api/2.0"
    made = requests.post(f"{api}/mlflow/experiments/create", json={"name": planted.flask[:9]}, auth=job, timeout=10)
    place = made.json()["experiment_id"]
    tag = {"experiment_id": place, "key": "note", "value": f"the token is {planted.ray}."}
    requests.post(f"{api}/mlflow/experiments/set-experiment-tag", json=tag, auth=job, timeout=10).raise_for_status()
    run = requests.post(f"{api}/mlflow/runs/create", json={"experiment_id": place}, auth=job, timeout=10).json()
    file = f"{api}/mlflow-artifacts/artifacts/{place}/{run['run']['info']['run_id']}/artifacts/notes.txt"
    requests.put(file, data=f"{planted.s3}\n" * 50, auth=job, timeout=10).raise_for_status()
    assert leaks_in(told_by_mlflow(services), planted.values()) == ["ray", "s3"]


@pytest.mark.parametrize(
    "written",
    [
        "{}",
        "postgresql://mlflow:{}@db/mlflow",
        "Authorization: Basic <base64>",
        "x<base64>",
        "xx<base64>",
    ],
)
def test_a_secret_in_a_file_would_be_found_however_it_is_written(tmp_path: Path, written: str):
    planted = new_secrets()
    encoded = base64.b64encode(("u" * written.count("x") + "rnc:" + planted.job).encode()).decode()
    (tmp_path / "session" / "logs").mkdir(parents=True)
    file = tmp_path / "session" / "logs" / "worker.out"
    file.write_text(f"before {written.format(planted.job).replace('<base64>', encoded)} after")
    assert leaks_below(tmp_path, planted.values()) == [f"{file}: job"]
    assert leaks_below(tmp_path, planted.values(), [file]) == []
    assert leaks_below(tmp_path, new_secrets().values()) == []


def test_a_secret_on_a_command_line_would_be_found():
    planted = new_secrets()
    process = subprocess.Popen([sys.executable, "-c", "input()", f"--password={planted.admin}"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while not (found := leaks_in(b"\n".join(command_lines()), planted.values())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found == ["admin"]
    finally:
        process.kill()
        process.communicate()
