"""Submits a suite to a remote cluster as a job, through Ray's Jobs API, and follows it."""

import asyncio
import logging
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from orchestrator.addresses import job_headers
from orchestrator.cluster.environment import job_environment
from orchestrator.cluster.package import Package, build_package
from orchestrator.errors import INTERRUPTED, Say, UserError
from orchestrator.experiment.load import Experiment
from orchestrator.site import CLI_MODULE
from orchestrator.tracking.runs import git_commit

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
CONNECT_SECONDS, ANSWER_SECONDS = 4.0, 5.0
LOOK_SECONDS = 1.0
CHATTY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
"""Modules of Ray that log each of their steps at level INFO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """Where and how a suite is submitted."""

    address: str
    """http or https, of the cluster's dashboard."""
    env: tuple[str, ...] = ()
    """NAME=VALUE, for the environment of the job."""
    options: tuple[str, ...] = ()
    """Of the verb on the cluster."""
    detach: bool = False


def submit_job(experiments: Sequence[Experiment], remote: Remote, say: Say, out: Say) -> int:
    """Run a suite as a job of a cluster, or join the job that runs it, and return its exit code.

    Args:
        experiments: of one suite.
        remote: where and how.
        say: told what happens.
        out: prints what the job prints, as it comes.

    Raises:
        UserError: the cluster does not answer or does not take the job, or what is sent to it is not right.
    """
    suite, began = experiments[0].suite, round(time.time() * 1000)
    job_environment(remote.env, os.environ, "", None)  # its mistakes are told before anything is sent
    options = remote.options
    with _asking(remote.address):
        client = _client(remote.address)
        # Each round follows one job: ours, or that of somebody who was quicker, after which ours may still be due.
        while True:
            with tempfile.TemporaryDirectory() as scratch:
                package = build_package([experiment.path for experiment in experiments], Path(scratch))
                jobs = _jobs_of(client, suite)
                running = next((job for job in jobs if job.status not in ENDED), None)
                following = f"rnc-{suite}-{_number(jobs[0], suite) + 1 if jobs else 1}"
                started = running is None and _start(client, following, suite, package, remote, say)
            if started:
                say(f"Job {following} is submitted to {remote.address}. {_how_to_follow(experiments, remote)}")
                return 0 if remote.detach else _follow(client, following, say, out, mine=True)
            if running is None:
                continue  # somebody has just taken that id, and their job shows now
            job = str(running.submission_id)
            say(f"Suite {suite} is being run by job {job}, since {_clock(running)}.")
            if "--prune" in options:
                say("It is not asked to prune; with its MLFLOW_TRACKING_URI, `rnc cancel ROW` ends a training.")
            if remote.detach:
                say(f"Nothing was started. {_how_to_follow(experiments, remote)}")
                return 0
            say("Its log follows. Ctrl-C leaves it alone.")
            code = _follow(client, job, say, out, mine=False)
            if code == INTERRUPTED or (running.metadata or {}).get("package") == package.digest:
                return code
            say("That job was submitted with other files or sources; this submit goes on with what is still missing.")
            # What was cancelled meanwhile was meant for this submit as well, though its job starts only now.
            remote = replace(remote, options=(*options, "--waiting-since", str(began)))


def run_job(verb: str, experiments: Sequence[Experiment], remote: Remote, say: Say, out: Say) -> int:
    """Run another verb of `rnc` as a job of a cluster, print what it prints, and return its exit code.

    Raises:
        UserError: like `submit_job`.
    """
    job = f"rnc-{verb}-{secrets.token_hex(4)}"
    environment = job_environment(remote.env, os.environ, job, git_commit())
    with _asking(remote.address), tempfile.TemporaryDirectory() as scratch:
        client = _client(remote.address)
        package = build_package([experiment.path for experiment in experiments], Path(scratch))
        client.submit_job(
            entrypoint=_command(verb, package, remote),
            submission_id=job,
            runtime_env={"working_dir": scratch, "env_vars": environment},
        )
        say(f"Job {job} is submitted to {remote.address}.")
        return _follow(client, job, say, out, mine=True)


def print_job_log(
    experiments: Sequence[Experiment], label: str | None, address: str, out: Say, *, follow: bool = False
) -> None:
    """Print the log of a suite's last job, or the lines of it that name a row.

    Raises:
        UserError: the cluster does not answer, or knows no job of the suite.
    """
    suite = experiments[0].suite

    def show(text: str) -> None:
        for line in text.splitlines(keepends=True):
            if label is None or label in line:
                out(line)

    with _asking(address):
        client = _client(address)
        jobs = _jobs_of(client, suite)
        if not jobs:
            raise UserError(f"the cluster at {address} knows no job of suite {suite}")
        if follow:
            _follow(client, str(jobs[0].submission_id), lambda _: None, show, mine=False)
        else:
            show(client.get_job_logs(str(jobs[0].submission_id)))


