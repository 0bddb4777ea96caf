"""deploy/slurm/rnc.sbatch on a real Slurm of two nodes: a table, a stop before its time is over, what it refuses."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.slurm import Slurm, slurm_cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "rnc.sbatch"
PASSWORD = "planted-9d2c41f07a"
EXPERIMENT = f"""
suite: slurm
extends: {ROOT}/experiments/miniature/table1_heads.yaml
only: [RetinaNet]
seeds: [0]
resources: {{num_workers: 2, num_nodes: 2}}
defaults:
  split: val
  train:
    data: {{num_train_images: IMAGES, num_val_images: 8}}
    schedule: {{epochs: EPOCHS, lr_drop_epochs: [], validate_every: 1}}
"""


@dataclass(frozen=True)
class Site:
    """A cluster, and what a user has on it."""

    slurm: Slurm
    folder: Path
    variables: dict[str, str]

    def submit(self, *words, **more):
        """Hand the script to Slurm, and return the job and the file of its log."""
        variables = self.variables | more
        exported = ",".join(["--export=NIL", *(f"{name}={value}" for name, value in variables.items() if value)])
        log = self.folder / "log-%j.txt"
        options = ["--parsable", exported, f"--chdir={self.folder}", f"--output={log}"]
        job = self.slurm.run("sbatch", *options, *words[:-1], str(SCRIPT), *words[-1:])
        return job, Path(str(log).replace("%j", job))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, ["n1", "n2"]) as slurm, mlflow(folder, slurm.controller) as uri:
        user = folder / "user"
        user.mkdir()
        (user / "password").write_text(PASSWORD + "\n")
        tools = folder / "bin"
        tools.mkdir()
        for name, words in {"rnc": "-m orchestrator.cli.main", "ray": "-m ray.scripts.scripts"}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            (tools / name).chmod(0o755)
        yield Site(
            slurm,
            user,
            {
                "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "SLURM_CONF": str(folder / "slurm.conf"),
                "RNC_HOME": str(user / "runs"),
                "RNC_SCRATCH": str(slurm.scratch),
                "MLFLOW_TRACKING_URI": uri,
                "MLFLOW_TRACKING_USERNAME": "rnc",
                "MLFLOW_TRACKING_PASSWORD_FILE": str(user / "password"),
            },
        )


@contextmanager
def mlflow(folder, host):
    """An MLflow server that the nodes reach."""
    port = 5000
    environment = os.environ | {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{host}:{port}",
    }
    words = [sys.executable, "-m", "uvicorn", "--host", host, "--port", str(port), "mlflow.server.fastapi_app:app"]
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://{host}:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "mlflow.log").read_text()
                time.sleep(0.3)
        yield f"http://{host}:{port}"
    finally:
        server.terminate()
        server.wait()


def experiment(site, name, epochs, images):
    path = site.folder / f"{name}.yaml"
    text = (
        EXPERIMENT.replace("EPOCHS", str(epochs))
        .replace("IMAGES", str(images))
        .replace("suite: slurm", f"suite: {name}")
    )
    path.write_text(text)
    return path.name


def results(site, name):
    """The rows of the table, as `rnc report` tells them from this machine."""
    command = [sys.executable, "-m", "orchestrator.cli.main", "report", name, "--format", "json"]
    told = os.environ | {key: site.variables[key] for key in ("PYTHONPATH", "RNC_HOME", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(command, cwd=site.folder, env=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Story:
    """What came of a table whose job was told, midway, that its time is nearly over."""

    job: str
    mode: int
    """Of the file with the token, while the job ran."""
    token: str
    first: str
    """The log until the job queued again."""
    second: str
    """And from then on."""
    state: str


@pytest.fixture(scope="module")
def story(site):
    name = experiment(site, "slurm", epochs=6, images=24)
    job, log = site.submit("--nodes=2", name)
    token = site.folder / "runs" / "slurm" / job / "token"
    _until(site, job, log, lambda: token.exists() and len(token.read_text()) == 64, 60)
    mode, secret = token.stat().st_mode, token.read_text()
    _until(site, job, log, lambda: re.search(r"epoch [1-5]/6", log.read_text()), 400)
    site.slurm.run("scancel", "--batch", "--signal=USR1", job)
    _until(site, job, log, lambda: f"job {job} queues again" in log.read_text(), 120)
    site.slurm.wait(job, ["PENDING"], 60)
    first = log.read_text()
    # Slurm would wait two minutes. It revokes credentials by the second: a start in the second of the requeue fails.
    time.sleep(1.1)
    site.slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    state = site.slurm.wait(job, ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"], 400)
    return Story(job, mode, secret, first, log.read_text()[len(first) :], state)


def _until(site, job, log, ready, seconds):
    deadline = time.monotonic() + seconds
    while not ready():
        state = site.slurm.state(job)
        text = log.read_text() if log.exists() else ""
        assert state in ("PENDING", "RUNNING", "COMPLETING") and time.monotonic() < deadline, f"{state}\n{text}"
        time.sleep(0.3)


def test_two_nodes_train_a_table_to_its_end(site, story):
    assert story.state == "COMPLETED", story.first + story.second
    for part in (story.first, story.second):
        assert "On head node" in part and "On worker node" in part
    (table,) = results(site, "slurm.yaml")
    assert [row["row"] for row in table["rows"]] == ["RetinaNet"]
    assert all(isinstance(table["rows"][0][metric], float) for metric in ("AP", "AP50", "AP75"))


def test_a_job_whose_time_is_nearly_over_stops_queues_again_and_goes_on(site, story):
    assert f"the time of job {story.job} is nearly over" in story.first
    assert "RetinaNet: finished" not in story.first
    begun = [int(epoch) for epoch in re.findall(r"RetinaNet: \w+, epoch (\d+)/6", story.second)]
    assert begun and min(begun) >= 1, story.second


def test_the_token_is_seen_by_nobody_and_nothing_is_left(site, story):
    assert story.mode & 0o077 == 0
    home = site.folder / "runs"
    assert not (home / "slurm" / story.job).exists()
    assert not list((site.slurm.folder / "scratch-n1").iterdir())
    assert not list((site.slurm.folder / "scratch-n2").iterdir())
    found = ["grep", "-rlFe", story.token, "-e", PASSWORD, str(home), *map(str, site.folder.glob("log-*.txt"))]
    assert subprocess.run(found, capture_output=True, text=True).stdout == ""


REFUSED = {
    "no-home": (
        {"RNC_HOME": ""},
        "x",
        "RNC_HOME is not set; export it before sbatch, as a folder that all nodes share",
    ),
    "no-mlflow": ({"MLFLOW_TRACKING_URI": ""}, "x", "MLFLOW_TRACKING_URI is not set"),
    "local-mlflow": ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, "x", "which the other nodes do not reach"),
    # One that would be seen in the log, where nothing is to speak of Ray.
    "password": ({"MLFLOW_TRACKING_URI": "http://ada:Ray@mlflow:5000"}, "x", "MLFLOW_TRACKING_URI holds a password"),
    "no-password": ({"MLFLOW_TRACKING_PASSWORD_FILE": "/none"}, "x", "/none is empty or cannot be read"),
    "no-programs": ({"PATH": "/usr/bin:/bin", "RNC_VENV": "/none"}, "x", "rnc is not in"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_missing_is_named_before_anything_starts(site, why):
    more, word, message = REFUSED[why]
    job, log = site.submit("--nodes=1", word, **more)
    assert site.slurm.wait(job, ["COMPLETED", "FAILED"], 30) == "FAILED"
    assert message in log.read_text()
    assert "Ray" not in log.read_text()


def test_outside_of_slurm_it_says_how_to_start_it():
    done = subprocess.run(["bash", SCRIPT], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "start this with sbatch" in done.stderr and "no experiment is named" in done.stderr
