"""Finds the MLflow server of a site, and starts one of our own where none is named.

Our own server lives on after `rnc`, on SQLite under `home/mlflow`. It holds the lock on `server.lock` for as long as it
lives: whoever gets the lock may start one, and while somebody has it no second one starts. It is known by its process,
and by the port that this process listens on: what a server says of itself, any other user of the machine could say.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import requests

from orchestrator.errors import UserError
from orchestrator.file_lock import lock
from orchestrator.homes import make_home
from orchestrator.process import identity
from orchestrator.site import ROOT, Site
from orchestrator.tracking import rest
from orchestrator.tracking.database import MALFORMED, require_sound_database, way_out

USUAL_PORTS = range(5000, 5100)
USERS = "users.lock"
"""Is locked, as one of many, by each submit that records in the server."""
NONCE_HEADER = "x-rnc-server"
"""With which servers that earlier versions started say the nonce of their server.json."""
START_SECONDS = 120.0
"""It starts in 3 s; `mlflow server` took 95 s where Python had to compile all of MLflow first."""
AGAIN_SECONDS = 30.0
"""A server that ended sooner than this after its start is not begun again at once."""

FOREIGN = ("_MLFLOW_", "MLFLOW_", "UVICORN_", "GUNICORN_", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "FLASK_")
"""What configures another server or a client, by the beginnings of names: hosts that are let in, stores, passwords.

uvicorn takes every option from UVICORN_*.
"""
MISLEADING = ("_MLFLOW_SERVER_", "MLFLOW_SERVER_", "UVICORN_", "GUNICORN_", "WEB_CONCURRENCY")
"""Those of them that would have kept a server of our own from serving."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Starting:
    """A tracking server that answers already, or will soon."""

    uri: str | None
    """Its address; None while another process starts it."""
    folder: Path | None
    """Where its state lies; None if it is not ours."""

    def wait(self, seconds: float = START_SECONDS) -> str:
        """Return the address of the server once it answers.

        Raises:
            UserError: it ended or does not answer; the message holds the end of its log.
        """
        if self.folder is None:
            assert self.uri is not None
            return self.uri
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            uri = _answering(self.folder)
            if uri is not None:
                _make_database(uri, self.folder)
                return uri
            if _is_free(self.folder):
                if self.uri is None:  # it was not starting but ending
                    return _begin(self.folder).wait(deadline - time.monotonic())
                raise UserError(f"the MLflow server ended{_log_tail(self.folder)}")
            time.sleep(0.05)
        raise UserError(f"the MLflow server does not answer after {seconds:.0f} seconds{_log_tail(self.folder)}")


def tracking_server(site: Site) -> str:
    """Return the address of the site's MLflow server, starting one if none is named and none runs."""
    return begin_tracking_server(site).wait()


def begin_tracking_server(site: Site) -> Starting:
    """Like `tracking_server`, but do not wait for the start, which takes seconds.

    Raises:
        UserError: the server that is named does not answer, or `home` cannot be written.
    """
    if site.tracking_uri is not None:
        return Starting(uri=_checked(site.tracking_uri), folder=None)
    folder = site.home / "mlflow"
    uri = _answering(folder)
    if uri is not None:
        return Starting(uri=uri, folder=folder)
    return _begin(folder)


def existing_tracking_server(site: Site) -> str | None:
    """Like `tracking_server`, but return None where nothing has been recorded yet, which takes no server to know."""
    if site.tracking_uri is None and not (site.home / "mlflow" / "mlflow.db").exists():
        return None
    return tracking_server(site)


def running_server(site: Site) -> str | None:
    """Return the address of the site's own server if it runs; nothing is started."""
    return _answering(site.home / "mlflow")


