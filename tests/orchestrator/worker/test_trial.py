"""How a trial tells of a folder that takes nothing; no worker is started for it."""

import errno
import os
from pathlib import Path

import pytest

from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.worker import trial
from orchestrator.worker.task import TrainingTask
from tests.orchestrator.ledgers import experiment


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingTask:
    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "_run_workers", lambda *_: pytest.fail("workers were started"))
    (train_run,) = make_plan([experiment("table", [Row(label="ours")])], Ledger()).trainings.values()
    return TrainingTask(
        train_run=train_run,
        evaluations=(),
        is_trained=False,
        storage=tmp_path / "ray",
        data_root=tmp_path,
        weights_file=None,
        tracking_uri="http://127.0.0.1:9",
    )


def ended(task: TrainingTask) -> dict[str, str]:
    key = task.train_run.key
    return trial.run_trial({"key": key}, {key: task})


def test_a_file_in_the_place_of_its_folder_is_named_with_the_way_out(task: TrainingTask) -> None:
    task.storage.mkdir()
    task.folder.write_text("")
    said = "is a file, expected a folder; move it away, or set RNC_HOME to another place"
    assert ended(task) == {"error": f"{task.folder} {said}", "log": ""}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EPERM, "no access (Operation not permitted); change its permissions and attributes (lsattr)"),
        (errno.EACCES, "no access (Permission denied); change its permissions"),
        (errno.EROFS, "no access (Read-only file system); change its permissions"),
        (errno.EDQUOT, "the quota of the disk is used up; free some of it"),
    ],
)
def test_a_folder_that_takes_no_file_is_named_before_workers_start(
    task: TrainingTask, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    task.folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)  # the log of it is not taken either
    told = ended(task)
    assert told == {"error": f"{task.folder}: {said}, or set RNC_HOME to another place", "log": ""}


def test_what_fails_elsewhere_leaves_its_log_beside_the_checkpoints(
    task: TrainingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("epochs is 0, expected at least 1")

    monkeypatch.setattr(trial, "_run_workers", fail)
    told = ended(task)
    assert told["error"] == "epochs is 0, expected at least 1"
    assert "Traceback" in Path(told["log"]).read_text()
