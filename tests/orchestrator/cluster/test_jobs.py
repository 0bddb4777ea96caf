"""How a suite becomes a job of a cluster: one that a few lines play, and ones that do not answer."""

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import jobs
from orchestrator.cluster.jobs import Remote, print_job_log, submit_job
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, load_experiment

EXPERIMENT = load_experiment(Path(__file__).parents[3] / "experiments" / "miniature" / "table1_heads.yaml")
REMOTE = Remote(address="http://cluster:8265", env=("RNC_HOME=/shared",))


@dataclass
class Job:
    """What Ray tells of a job."""

    submission_id: str
    status: str = "RUNNING"
    metadata: dict[str, str] = field(default_factory=dict)
    driver_exit_code: int | None = None
    message: str = ""
    start_time: int = 0


@dataclass
class Cluster:
    """Runs every job at once, to the exit code `code`, once its log is read."""

    jobs: dict[str, Job] = field(default_factory=dict)
    code: int = 0
    sent: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    while_reading: Callable[[], None] = lambda: None
    before_submit: Callable[[], None] = lambda: None

    def list_jobs(self) -> list[Job]:
        return list(self.jobs.values())

    def submit_job(self, **asked: Any) -> None:
        self.before_submit()
        if asked["submission_id"] in self.jobs:
            raise RuntimeError("Request failed: Job with submission_id already exists")
        self.sent.append(asked)
        self.jobs[asked["submission_id"]] = Job(asked["submission_id"], metadata=asked["metadata"])

    def get_job_info(self, job: str) -> Job:
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        return f"{job} begins\nRetinaNet: finished\n"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield f"{job} begins\n"
        self.while_reading()
        one = self.jobs[job]
        one.status, one.driver_exit_code = "FAILED" if self.code else "SUCCEEDED", self.code

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)
        self.jobs[job].status = "STOPPED"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    played = Cluster()
    monkeypatch.setattr(jobs, "_client", lambda _: played)
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.0)
    return played


def submitted(remote: Remote = REMOTE, *, experiments: list[Experiment] | None = None) -> tuple[int, str, str]:
    said: list[str] = []
    printed: list[str] = []
    code = submit_job(experiments or [EXPERIMENT], remote, said.append, printed.append)
    return code, "\n".join(said), "".join(printed)


def test_a_job_runs_the_sent_files_and_its_log_and_code_are_passed_on(cluster: Cluster):
    cluster.code = 1
    code, said, printed = submitted(Remote(address="http://c", env=("RNC_HOME=/shared",), options=("--format", "json")))
    assert (code, printed) == (1, "rnc-miniature-1 begins\nRetinaNet: finished\n")
    (sent,) = cluster.sent
    assert sent["entrypoint"] == (
        "python -m orchestrator.cli.main submit experiments/miniature/table1_heads.yaml --format json"
    )
    assert sent["runtime_env"]["env_vars"]["RNC_HOME"] == "/shared"
    assert not Path(sent["runtime_env"]["working_dir"]).exists()
    assert "Package: " in said


def test_a_finished_job_is_no_obstacle_to_the_next(cluster: Cluster):
    cluster.jobs = {name: Job(name, status="SUCCEEDED") for name in ("rnc-miniature-9", "rnc-miniature-10", "rnc-a-30")}
    submitted()
    assert [sent["submission_id"] for sent in cluster.sent] == ["rnc-miniature-11"]


def test_a_job_that_runs_the_same_is_joined_and_one_that_runs_other_files_is_waited_for(cluster: Cluster):
    submitted()
    assert "--waiting-since" not in cluster.sent[0]["entrypoint"]
    package = cluster.sent.pop().pop("metadata")["package"]
    cluster.jobs = {"rnc-miniature-1": Job("rnc-miniature-1", metadata={"package": package})}
    assert submitted()[0] == 0
    assert not cluster.sent
    before = time.time() - 0.001  # the number that is sent is rounded
    cluster.jobs = {"rnc-miniature-1": Job("rnc-miniature-1", metadata={"package": "another"})}
    code, said, printed = submitted()
    assert (code, len(cluster.sent)) == (0, 1)
    assert "other files" in said
    assert printed.index("rnc-miniature-1 begins") < printed.index("rnc-miniature-2 begins")
    # the job is told since when this submit waits: what was cancelled meanwhile was meant for it as well
    words = cluster.sent[0]["entrypoint"].split()
    since = int(words[words.index("--waiting-since") + 1]) / 1000
    assert before <= since <= time.time()


