"""The REST client against a scripted server: expectations follow from the script."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from orchestrator.errors import UserError
from orchestrator.tracking import rest

BREAKS_OFF = -1
"""Instead of a status: an answer with the headers of the server, whose body is not what they say."""


class Scripted(ThreadingHTTPServer):
    """Answers with the status codes of `script`, one after the other, and keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.body, self.headers = [], [], {"ok": True}, {}
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server: Any = self.server
        self.rfile.read(int(self.headers["Content-Length"]))
        server.asked.append((self.path, self.headers.get("Authorization")))
        status = server.script.pop(0) if server.script else 200
        if status is None:  # hang up without an answer
            return
        if status == BREAKS_OFF:
            self.send_response(200)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b'{"ok": tr')
            return
        body = server.body if isinstance(server.body, bytes) else json.dumps(server.body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Scripted]:
    monkeypatch.setattr(rest, "PAUSES", (0.0, 0.0))
    with Scripted() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_busy_server_is_asked_again(server):
    server.script = [503, 429]
    assert rest.post(server.uri, "runs/create", {}) == {"ok": True}
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_is_away(server):
    server.script = [503] * 10
    with pytest.raises(rest.ServerAway, match="status 503"):
        rest.post(server.uri, "runs/search", {})
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [500, 503])
def test_a_full_disk_of_a_server_is_told_as_one_that_may_pass(server, status):
    server.script = [status] * 3
    server.body = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "(sqlite3) database or disk is full [SQL: x]"}
    with pytest.raises(rest.DiskFull, match=rf"the disk of the MLflow server at {server.uri} is full"):
        rest.post(server.uri, "runs/update", {})
    waited: list[UserError] = []
    server.script = [status] * (3 if status in rest.BUSY else 1)  # one answer, which asking again gave
    assert rest.retried(lambda: rest.post(server.uri, "runs/update", {}), waits=waited.append)
    assert [type(error) for error in waited] == [rest.DiskFull]


def test_of_our_own_server_the_folder_and_what_is_free_are_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    monkeypatch.setattr(rest, "free_of", lambda _: "4 KB of 8 GB are free")
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "server.json").write_text(json.dumps({"port": server.server_address[1]}))
    expected = (
        f"{tmp_path}/mlflow: the disk is full (4 KB of 8 GB are free), so that MLflow at {server.uri} takes nothing"
    )
    assert rest.full_disk(server.uri, "too many 500 error responses") == ""
    assert rest.full_disk(server.uri, "No space left on device").startswith(expected)
    monkeypatch.setattr(rest, "is_full", lambda _: True)  # a file that it does not take is told as an error alone
    assert rest.full_disk(server.uri, "too many 500 error responses").startswith(expected)
    assert rest.full_disk("http://127.0.0.1:1", "too many 500 error responses") == ""


def test_a_lost_answer_is_asked_for_again_unless_that_could_make_a_second_run(server):
    server.script = [None]
    assert rest.post(server.uri, "runs/update", {}) == {"ok": True}
    assert len(server.asked) == 2
    server.script = [None]
    with pytest.raises(rest.ServerAway):
        rest.post(server.uri, "runs/create", {})
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "100"}, {"Transfer-Encoding": "chunked"}, {"Content-Encoding": "gzip"}]
)
def test_an_answer_that_breaks_off_is_a_lost_one(server, headers):
    server.headers, server.script = headers, [BREAKS_OFF]
    assert rest.post(server.uri, "runs/update", {}) == {"ok": True}
    assert len(server.asked) == 2
    server.script = [BREAKS_OFF]
    with pytest.raises(rest.ServerAway, match=r"does not answer \(its answer broke off\)"):
        rest.post(server.uri, "runs/create", {})
    assert len(server.asked) == 3


def test_a_refusal_has_the_code_and_the_words_of_the_server(server):
    server.script, server.body = [404], {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}
    with pytest.raises(rest.Refused, match="404: no such run") as refused:
        rest.post(server.uri, "runs/update", {})
    assert refused.value.code == "RESOURCE_DOES_NOT_EXIST"