def keep_server(site: Site, uri: str) -> None:
    """Begin the site's own server again if it has ended, as one that was killed for its memory has; do not wait for it.

    Args:
        site: which may name another server, that is not ours to begin.
        uri: where trainings expect it.

    Raises:
        UserError: another program has its port by now, so that it is elsewhere, or its database is damaged.
    """
    folder = site.home / "mlflow"
    state = _state(folder)
    if site.tracking_uri is not None or "port" not in state:
        return
    began = state.get("started")
    is_new = isinstance(began, int | float) and 0 <= time.time() - began < AGAIN_SECONDS
    if not is_new and _is_free(folder):
        _begin(folder)
    if (now := f"http://127.0.0.1:{_state(folder).get('port')}") != uri:
        raise UserError(
            f"MLflow had ended, and is at {now} since, as another program has taken {uri}; end this with Ctrl-C, and "
            "submit again, which goes on"
        )


@contextmanager
def using_server(site: Site) -> Iterator[None]:
    """Let nobody end the site's own server as `unused_server` while this lasts; any number may use it."""
    if site.tracking_uri is not None:
        yield
        return
    with _writing(site.home / "mlflow"):
        users = (site.home / "mlflow" / USERS).open("a+")
    with users:
        lock(users, waits=True, shared=True)  # after who ends it has ended it
        yield


@contextmanager
def unused_server(site: Site) -> Iterator[bool]:
    """Yield whether nobody uses the site's own server; then nobody begins to while this lasts."""
    folder = site.home / "mlflow"
    if not folder.is_dir():
        yield True
        return
    with _lock(folder, USERS) as held:
        yield held is not None


def stop_server(site: Site, seconds: float = 15.0) -> bool:
    """End the site's own server, and say whether there was one."""
    folder = site.home / "mlflow"
    if not folder.is_dir() or _is_free(folder):
        return False
    state = _state(folder)
    pid = state.get("pid")
    if not isinstance(pid, int) or state.get("process") not in (None, identity(pid)):
        raise UserError(f"{folder} is locked by a server that is just starting; try again")
    for what in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, what)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if _is_free(folder):
                return True
            time.sleep(0.05)
    raise UserError(f"process {pid} does not end; it holds {folder / 'server.lock'}")


def _checked(uri: str) -> str:
    if not uri.startswith(("http://", "https://")):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {uri!r}, expected http:// or https://: many processes write at once, so a server "
            "has to stand before the store; unset it and one is started for you"
        )
    rest.post(uri, "experiments/search", {"max_results": 1})
    return uri.rstrip("/")


def _begin(folder: Path) -> Starting:
    with _writing(folder), _lock(folder) as held:
        return Starting(uri=None, folder=folder) if held is None else _start(folder, held)


def _start(folder: Path, held: IO[str]) -> Starting:
    """Start the server; it inherits the lock and the listening socket, so that nobody can take its port meanwhile."""
    require_sound_database(folder)
    port = _state(folder).get("port")
    _write_state(folder, port=port)  # the pid of the server before is no longer ours to end
    with _listen(port) as listener, (folder / "server.log").open("ab") as log:
        port, logged = listener.getsockname()[1], log.tell()
        process = subprocess.Popen(
            _command(listener.fileno()),
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal that started it is not meant for it.
            start_new_session=True,
            pass_fds=(held.fileno(), listener.fileno()),
        )
    told = {"process": identity(process.pid), "started": time.time(), "logged": logged}
    _write_state(folder, port=port, pid=process.pid, **told)
    return Starting(uri=f"http://127.0.0.1:{port}", folder=folder)


