"""Twelve cells of the fault matrix, on two suites; `make soak` runs all forty, each on a suite of its own."""

import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.worker.training_log import Again, End, Scoring, log_start, write_event
from tests.faults.__main__ import ATTEMPTS
from tests.faults.cells import FAULTS, JOURNEYS, MATRIX, MOMENTS, Cell
from tests.faults.ordeal import STEPS_PER_EPOCH, Bench, Missed, Ordeal, Result
from tests.faults.records import differences, read_record
from tests.faults.traces import Traces


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="rnc", dir="/tmp") as folder:  # Ray's sockets allow no long path
        yield Bench.open(Path(folder), rounds=1)


def test_the_journeys_meet_every_fault_and_every_moment():
    cells = [cell for journey in JOURNEYS for cell in journey]
    assert len(MATRIX) == 40 and len(set(cells)) == len(cells) == 12
    assert {cell.fault for cell in cells} == set(FAULTS)
    assert {cell.moment for cell in cells} == set(MOMENTS)


def test_what_mlflow_holds_is_the_same_only_to_the_last_digit_and_once(tmp_path: Path):
    def differing(*changes: str) -> list[str]:
        return list(differences(read_record(database(tmp_path / "one")), read_record(database(tmp_path, *changes))))

    assert differing() == []
    assert differing("insert into metrics values ('perf/images_per_s', 9.0, 2, 'r', 5, 0)") == []
    value = differing("update metrics set value = value + 1e-16 where step = 2")
    assert value == ["training k: 1 points are missing (train/loss at 2), 1 differ (train/loss at 2)"]
    again = differing("insert into metrics select key, value, 3, run_uuid, step, is_nan from metrics where step = 2")
    assert again[0] == "training k: doubled points of train/loss"
    assert differing("update tags set value = 'other' where key = 'checkpoint_sha256'")[0].startswith(
        "training k: tags"
    )
    assert differing("update runs set status = 'RUNNING'") == ["training k: status RUNNING, FINISHED in the reference"]
    assert differing("delete from runs") == ["training k: 0 runs, 1 in the reference"]


def database(folder: Path, *changes: str) -> Path:
    """A home whose MLflow holds one training of two points."""
    file = folder / "mlflow" / "mlflow.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in (
            "create table runs (run_uuid, status, lifecycle_stage)",
            "create table tags (key, value, run_uuid)",
            "create table params (key, value, run_uuid)",
            "create table metrics (key, value, timestamp, run_uuid, step, is_nan)",
            "insert into runs values ('r', 'FINISHED', 'active')",
            "insert into tags values ('kind', 'training', 'r'), ('train_key', 'k', 'r')",
            "insert into tags values ('checkpoint_sha256', 'a', 'r')",
            "insert into metrics values ('train/loss', 0.5, 1, 'r', 1, 0), ('train/loss', 0.25, 2, 'r', 2, 0)",
            *changes,
        ):
            connection.execute(statement)
    return folder


def test_the_moments_of_a_training_follow_each_other_in_its_files(tmp_path: Path):
    traces = Traces(folder=tmp_path, scratch=tmp_path, artifacts=tmp_path / "files", steps_per_epoch=STEPS_PER_EPOCH)

    def now() -> list[str]:
        return [moment for moment in MOMENTS if traces.holds(moment)]

    assert now() == []
    log_start(tmp_path, 2, 0, 3)
    assert now() == ["start"]
    point(tmp_path, 1)
    assert now() == []  # the first epoch has no checkpoint to go back to
    point(tmp_path, STEPS_PER_EPOCH + 10)
    assert now() == ["training"]
    commit(tmp_path, 1)
    partial = tmp_path / "tmpabc" / ".epoch-0002-01234567"
    partial.mkdir(parents=True)
    assert now() == ["saving"]
    commit(tmp_path, 3)
    (tmp_path / "run.json").write_text('{"run_id": "r"}')
    point(tmp_path, 3 * STEPS_PER_EPOCH)
    assert now() == []
    (tmp_path / "files" / "1" / "r" / "artifacts" / "checkpoint" / "model.safetensors").mkdir(parents=True)
    assert now() == ["uploading"]
    write_event(tmp_path, End(state="finished", reason="finished"))
    write_event(tmp_path, Scoring(num_done=0, num_images=8, split="val", num_settings=1))
    assert now() == ["scoring"]
    assert traces.goes_on_since(time.time() - 60, anew=True)
    time.sleep(0.01)
    log_start(tmp_path, 2, 3, 3)
    assert not traces.goes_on_since(time.time() - 60, anew=True)  # it has started, and not yet come further
    time.sleep(0.01)
    write_event(tmp_path, Again(num_images=20))
    assert now() == ["training"]


def point(folder: Path, step: int) -> None:
    """A point of a curve, in a later millisecond than whatever is there."""
    time.sleep(0.01)
    line = {"step": step, "timestamp": int(time.time() * 1000), "metrics": {"train/loss": 1.0}}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def commit(folder: Path, epoch: int) -> None:
    """The note by which Ray Train says that a checkpoint is whole."""
    latest = {"latest_checkpoint_result": {"checkpoint_dir_name": f"epoch-{epoch:04d}"}}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(latest))


@pytest.mark.slow
@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: f"{len(journey)} faults")
def test_a_suite_that_is_struck_ends_with_the_weights_and_metrics_of_one_that_was_not(
    bench: Bench, journey: Sequence[Cell], capsys: pytest.CaptureFixture[str]
):
    result = ordeal(bench, journey)
    with capsys.disabled():
        print("", *result.blows, sep="\n")
    assert [(blow.fault, blow.moment) for blow in result.blows] == [(cell.fault, cell.moment) for cell in journey]
    assert list(result.wrong) == []


def ordeal(bench: Bench, journey: Sequence[Cell]) -> Result:
    """Try again where a moment was over too soon: what was not struck in its moment shows nothing."""
    for attempt in range(ATTEMPTS):
        one = Ordeal(bench, f"{journey[0].fault}-{attempt}")
        try:
            return one.run(journey)
        except Missed as missed:
            print(missed)
    pytest.fail(f"a moment was missed {ATTEMPTS} times")
