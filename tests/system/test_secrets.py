"""A password planted in the address of MLflow, and tokens beside it: no verb writes one down."""

import base64
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from PIL import Image

from orchestrator.cli.main import cli
from orchestrator.site import Site
from orchestrator.tracking.server import stop_server, tracking_server
from tests.deploy.leaks import leaks_below, leaks_in
from tests.experiment_files import one_short_training

ROOT = Path(__file__).parents[2]
NOT_PASSED_ON = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}

pytestmark = pytest.mark.slow


class Door(ThreadingHTTPServer):
    """Lets in who knows a password, and passes on what they ask of a server behind it."""

    daemon_threads = True

    def __init__(self, behind: str, user: str, password: str) -> None:
        super().__init__(("127.0.0.1", 0), Doorkeeper)
        self.behind = behind
        self.wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.turned_away: list[str] = []


class Doorkeeper(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        door: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != door.wanted:
            door.turned_away.append(self.path)
            self.answer(401, {}, b"who is there?")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_PASSED_ON}
        # No proxy and no .netrc of whoever runs the tests.
        with requests.Session() as http:
            http.trust_env = False
            told = http.request(
                self.command, door.behind + self.path, headers=headers, data=body, timeout=60, allow_redirects=False
            )
        kept = {name: value for name, value in told.headers.items() if name.lower() not in NOT_PASSED_ON}
        self.answer(told.status_code, kept, told.content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Guarded:
    """A suite on an MLflow server that wants a password, and how `rnc` is told it."""

    folder: Path
    """Where everything lies, that of the server included."""
    door: Door
    uri: str
    planted: dict[str, str]

    def rnc(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW_", "RAY_"))}
        tokens = {
            "RAY_AUTH_TOKEN": self.planted["ray"],
            "AWS_SECRET_ACCESS_KEY": self.planted["aws"],
            "XDG_STATE_HOME": str(self.folder / "state"),
            "RNC_CACHE": str(self.folder / "cache"),
        }
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", *arguments],
            cwd=self.folder,
            env=kept | tokens | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": self.uri} | environment,
            capture_output=True,
            text=True,
            timeout=900,  # a machine that does much else beside
            check=False,
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "heads.yaml").write_text(one_short_training("guarded"))
    Image.new("RGB", (64, 48), (120, 140, 160)).save(folder / "one.png")
    behind = Site(home=folder / "behind")
    # What stands before the last + are characters that an address has to write otherwise.
    planted = {name: f"p:/@?#%+{secrets.token_hex(16)}" for name in ("mlflow", "ray", "aws")}
    planted["ray"] = planted["ray"].rpartition("+")[2]
    with Door(tracking_server(behind), "ada", planted["mlflow"]) as door:
        threading.Thread(target=door.serve_forever, args=(0.05,), daemon=True).start()
        uri = f"http://ada:{quote(planted['mlflow'], safe='')}@127.0.0.1:{door.server_address[1]}"
        yield Guarded(folder, door, uri, planted)
        door.shutdown()
    stop_server(behind)


VERBS = (
    ("settings",),
    ("plan", "heads.yaml"),
    ("submit", "heads.yaml"),
    ("status", "heads.yaml"),
    ("report", "heads.yaml", "--format", "html"),
    ("compare", "heads.yaml", "--row", "RetinaNet", "--over", "RetinaNet"),
    ("logs", "heads.yaml", "--row", "RetinaNet"),
    ("pull", "best", "--output", "pulled"),
    ("evaluate", "best", "--classes"),
    ("predict", "best", "one.png"),
    ("misalignment", "best"),
    ("sweep", "best", "--nms-iou", "0.4,0.5"),
    ("cancel", "heads.yaml", "--row", "RetinaNet"),
    ("verify", "heads.yaml"),
    ("repair", "heads.yaml"),
    ("gc", "heads.yaml"),
    ("doctor", "heads.yaml"),
    ("ui", "heads.yaml"),
    ("data", "runs/data/shapes"),
    ("init", "runs/data/shapes", "--output", "mine.yaml"),
    ("train", "runs/data/shapes", "--output", "theirs.yaml", "--set", "train.schedule.epochs=none"),
    ("run", "heads.yaml", "--row", "RetinaNet"),
)


def test_no_verb_writes_a_secret_anywhere(guarded: Guarded) -> None:
    assert {arguments[0] for arguments in VERBS} == set(cli.commands)
    done = {arguments[0]: guarded.rnc(*arguments) for arguments in VERBS}
    printed = {verb: (one.stdout + one.stderr).encode() for verb, one in done.items()}
    assert {verb: found for verb, text in printed.items() if (found := leaks_in(text, guarded.planted))} == {}
    assert leaks_below(guarded.folder, guarded.planted) == []
    # They did what they are there for, through the door, and none asked without the password.
    ended = {verb: one.stderr for verb, one in done.items() if one.returncode}
    assert ended.keys() <= {"train", "cancel", "doctor"}, "\n".join(ended.values())
    assert set(guarded.door.turned_away) <= {
        "/api/2.0/mlflow/experiments/search"
    }  # doctor's, to see whether it is open
    bare = f"http://127.0.0.1:{guarded.door.server_address[1]}"
    assert bare in (guarded.folder / "pulled" / "README.md").read_text()
    assert f"{bare}/#/experiments" in done["submit"].stderr
    assert "registered model retinanet-conf-guarded version 1" in done["submit"].stderr
