"""Environment variables: those that Ray reads when it is imported and started, and those of a job; imports no Ray."""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from model.machine import LONGEST_SOCKET, short_folder
from orchestrator.addresses import MLFLOW, read_address, without_secrets
from orchestrator.errors import UserError
from orchestrator.site import COMMIT

LEAN = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone where no GPU is asked for
    "RAY_AIR_NEW_OUTPUT": "0",  # the progress that is shown is ours
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # or each training ends up to 2 s after its workers
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a node may have to be started first
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard beside what MLflow has
}
"""Ray without the processes, files and warnings that nobody reads, polling five times a second.

With those of LOCAL, it took 7 of 35 s off the time until the first steps of three trainings at once on two cores.
"""
MUST = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a site stay what they are
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would pack the folder, and install anew on each node
    "RAY_TRAIN_V2_ENABLED": "1",  # what trainings are made of
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is handled by the driver
}
"""What has to be so for trainings to work; what a shell has of it, for other work, is overruled."""
LOCAL_MUST = {
    "RAY_AUTH_MODE": "token",  # 2.60 sets it by itself; before, nobody would need one
    "RAY_USE_TLS": "0",  # nothing leaves the machine, and the certificates may be those of a cluster
}
"""Likewise, of a Ray of our own."""
FOREIGN = (
    "RAY_GCS_SERVER_PORT",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_LOGGING_CONFIG_ENCODING",
    "RAY_NAMESPACE",
    "RAY_OVERRIDE_LABELS",
    "RAY_OVERRIDE_RESOURCES",
    "RAY_REDIS_ADDRESS",
    "RAY_REDIS_PASSWORD",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_START_HOOK",
    "RAY_TRAIN_CALLBACKS",
    "RAY_TUNE_CALLBACKS",
)
"""What belongs to another cluster or program, and would join a Ray of our own to it or keep it from starting."""
INHERITED = "RNC_RAY_INHERITED"
"""Says to the processes of a Ray of our own that they have all variables of its driver, as its children."""
LOCAL = {
    INHERITED: "1",
    # Ray listens on every interface of the machine, unless it takes the machine for one that cannot be in a cluster.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # By default as many processes start at a time as there are CPUs.
    "RAY_worker_maximum_startup_concurrency": "64",
}
"""What belongs to a Ray of our own; a cluster decides for itself, and its nodes may be taken away with notice."""
JOB = "RNC_JOB"
"""Names the job to the process that it runs, and so says that this machine is none to keep anything on."""
SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|(^|_)KEY(_|$)|ACCESS_KEY")
STOP_SECONDS = "60"
"""How long Ray lets a job that is stopped end by itself, before it kills it."""
RAY_SOCKET = len("/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
"""What Ray adds to its folder for temporary files."""

FAST_PATH = "RNC_RAY_FAST_PATH"
"""Set to 0, it makes trainings take Ray Train's public trainer whatever the version of Ray; trials have to know it."""


def ray_environment(*, is_local: bool) -> dict[str, str]:
    """Return the variables for a Ray on this machine, or for a job on a cluster."""
    asked = {name: os.environ[name] for name in (FAST_PATH,) if name in os.environ}
    return LEAN | asked | MUST | (LOCAL | LOCAL_MUST if is_local else {})


def set_ray_environment(*, is_local: bool) -> None:
    """Set the variables that are not set yet or have to be otherwise; call it before Ray is imported."""
    must = overruled(os.environ, is_local=is_local)
    for name in must:
        del os.environ[name]
    for name, value in ray_environment(is_local=is_local).items():
        os.environ.setdefault(name, value)
    if is_local:
        os.environ.update(own_token(os.environ))


def overruled(environ: Mapping[str, str], *, is_local: bool) -> dict[str, str]:
    """Return the variables of an environment that are left by other work, and that ours is done without."""
    must = MUST | (LOCAL_MUST if is_local else {})
    differing = {name: environ[name] for name, value in must.items() if environ.get(name, value) != value}
    return differing | {name: environ[name] for name in FOREIGN if is_local and name in environ}


def own_token(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a token for a Ray of our own that has none and cannot write one into HOME, so that it would not start."""
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    if environ.get("RAY_AUTH_TOKEN") or (named and os.access(named, os.R_OK)):
        return {}
    if not named:  # else Ray looks nowhere else, though the file may be one of another machine
        folder = Path(environ.get("HOME") or os.path.expanduser("~")) / ".ray"
        file = folder / "auth_token"
        if os.access(file, os.R_OK):
            return {}
        if not file.exists() and os.access(folder if folder.exists() else folder.parent, os.W_OK):
            return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def ray_folder(environ: Mapping[str, str]) -> Path | None:
    """Return where a Ray of our own keeps its session; None leaves it to Ray, whose own place serves.

    Raises:
        UserError: Ray's own place does not, as its path is too long for sockets or not to be written, nor any other.
    """
    setting = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environ.get(name)), "TMPDIR")
    usual = Path(environ.get(setting) or "/tmp") / "ray"
    most = LONGEST_SOCKET - RAY_SOCKET
    is_short = len(os.fsencode(usual.absolute())) <= most
    if is_short and os.access(next(one for one in (usual, *usual.parents) if one.exists()), os.W_OK):
        return None
    if (folder := short_folder(most - len("/ray"))) is not None:
        return folder / "ray"
    problem = "cannot be written" if is_short else f"is too long a path for Ray's sockets, which may have {most} bytes"
    raise UserError(
        f"{setting}: {usual} {problem}, and neither /tmp nor /var/tmp can be written instead; set RAY_TMPDIR to a "
        f"folder of your own whose path has at most {most - len('/ray')} bytes"
    )


def is_jobs_address(address: str | None) -> bool:
    """Say whether an address takes jobs; any other is a cluster to join from here."""
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
    # By default Ray kills a job 3 s after it was told to stop.
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
    """Return a value of the environment unless it is a secret, which a job's environment would show to everybody."""
    if SECRET.search(name.upper()):
        raise UserError(f"--env {name}: everybody who reads Ray's Jobs API would see it; the cluster has to hold it")
    if name == MLFLOW:
        read_address(name, value)  # refuses a query, and a password of which a parser finds but a part
    if without_secrets(value) != value:  # a user alone may be a token
        raise UserError(
            f"{name}: the address holds a password, which everybody who reads Ray's Jobs API would see; give it "
            "without, and let the cluster hold MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value
