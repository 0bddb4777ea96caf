"""What `rnc doctor` sees of small servers that answer as MLflow, Ray and others do, and how it judges services."""

import email.utils
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator.doctor import services
from orchestrator.doctor.services import answers_without_key, ask_mlflow, is_exposed, judge_skew, write_mlflow

Answer = Callable[[str, bool], tuple[int, str]]
"""From path and whether a key was shown to status and text."""
SKEW = 100.0


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Yield the address of a server whose clock is behind."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = answer(self.path, "Authorization" in self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def date_time_string(self, timestamp: float | None = None) -> str:
            return email.utils.formatdate(time.time() - SKEW, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def mlflow_like(*, needs_key: bool) -> Answer:
    def answer(path: str, has_key: bool) -> tuple[int, str]:
        if path == "/health":
            return 200, "OK"
        if needs_key and not has_key:
            return 401, "no"
        return 200, "3.5.0" if path == "/version" else "{}"

    return answer


def test_an_mlflow_without_passwords_is_seen_to_be_open_with_its_version_and_clock():
    with serving(mlflow_like(needs_key=False)) as uri:
        found = ask_mlflow(uri)
    assert (found["open"], found["version"], "refused" in found) == (True, "3.5.0", False)
    assert SKEW - 3.0 < found["skew"] < SKEW + 3.0


def test_an_mlflow_with_passwords_refuses_who_has_none(monkeypatch: pytest.MonkeyPatch):
    with serving(mlflow_like(needs_key=True)) as uri:
        assert "refused" in ask_mlflow(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "rnc")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "any")
        found = ask_mlflow(uri)
    assert (found["open"], "refused" in found) == (False, False)


def test_an_mlflow_that_is_not_there_is_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.tracking.rest.PAUSES", ())
    assert "does not answer" in ask_mlflow("http://127.0.0.1:1")["away"]


def test_a_run_with_a_file_is_written_and_its_experiment_taken_away(mlflow_uri: str):
    assert set(write_mlflow(mlflow_uri)) == {"seconds"}
    asked: dict[str, Any] = {"max_results": 100, "filter": "name LIKE 'retinanet-conf/doctor-%'"}
    left = requests.post(f"{mlflow_uri}/api/2.0/mlflow/experiments/search", json=asked, timeout=10).json()
    assert left == {}


@pytest.mark.parametrize(
    ("service", "status", "text", "is_open"),
    [
        ("dashboard", 200, "[]", True),
        ("dashboard", 401, "", False),
        ("dashboard", 200, "# HELP a metric", False),
        ("mlflow", 200, "{}", True),
        ("mlflow", 403, "{}", False),
        ("s3", 200, "<ListAllMyBucketsResult/>", True),
        ("s3", 403, "<Error/>", False),
        ("postgres", 200, "", None),
    ],
)
def test_a_service_is_open_if_it_does_its_work_for_who_has_no_key(
    service: str, status: int, text: str, is_open: bool | None
):
    with serving(lambda path, has_key: (status, text)) as uri:
        port = int(uri.rpartition(":")[2])
        assert answers_without_key(service, "0.0.0.0", port) is is_open


def test_who_listens_on_localhost_is_not_exposed():
    assert [is_exposed(address) for address in ("127.0.0.1", "127.0.0.3", "::1")] == [False] * 3
    assert [is_exposed(address) for address in ("0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0")] == [True] * 4


def test_a_service_of_ours_that_listens_to_the_world_is_found(tmp_path: Path):
    (tmp_path / "mlflow").write_text(
        "import http.server\nserver = http.server.HTTPServer(('', 0), http.server.SimpleHTTPRequestHandler)\n"
        "print(server.server_address[1], flush=True)\nserver.serve_forever()\n"
    )
    process = subprocess.Popen([sys.executable, str(tmp_path / "mlflow")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert services.listeners()[f"0.0.0.0:{port}"] == {"service": "mlflow", "open": False}
    finally:
        process.kill()
        process.communicate()


def test_a_clock_is_yellow_from_two_seconds_and_red_from_a_minute():
    assert [judge_skew("clock", "a", skew).level for skew in (0.0, 2.0, 2.1, 60.1)] == ["ok", "ok", "warn", "fail"]


def test_an_mlflow_that_anybody_may_write_to_is_red_unless_it_is_on_this_machine():
    assert services.judge_mlflow_key("http://mlflow:5000", False).level == "ok"
    assert services.judge_mlflow_key("http://mlflow:5000", True).level == "fail"
    assert services.judge_mlflow_key("http://127.0.0.1:5000", True).level == "warn"
    assert services.judge_mlflow_written("http://mlflow:5000", {"error": "403"}).level == "fail"
    assert services.judge_mlflow_written("http://mlflow:5000", {"seconds": 0.5}).level == "ok"


def test_several_nodes_need_an_mlflow_that_all_of_them_reach():
    assert services.judge_embedded(None, "runs/mlflow", 1).level == "ok"
    assert services.judge_embedded(None, "runs/mlflow", 2).level == "fail"
