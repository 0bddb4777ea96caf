"""What the driver shows of a training while it runs."""

from pathlib import Path

import pytest

from orchestrator.cluster.capacity import local_cluster
from orchestrator.driver.follow import LONGEST_WATCH_SECONDS, WATCH_SECONDS, Follower, watch_seconds
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.tracking import runs
from orchestrator.tracking.ledger import begin_training
from orchestrator.tracking.runs import open_tracking
from orchestrator.worker.task import Status, TrainingTask
from orchestrator.worker.training_log import Scoring, write_event
from tests.orchestrator.ledgers import experiment


def test_a_training_that_is_only_scored_says_how_many_images_are_done(mlflow_uri: str, tmp_path: Path) -> None:
    suite = open_tracking(mlflow_uri, "follow")
    (train_run,) = make_plan([experiment("table1", [Row(label="ours")])], Ledger()).trainings.values()
    task = TrainingTask(
        train_run=train_run,
        evaluations=(),
        is_trained=True,
        storage=tmp_path,
        data_root=tmp_path,
        weights_file=None,
        tracking_uri=mlflow_uri,
    )
    runs.set_status(mlflow_uri, begin_training(suite, train_run), "FINISHED")
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
