"""What `rnc doctor` asks of services: MLflow with and without a key, Ray's dashboard, and who listens to the world."""

import email.utils
import os
import secrets
import socket
import tempfile
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import requests

from orchestrator.errors import UserError
from orchestrator.tracking import rest

Facts = dict[str, Any]
SECONDS = (2.0, 5.0)
OURS = {
    "gcs_server": "ray",
    "raylet": "ray",
    "dashboard": "dashboard",
    "mlflow": "mlflow",
    "weed": "s3",
    "redis-server": "redis",
    "postgres": "postgres",
}
"""Parts of command lines by which a service of ours is known."""
UNASKED = ("ray", "postgres")
"""Services that speak no language of which a question without a key is simple."""


def ask_mlflow(uri: str) -> Facts:
    """Ask the server as a training does, and then as somebody without a key."""
    found: Facts = {"uri": uri}
    try:
        rest.post(uri, "experiments/search", {"max_results": 1})
    except rest.ServerAway as error:
        return found | {"away": str(error)}
    except UserError as error:
        found["refused"] = str(error)
    begun = time.time()
    with rest.session(uri) as http:
        health = http.get(f"{uri.rstrip('/')}/health", timeout=SECONDS)
        version = http.get(f"{uri.rstrip('/')}/version", timeout=SECONDS)
    ended = time.time()
    if date := health.headers.get("Date"):
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
        found["skew"] = max(0.0, begun - 1.0 - theirs, theirs - ended)  # it tells whole seconds
    if version.ok and len(version.text) < 20:
        found["version"] = version.text.strip()
    return found | {"open": _mlflow_is_open(uri)}


def write_mlflow(uri: str) -> Facts:
    """Write, read and delete a run with a file, in an experiment of its own that goes with it."""
    from orchestrator.tracking import artifacts

    name = f"retinanet-conf/doctor-{secrets.token_hex(4)}"
    begun = time.perf_counter()
    try:
        experiment = str(rest.post(uri, "experiments/create", {"name": name})["experiment_id"])
    except UserError as error:
        return {"error": str(error)}
    try:
        created = rest.post(uri, "runs/create", {"experiment_id": experiment, "start_time": int(time.time() * 1000)})
        run = str(created["run"]["info"]["run_id"])
        rest.post(uri, "runs/log-metric", {"run_id": run, "key": "doctor", "value": 1.0, "timestamp": 1, "step": 0})
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "doctor.txt").write_text(name)
            artifacts.upload(uri, run, [Path(folder) / "doctor.txt"])
            (Path(folder) / "back").mkdir()
            back = artifacts.download(uri, run, "doctor.txt", Path(folder) / "back").read_text()
        artifacts.delete(uri, run, "doctor.txt")
        if back != name:
            return {"error": f"the file of run {run} came back with other content"}
    except (UserError, OSError) as error:
        return {"error": str(error)}
    finally:
        with suppress(UserError):
            rest.post(uri, "experiments/delete", {"experiment_id": experiment})
    return {"seconds": time.perf_counter() - begun}


def _mlflow_is_open(uri: str) -> bool:
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    answer = _ask("POST", url, json={"max_results": 1})
    return answer is not None and answer.status_code == 200 and answer.text.lstrip().startswith("{")


def dashboard_is_open(address: str) -> bool | None:
    """Whether Ray's dashboard takes jobs of somebody without a token; None if it does not answer.

    A dashboard tells its jobs as a list; its port for metrics answers every question with numbers.
    """
    answer = _ask("GET", f"{address.rstrip('/')}/api/jobs/")
    return None if answer is None else answer.status_code == 200 and answer.text.lstrip().startswith("[")


def _ask(method: str, url: str, **content: Any) -> requests.Response | None:
    """What an address answers to somebody without a key, past any proxy."""
    with requests.Session() as http:
        http.trust_env = False
        try:
            return http.request(method, url, timeout=SECONDS, allow_redirects=False, **content)
        except requests.RequestException:
            return None


def listeners() -> Facts:
    """Services of ours that listen beyond localhost on this machine, and whether they answer without a key."""
    found: Facts = {}
    for process in psutil.process_iter(["cmdline", "uids"]):
        if process.info["uids"] is None or process.info["uids"].real != os.getuid():
            continue
        command = " ".join(process.info["cmdline"] or [])
        service = next((service for part, service in OURS.items() if _runs(part, command)), None)
        if service is None:
            continue
        with suppress(psutil.Error):
            for one in process.net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN and is_exposed(one.laddr.ip):
                    found[f"{one.laddr.ip}:{one.laddr.port}"] = {
                        "service": service,
                        "open": answers_without_key(service, one.laddr.ip, one.laddr.port),
                    }
    return found


def _runs(part: str, command: str) -> bool:
    words = command.split()[:6]
    return any(part in Path(word).name or word.startswith(f"{part}.") for word in words)


def is_exposed(address: str) -> bool:
    """Whether others than this machine reach what listens there."""
    return not ip_address(address.partition("%")[0]).is_loopback


def answers_without_key(service: str, address: str, port: int) -> bool | None:
    """Whether a service does what somebody asks who shows no key; None if it was not asked or does not say."""
    if service in UNASKED:
        return None
    host = "127.0.0.1" if ip_address(address.partition("%")[0]).is_unspecified else address
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if service == "redis":
        return _redis_answers(host, port)
    if service == "dashboard":
        return dashboard_is_open(url)
    if service == "mlflow":
        return _mlflow_is_open(url)
    answer = _ask("GET", url)
    return answer is not None and answer.status_code == 200 and "ListAllMyBuckets" in answer.text


def _redis_answers(host: str, port: int) -> bool | None:
    try:
        with socket.create_connection((host, port), timeout=SECONDS[0]) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return None
