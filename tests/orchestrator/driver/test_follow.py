"""What the driver shows of a training while it runs."""

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.capacity import local_cluster
from orchestrator.driver import follow
from orchestrator.driver.follow import LONGEST_WATCH_SECONDS, WATCH_SECONDS, Follower, watch_seconds
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.tracking import runs
from orchestrator.tracking.ledger import begin_training, read_ledger
from orchestrator.tracking.reading.live_runs import LiveRuns
from orchestrator.tracking.rest import DiskFull
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.worker.task import Status, TrainingTask
from orchestrator.worker.training_log import Scoring, write_event
from tests.orchestrator.ledgers import experiment


def task_of(uri: str, storage: Path, *, is_trained: bool = False) -> TrainingTask:
    (train_run,) = make_plan([experiment("table1", [Row(label="ours")])], Ledger()).trainings.values()
    return TrainingTask(
        train_run=train_run,
        evaluations=(),
        is_trained=is_trained,
        storage=storage,
        data_root=storage,
        weights_file=None,
        tracking_uri=uri,
    )


def test_a_row_whose_folder_takes_nothing_ends_alone_and_its_run_says_why(mlflow_uri: str, tmp_path: Path) -> None:
    suite = open_tracking(mlflow_uri, "follow-no-folder")
    task = task_of(mlflow_uri, tmp_path)
    task.folder.write_text("a file where a folder is expected")
    shown: list[Status] = []
    follower = Follower([task], suite, local_cluster(), shown.extend, lambda _, __: None)
    key = task.train_run.key
    with follower.watching():
        follower.started(key)
        follower.stop_early(key, "stopped early by ASHA")
        follower.draw()
        follower.ended(key, error="its folder takes nothing")
    follower.interrupted()
    follower.draw()
    assert (shown[-1].state, shown[-1].note) == ("failed", "its folder takes nothing")
    record = read_ledger(suite).trainings[key]
    assert (record.status, record.note) == ("FAILED", "its folder takes nothing")


def test_a_terminal_that_is_gone_does_not_end_what_is_shown_on_it(mlflow_uri: str, tmp_path: Path) -> None:
    def gone(_: object) -> None:
        raise OSError(5, "Input/output error")

    told: list[object] = []
    suite = open_tracking(mlflow_uri, "follow-no-terminal")
    follower = Follower(
        [task_of(mlflow_uri, tmp_path)], suite, local_cluster(), gone, lambda _, statuses: told.append(statuses)
    )
    with follower.watching():
        follower.draw()
    assert len(told) == 2


def test_trainings_that_start_together_while_mlflow_is_away_all_know_that_they_are_to_wait(tmp_path: Path) -> None:
    first, second = (task_of("http://127.0.0.1:9", tmp_path / name) for name in ("first", "second"))
    second = replace(second, train_run=replace(second.train_run, key="second"))
    away = Tracking(uri="http://127.0.0.1:9", suite="follow-away", experiment_id="1")
    follower = Follower([first, second], away, local_cluster(), lambda _: None, lambda _, __: None)
    second.folder.mkdir(parents=True)
    second.tell_run(run_id="of an earlier start")
    with suppress(KeyboardInterrupt), follower.watching():
        for task in (first, second):
            follower.started(task.train_run.key)
        # The one thread is still at the first; a worker that finds nothing gives up after a minute.
        assert json.loads(second.run_file.read_text()) == {"run_id": "", "error": ""}
        raise KeyboardInterrupt
    follower._pool.shutdown(wait=True)


def test_a_run_that_waits_for_mlflow_does_not_hold_a_ctrl_c_back(tmp_path: Path) -> None:
    task = task_of("http://127.0.0.1:9", tmp_path)
    away = Tracking(uri="http://127.0.0.1:9", suite="follow-away", experiment_id="1")
    follower = Follower([task], away, local_cluster(), lambda _: None, lambda _, __: None)
    with suppress(KeyboardInterrupt), follower.watching():
        follower.started(task.train_run.key)
        raise KeyboardInterrupt
    started = time.monotonic()
    follower._pool.shutdown(wait=True)  # as Python does at its end
    assert time.monotonic() - started < 120.0  # not the 20 minutes for which a run is tried


def test_while_a_disk_is_full_that_is_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Ledger:
        raise DiskFull("x/mlflow: the disk is full (4 KB of 8 GB are free)")

    monkeypatch.setattr(LiveRuns, "ledger", refuse)
    shown: list[Status] = []
    task = task_of("http://127.0.0.1:9", tmp_path)
    away = Tracking(uri="http://127.0.0.1:9", suite="follow-full", experiment_id="1")
    follower = Follower([task], away, local_cluster(), shown.extend, lambda _, __: None)
    follower._progress[task.train_run.key].state = "starting"
    follower.draw()
    assert shown[-1].note == "x/mlflow: the disk is full (4 KB of 8 GB are free); nothing is lost meanwhile"
    monkeypatch.setattr(LiveRuns, "ledger", lambda *_: Ledger())
    monkeypatch.setattr(follow, "prune_asked", lambda _: None)
    monkeypatch.setattr(follow, "is_full", lambda _: True)
    monkeypatch.setattr(follow, "free_of", lambda _: "0 bytes of 8 GB are free")
    follower.draw()
    assert shown[-1].note == f"{tmp_path}: the disk is full (0 bytes of 8 GB are free); free some"


def test_a_training_that_is_only_scored_says_how_many_images_are_done(mlflow_uri: str, tmp_path: Path) -> None:
    suite = open_tracking(mlflow_uri, "follow")
    task = task_of(mlflow_uri, tmp_path, is_trained=True)
    runs.set_status(mlflow_uri, begin_training(suite, task.train_run), "FINISHED")
    shown: list[Status] = []
    follower = Follower([task], suite, local_cluster(), shown.extend, lambda _, __: None)
    with follower.watching():
        follower.started(task.train_run.key)
        follower.draw()
        write_event(task.folder, Scoring(num_done=64, num_images=200, split="val", num_settings=2))
        follower.draw()
        follower.ended(task.train_run.key, error="")
    follower.draw()
    told = [(status.state, status.note) for status in shown]
    assert list(dict.fromkeys(told)) == [
        ("waiting", "for its turn"),
        ("starting", ""),
        ("scoring", "64 of 200 images of val, 2 settings"),
        ("finished", ""),
    ]


def test_a_server_is_left_alone_for_twenty_times_as_long_as_it_took_to_answer() -> None:
    assert watch_seconds(0.05) == WATCH_SECONDS == 2.0
    assert watch_seconds(0.5) == pytest.approx(10.0)
    assert watch_seconds(40.0) == LONGEST_WATCH_SECONDS
