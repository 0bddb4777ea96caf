"""Checks of services: MLflow with and without a password, clocks, Ray's dashboard, and ports open to the network."""

import email.utils
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

from orchestrator.doctor.finding import DRIVER, EVERYWHERE, Finding, Level, finding
from orchestrator.doctor.versions import SAFE, meets
from orchestrator.errors import UserError
from orchestrator.names import experiment_name
from orchestrator.tracking import artifacts, rest, runs

Facts = Mapping[str, Any]
SECONDS = (2.0, 5.0)
"""To connect, and to wait for each part of an answer."""
MOST_SKEW, WANTED_SKEW = 60.0, 2.0
"""Seconds between two clocks."""
OURS = {
    "gcs_server": "ray",
    "raylet": "ray",
    "dashboard": "dashboard",
    "mlflow": "mlflow",
    "weed": "s3",
    "redis-server": "redis",
    "postgres": "postgres",
}
"""Names in a command line by which a service is recognised, and the kind of service."""
UNASKED = ("ray", "postgres")
"""Services that are listed but not tried without a key, as their protocols make no such request simple."""


def ask_mlflow(uri: str) -> Facts:
    """Ask the server as a training does, and then as somebody without a key."""
    found: dict[str, Any] = {"uri": uri}
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
    if version.ok and len(version.text) < 20:  # a proxy may answer with a page
        found["version"] = version.text.strip()
    return found | {"open": _mlflow_is_open(uri)}


def judge_mlflow(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether the server answers, takes this machine's password, and has no known vulnerabilities."""
    if not facts:
        return
    if problem := facts.get("away"):
        way_out = "start the server, correct MLFLOW_TRACKING_URI, or open the way to it for this machine"
        yield finding("mlflow", where, "fail", problem, way_out)
        return
    if problem := facts.get("refused"):
        way_out = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here as the server knows them"
        yield finding("mlflow", where, "fail", problem, way_out)
    else:
        yield finding("mlflow", where, "ok", f"{facts['uri']} answers")
    bounds = SAFE["mlflow"]
    if facts.get("version") and not meets(facts["version"], bounds):
        seen = f"the server is MLflow {facts['version']}, not {bounds}; older ones may have known vulnerabilities"
        yield finding("mlflow version", where, "fail", seen, "update the server; back up its database before")
    if "skew" in facts:
        yield judge_skew("clock of MLflow", where, facts["skew"])


def judge_skew(check: str, where: str, skew: float) -> Finding:
    """Judge whether two clocks agree: signatures, tokens and heartbeats carry times."""
    level: Level = "fail" if skew > MOST_SKEW else "warn" if skew > WANTED_SKEW else "ok"
    return finding(check, where, level, f"{skew:.1f} s off", "run an NTP client (chrony) on all machines")


def write_mlflow(uri: str) -> Facts:
    """Write, read and delete a run with a file, in an experiment of its own that goes with it."""
    name = experiment_name(f"doctor-{secrets.token_hex(4)}")
    begun = time.perf_counter()
    try:
        experiment = str(rest.post(uri, "experiments/create", {"name": name})["experiment_id"])
    except UserError as error:
        return {"error": str(error)}
    try:
        run = runs.create_run(uri, experiment, "doctor", {})
        runs.write(uri, run, metrics={"doctor": 1.0})
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


def judge_mlflow_written(uri: str, written: Facts) -> Finding:
    """Judge whether a run and a file could be stored and read back."""
    if problem := written.get("error"):
        way_out = "give this user the right to create experiments, and see that the server reaches its artifact store"
        return finding("mlflow writes", DRIVER, "fail", problem, way_out)
    seen = f"a run with a file was written, read and deleted in {written['seconds']:.1f} s at {uri}"
    return finding("mlflow writes", DRIVER, "ok", seen)


def judge_mlflow_key(uri: str, is_open: bool) -> Finding:
    """Judge whether the server wants a password, which matters less where only this machine reaches it."""
    if not is_open:
        return finding("mlflow key", EVERYWHERE, "ok", "who has no password is turned away")
    is_local = urlsplit(uri).hostname in ("127.0.0.1", "localhost", "::1")
    level: Level = "warn" if is_local else "fail"
    seen = f"{uri} takes everything from anybody {'on this machine' if is_local else 'who reaches it'}"
    return finding(
        "mlflow key", EVERYWHERE, level, seen, "start it with --app-name basic-auth, and a password for every user"
    )


def judge_embedded(uri: str | None, folder: str, num_nodes: int) -> Finding:
    """Judge the server of our own, which records where none is named, and which other machines do not reach."""
    if num_nodes > 1:
        seen = f"none is named, and one of our own would listen on localhost, which {num_nodes} nodes do not share"
        way_out = "set MLFLOW_TRACKING_URI to a server that all nodes reach"
        return finding("mlflow", EVERYWHERE, "fail", seen, way_out)
    state = f"runs at {uri}" if uri else "is started by the first submit"
    return finding("mlflow", DRIVER, "ok", f"one of our own, in {folder}, {state}")


def listeners() -> Facts:
    """Services of ours that listen beyond localhost on this machine, and whether they answer without a key."""
    found: dict[str, Facts] = {}
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
    words = command.split()[:6]  # the program, behind an interpreter and its options; what follows may name anything
    # With a dot, since MLflow's server runs as `uvicorn mlflow.server.fastapi_app:app`.
    return any(part in Path(word).name or word.startswith(f"{part}.") for word in words)


def judge_listeners(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether services that listen beyond localhost ask for a key."""
    open_ones = [f"{one['service']} on {address}" for address, one in facts.items() if one["open"]]
    if open_ones:
        way_out = "switch its password or token on, or let it listen on 127.0.0.1; then see who has used it already"
        yield finding("ports", where, "fail", f"open to the world without a key: {', '.join(open_ones)}", way_out)
        return
    kinds = sorted({one["service"] for one in facts.values()})
    seen = f"beyond localhost: {', '.join(kinds)}; none of those that were asked works without a key"
    yield finding("ports", where, "ok", seen if kinds else "nothing of ours listens beyond localhost")


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
        # Or requests would add a password from ~/.netrc, and ask by way of a proxy.
        http.trust_env = False
        try:
            return http.request(method, url, timeout=SECONDS, allow_redirects=False, **content)
        except requests.RequestException:
            return None
