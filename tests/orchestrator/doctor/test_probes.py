"""What `rnc doctor` sees of real folders, and of small servers that answer as MLflow, Ray and others do."""

import email.utils
import hashlib
import json
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
from click.testing import CliRunner

from orchestrator.cli.main import cli
from orchestrator.doctor import probes
from orchestrator.doctor import services as probe_services
from orchestrator.doctor.machine import Finding
from orchestrator.doctor.services import answers_without_key, ask_mlflow, is_exposed, write_mlflow

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
        assert probe_services.listeners()[f"0.0.0.0:{port}"] == {"service": "mlflow", "open": False}
    finally:
        process.kill()
        process.communicate()


def test_the_storage_is_measured_and_left_as_it_was(tmp_path: Path):
    left = tmp_path / "left"
    left.write_bytes(b"any")
    facts = probes.storage(tmp_path, (left, hashlib.sha256(b"any").hexdigest()))
    assert [facts[name] for name in ("same", "listed", "deleted", "shared")] == [True] * 4
    assert facts["write_mb_per_s"] > 0 and facts["read_mb_per_s"] > 0
    assert list(tmp_path.iterdir()) == [left]
    assert probes.storage(tmp_path, (tmp_path / "another", "any"))["shared"] is False
    assert probes.storage(tmp_path / "new" / "runs", None)["shared"] is None
    assert list(tmp_path.iterdir()) == [left]


def test_a_storage_that_cannot_be_written_says_why(tmp_path: Path):
    (tmp_path / "file").write_text("")
    facts = probes.examine(probes.Questions(home=tmp_path / "file" / "runs"))
    assert "Error" in facts["storage"]["error"]
    assert "error" not in facts["versions"]


def test_splits_and_weights_are_told_apart_by_their_content(tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    assert "missing" in probes.split_facts(tmp_path, "val")
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    assert probes.split_facts(tmp_path, "val") == {"missing": str(tmp_path / "val")}
    (tmp_path / "val").mkdir()
    before = probes.split_facts(tmp_path, "val")
    (tmp_path / "val" / "1.jpg").write_bytes(b"")
    more = probes.split_facts(tmp_path, "val")
    (tmp_path / "annotations" / "instances_val.json").write_text("{ }")
    other = probes.split_facts(tmp_path, "val")
    assert (before["images"], more["images"]) == (0, 1)
    assert before["sha256"] == more["sha256"] != other["sha256"]
    assert "missing" in probes.weights_facts(tmp_path / "r50.pth")


def test_other_sources_have_another_digest(tmp_path: Path):
    for package in ("model", "orchestrator"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("a = 1\n")
    before = probes.sources_digest(tmp_path)
    assert probes.sources_digest(tmp_path) == before
    (tmp_path / "model" / "a.py").write_text("a = 2\n")
    assert probes.sources_digest(tmp_path) != before


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_verb_prints_json_and_exits_by_the_worst(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str, code: int
):
    found = Finding(check="any", where="driver", level=level, seen="seen", way_out="out")  # type: ignore[arg-type]
    monkeypatch.setattr("orchestrator.doctor.diagnose.diagnose", lambda *_: [found])
    done = CliRunner().invoke(cli, ["doctor", "--format", "json"], env={"RNC_HOME": str(tmp_path), "RAY_ADDRESS": ""})
    assert done.exit_code == code
    assert json.loads(done.stdout)[0]["rows"][0]["seen"] == "seen"


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["no-such.yaml"], ["--env", "A=B"]])
def test_a_mistake_in_the_call_exits_with_two(tmp_path: Path, arguments: list[str]):
    done = CliRunner().invoke(cli, ["doctor", *arguments], env={"RNC_HOME": str(tmp_path), "RAY_ADDRESS": ""})
    assert done.exit_code == 2
