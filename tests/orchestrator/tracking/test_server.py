"""The embedded server as other processes see it; expectations follow from what each test starts or ends."""

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.errors import UserError
from orchestrator.process import identity
from orchestrator.site import Site
from orchestrator.tracking import rest, server
from orchestrator.tracking.server import (
    begin_tracking_server,
    existing_tracking_server,
    keep_server,
    running_server,
    stop_server,
    tracking_server,
)

START = """
import sys
from pathlib import Path
from orchestrator.tracking.server import tracking_server
from orchestrator.site import Site
print(tracking_server(Site(home=Path(sys.argv[1]))))
"""


def state(site: Site) -> dict[str, Any]:
    return json.loads((site.home / "mlflow" / "server.json").read_text())


def start_elsewhere(site: Site) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START, str(site.home)], stdout=subprocess.PIPE, text=True)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def ended(pid: int) -> bool:
    """A killed child of the test process itself stays a zombie until it is waited for."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.fixture
def fake_uvicorn(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Put a module of our own in the place of the web server that runs MLflow."""

    def write(source: str) -> None:
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "uvicorn.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))

    return write


def test_two_processes_share_one_server_which_outlives_both_and_comes_back_at_its_address(mortal_site):
    starters = [start_elsewhere(mortal_site) for _ in range(2)]
    first, second = (starter.communicate()[0].strip() for starter in starters)
    assert first == second
    assert tracking_server(mortal_site) == first
    rest.post(first, "experiments/create", {"name": "kept"})
    pid = state(mortal_site)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert tracking_server(mortal_site) == first
    assert state(mortal_site)["pid"] != pid
    assert rest.get(first, "experiments/get-by-name", {"experiment_name": "kept"})["experiment"]["experiment_id"]


def test_stopping_ends_the_server_and_only_once(mortal_site):
    uri = tracking_server(mortal_site)
    pid = state(mortal_site)["pid"]
    assert stop_server(mortal_site)
    assert ended(pid)
    with pytest.raises(rest.ServerAway):
        rest.post(uri, "experiments/search", {"max_results": 1})
    assert not stop_server(mortal_site)


def test_where_nothing_was_recorded_no_server_is_started_to_say_so(tmp_path):
    site = Site(home=tmp_path / "new")
    assert existing_tracking_server(site) is None
    assert not stop_server(site)
    assert not site.home.exists()


def test_an_existing_record_is_served(mortal_site):
    uri = tracking_server(mortal_site)
    assert existing_tracking_server(mortal_site) == uri


def test_a_copied_home_does_not_write_into_the_records_of_the_other(mortal_site, tmp_path):
    tracking_server(mortal_site)
    copied = Site(home=tmp_path / "copied")
    shutil.copytree(mortal_site.home, copied.home)
    assert running_server(copied) is None
    file = copied.home / "mlflow" / "server.json"
    file.write_text(json.dumps({name: value for name, value in state(copied).items() if name != "inode"}))
    assert running_server(copied) == running_server(mortal_site)  # an older file says nothing of its folder


def test_what_is_known_of_the_server_is_its_owners_affair(mortal_site):
    tracking_server(mortal_site)
    file = mortal_site.home / "mlflow" / "server.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "nonce" not in state(mortal_site)


def test_a_folder_that_a_group_shares_lets_it_find_the_server(tmp_path, fake_uvicorn):
    fake_uvicorn("")
    folder = tmp_path / "mlflow"
    folder.mkdir()
    folder.chmod(0o2770)
    begin_tracking_server(Site(home=tmp_path))
    assert stat.S_IMODE((folder / "server.json").stat().st_mode) & 0o666 == 0o660 & ~current_umask()