def test_a_server_that_is_not_mlflow_is_an_error(server):
    server.body = ["something", "else"]
    with pytest.raises(UserError, match="none of MLflow's"):
        rest.post(server.uri, "runs/search", {})


def test_a_page_of_an_error_is_told_as_its_text_in_one_line(server):
    server.script, server.body = [500], b"<!doctype html>\n<title>500</title>\n<h1>Internal\nServer Error</h1>"
    with pytest.raises(rest.Refused) as told:
        rest.post(server.uri, "runs/search", {})
    assert str(told.value) == f"MLflow at {server.uri} answers runs/search with 500: 500 Internal Server Error"


def test_a_page_is_no_answer_of_a_server_that_holds_nothing(server):
    server.body = b"<html><title>Sign in</title> to go on</html>"
    with pytest.raises(rest.Refused, match=r"runs/search with a page, .*: Sign in to go on; correct "):
        rest.post(server.uri, "runs/search", {})


@pytest.mark.parametrize(
    ("environ", "header"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "x:y"}, "Basic YWRhOng6eQ=="),  # b64(ada:x:y)
        ({"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
        ({}, None),
    ],
)
def test_credentials_come_from_the_environment_variables_of_mlflow(server, monkeypatch, environ, header):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    rest.post(server.uri, "runs/search", {})
    assert server.asked == [("/api/2.0/mlflow/runs/search", header)]


def test_missing_credentials_are_an_error_that_says_where_they_go(server):
    server.script = [401]
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        rest.post(server.uri, "runs/search", {})


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (403, r"\(403: Permission denied\); the user whose credentials are set may not do that: ask for the right, or"),
        (401, r"\(401\); it does not take the credentials that are set: correct MLFLOW_TRACKING_USERNAME and"),
    ],
)
def test_who_shows_credentials_is_told_of_rights_or_of_wrong_ones(server, monkeypatch, status, told):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    server.script, server.body = [status], b"Permission denied"
    with pytest.raises(UserError, match=told):
        rest.post(server.uri, "runs/create", {})


def test_a_server_on_this_machine_is_reached_past_a_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert rest.post(server.uri, "runs/search", {}) == {"ok": True}


def test_an_address_that_is_none_is_an_error():
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        rest.post("http://[", "runs/search", {})


@pytest.fixture
def netrc(tmp_path, monkeypatch) -> str:
    """The address of a host for which ~/.netrc has a password; not localhost, whose sessions ignore the environment."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.2 login other password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return "http://127.0.0.2"


def shown(uri: str) -> str | bytes | None:
    """The key that a session shows."""
    with rest.session(uri) as http:
        return http.prepare_request(requests.Request("GET", uri)).headers.get("Authorization")


def test_a_named_token_wins_over_netrc_which_counts_where_none_is_named(netrc, monkeypatch):
    assert shown(netrc) == "Basic b3RoZXI6d3Jvbmc="  # other:wrong, in base64
    assert shown("http://127.0.0.1") is None
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    assert shown(netrc) == "Basic bWU6cmlnaHQ="  # me:right
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "named")
    assert shown(netrc) == "Bearer named"


def test_proxies_of_the_environment_serve_remote_servers_alone(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.uri)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "named")
    assert rest.post("http://mlflow.example", "runs/search", {}) == {"ok": True}
    assert server.asked == [("http://mlflow.example/api/2.0/mlflow/runs/search", "Bearer named")]
    rest.post(server.uri, "runs/search", {})
    assert server.asked[1:] == [("/api/2.0/mlflow/runs/search", "Bearer named")]


def test_certificates_named_for_mlflow_win_over_those_of_requests(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/other.pem")
    for setting, expected in ((None, "/etc/other.pem"), ("/etc/mlflow.pem", "/etc/mlflow.pem")):
        if setting:
            monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", setting)
        with rest.session("https://mlflow.example") as http:
            assert http.merge_environment_settings("https://mlflow.example", {}, None, None, None)["verify"] == expected
