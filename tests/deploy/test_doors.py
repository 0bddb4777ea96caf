"""Every door of the cluster, tried from outside with the wrong key and with none; and who listens where."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import botocore
import psycopg2
import pytest
import requests
from botocore.config import Config

from tests.deploy.network import Place
from tests.deploy.stack import DRIVER, NODES, ROOT, Stack, nodes, postgres

pytestmark = pytest.mark.slow

WRONG = "the wrong key, of the right length"
LISTENING = """
import json, sys, psutil
wanted = set(map(int, sys.argv[1:]))
print(json.dumps([[one.pid, *one.laddr] for one in psutil.net_connections("tcp")
                  if one.status == psutil.CONN_LISTEN and one.pid in wanted]))
"""
EMBEDDED = """
import json, os, psutil, sys
from pathlib import Path
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.tracking.server import stop_server, tracking_server
from orchestrator.site import Site
set_ray_environment(is_local=True)
from orchestrator.cluster.connect import start_ray, stop_ray
site = Site(home=Path(sys.argv[1]))
tracking_server(site)
start_ray(site)
ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
print(json.dumps(sorted({one.laddr.ip for one in psutil.net_connections("tcp")
                         if one.status == psutil.CONN_LISTEN and one.pid in ours})))
stop_ray()
stop_server(site)
"""


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("token", "code"), [(None, 401), (WRONG, 403)])
@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/logs", "/logs/"])
def test_the_dashboard_tells_nothing_without_the_token(services: Stack, path: str, token: str | None, code: int):
    assert requests.get(services.dashboard + path, headers=bearer(token), timeout=10).status_code == code


@pytest.mark.parametrize(("token", "code"), [(None, 401), (WRONG, 403)])
def test_the_dashboard_runs_no_job_without_the_token(services: Stack, token: str | None, code: int):
    job = {"entrypoint": "id", "submission_id": "intruder"}
    sent = requests.post(f"{services.dashboard}/api/jobs/", json=job, headers=bearer(token), timeout=10)
    assert sent.status_code == code
    known = requests.get(f"{services.dashboard}/api/jobs/", headers=bearer(services.secrets.ray), timeout=10).json()
    assert "intruder" not in [one["submission_id"] for one in known]


def test_a_user_with_the_wrong_token_is_told_so(services: Stack):
    (services.folder / "doors.yaml").write_text(f"extends: {ROOT}/experiments/miniature/table1_heads.yaml\n")
    done = services.rnc("submit", "doors.yaml", RAY_AUTH_TOKEN_PATH="", RAY_AUTH_TOKEN=WRONG)
    assert (done.returncode, "wants a token, and not this one" in done.stderr) == (2, True), done.stderr


def test_no_node_joins_the_cluster_without_the_token(services: Stack):
    place, folder = services.places[DRIVER], services.folder / "intruder"
    command = [str(Path(sys.executable).parent / "ray"), "start", f"--address={services.gcs}", "--num-cpus=1"]
    command += [f"--node-ip-address={place.address}", f"--temp-dir={folder}", "--disable-usage-stats"]
    keys = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG})
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(services.folder), "RAY_TMPDIR": str(services.folder / "tmp")}
    intruders = [
        subprocess.Popen(
            place.command(command), env=plain | key, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for key in keys
    ]
    for intruder in intruders:
        out, _ = intruder.communicate(timeout=120)
        assert intruder.returncode != 0
        assert "Authentication token is missing or incorrect" in out
    assert len(nodes(services)) == len(NODES)


def mlflow(services: Stack, path: str, login: tuple[str, str] | None, **more: Any) -> requests.Response:
    url = f"{services.mlflow}/api/2.0/mlflow/{path}"
    if "params" in more:
        return requests.get(url, auth=login, timeout=10, **more)
    return requests.post(url, auth=login, timeout=10, **more)


@pytest.mark.parametrize("login", [None, ("rnc", WRONG), ("admin", WRONG), ("admin", "password1234"), ("nobody", "")])
def test_mlflow_answers_nobody_whom_it_does_not_know(services: Stack, login: tuple[str, str] | None):
    assert mlflow(services, "experiments/search", login, json={"max_results": 1}).status_code == 401
    assert mlflow(services, "users/get", login, params={"username": "admin"}).status_code == 401
    assert requests.get(f"{services.mlflow}/metrics", auth=login, timeout=10).status_code == 401
    assert requests.get(f"{services.mlflow}/", auth=login, timeout=10).status_code == 401
    assert requests.get(f"{services.mlflow}/health", auth=login, timeout=10).status_code == 200


def test_the_reader_reads_and_writes_nothing(services: Stack):
    reader, job = ("reader", services.secrets.reader), ("rnc", services.secrets.job)
    made = mlflow(services, "experiments/create", job, json={"name": "read by others"}).json()["experiment_id"]
    run = mlflow(services, "runs/create", job, json={"experiment_id": made}).json()["run"]["info"]["run_id"]
    assert mlflow(services, "runs/get", reader, params={"run_id": run}).status_code == 200
    assert mlflow(services, "runs/search", reader, json={"experiment_ids": [made]}).json()["runs"]
    assert requests.get(f"{services.mlflow}/metrics", auth=reader, timeout=10).status_code == 200
    writes = {
        "experiments/create": {"name": "of the reader"},
        "registered-models/create": {"name": "of the reader"},
        "runs/create": {"experiment_id": made},
        "runs/log-metric": {"run_id": run, "key": "AP", "value": 100, "timestamp": 0},
        "runs/set-tag": {"run_id": run, "key": "mlflow.note.content", "value": "fine"},
        "runs/delete": {"run_id": run},
        "experiments/delete": {"experiment_id": made},
    }
    for path, content in writes.items():
        assert mlflow(services, path, reader, json=content).status_code == 403, path
    artifact = f"{services.mlflow}/api/2.0/mlflow-artifacts/artifacts/{made}/{run}/artifacts/x"
    assert requests.put(artifact, data=b"x", auth=reader, timeout=10).status_code == 403
    assert requests.put(artifact, data=b"x", auth=job, timeout=10).status_code == 200
    assert requests.get(artifact, auth=reader, timeout=10).content == b"x"


def test_the_job_writes_only_what_it_created(services: Stack):
    admin, job = ("admin", services.secrets.admin), ("rnc", services.secrets.job)
    made = mlflow(services, "experiments/create", admin, json={"name": "of the admin"}).json()["experiment_id"]
    run = mlflow(services, "runs/create", admin, json={"experiment_id": made}).json()["run"]["info"]["run_id"]
    assert mlflow(services, "runs/get", job, params={"run_id": run}).status_code == 200
    for path, content in {
        "runs/create": {"experiment_id": made},
        "runs/set-tag": {"run_id": run, "key": "a", "value": "b"},
        "runs/delete": {"run_id": run},
        "experiments/set-experiment-tag": {"experiment_id": made, "key": "a", "value": "b"},
        "users/create": {"username": "another", "password": WRONG},
    }.items():
        assert mlflow(services, path, job, json=content).status_code == 403, path


def test_mlflow_listens_to_its_own_names_and_sends_nobody_to_the_object_store(services: Stack):
    job = ("rnc", services.secrets.job)
    for host in ("evil.example", "localhost.evil.example"):
        answer = requests.get(f"{services.mlflow}/", auth=job, headers={"Host": host}, timeout=10)
        assert (answer.status_code, "Invalid Host header" in answer.text) == (403, True)
    foreign = {"Origin": "http://evil.example"}
    assert mlflow(services, "experiments/create", job, json={"name": "x"}, headers=foreign).status_code == 403
    told = requests.get(f"{services.mlflow}/api/3.0/mlflow/server-info", timeout=10).json()
    assert not told["multipart_downloads_enabled"] and not told["multipart_uploads_enabled"]


def s3(services: Stack, key: str | None, secret: str | None) -> Any:
    config = Config(retries={"total_max_attempts": 1}, signature_version=None if key else botocore.UNSIGNED)
    more = {"aws_access_key_id": key, "aws_secret_access_key": secret} if key else {}
    return boto3.client("s3", endpoint_url=services.s3, region_name="us-east-1", config=config, **more)


@pytest.mark.parametrize("key", ["none", "wrong secret", "wrong id"])
def test_s3_opens_with_no_other_key(services: Stack, key: str):
    ours = services.secrets
    pair = {"none": (None, None), "wrong secret": (ours.s3_id, WRONG), "wrong id": ("another", ours.s3)}[key]
    client = s3(services, *pair)
    for call in (
        lambda: client.list_objects_v2(Bucket="mlflow"),
        lambda: client.put_object(Bucket="mlflow", Key="x", Body=b"x"),
        client.list_buckets,
    ):
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            call()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert s3(services, ours.s3_id, ours.s3).list_buckets()["Buckets"][0]["Name"] == "mlflow"


def test_the_filer_behind_s3_opens_to_nobody(services: Stack):
    log = (services.processes.folder / "seaweed.log").read_text()
    filer = next(line.split()[-1] for line in log.splitlines() if "Filer UI:" in line)
    for method, path in (("GET", "/buckets/"), ("GET", "/etc/"), ("PUT", "/buckets/mlflow/x"), ("DELETE", "/buckets/")):
        assert requests.request(method, filer + path, timeout=10).status_code == 401, (method, path)


@pytest.mark.parametrize("user", ["postgres", "mlflow", "nobody"])
@pytest.mark.parametrize("password", ["", WRONG])
def test_postgresql_takes_only_passwords(services: Stack, user: str, password: str):
    with pytest.raises(psycopg2.OperationalError, match=r"authentication failed|no password supplied"):
        postgres(services, user, password)


def test_postgresql_trusts_nobody_and_gives_mlflow_no_more_than_it_needs(services: Stack):
    administrator = postgres(services, "postgres", services.secrets.postgres_admin, "postgres")
    with administrator, administrator.cursor() as cursor:
        cursor.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
        assert cursor.fetchall() == [("scram-sha-256",)]
        cursor.execute("SELECT rolsuper, rolcreaterole, rolreplication FROM pg_roles WHERE rolname = 'mlflow'")
        assert cursor.fetchone() == (False, False, False)
    administrator.close()


def listening(services: Stack, name: str, place: Place) -> set[str]:
    """The addresses on which a process and all below it listen."""
    pids = map(str, services.processes.pids(name))
    done = subprocess.run(
        place.command([sys.executable, "-c", LISTENING, *pids]), capture_output=True, text=True, check=True
    )
    return {str(address).removeprefix("::ffff:") for _, address, _ in json.loads(done.stdout)}


def test_stores_listen_on_localhost_and_mlflow_where_it_was_asked_to(services: Stack):
    host = services.places["host"]
    here = Place("127.0.0.1")
    assert listening(services, "postgres", here) == {"127.0.0.1"}
    assert listening(services, "seaweed", here) == {"127.0.0.1"}
    assert listening(services, "mlflow", here) == {host.address}


def test_nobody_reaches_the_stores_from_another_machine(services: Stack):
    if not services.has_namespaces:
        pytest.skip("this machine gives its processes no network of their own")
    for name in (DRIVER, "worker1"):
        for port in (services.postgres_port, int(services.s3.rpartition(":")[2])):
            code = f"import socket; socket.create_connection(('{services.places['host'].address}', {port}), 3)"
            done = subprocess.run(
                services.places[name].command([sys.executable, "-c", code]), capture_output=True, text=True, check=False
            )
            assert "ConnectionRefusedError" in done.stderr, (name, port)


def test_the_ports_of_ray_that_listen_everywhere_want_the_token_or_a_firewall(services: Stack):
    """The GCS, the raylets and their object managers bind all addresses of a node; no setting of Ray 2.60 binds fewer.

    They speak gRPC, which wants the token. The metrics for Prometheus want none: only a firewall or a NetworkPolicy
    keeps those ports to the nodes themselves. Here each node is a network namespace, so that nothing gets out of it.
    """
    if not services.has_namespaces:
        pytest.skip("this machine gives its processes no network of their own")
    for name in NODES:
        place = services.places[name]
        assert listening(services, name, place) <= {place.address, "127.0.0.1", "0.0.0.0", "::"}
        assert not listening(services, name, Place("127.0.0.1"))
    port = services.dashboard.rpartition(":")[2]
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"
    inside = services.places["head"].command([sys.executable, "-c", code])
    assert subprocess.run(inside, capture_output=True, check=False).returncode != 0  # only where it was asked to


def test_without_a_cluster_everything_listens_on_localhost(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {address.removeprefix("::ffff:") for address in json.loads(done.stdout)} == {"127.0.0.1"}