def _client(address: str) -> "JobSubmissionClient":
    """Connect to a cluster that answers; Ray itself would wait for ever for one that does not."""
    headers = job_headers(os.environ)
    try:
        requests.get(f"{address.rstrip('/')}/api/version", headers=headers, timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
    except (requests.RequestException, ValueError) as error:
        cause = str(error).rpartition(": ")[2].rstrip("'\")")
        raise UserError(
            f"{address} does not answer ({cause}); give the address of the cluster's dashboard, such as "
            "http://HOST:8265, and see that it is reachable from here"
        ) from error
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    return JobSubmissionClient(address, headers=headers)


@contextmanager
def _asking(address: str) -> Iterator[None]:
    """Turn what the cluster refuses into errors with a way out; Ray's client tells most of it as a RuntimeError."""
    try:
        yield
    except UserError:
        raise
    except requests.RequestException as error:
        raise UserError(f"the cluster at {address} went away ({error}); submit again, the job may go on") from error
    except Exception as error:
        if type(error).__name__ == "AuthenticationError" or re.search(r"status code 40[13]\b", str(error)):
            raise UserError(
                f"the cluster at {address} wants a token, and not this one or none: set RAY_AUTH_MODE=token, and its "
                "token in RAY_AUTH_TOKEN, or in a file that RAY_AUTH_TOKEN_PATH names"
            ) from error
        if not isinstance(error, ConnectionError | RuntimeError | ValueError):
            raise
        raise UserError(f"the cluster at {address} takes no job ({error})") from error


def _jobs_of(client: "JobSubmissionClient", suite: str) -> "list[JobDetails]":
    """The jobs of a suite, the last one first."""
    ours = [job for job in client.list_jobs() if _number(job, suite)]
    return sorted(ours, key=lambda job: _number(job, suite), reverse=True)


def _number(job: "JobDetails", suite: str) -> int:
    """Return the number of a suite's job, from 1; 0 for any other job."""
    found = re.fullmatch(rf"rnc-{re.escape(suite)}-(\d+)", job.submission_id or "")
    return int(found[1]) if found else 0


def _start(client: "JobSubmissionClient", job: str, suite: str, package: Package, remote: Remote, say: Say) -> bool:
    """Submit a job of a suite under this id, and say whether that was done, or somebody else has just taken the id."""
    if package.left_out:
        say(f"not tracked by git, and not sent: {', '.join(package.left_out)}")
    say(f"Package: {package.num_files} files, {package.num_bytes / 1e6:.2f} MB.")
    try:
        client.submit_job(
            entrypoint=_command("submit", package, remote),
            submission_id=job,
            runtime_env={
                "working_dir": str(package.folder),
                "env_vars": job_environment(remote.env, os.environ, job, git_commit()),
            },
            metadata={"suite": suite, "package": package.digest},
        )
    except RuntimeError as error:
        # Ray takes each id once, which is what keeps two submits from running a suite twice.
        if "already exists" not in str(error):
            raise
        return False
    return True


def _command(verb: str, package: Package, remote: Remote) -> str:
    return shlex.join(["python", "-m", CLI_MODULE, verb, *package.experiments, *remote.options])


def _follow(client: "JobSubmissionClient", job: str, say: Say, out: Say, *, mine: bool) -> int:
    """Print what a job prints until it ends, and return its exit code; Ctrl-C stops it if it is ours."""
    printed = _Printed(out)
    try:
        return _ended(client, job, printed, say)
    except KeyboardInterrupt:
        if not mine:
            return INTERRUPTED
    say("Stopping the job; another Ctrl-C leaves it to that.")
    try:
        client.stop_job(job)
        _ended(client, job, printed, lambda _: None)
        say("The job has stopped; the next submit goes on from the last checkpoints.")
    except KeyboardInterrupt:
        say("The job may go on for a minute.")
    return INTERRUPTED


class _Printed:
    """Prints a log that is sent from its beginning at each connection, every part of it once."""

    def __init__(self, out: Say) -> None:
        self._out, self._done, self._place = out, 0, 0

    def again(self) -> None:
        self._place = 0

    def __call__(self, text: str) -> None:
        new = text[max(0, self._done - self._place) :]
        self._place += len(text)
        self._done = max(self._done, self._place)
        if new:
            self._out(new)


def _ended(client: "JobSubmissionClient", job: str, printed: _Printed, say: Say) -> int:
    while (info := client.get_job_info(job)).status not in ENDED:
        printed.again()  # the log comes from its beginning with each connection
        asyncio.run(_tail(client, job, printed))
        time.sleep(LOOK_SECONDS)
    printed.again()
    printed(client.get_job_logs(job))  # the last lines may have come after the connection had closed
    if info.status == "STOPPED":
        say(f"Job {job} was stopped; the next submit goes on from the last checkpoints.")
        return INTERRUPTED
    code = getattr(info, "driver_exit_code", None)
    if info.status == "FAILED" and code is None:
        say(f"Job {job} failed: {info.message}")
    # A job that was killed, or never started, may have no exit code.
    return int(code) if code is not None else int(info.status == "FAILED")


async def _tail(client: "JobSubmissionClient", job: str, printed: _Printed) -> None:
    import aiohttp

    try:
        async for text in client.tail_job_logs(job):
            printed(text)
    except (RuntimeError, aiohttp.ClientError, OSError):
        return  # the connection broke; the job's state decides whether it is taken up again


def _how_to_follow(experiments: Sequence[Experiment], remote: Remote) -> str:
    files = " ".join(str(experiment.path) for experiment in experiments)
    return (
        "From any terminal:\n"
        f"  rnc logs {files} --address {remote.address} --follow\n"
        f"  rnc submit {files} --address {remote.address}   (follows it, too)\n"
        f"  rnc status {files}   (with MLFLOW_TRACKING_URI set to the cluster's MLflow)"
    )


def _clock(job: Any) -> str:
    return time.strftime("%d %b %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