def test_of_two_submits_at_once_the_later_joins_the_job_of_the_earlier(cluster: Cluster):
    submitted()
    package = cluster.sent.pop()["metadata"]["package"]
    cluster.jobs = {}

    def quicker() -> None:
        cluster.jobs["rnc-miniature-1"] = Job("rnc-miniature-1", metadata={"package": package})

    cluster.before_submit = quicker
    code, said, _ = submitted()
    assert (code, cluster.sent) == (0, [])
    assert "is being run by job rnc-miniature-1" in said


def test_detached_nothing_is_followed(cluster: Cluster):
    detached = Remote(address="http://c", detach=True)
    first, second = submitted(detached), submitted(detached)
    assert (first[0], first[2], second[0], second[2]) == (0, "", 0, "")
    assert "Nothing was started" in second[1]
    assert [job.status for job in cluster.jobs.values()] == ["RUNNING"]


def test_a_job_that_runs_already_is_said_to_prune_nothing(cluster: Cluster):
    pruning = Remote(address="http://c", detach=True, options=("--prune",))
    first, second = submitted(pruning), submitted(pruning)
    assert "prune" not in first[1]
    assert "not asked to prune" in second[1]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_stops_a_job_of_ones_own_and_leaves_another_ones_alone(cluster: Cluster):
    cluster.while_reading = interrupt
    code, said, _ = submitted()
    assert (code, cluster.stopped) == (130, ["rnc-miniature-1"])
    assert "the next submit goes on" in said
    cluster.jobs["rnc-miniature-2"] = Job("rnc-miniature-2")
    assert submitted()[0] == 130
    assert cluster.jobs["rnc-miniature-2"].status == "RUNNING"


def test_a_second_ctrl_c_leaves_the_job_to_stop_by_itself(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    cluster.while_reading = interrupt
    monkeypatch.setattr(cluster, "stop_job", lambda _: cluster.stopped.append("asked"))  # it takes its time
    code, said, _ = submitted()
    assert (code, cluster.stopped) == (130, ["asked"])
    assert "may go on" in said


def test_a_lost_connection_is_taken_up_again_without_repeating_a_line(cluster: Cluster):
    losses = iter([True, True, False])

    def lose() -> None:
        if next(losses):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    cluster.while_reading = lose
    assert submitted()[2] == "rnc-miniature-1 begins\nRetinaNet: finished\n"


def test_the_log_of_the_last_job_is_printed_or_the_lines_of_a_row(cluster: Cluster):
    cluster.jobs = {name: Job(name, status="SUCCEEDED") for name in ("rnc-miniature-2", "rnc-miniature-10")}
    lines: list[str] = []
    print_job_log([EXPERIMENT], None, "http://c", lines.append)
    assert lines == ["rnc-miniature-10 begins\n", "RetinaNet: finished\n"]
    lines.clear()
    print_job_log([EXPERIMENT], "RetinaNet", "http://c", lines.append)
    assert lines == ["RetinaNet: finished\n"]
    cluster.jobs = {}
    with pytest.raises(UserError, match="knows no job of suite miniature"):
        print_job_log([EXPERIMENT], None, "http://c", lines.append)


def test_an_address_where_nobody_answers_is_named():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 does not answer \(.*refused"):
        submit_job([EXPERIMENT], Remote(address="http://127.0.0.1:9"), print, print)


def test_a_proxy_before_the_dashboard_is_given_its_login(monkeypatch: pytest.MonkeyPatch):
    asked: list[str | None] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            body = json.dumps({"version": "4", "ray_version": "2.0", "ray_commit": "x"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Authorization": "Basic YWRhOng6eQ=="}')
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        jobs._client(f"http://127.0.0.1:{proxy.server_address[1]}")
        proxy.shutdown()
    assert len(asked) >= 2  # ours, and that of Ray's client
    assert set(asked) == {"Basic YWRhOng6eQ=="}


def test_an_address_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="does not answer"):
            submit_job([EXPERIMENT], Remote(address=address), print, print)


def test_a_secret_is_refused_before_the_cluster_is_asked():
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD"):
        submit_job(
            [EXPERIMENT], Remote(address="http://127.0.0.1:9", env=("MLFLOW_TRACKING_PASSWORD=x",)), print, print
        )
