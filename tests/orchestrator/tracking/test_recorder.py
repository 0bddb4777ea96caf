"""The recorder before fake senders, and before a real server that dies; expected points are those that were logged."""

import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from orchestrator.tracking import recorder as module
from orchestrator.tracking.recorder import Metric, Recorder, Target, read_journal, replay
from orchestrator.tracking.runs import create_run, history, metrics_target, open_tracking
from orchestrator.tracking.server import stop_server, tracking_server


class Server:
    """What a tracking server holds; `away` makes it refuse, a cleared `gate` makes it hang."""

    def __init__(self):
        self.points: list[tuple[str, int, float]] = []
        self.calls: list[int] = []
        self.num_refused = 0
        self.away = False
        self.run_id = "run"
        self.gate = threading.Event()
        self.gate.set()

    def send(self, metrics: list[Metric]) -> None:
        self.gate.wait()
        self.calls.append(len(metrics))
        if self.away:
            self.num_refused += 1
            raise ConnectionError("away")
        self.points += [(m.name, m.step, m.value) for m in metrics]

    def known(self) -> set[tuple[str, int]]:
        self.gate.wait()
        if self.away:
            self.num_refused += 1
            raise ConnectionError("away")
        return {(name, step) for name, step, _ in self.points}

    def target(self) -> Target:
        return Target(run_id=self.run_id, send=self.send, known=self.known)


@pytest.fixture
def server() -> Server:
    return Server()


def start(server: Server, journal: Path, batch_seconds: float = 0.0) -> Recorder:
    return Recorder(server.target, journal, batch_seconds=batch_seconds)


def test_every_point_arrives_once_and_in_order(server, tmp_path):
    recorder = start(server, tmp_path / "journal.jsonl")
    for step in range(100):
        recorder.log({"train/loss": 1.0 / (step + 1), "train/lr": 0.01}, step)
    assert recorder.close(10.0) == 0
    losses = [(step, value) for name, step, value in server.points if name == "train/loss"]
    assert losses == [(step, 1.0 / (step + 1)) for step in range(100)]
    assert len(server.points) == 200


def test_points_are_gathered_into_few_calls_of_at_most_a_thousand(server, tmp_path):
    recorder = start(server, tmp_path / "journal.jsonl", batch_seconds=60.0)
    for step in range(2500):
        recorder.log({"loss": 0.0}, step)
    assert recorder.close(10.0) == 0  # closing does not wait for the minute to pass
    assert server.calls == [1000, 1000, 500]


def test_logging_does_not_wait_for_a_server_that_hangs(server, tmp_path):
    server.gate.clear()
    recorder = start(server, tmp_path / "journal.jsonl")
    for step in range(10):
        recorder.log({"loss": 0.0}, step)  # would hang here for ever
    assert recorder.close(0.2) == 10
    assert server.points == []
    server.gate.set()


def test_points_wait_while_the_server_is_away(server, tmp_path):
    server.away = True
    recorder = start(server, tmp_path / "journal.jsonl")
    recorder.log({"loss": 3.0}, 0)
    recorder.log({"loss": 2.0}, 1)
    while server.num_refused < 1:
        time.sleep(0.01)
    server.away = False
    recorder.log({"loss": 1.0}, 2)
    assert recorder.close(10.0) == 0
    assert server.points == [("loss", 0, 3.0), ("loss", 1, 2.0), ("loss", 2, 1.0)]


def test_a_call_that_fails_halfway_is_made_again(server, tmp_path):
    recorder = start(server, tmp_path / "journal.jsonl")
    recorder.log({"loss": 3.0}, 0)
    while not server.points:
        time.sleep(0.01)
    server.away = True
    recorder.log({"loss": 2.0}, 1)
    while server.num_refused < 1:
        time.sleep(0.01)
    server.away = False
    assert recorder.close(10.0) == 0
    assert server.points == [("loss", 0, 3.0), ("loss", 1, 2.0)]


def test_what_was_not_sent_is_replayed_once(server, tmp_path):
    journal = tmp_path / "journal.jsonl"
    server.away = True
    recorder = start(server, journal)
    recorder.log({"loss": 2.0, "lr": 0.1}, 0)
    recorder.log({"loss": 1.0}, 1)
    assert recorder.close(0.1) == 3
    with pytest.raises(ConnectionError):
        replay(journal, server.target())
    server.away = False
    assert replay(journal, server.target()) == 3
    assert replay(journal, server.target()) == 0
    assert server.points == [("loss", 0, 2.0), ("lr", 0, 0.1), ("loss", 1, 1.0)]


def test_a_resumed_training_does_not_repeat_what_the_history_holds(server, tmp_path):
    """It trains again from the last checkpoint, maybe on another host, where there is no journal."""
    server.points = [("loss", step, 0.5) for step in range(5)]
    recorder = start(server, tmp_path / "journal.jsonl")
    for step in range(3, 8):
        recorder.log({"loss": 0.25}, step)
    assert recorder.close(10.0) == 0
    assert [(step, value) for _, step, value in server.points[5:]] == [(5, 0.25), (6, 0.25), (7, 0.25)]