def test_the_server_of_an_earlier_version_is_known_by_its_process_and_its_word(tmp_path):
    class Earlier(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("x-rnc-server", "ours")
            self.end_headers()

    (tmp_path / "mlflow").mkdir()
    other = subprocess.Popen(["sleep", "60"])
    with other, ThreadingHTTPServer(("127.0.0.1", 0), Earlier) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = server.server_address[1]

        def found(**state: Any) -> bool:
            told = {"port": port, "pid": os.getpid(), "started": 1.0} | state
            (tmp_path / "mlflow" / "server.json").write_text(json.dumps(told))
            return running_server(Site(home=tmp_path)) == f"http://127.0.0.1:{port}"

        assert found(nonce="ours")
        assert not found(nonce="another")
        assert not found(nonce="ours", pid=other.pid)  # who read the nonce, and has the port, is not that process
        assert not found()
        assert found(process=identity(os.getpid()))
        assert not found(process=f"{os.getpid()} 1", nonce="ours")  # its id is that of another process by now
        assert not found(process=identity(other.pid), pid=other.pid, nonce="ours")
        for damaged in ({"pid": "x"}, {"port": None}, {"port": "80@host"}, {"pid": True}, {"process": ["x"]}):
            assert not found(**({"nonce": "ours"} | damaged))
        server.shutdown()
        other.kill()


def test_a_process_that_has_the_old_id_is_not_ended(tmp_path):
    folder = tmp_path / "mlflow"
    folder.mkdir()
    with (folder / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = {"port": 1, "pid": os.getpid(), "process": f"{os.getpid()} 1"}
        (folder / "server.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match="locked by a server that is just starting"):
            stop_server(Site(home=tmp_path))


def test_a_stranger_on_the_old_port_is_neither_used_nor_disturbed(tmp_path, fake_uvicorn):
    fake_uvicorn("import sys; print(sys.argv)")

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, args=(0.01,), daemon=True).start()
        port = stranger.server_address[1]
        folder = tmp_path / "mlflow"
        folder.mkdir()
        (folder / "server.json").write_text(json.dumps({"port": port, "pid": os.getpid(), "nonce": "ours"}))
        starting = begin_tracking_server(Site(home=tmp_path))
        assert starting.uri not in (None, f"http://127.0.0.1:{port}")
        with pytest.raises(UserError, match="the MLflow server ended"):
            starting.wait()
        stranger.shutdown()


def test_the_port_of_last_time_is_kept(tmp_path, fake_uvicorn):
    fake_uvicorn("")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "server.json").write_text(json.dumps({"port": port}))
    assert begin_tracking_server(Site(home=tmp_path)).uri == f"http://127.0.0.1:{port}"


def test_a_server_that_was_killed_is_begun_again_at_its_address_but_not_over_and_over(mortal_site, monkeypatch):
    uri = tracking_server(mortal_site)
    monkeypatch.setattr(server, "AGAIN_SECONDS", 0.0)
    keep_server(mortal_site, uri)
    first = state(mortal_site)["pid"]
    kill(first)
    keep_server(mortal_site, uri)
    second = state(mortal_site)["pid"]
    assert first != second and tracking_server(mortal_site) == uri
    kill(second)
    monkeypatch.setattr(server, "AGAIN_SECONDS", 1e9)
    keep_server(mortal_site, uri)
    assert state(mortal_site)["pid"] == second and running_server(mortal_site) is None


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    process.wait()


def test_a_server_whose_port_was_taken_meanwhile_says_so(tmp_path, fake_uvicorn):
    fake_uvicorn("import time; time.sleep(600)")
    site = Site(home=tmp_path)
    (tmp_path / "mlflow").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        (tmp_path / "mlflow" / "server.json").write_text(json.dumps({"port": port}))
        with pytest.raises(UserError, match=f"as another program has taken http://127.0.0.1:{port}; end this with"):
            keep_server(site, f"http://127.0.0.1:{port}")
    assert stop_server(site)


def test_a_server_that_is_not_ours_is_not_begun(tmp_path):
    keep_server(Site(home=tmp_path, tracking_uri="http://127.0.0.1:9"), "http://127.0.0.1:9")
    keep_server(Site(home=tmp_path), "http://127.0.0.1:9")  # nothing was ever recorded here
    assert not (tmp_path / "mlflow").exists()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path, fake_uvicorn):
    fake_uvicorn("raise SystemExit('no room on this planet')")
    with pytest.raises(UserError, match=r"(?s)the MLflow server ended.*server\.log ends with.*no room on this planet"):
        tracking_server(Site(home=tmp_path))


def test_a_server_that_stays_silent_is_reported_and_can_be_stopped(tmp_path, fake_uvicorn):
    fake_uvicorn("import time; print('thinking', flush=True); time.sleep(600)")
    site = Site(home=tmp_path)
    starting = begin_tracking_server(site)
    with pytest.raises(UserError, match="does not answer after 2 seconds"):
        starting.wait(seconds=2.0)
    assert stop_server(site)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "file:///tmp/mlruns", "./mlruns", "databricks"])
def test_a_store_without_a_server_is_refused(uri, tmp_path):
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI is .* expected http:// or https://"):
        tracking_server(Site(home=tmp_path, tracking_uri=uri))


def test_a_named_server_is_used_as_it_is(mlflow_uri, tmp_path):
    site = Site(home=tmp_path / "unused", tracking_uri=f"{mlflow_uri}/")
    assert tracking_server(site) == existing_tracking_server(site) == mlflow_uri
    assert not stop_server(site)
    assert not site.home.exists()


def test_a_named_server_that_is_away_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 does not answer .* correct MLFLOW_TRACKING_URI"):
        begin_tracking_server(Site(home=tmp_path, tracking_uri="http://127.0.0.1:9"))


def test_a_home_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"RNC_HOME: cannot write to .*/file/home/mlflow \(Not a directory\)"):
        tracking_server(Site(home=tmp_path / "file" / "home"))


STALE = {
    "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.example",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NoSuchPool",
    "MLFLOW_TRACKING_URI": "http://mlflow.example",
    "_MLFLOW_SERVER_FILE_STORE": "sqlite:////nowhere/mlflow.db",
    "FLASK_DEBUG": "1",
    "GUNICORN_CMD_ARGS": "--bad",
    "UVICORN_PORT": "1",
    "WEB_CONCURRENCY": "3",
}


@pytest.mark.slow
def test_what_a_shell_has_for_other_servers_is_none_of_ours(tmp_path, monkeypatch):
    for name, value in STALE.items():
        monkeypatch.setenv(name, value)
    site = Site(home=tmp_path)
    uri = tracking_server(site)
    try:
        assert rest.post(uri, "experiments/search", {"max_results": 1})["experiments"]
        assert not psutil.Process(state(site)["pid"]).children(recursive=True)
        with rest.session(uri) as http:
            # MLflow's guard against names that lead to this machine, which the shell has switched off.
            foreign = http.get(f"{uri}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"})
        assert foreign.status_code == 403
    finally:
        stop_server(site)
