"""The environment of a job on a cluster: what is sent there, what must not be, and what has to be there."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from orchestrator.errors import UserError

JOB = "RNC_JOB"
"""Names the job to the process that it runs, and so says that this machine is none to keep anything on."""
COMMIT = "RNC_GIT_COMMIT"
SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|(^|_)KEY(_|$)|ACCESS_KEY")
STOP_SECONDS = "60"


def is_jobs_address(address: str | None) -> bool:
    """Whether an address takes jobs; any other is a cluster to join from here."""
    return address is not None and address.startswith(("http://", "https://"))


def job_environment(given: Sequence[str], environ: Mapping[str, str], job: str, commit: str | None) -> dict[str, str]:
    """Return what a job finds in its environment; everybody who reads the Jobs API sees it.

    Args:
        given: NAME=VALUE, as --env takes it; nothing else decides a path on the cluster.
        environ: of this process; of it only an MLflow server that is no local one is passed on.
        job: the id of the job.
        commit: of the sources.

    Raises:
        UserError: one of them is no NAME=VALUE, or a secret.
    """
    sent: dict[str, str] = {}
    uri = environ.get("MLFLOW_TRACKING_URI", "")
    if uri and urlsplit(uri).hostname not in ("127.0.0.1", "localhost", "::1", None):
        sent["MLFLOW_TRACKING_URI"] = _open("MLFLOW_TRACKING_URI", uri)
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {name}: expected NAME=VALUE, as in --env RNC_HOME=/shared/runs")
        sent[name] = _open(name, value)
    return sent | {JOB: job, "RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS} | ({COMMIT: commit} if commit else {})


def require_cluster_settings(environ: Mapping[str, str]) -> None:
    """In a job, refuse to keep results where they would vanish with the machine that runs it.

    Raises:
        UserError: RNC_HOME or MLFLOW_TRACKING_URI is not set on the cluster.
    """
    if not environ.get(JOB):
        return
    needed = {
        "RNC_HOME": ("storage that all nodes share", "/shared/runs"),
        "MLFLOW_TRACKING_URI": ("an MLflow server that outlives the job", "http://mlflow:5000"),
    }
    missing = [
        f"{name} is not set on the cluster, where it has to name {what}; set it in the environment of the cluster's "
        f"nodes, or submit with --env {name}={example}"
        for name, (what, example) in needed.items()
        if not environ.get(name)
    ]
    if missing:
        raise UserError("\n".join(missing))


def _open(name: str, value: str) -> str:
    """Return a value that everybody may see."""
    if SECRET.search(name.upper()):
        raise UserError(f"--env {name}: everybody who reads Ray's Jobs API would see it; the cluster has to hold it")
    if urlsplit(value).password:
        raise UserError(
            f"{name}: the address holds a password, which everybody who reads Ray's Jobs API would see; give it "
            "without, and let the cluster hold MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value
