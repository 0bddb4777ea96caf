"""A suite sent as a job to a Ray cluster that wants a token: submitted, followed, attached to, stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.site import Site
from orchestrator.tracking.server import stop_server, tracking_server
from orchestrator.worker.training_log import Epoch, read_log, sentence
from tests.clusters import cluster
from tests.experiment_files import one_short_training

ROOT = Path(__file__).parents[2]
TOKEN = "the token of this test and of nothing else"

pytestmark = pytest.mark.slow


def _hear_ctrl_c() -> None:
    """A process that a shell began in the background ignores Ctrl-C, and so would all that it begins."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Here:
    """This machine, from which jobs are sent to a cluster."""

    folder: Path
    address: str
    mlflow: str

    @property
    def settings(self) -> list[str]:
        """What the job is told, as --env takes it."""
        said = {"RNC_HOME": self.folder / "shared", "MLFLOW_TRACKING_URI": self.mlflow}
        said |= {"RNC_CACHE": self.folder / "cache"}
        return [word for name, value in said.items() for word in ("--env", f"{name}={value}")]

    def start(self, *arguments: str, token: str | None = TOKEN) -> "subprocess.Popen[str]":
        """Start rnc."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW_", "RAY_"))}
        kept |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": self.mlflow, "RAY_ADDRESS": self.address}
        kept |= {"RNC_HOME": str(self.folder / "here"), "MLFLOW_TRACKING_PASSWORD": "hunter2"}
        if token is not None:
            kept |= {"RAY_AUTH_TOKEN": token}
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", *arguments],
            cwd=self.folder,
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_hear_ctrl_c,
            text=True,
        )

    def rnc(self, *arguments: str, token: str | None = TOKEN) -> "subprocess.CompletedProcess[str]":
        """Run rnc to its end."""
        process = self.start(*arguments, token=token)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "heads.yaml").write_text(one_short_training("sent"))
    site = Site(home=folder / "mlflow")
    with cluster(TOKEN) as address:
        yield Here(folder=folder, address=address, mlflow=tracking_server(site))
    stop_server(site)


def test_a_suite_is_sent_seen_from_elsewhere_joined_and_ends_with_its_tables(here: Here):
    for token in (None, "another"):
        refused = here.rnc("submit", "heads.yaml", *here.settings, token=token)
        assert (refused.returncode, "wants a token" in refused.stderr) == (2, True), refused.stderr

    sent = here.rnc("submit", "heads.yaml", "--detach", "--format", "json", *here.settings)
    assert sent.returncode == 0, sent.stderr
    assert re.search(r"Package: \d+ files, \d\.\d\d MB", sent.stderr)
    assert f"Job rnc-sent-1 is submitted to {here.address}" in sent.stderr

    joined = here.rnc("submit", "heads.yaml", "--format", "json", *here.settings)
    assert joined.returncode == 0, joined.stderr
    assert "is being run by job rnc-sent-1" in joined.stderr
    assert "To do: 1 of 1 trainings" in joined.stdout
    table = json.loads(joined.stdout[joined.stdout.index("\n[{") :])
    assert table[0]["rows"][0]["AP"] is not None
    assert "finished" in here.rnc("status", "heads.yaml").stdout

    log = here.rnc("logs", "heads.yaml")
    assert "RetinaNet: finished, epoch 2/2" in log.stdout
    (written,) = (here.folder / "shared" / "ray" / "sent").glob("*/training.jsonl")
    epochs = [entry.event for entry in read_log(written.parent) if isinstance(entry.event, Epoch)]
    assert re.search(r"epoch 2/2, loss \d.*images/s", sentence(epochs[-1]))
    assert "hunter2" not in log.stdout + sent.stdout + sent.stderr


def test_a_job_without_lasting_storage_is_refused_by_the_cluster_and_its_code_passed_on(here: Here):
    (here.folder / "bare.yaml").write_text(one_short_training("bare"))
    done = here.rnc("submit", "bare.yaml")
    assert done.returncode == 2
    assert "RNC_HOME is not set on the cluster" in done.stdout
    assert "MLFLOW_TRACKING_URI is not set on the cluster" in done.stdout


def test_ctrl_c_stops_the_job_and_its_training_keeps_its_checkpoints(here: Here):
    (here.folder / "long.yaml").write_text(one_short_training("long").replace("epochs: 2", "epochs: 400"))
    process = here.start("submit", "long.yaml", *here.settings)
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(r"training, epoch ([2-9]|\d\d+)/400", line):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "The job has stopped" in err
    record = here.rnc("status", "long.yaml").stdout
    assert re.search(r"interrupted; the next submit goes on from epoch [1-9]", record), record + out + err
