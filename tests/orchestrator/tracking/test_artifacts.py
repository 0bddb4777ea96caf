"""Files of runs on a real MLflow server: what went up comes down, or the reason why not."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator.errors import UserError
from orchestrator.tracking import artifacts, runs
from orchestrator.tracking.artifacts import Missing, download, list_files, upload, upload_texts
from orchestrator.tracking.rest import Refused, ServerAway, retried
from orchestrator.tracking.runs import open_tracking


@pytest.fixture
def run_id(mlflow_uri, request) -> str:
    suite = open_tracking(mlflow_uri, request.node.name)
    assert suite.experiment_id is not None
    return runs.create_run(mlflow_uri, suite.experiment_id, "a run", {})


def test_what_went_up_comes_down_bit_for_bit_with_its_progress(mlflow_uri, run_id, tmp_path):
    content = bytes(range(256)) * 20_000
    (tmp_path / "weights").write_bytes(content)
    upload(mlflow_uri, run_id, [tmp_path / "weights"], "checkpoint")
    told: list[tuple[int, int]] = []
    target = tmp_path / "here"
    target.mkdir()
    file = download(
        mlflow_uri, run_id, "checkpoint/weights", target, progress=lambda done, total: told.append((done, total))
    )
    assert file == target / "weights"
    assert file.read_bytes() == content
    assert told[-1] == (len(content), len(content))
    assert all(0 <= done <= total == len(content) for done, total in told)


def test_a_file_at_the_top_goes_to_a_folder_of_its_own(mlflow_uri, run_id):
    upload_texts(mlflow_uri, run_id, {"config.json": "{}"})
    one, other = (download(mlflow_uri, run_id, "config.json") for _ in range(2))
    assert one != other and one.read_text() == other.read_text() == "{}"


def test_a_file_takes_three_questions_once_it_is_known_where_those_of_the_run_lie(mlflow_uri, run_id, monkeypatch):
    upload_texts(mlflow_uri, run_id, {"config.json": "{}"})
    download(mlflow_uri, run_id, "config.json")
    asked, send = [], requests.Session.send

    def counted(self: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append(request.path_url)
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", counted)
    download(mlflow_uri, run_id, "config.json")
    assert len(asked) == 3, asked


def test_a_file_that_is_not_there_is_told_from_a_server_that_is_away(mlflow_uri, run_id):
    upload_texts(mlflow_uri, run_id, {"config.json": "{}"})
    with pytest.raises(Missing, match=f"no file detections/d.parquet of run {run_id}: it was deleted"):
        download(mlflow_uri, run_id, "detections/d.parquet")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9") as caught:
        download("http://127.0.0.1:9", run_id, "config.json")
    assert not isinstance(caught.value, Missing)


def test_a_file_that_comes_cut_short_is_no_file(mlflow_uri, run_id, tmp_path, monkeypatch):
    upload_texts(mlflow_uri, run_id, {"config.json": "{}"})
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    def cut(self: ArtifactRepository, path: str, folder: str) -> str:
        (Path(folder) / path).write_text("{")
        return str(Path(folder) / path)

    monkeypatch.setattr(ArtifactRepository, "download_artifacts", cut)
    with pytest.raises(UserError, match=r"sent 1 of 2 bytes of config\.json; try again"):
        artifacts.download(mlflow_uri, run_id, "config.json", tmp_path)


class Refusing(ThreadingHTTPServer):
    """Knows every run, whose files lie at `root`, and answers a question for files with `status` and a page."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.status, self.asked = "mlflow-artifacts:/0/a/artifacts", 200, list[str]()
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Any = self.server
        if "/runs/get" in self.path:
            info = {"run_id": "a", "run_uuid": "a", "experiment_id": "0", "artifact_uri": server.root}
            self.answer(200, json.dumps({"run": {"info": info, "data": {}}}))
        else:
            server.asked.append(self.path)
            self.answer(server.status, "<html>\r\n<h1>the server\r\nsays no</h1>\r\n</html>")

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    do_DELETE = do_GET

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    artifacts._root.cache_clear()  # another test's server may have had the port
    with Refusing() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        (413, "raise the largest body that the proxy before MLflow takes (nginx: client_max_body_size)"),
        (403, "the user whose credentials are set may not do that: ask for the right, or use another user"),
    ],
)
def test_a_file_that_is_refused_for_good_is_told_at_once_in_one_line_with_a_way_out(
    refusing, tmp_path, monkeypatch, status, way_out
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "x")
    (tmp_path / "weights").write_bytes(b"w")
    refusing.status = status
    for action in (
        lambda: upload(refusing.uri, "a", [tmp_path / "weights"], "checkpoint"),
        lambda: download(refusing.uri, "a", "checkpoint/weights", tmp_path),
        lambda: list_files(refusing.uri, "a"),
        lambda: artifacts.delete(refusing.uri, "a", "checkpoint"),
    ):
        with pytest.raises(Refused) as told:
            retried(action, 0.0)
        assert "the server says no; " in str(told.value) and str(told.value).endswith(f"; {way_out}")
        assert f": {status} " in str(told.value) and "\n" not in str(told.value)
    assert len(refusing.asked) == 4


def test_a_file_that_is_refused_for_now_is_one_of_a_server_that_is_away(refusing):
    refusing.status = 404
    with pytest.raises(ServerAway, match="does not list the files of run a: 404"):
        list_files(refusing.uri, "a")


def test_a_store_that_the_server_does_not_serve_and_whose_library_is_missing_is_told_with_the_way_out(
    refusing, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "botocore.client", None)
    refusing.root = "s3://bucket/0/a/artifacts"
    (tmp_path / "weights").write_bytes(b"w")
    told = "run a: .*boto.*; install the library of that store here .* start the server with --serve-artifacts"
    with pytest.raises(Refused, match=told):
        retried(lambda: upload(refusing.uri, "a", [tmp_path / "weights"], "checkpoint"), 0.0)
    with pytest.raises(Refused, match=told):
        download(refusing.uri, "a", "checkpoint/weights", tmp_path)
    assert refusing.asked == []


def test_files_may_lie_in_a_folder_that_this_machine_shares_with_the_server(refusing, tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    for root in (tmp_path / "plain", (tmp_path / "file").as_uri()):
        refusing.root = str(root)
        artifacts._root.cache_clear()
        upload(refusing.uri, "a", [tmp_path / "weights"], "checkpoint")
        assert list_files(refusing.uri, "a", "checkpoint") == ["checkpoint/weights"]


def test_mlflows_own_client_shows_the_named_token_and_not_the_password_of_netrc(tmp_path, monkeypatch):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    (tmp_path / ".netrc").write_text("machine 127.0.0.2 login other password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "named")
    with ThreadingHTTPServer(("127.0.0.2", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(ServerAway):
            list_files(f"http://127.0.0.2:{server.server_address[1]}", "0" * 32)
        server.shutdown()
    assert set(asked) == {"Bearer named"}


@pytest.mark.parametrize("call", ["download(away, '0' * 32, 'a/b')", "list_files(away, '0' * 32)"])
def test_mlflow_is_imported_after_its_variables_are_set(call: str):
    code = f"""
import os, sys
class Look:
    def find_spec(self, name, *_):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Look())
from orchestrator.tracking.artifacts import ServerAway, download, list_files
away = "http://127.0.0.1:9"
try:
    {call}
except ServerAway:
    print("away")
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "true\naway\n", done.stderr