def test_a_resumed_training_sends_what_its_journal_holds_and_the_server_lacks(server, tmp_path):
    server.away = True
    first = start(server, tmp_path / "journal.jsonl")
    first.log({"loss": 2.0}, 0)
    first.log({"loss": 1.0}, 1)
    first.close(0.1)
    server.away = False
    second = start(server, tmp_path / "journal.jsonl")
    second.log({"loss": 9.0}, 1)  # again, after the resume
    second.log({"loss": 0.5}, 2)
    assert second.close(10.0) == 0
    assert server.points == [("loss", 0, 2.0), ("loss", 1, 1.0), ("loss", 2, 0.5)]


def test_a_server_that_lost_everything_gets_the_whole_history_in_the_run_that_follows(server, tmp_path):
    journal = tmp_path / "journal.jsonl"
    first = start(server, journal)
    first.log({"loss": 2.0}, 0)
    assert first.close(10.0) == 0
    recorder = start(server, journal)
    recorder.log({"loss": 1.0}, 1)
    while len(server.points) < 2:
        time.sleep(0.01)
    server.away = True
    recorder.log({"loss": 0.5}, 2)
    while server.num_refused < 1:
        time.sleep(0.01)
    server.points, server.run_id, server.away = [], "its successor", False
    assert recorder.close(10.0) == 0
    assert server.points == [("loss", 0, 2.0), ("loss", 1, 1.0), ("loss", 2, 0.5)]
    assert replay(journal, server.target()) == 0
    server.points, server.run_id = [], "one more"
    assert replay(journal, server.target()) == 3
    assert server.points == [("loss", 0, 2.0), ("loss", 1, 1.0), ("loss", 2, 0.5)]


def test_a_point_that_is_sent_again_keeps_its_time(server, tmp_path):
    """MLflow tells points apart by time as well: the same point sent twice is one point only with the same time."""
    sent: list[Metric] = []

    def lose_the_answer(metrics: list[Metric]) -> None:
        sent.extend(metrics)
        if len(sent) == 1:
            raise ConnectionError("the answer was lost")

    target = Target(run_id="run", send=lose_the_answer, known=set)
    recorder = Recorder(lambda: target, tmp_path / "journal.jsonl", batch_seconds=0.0)
    recorder.log({"loss": 1.0}, 0)
    assert recorder.close(10.0) == 0
    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_a_torn_last_line_of_the_journal_is_passed_over(server, tmp_path):
    journal = tmp_path / "journal.jsonl"
    whole = json.dumps({"step": 0, "timestamp": 5, "metrics": {"loss": 2.0}})
    journal.write_text(f'{whole}\n{{"step": 1, "timest')
    recorder = start(server, journal)
    recorder.log({"loss": 1.0}, 1)
    assert recorder.close(10.0) == 0
    assert server.points == [("loss", 0, 2.0), ("loss", 1, 1.0)]
    lines, num_sent = read_journal(journal, "run")
    assert (len(lines), num_sent) == (2, 2)


def test_a_full_disk_costs_the_journal_and_not_the_training(server, tmp_path, caplog):
    recorder = start(server, tmp_path / "journal.jsonl", batch_seconds=60.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file may grow beyond 100 bytes
    try:
        for step in range(20):
            recorder.log({"loss": 0.0}, step)
        assert recorder.close(10.0) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(server.points) == 20
    assert "metrics are not kept in the journal" in caplog.text


def test_no_point_is_lost_or_doubled_when_the_real_server_dies_and_comes_back(mortal_site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.5)
    uri = tracking_server(mortal_site)
    tracking = open_tracking(uri, "recorder")
    run_id = create_run(uri, str(tracking.experiment_id), "dies", {})
    target = metrics_target(uri, run_id)
    recorder = Recorder(lambda: target, tmp_path / "journal.jsonl", batch_seconds=0.01)
    for step in range(300):
        recorder.log({"loss": step / 7}, step)
        if step == 100:
            while not list(history(uri, run_id, "loss")):
                time.sleep(0.01)
            os.kill(json.loads((mortal_site.home / "mlflow" / "server.json").read_text())["pid"], signal.SIGKILL)
    assert tracking_server(mortal_site) == uri
    recorder.log({"loss": float("nan"), "inf": float("inf")}, 300)
    assert recorder.close(30.0) == 0
    points = list(history(uri, run_id, "loss"))
    assert [(p["step"], p["value"]) for p in points[:300]] == [(step, step / 7) for step in range(300)]
    assert [(p["step"], p["value"]) for p in points[300:]] == [(300, "NaN")]
    assert len(list(history(uri, run_id, "inf"))) == 1

    target.send([Metric(name="loss", value=0.0, step=0, timestamp=int(points[0]["timestamp"]))])
    assert len(list(history(uri, run_id, "loss"))) == 301
    stop_server(mortal_site)