def _command(listener: int) -> list[str]:
    """Return what `mlflow server --workers 1` ends up running: it answers after 3.2 s instead of 7.4 s."""
    options = {
        "fd": listener,
        "log-level": "warning",
        # The sources need not be installed where a job was sent them.
        "app-dir": ROOT,
        # By default uvicorn waits without end for a connection whose answer nobody reads.
        "timeout-graceful-shutdown": 5,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "uvicorn", *flags, "orchestrator.mlflow_server.app:app"]


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {
        "_MLFLOW_SERVER_FILE_STORE": "sqlite:///mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        # Its jobs for language models are eight more processes with 1.7 GB, and 40 s of start.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _listen(preferred: Any) -> socket.socket:
    """Listen on the port of last time, so that links stay valid, else on the first usual one, else on any."""
    for port in (*([preferred] if isinstance(preferred, int) else []), *USUAL_PORTS, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Linux keeps the port of a server that has just ended for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # uvicorn takes a socket given by number for a Unix one, and leaves it Nagle's algorithm: 40 ms an answer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
        except OSError:
            listener.close()
        else:
            return listener
    raise UserError("no port of 127.0.0.1 is free for the MLflow server; name another server in MLFLOW_TRACKING_URI")


def _answering(folder: Path) -> str | None:
    """Return the address of this folder's server if it answers."""
    state = _state(folder)
    pid, port, process, nonce = (state.get(name) for name in ("pid", "port", "process", "nonce"))
    uri = f"http://127.0.0.1:{port}"
    if not isinstance(pid, int) or not isinstance(port, int) or not (process or nonce):
        return None
    # Without the start of the process, as earlier versions wrote it, another may have its id by now.
    if (process and process != identity(pid)) or not _listens(pid, port, folder):
        return None
    try:
        with rest.session(uri) as http:
            response = http.get(f"{uri}/health", timeout=1.0)
    except requests.RequestException:
        return None
    return uri if process or response.headers.get(NONCE_HEADER) == nonce else None


def _listens(pid: int, port: int, folder: Path) -> bool:
    """Whether a process of this machine listens on a port of localhost."""
    with suppress(psutil.Error, OSError):  # it has just ended
        process = psutil.Process(pid)
        try:
            opened = process.net_connections("tcp4")
        except psutil.AccessDenied:  # another user's, in a folder that a group shares
            users = {_owner_of_port(port), process.uids().real, (folder / "server.json").stat().st_uid}
            return len(users) == 1
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in opened)
    return False


def _owner_of_port(port: int) -> int | None:
    """Return the user whose process listens on a port; Linux tells everybody so, and not which process it is."""
    with suppress(OSError):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, user, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                return int(user)
    return None


def _make_database(uri: str, folder: Path) -> None:
    """The server makes its database, or refuses an unfit one, at the first question."""
    try:
        rest.post(uri, "experiments/search", {"max_results": 1}, read_seconds=60.0)
    except UserError as error:
        tail = _log_tail(folder)
        if any(words in tail for words in MALFORMED):  # a page of it has changed, and the server tells its log alone
            raise UserError(way_out(folder, "SQLite calls it malformed")) from error
        raise UserError(f"{error}{tail}") from error


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "server.json").read_text())
    except (OSError, ValueError):
        return {}
    # The file of a copied folder speaks of the server of the other, whose records nobody means to write.
    is_ours = isinstance(state, dict) and state.get("inode", folder.stat().st_ino) == folder.stat().st_ino
    return state if is_ours else {}


def _write_state(folder: Path, **state: Any) -> None:
    fresh = folder / "server.json.new"
    fresh.unlink(missing_ok=True)
    there = folder.stat()
    # Nobody else's affair, but in a folder that its owner gave to a group on purpose, by the bit that keeps the group.
    mode = 0o660 if there.st_mode & stat.S_ISGID and there.st_mode & stat.S_IWGRP else 0o600
    with open(fresh, "x", opener=lambda path, flags: os.open(path, flags, mode)) as file:
        file.write(json.dumps(state | {"inode": there.st_ino}))
    # Renamed, as others read it at any time.
    fresh.replace(folder / "server.json")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        make_home(folder.parent)
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"RNC_HOME: cannot write to {folder} ({error.strerror}); free it, or set RNC_HOME") from error


@contextmanager
def _lock(folder: Path, name: str = "server.lock") -> Iterator[IO[str] | None]:
    """Hold a lock, or yield None if somebody else does; a process that inherits it holds on to it."""
    with (folder / name).open("a") as file:
        # The kernel lets go of it when the last process that holds the file has ended, however it ended.
        yield file if lock(file) else None


def _is_free(folder: Path) -> bool:
    with _lock(folder) as held:
        return held is not None


def _log_tail(folder: Path, lines: int = 15) -> str:
    """Return the end of what the server that was started last has logged; earlier ones wrote to the same file."""
    path, logged = folder / "server.log", _state(folder).get("logged")
    try:
        with path.open("rb") as log:
            log.seek(logged if isinstance(logged, int) else 0)
            tail = log.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return ""
    return "\n".join([f"; {path} ends with", *tail])
